"""The KV cache as the scheduler sees it: which sequences have room, what they share, and who makes room for others.

    admission     shares the blocks that are kept of a prompt, and takes room for the rest of it
    growth        a sequence takes further blocks as it gets longer
    too little    the youngest sequence is taken out of its slot, and goes on later with the same bits
    end           its blocks stay, for other sequences that begin alike, until somebody needs them

Sequences that are admitted together and begin alike wait for the first of them, and then share what it has run.

Pure Python: no JAX, no threads, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mistral_jax.model.table_kinds import SPARE
from mistral_jax.runtime.blocks.allocator import BlockAllocator, SequenceBlocks
from mistral_jax.runtime.blocks.moves import Move, PutIn, SetTables, TakeOut

LOOKAHEAD = 16
"""Tokens that have room beyond those that a sequence holds: a round may add so many, speculative ones included."""

_WORTH_WAITING = 16
"""Tokens more that are shared if a sequence waits for another."""


@dataclass(eq=False, slots=True)
class CacheUse:
    """What a sequence has of the cache. Compared by identity."""

    blocks: SequenceBlocks
    key: Hashable
    cached: int = 0
    """Tokens of its prompt that others had run."""
    ran: int = 0
    """Tokens of its prompt that are in the cache once all dispatched work has run."""
    source: CachedSequence | None = None
    """The sequence that it waits for, which will run what both begin with."""
    shared: int = 0
    """So much of it."""


class CachedSequence(Protocol):
    """A sequence, as the cache sees it."""

    slot: int
    gone: bool
    use: CacheUse | None

    @property
    def prompt(self) -> tuple[int, ...]: ...

    @property
    def most_tokens(self) -> int:
        """Of prompt and completion together."""
        ...

    @property
    def tokens_held(self) -> int: ...

    @property
    def known(self) -> tuple[Sequence[int], int]:
        """Its tokens as far as they are known, and how many of them have surely been run."""
        ...


class SequenceCache[S: CachedSequence]:
    """Args:
    allocator: of the runner's state.
    rows: slots of the tables.
    key: what, besides the tokens, the cache's content of a sequence depends on; None: it shares nothing.
    """

    def __init__(self, allocator: BlockAllocator, *, rows: int, key: Callable[[S], Hashable]) -> None:
        self._allocator = allocator
        self._key = key
        self._tables = [np.full((rows, kind.blocks), SPARE, np.int32) for kind in allocator.kinds]
        self._moves: list[Move] = []
        self.queried = 0
        """Tokens of all prompts that might have been in the cache."""
        self.hits = 0
        """Those that were."""
        self.put_back = 0
        """Sequences that were taken out for others, so far."""

    @property
    def usage(self) -> float:
        """Fraction of the blocks that sequences have."""
        return self._allocator.usage

    def enter(self, sequence: S, running: Iterable[S]) -> bool:
        """Give a sequence room for its prompt. False: there is too little beside the others."""
        use = sequence.use
        if use is None:
            opened = self._allocator.open(self._key(sequence), sequence.prompt)
            use = CacheUse(opened.blocks, opened.blocks.key, opened.cached, opened.cached)
            if not self._has_room(use.blocks, self._soon(sequence), sequence, running):
                self._allocator.close(use.blocks)
                return False
            sequence.use = use
            if opened.copy is not None:
                self._moves.append(opened.copy)
            if not self._allocator.reserve(use.blocks, self._soon(sequence)):
                raise AssertionError("room was counted wrongly")
            self._wait_for_another(sequence, use, running)
            return True
        if not self._has_room(use.blocks, self._soon(sequence), sequence, running):
            return False
        if not self._allocator.reserve(use.blocks, self._soon(sequence)):
            raise AssertionError("room was counted wrongly")
        use.blocks.is_changed = True
        self._moves.append(PutIn(sequence, _copied(use.blocks.tables)))
        return True

    def _soon(self, sequence: S) -> int:
        """The tokens that a sequence needs room for to run its prompt and its next steps."""
        return min(max(len(sequence.prompt), sequence.tokens_held) + LOOKAHEAD, sequence.most_tokens)

    def _has_room(self, blocks: SequenceBlocks, tokens: int, sequence: S, running: Iterable[S]) -> bool:
        """Whether so many tokens find room, and every sequence a further block after that."""
        allocator = self._allocator
        needed = allocator.missing(blocks, tokens)
        later = [
            min(all_of_it - now, 1)
            for all_of_it, now in zip(allocator.missing(blocks, sequence.most_tokens), needed, strict=True)
        ]
        for other in running:
            assert other.use is not None
            missing = allocator.missing(other.use.blocks, other.most_tokens)
            later = [count + min(more, 1) for count, more in zip(later, missing, strict=True)]
        return all(now + more <= free for now, more, free in zip(needed, later, allocator.available(), strict=True))

    def _wait_for_another(self, sequence: S, use: CacheUse, running: Iterable[S]) -> None:
        """Let a sequence wait if another is about to run more of what both begin with."""
        reuse = self._allocator.reuse
        if use.key is None or reuse is None:
            return
        for other in running:
            theirs = other.use
            if other is sequence or theirs is None or theirs.key != use.key:
                continue
            most = min(len(sequence.prompt), len(other.prompt)) - 1
            if theirs.ran >= len(other.prompt) - 1 or most <= use.cached:
                continue
            shared = _common(sequence.prompt, other.prompt, most) // reuse.unit * reuse.unit
            if shared >= max(use.cached, use.shared) + _WORTH_WAITING:
                use.source, use.shared = other, shared

    def starts(self, sequence: S) -> bool:
        """Whether a sequence that was admitted can run its prompt from `use.cached` on."""
        use = sequence.use
        assert use is not None
        source = use.source
        if source is None:
            return True
        if not source.gone and source.slot >= 0 and source.use is not None and source.use.ran < use.shared:
            return False
        use.source = None
        self._allocator.close(use.blocks)
        opened = self._allocator.open(use.key, sequence.prompt)
        use.blocks, use.cached, use.ran = opened.blocks, opened.cached, opened.cached
        if opened.copy is not None:
            self._moves.append(opened.copy)
        if not self._allocator.reserve(use.blocks, self._soon(sequence)):
            raise AssertionError("blocks that were given back are gone")
        return True

    def started(self, sequence: S) -> None:
        """A sequence begins to run its prompt."""
        use = sequence.use
        assert use is not None
        if use.key is not None:
            self.queried += len(sequence.prompt) - 1
            self.hits += use.cached

    def runs(self, sequence: S, stop: int) -> None:
        """A chunk of its prompt is dispatched in this round, up to token `stop`."""
        use = sequence.use
        assert use is not None
        if not self._allocator.prepare(use.blocks, stop):
            raise AssertionError("a prompt has no room")
        use.ran = stop
        self._allocator.filled(use.blocks, sequence.prompt, min(stop, len(sequence.prompt) - 1))

    def grow(self, sequence: S) -> bool:
        """Make room for the next step. False: there is none."""
        use = sequence.use
        assert use is not None
        return self._allocator.prepare(use.blocks, min(sequence.tokens_held + LOOKAHEAD, sequence.most_tokens))

    def take_out(self, sequence: S, held: int) -> None:
        """Take a sequence's blocks away, which it needs again to go on.

        Args:
          held: tokens that it holds once all dispatched work has run.
        """
        use = sequence.use
        assert use is not None
        tables = [
            [block if entry < kind.needed(held) else SPARE for entry, block in enumerate(table)]
            for kind, table in zip(self._allocator.kinds, use.blocks.tables, strict=True)
        ]
        self._moves.append(TakeOut(sequence, sequence.slot, _copied(tables)))
        self._allocator.close(use.blocks)
        use.source = None
        self.put_back += 1

    def leave(self, sequence: S) -> None:
        """A sequence ends; what it has run may serve others."""
        use = sequence.use
        if use is None:
            return
        tokens, count = sequence.known
        reuse = self._allocator.reuse
        if reuse is not None and reuse.completions and sequence.slot >= 0:
            self._allocator.filled(use.blocks, tokens, count)
        self._allocator.close(use.blocks)
        sequence.use = None

    def take_moves(self, running: Iterable[S]) -> tuple[Move, ...]:
        """What the device has to do before the work of this round."""
        changed = False
        for sequence in running:
            use = sequence.use
            if use is not None and use.blocks.is_changed:
                for table, own in zip(self._tables, use.blocks.tables, strict=True):
                    table[sequence.slot] = own
                use.blocks.is_changed, changed = False, True
        moves, self._moves = self._moves, []
        if changed:
            moves.append(SetTables(tuple(table.copy() for table in self._tables)))
        return tuple(moves)


def _copied(tables: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(table) for table in tables)


def _common(a: Sequence[int], b: Sequence[int], most: int) -> int:
    """Length of the common beginning, at most `most`."""
    if a[:most] == b[:most]:
        return most
    low, high = 0, most
    while low + 1 < high:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low
