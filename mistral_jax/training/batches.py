"""Examples to batches: few lengths, little padding, and an order determined by a seed.

Texts of about the same length are batched together and padded to one of a few lengths, so that a run compiles few
programs. Each row is one text that begins at position 0, as in serving; texts are not packed into one row, where they
would attend to each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from mistral_jax.training.chat_data import DataError, Example

_GRAIN = 8
"""Lengths are multiples of it: whole vectors."""


class Batch(NamedTuple):
    """Rows of one length. Rows that only fill the batch have weight 0."""

    tokens: np.ndarray
    """int32 [B, T + 1]"""
    weights: np.ndarray
    """float32 [B, T]: 1 where the next token counts."""

    real: int
    """Tokens without padding."""

    @property
    def counted(self) -> int:
        return int(self.weights.sum())


def limit_lengths(
    examples: Sequence[Example], most: int, too_long: Literal["refuse", "skip", "cut"]
) -> tuple[list[Example], int]:
    """Examples of at most `most` tokens, and how many were left out or cut.

    Raises:
      DataError: one is longer and `too_long` is "refuse"; or none with a token that counts is left.
    """
    kept: list[Example] = []
    changed = 0
    for number, example in enumerate(examples):
        if len(example) > most:
            if too_long == "refuse":
                raise DataError(
                    f"example {number + 1} of {len(examples)} has {len(example)} tokens, and max_length is {most}; "
                    "raise it, or skip or cut longer ones (too_long)"
                )
            changed += 1
            if too_long == "skip":
                continue
            example = Example(example.tokens[:most], example.counted[:most])
        # All tokens that count may have been cut.
        if example.counted[1:].any():
            kept.append(example)
    if not kept:
        raise DataError(f"no example is left of {len(examples)}: all are longer than max_length, {most}")
    return kept, changed


def check_tokens(examples: Sequence[Example], vocabulary: int) -> None:
    """Check that the model has all tokens; JAX would clamp others to the last one.

    Raises:
      DataError: names the first that it lacks.
    """
    for number, example in enumerate(examples):
        for token in (int(example.tokens.min()), int(example.tokens.max())):
            if not 0 <= token < vocabulary:
                raise DataError(
                    f"example {number + 1} has token {token}, and the model has {vocabulary}: "
                    "it was made with another tokenizer"
                )


def split_off(examples: Sequence[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Examples to train on and examples held out, chosen by the seed.

    Raises:
      DataError: one of the two would be empty.
    """
    if fraction == 0:
        return list(examples), []
    count = round(len(examples) * fraction)
    if not 0 < count < len(examples):
        raise DataError(
            f"validation_split is {fraction} of {len(examples)} examples, which leaves none for one of the two; "
            "give another fraction, or a file"
        )
    held_out = set(np.random.default_rng([seed, 1]).permutation(len(examples))[:count].tolist())
    return (
        [example for i, example in enumerate(examples) if i not in held_out],
        [example for i, example in enumerate(examples) if i in held_out],
    )


def choose_lengths(lengths: Sequence[int], most: int) -> tuple[int, ...]:
    """At most `most` lengths to pad to, chosen so that examples with these lengths need the least padding."""
    rounded, counts = np.unique(-(-np.asarray(lengths) // _GRAIN) * _GRAIN, return_counts=True)
    n = len(rounded)
    ends = np.concatenate([[0], np.cumsum(counts)])
    # cost[k][j]: tokens when the j shortest lengths are padded to k lengths, the longest of them being one.
    cost = np.full((most + 1, n + 1), np.inf)
    cost[0, 0] = 0
    cut = np.zeros((most + 1, n + 1), np.int64)
    for k in range(1, most + 1):
        for j in range(1, n + 1):
            tokens = cost[k - 1, :j] + rounded[j - 1] * (ends[j] - ends[:j])
            cut[k, j] = int(np.argmin(tokens))
            cost[k, j] = tokens[cut[k, j]]
    k, j = int(np.argmin(cost[:, n])), n
    chosen: list[int] = []
    while j > 0:
        chosen.append(int(rounded[j - 1]))
        k, j = k - 1, int(cut[k, j])
    return tuple(reversed(chosen))


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of some examples, numbered without end: batch `i` is the same on every run.

    Every example is in one batch of each epoch.
    """

    examples: Sequence[Example]
    batch_tokens: int
    """Approximate tokens of a batch."""
    buckets: int
    """Most lengths."""
    seed: int
    shuffled: bool = True

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """The lengths T of batches, ascending."""
        return choose_lengths([len(example) - 1 for example in self.examples], self.buckets)

    @cached_property
    def _members(self) -> list[np.ndarray]:
        """For each length the numbers of its examples."""
        where = np.searchsorted(self.lengths, [len(example) - 1 for example in self.examples])
        return [np.flatnonzero(where == i) for i in range(len(self.lengths))]

    def rows(self, bucket: int) -> int:
        return min(max(1, self.batch_tokens // self.lengths[bucket]), len(self._members[bucket]))

    @cached_property
    def per_epoch(self) -> int:
        return sum(-(-len(members) // self.rows(i)) for i, members in enumerate(self._members))

    @property
    def tokens(self) -> int:
        """Tokens of all examples."""
        return sum(len(example) for example in self.examples)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the examples and the way they are batched."""
        digest = hashlib.sha256(repr((self.batch_tokens, self.buckets, self.seed, self.shuffled)).encode())
        for example in self.examples:
            digest.update(len(example).to_bytes(8, "little"))
            digest.update(example.tokens.tobytes())
            digest.update(example.counted.tobytes())
        return digest.hexdigest()[:16]

    def __getitem__(self, number: int) -> Batch:
        epoch, index = divmod(number, self.per_epoch)
        bucket, members = self._epoch(epoch)[index]
        T = self.lengths[bucket]
        tokens = np.zeros((self.rows(bucket), T + 1), np.int32)
        weights = np.zeros((self.rows(bucket), T), np.float32)
        for row, member in enumerate(members):
            example = self.examples[member]
            tokens[row, : len(example)] = example.tokens
            weights[row, : len(example) - 1] = example.counted[1:]
        return Batch(tokens, weights, sum(len(self.examples[member]) for member in members))

    def _epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """Bucket and examples of each batch of an epoch."""
        if self._kept.get("epoch") == epoch:
            return self._kept["batches"]
        rng = np.random.default_rng([self.seed, 2, epoch])
        batches: list[tuple[int, np.ndarray]] = []
        for bucket, members in enumerate(self._members):
            order = rng.permutation(members) if self.shuffled else members
            rows = self.rows(bucket)
            batches += [(bucket, order[start : start + rows]) for start in range(0, len(order), rows)]
        if self.shuffled:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        self._kept.update(epoch=epoch, batches=batches)
        return batches

    @cached_property
    def _kept(self) -> dict[str, Any]:
        """The last epoch requested: making one takes a while, and batches are requested in order."""
        return {}
