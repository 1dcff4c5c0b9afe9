"""Compares the predictions of two models on a text, token by token.

One model is in memory at a time: the logits of the first are kept in a temporary file.
"""

from __future__ import annotations

import gc
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conversion.weights.tensor_source import Array
from mistral_jax.notebook.language_model import LanguageModel

CHUNK_TOKENS = 512
"""Texts are cut into pieces of this many tokens, each a text of its own (after BOS if the model uses one)."""
_ROWS = 32
"""Number of predictions that are compared at a time, in float64."""


class VocabularyMismatchError(ValueError):
    """Two models have vocabularies of different sizes or tokens: their logits cannot be compared."""


@dataclass(frozen=True, kw_only=True)
class LogitDifference:
    """How the predictions of B differ from those of A, at temperature 1, with natural logarithms."""

    tokens: int
    """Number of predicted tokens of the text."""
    max_abs: float
    """Largest absolute difference of two logits."""
    mean_abs: float
    mean_kl: float
    """Mean Kullback-Leibler divergence of B's predictions from A's, in nats: sum of p_a * (log p_a - log p_b)."""
    max_kl: float
    top1_agreement: float
    """Share of tokens for which both have the same most likely next token."""
    perplexity_a: float
    perplexity_b: float


@dataclass
class _Sums:
    """Running totals over the tokens compared so far."""

    tokens: int = 0
    logits: int = 0
    max_abs: float = 0.0
    sum_abs: float = 0.0
    sum_kl: float = 0.0
    max_kl: float = 0.0
    agreed: int = 0
    loss_a: float = 0.0
    loss_b: float = 0.0

    def add(self, a: Array, b: Array, following: Array) -> None:
        """Args:
        a, b: the logits of both [T, V].
        following: the tokens that follow [T].
        """
        difference = np.abs(a - b)
        log_p, log_q = _log_softmax(a), _log_softmax(b)
        kl = np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)
        index = np.arange(len(following))
        self.tokens += len(following)
        self.logits += a.size
        self.max_abs = float(np.maximum(self.max_abs, np.max(difference)))
        self.sum_abs += float(np.sum(difference, dtype=np.float64))
        self.sum_kl += float(np.sum(kl))
        self.max_kl = float(np.maximum(self.max_kl, np.max(kl)))
        self.agreed += int(np.sum(np.argmax(a, axis=-1) == np.argmax(b, axis=-1)))
        self.loss_a -= float(np.sum(log_p[index, following]))
        self.loss_b -= float(np.sum(log_q[index, following]))

    def result(self) -> LogitDifference:
        return LogitDifference(
            tokens=self.tokens,
            max_abs=self.max_abs,
            mean_abs=self.sum_abs / self.logits,
            # Rounding can make a sum of zeros slightly negative.
            mean_kl=max(0.0, self.sum_kl / self.tokens),
            max_kl=self.max_kl,
            top1_agreement=self.agreed / self.tokens,
            perplexity_a=math.exp(self.loss_a / self.tokens),
            perplexity_b=math.exp(self.loss_b / self.tokens),
        )


def compare_logits(
    load_a: Callable[[], LanguageModel], load_b: Callable[[], LanguageModel], text: str, *, max_tokens: int
) -> LogitDifference:
    """Run both models over a text, one after the other.

    Disk: `max_tokens` times the vocabulary times 4 bytes in the temporary folder.

    Args:
      load_a, load_b: each is called once; the first model is freed before the second is loaded.
      max_tokens: maximum tokens of the text; the rest is ignored.
    Raises:
      VocabularyMismatchError: the models' vocabularies differ in size, or they tokenize the text differently.
      ValueError: the text has fewer than two tokens.
    """
    with tempfile.TemporaryDirectory(prefix="mistral-jax-verify-") as folder:
        path = Path(folder) / "logits"
        pieces, shape = _run_first(load_a(), text, max_tokens, path)
        gc.collect()  # weights may be in reference cycles, and B needs their memory
        return _run_second(load_b(), text, max_tokens, pieces, np.memmap(path, np.float32, "r", shape=shape))


def _run_first(model: LanguageModel, text: str, max_tokens: int, path: Path) -> tuple[list[list[int]], tuple[int, int]]:
    pieces = text_pieces(model, text, max_tokens)
    with path.open("wb") as file:
        for piece in pieces:
            np.asarray(model.logits(piece))[:-1].tofile(file)
    return pieces, (sum(len(piece) - 1 for piece in pieces), model.config.vocab_size)


def _run_second(
    model: LanguageModel, text: str, max_tokens: int, pieces: list[list[int]], logits_a: Array
) -> LogitDifference:
    if model.config.vocab_size != logits_a.shape[1]:
        raise VocabularyMismatchError(
            f"the logits cannot be compared: A has a vocabulary of {logits_a.shape[1]} and B one of "
            f"{model.config.vocab_size}"
        )
    if text_pieces(model, text, max_tokens) != pieces:
        raise VocabularyMismatchError(
            "the logits cannot be compared: the tokenizers of A and B turn the text into different tokens"
        )
    sums = _Sums()
    row = 0
    for piece in pieces:
        logits_b, following = np.asarray(model.logits(piece))[:-1], np.asarray(piece[1:])
        for first in range(0, len(following), _ROWS):
            rows = slice(first, min(first + _ROWS, len(following)))
            sums.add(np.asarray(logits_a[row : row + rows.stop - first]), logits_b[rows], following[rows])
            row += rows.stop - first
    return sums.result()


def text_pieces(model: LanguageModel, text: str, max_tokens: int) -> list[list[int]]:
    """Token ids of a text, in pieces of at most `CHUNK_TOKENS`.

    Raises:
      ValueError: there is no token to predict.
    """
    beginning = model.encode("")
    tokens = model.encode(text)[len(beginning) :][:max_tokens]
    size = min(CHUNK_TOKENS, model.config.max_position_embeddings) - len(beginning)
    pieces = [beginning + tokens[first : first + size] for first in range(0, len(tokens), size)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise ValueError("the text is too short to compare predictions on: it has fewer than two tokens")
    return pieces


def _log_softmax(logits: Array) -> Array:
    """float64 [T, V]"""
    shifted = logits.astype(np.float64) - np.max(logits, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
