"""Gives sequences blocks of the KV cache, shares those of kept prefixes, and says what the device has to do for it.

    blocks, cached = allocator.open(key, prompt)      shares what is kept of the prompt: its first `cached` tokens
    allocator.reserve(blocks, tokens)                 room for so many tokens; False: there is not so much
    allocator.prepare(blocks, tokens)                 before the tokens up to there are run
    allocator.filled(blocks, tokens, count)           when what runs them is dispatched: others may share their blocks
    allocator.close(blocks)                           the sequence ends; its blocks are kept until others need them

The device runs what is dispatched in order. So a block may be shared as soon as the work that fills it is dispatched,
and may be taken from a sequence whose last step still runs.

Axis letters: C blocks of a table, J tokens of a block.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mistral_jax.model.table_kinds import BLOCK, SPARE, TableKind
from mistral_jax.runtime.blocks.moves import CopyBlock
from mistral_jax.runtime.blocks.pool import BlockPool
from mistral_jax.runtime.blocks.prefixes import Match, Prefix, PrefixTree


@dataclass(frozen=True, kw_only=True, slots=True)
class Reuse:
    """Which tokens in the cache may serve other sequences, so that these get the bits that they would compute."""

    unit: int = 1
    """Prompts are reused in multiples of so many tokens: 1 where a token's keys and values do not depend on the chunk
    that it was run in, else the size of the largest chunk."""
    completions: bool = True
    """Whether decode steps store what chunks would store for the same tokens."""


class Opened(NamedTuple):
    blocks: SequenceBlocks
    cached: int
    """Tokens of the prompt that need not be run."""
    copy: CopyBlock | None
    """To be dispatched before any other work of the sequence, and before what is planned after this."""


@dataclass(eq=False, slots=True)
class SequenceBlocks:
    """The blocks of one sequence. Made and changed by its allocator."""

    key: Hashable
    """None: it shares nothing."""
    tables: list[list[int]]
    """For each kind, C blocks; `SPARE` where it has none."""
    path: list[Prefix] = field(default_factory=list[Prefix])
    """The kept prefix of its first whole blocks."""
    tail: Prefix | None = None
    """The kept block after them that it fills further."""
    held: list[Prefix] = field(default_factory=list[Prefix])
    """Blocks of `path` that are not in its tables, since it has filled others with the same tokens."""
    prepared: int = 0
    """Its first blocks that have been prepared."""
    is_changed: bool = True
    """Whether the device has other tables. Whoever takes these there resets it."""


class BlockAllocator:
    """Args:
    kinds: of the tables.
    counts: blocks of each kind's pool, the spare one included.
    reuse: None: nothing is kept.
    """

    def __init__(self, kinds: Sequence[TableKind], counts: Sequence[int], *, reuse: Reuse | None) -> None:
        for kind, count in zip(kinds, counts, strict=True):
            if count <= kind.blocks:
                raise ValueError(f"a pool of {count} blocks: expected more than the {kind.blocks} of a table")
        self.kinds = tuple(kinds)
        self.reuse = reuse
        self._pools = [
            BlockPool(count, in_rings=kind.window is not None) for kind, count in zip(kinds, counts, strict=True)
        ]
        self._tree = PrefixTree()

    @property
    def usage(self) -> float:
        """Fraction of the blocks that sequences have, of the fullest pool; kept ones are not counted."""
        return max(pool.used / (pool.count - 1) for pool in self._pools)

    @property
    def kept(self) -> int:
        """Tokens that are kept for others, at most: those of blocks that no sequence uses."""
        return max(pool.idle for pool in self._pools) * BLOCK

    def open(self, key: Hashable, prompt: Sequence[int]) -> Opened:
        """Begin a sequence with the blocks that are kept of its prompt, all tokens but the last.

        Args:
          key: what the cache's content depends on besides the tokens; None: it shares nothing.
        """
        blocks = SequenceBlocks(None if self.reuse is None else key, [[SPARE] * kind.blocks for kind in self.kinds])
        if self.reuse is None or key is None:
            return Opened(blocks, 0, None)
        match = self._usable(self._tree.match(key, prompt, len(prompt) - 1))
        self._share(blocks, match)
        copy = None
        if match.tail is not None and not self._adopt(blocks, match):
            if any(pool.available <= 0 for pool in self._pools):
                self.close(blocks)
                return Opened(SequenceBlocks(key, blocks.tables), 0, None)
            copy = self._copy(blocks, match)
        cached = len(match.path) * BLOCK + match.tail_count
        blocks.prepared = -(-cached // BLOCK)
        return Opened(blocks, cached, copy)

    def reserve(self, blocks: SequenceBlocks, tokens: int) -> bool:
        """Take blocks so that `tokens` tokens have room. False: there are too few; then it has taken none."""
        missing = [
            [entry for entry in range(kind.needed(tokens)) if table[entry] == SPARE]
            for kind, table in zip(self.kinds, blocks.tables, strict=True)
        ]
        if any(len(entries) > pool.available for entries, pool in zip(missing, self._pools, strict=True)):
            return False
        for number, entries in enumerate(missing):
            for entry in entries:
                blocks.tables[number][entry] = self._take(number)
                blocks.is_changed = True
        return True

    def prepare(self, blocks: SequenceBlocks, tokens: int) -> bool:
        """Make sure that the first `tokens` tokens can be written: `reserve`, and no block that is written is shared.

        In a ring a block is written again and again; one that is kept for others is replaced.
        """
        if not self.reserve(blocks, tokens):
            return False
        last = -(-tokens // BLOCK)
        for number, (kind, pool) in enumerate(zip(self.kinds, self._pools, strict=True)):
            table = blocks.tables[number]
            for entry in {block % kind.blocks for block in range(max(blocks.prepared, kind.blocks), last)}:
                if not pool.is_own(table[entry]):
                    pool.release(table[entry])
                    table[entry] = self._take(number)
                    blocks.is_changed = True
        blocks.prepared = max(blocks.prepared, last)
        return True

    def missing(self, blocks: SequenceBlocks, tokens: int) -> list[int]:
        """For each kind, the blocks that `reserve` would take."""
        return [
            sum(1 for block in table[: kind.needed(tokens)] if block == SPARE)
            for kind, table in zip(self.kinds, blocks.tables, strict=True)
        ]

    def available(self) -> list[int]:
        """For each kind, the blocks that can be had."""
        return [pool.available for pool in self._pools]

    def filled(self, blocks: SequenceBlocks, tokens: Sequence[int], count: int) -> None:
        """The cache of a sequence holds the first `count` of its tokens: keep their blocks for others."""
        reuse = self.reuse
        if reuse is None or blocks.key is None:
            return
        count = count // reuse.unit * reuse.unit
        while (len(blocks.path) + 1) * BLOCK <= count:
            start = len(blocks.path) * BLOCK
            if not self._keep(blocks, tuple(tokens[start : start + BLOCK])):
                return
        start = len(blocks.path) * BLOCK
        if count > start:
            self._keep(blocks, tuple(tokens[start:count]))

    def close(self, blocks: SequenceBlocks) -> None:
        """Give back the blocks of a sequence, all at once. It may `reserve` others and go on."""
        path = blocks.path if blocks.tail is None else [*blocks.path, blocks.tail]
        self._tree.touch([node for node in path if not node.is_forgotten])
        for pool, table in zip(self._pools, blocks.tables, strict=True):
            for block in table:
                if block != SPARE:
                    pool.release(block)
        for node in blocks.held:
            for pool, block in self._whole_blocks(node):
                pool.release(block)
        blocks.tables = [[SPARE] * kind.blocks for kind in self.kinds]
        blocks.path, blocks.held, blocks.tail = [], [], None
        if path:
            self._remove_empty(path[-1])

    def _usable(self, match: Match) -> Match:
        """The longest part of a match that a sequence can go on from."""
        assert self.reuse is not None
        unit = self.reuse.unit
        path, tail = match.path, match.tail
        count = (len(path) * BLOCK + match.tail_count) // unit * unit
        while count:
            whole, rest = divmod(count, BLOCK)
            nodes = path[: whole + 1] if rest and whole < len(path) else path[:whole]
            if rest and whole == len(path):
                assert tail is not None
                nodes = [*path, tail]
            if all(
                node.blocks[number] != SPARE
                for number, kind in enumerate(self.kinds)
                for node in nodes[kind.first_seen(count) :]
            ):
                return Match(path[:whole], nodes[-1] if rest else None, rest)
            count = (count - 1) // BLOCK * BLOCK // unit * unit
        return Match([])

    def _share(self, blocks: SequenceBlocks, match: Match) -> None:
        """Put the whole blocks of a match into the tables."""
        cached = len(match.path) * BLOCK + match.tail_count
        for number, kind in enumerate(self.kinds):
            first = kind.first_seen(cached)
            for place in range(first, len(match.path)):
                block = match.path[place].blocks[number]
                self._pools[number].share(block)
                blocks.tables[number][place % kind.blocks] = block
        blocks.path = list(match.path)

    def _adopt(self, blocks: SequenceBlocks, match: Match) -> bool:
        """Fill the block that matches in part further, if all its tokens match and nobody else does so."""
        tail, place = match.tail, len(match.path)
        assert tail is not None
        is_free = all(pool.is_idle(block) for pool, block in zip(self._pools, tail.blocks, strict=True))
        if not is_free or tail.is_whole or match.tail_count < len(tail.tokens):
            return False
        for kind, pool, table, block in zip(self.kinds, self._pools, blocks.tables, tail.blocks, strict=True):
            pool.share(block)
            table[place % kind.blocks] = block
        blocks.tail = tail
        return True

    def _copy(self, blocks: SequenceBlocks, match: Match) -> CopyBlock:
        """Take a block for the copy of the one that matches in part."""
        tail, place = match.tail, len(match.path)
        assert tail is not None
        # Taking a block may forget the source. It is copied before anything else is written to it.
        sources = tuple(tail.blocks)
        targets = tuple(self._take(number) for number in range(len(self.kinds)))
        for kind, table, block in zip(self.kinds, blocks.tables, targets, strict=True):
            table[place % kind.blocks] = block
        return CopyBlock(sources, targets)

    def _keep(self, blocks: SequenceBlocks, tokens: tuple[int, ...]) -> bool:
        """Keep the block after `path`, whole or in part. False: there is nothing to keep it after."""
        parent = blocks.path[-1] if blocks.path else self._tree.root(blocks.key)
        if parent.is_forgotten:
            return False
        place, is_whole = len(blocks.path), len(tokens) == BLOCK
        tail = blocks.tail
        if is_whole and (same := parent.whole.get(tokens)) is not None:
            if tail is not None and tail is not same:
                self._forget(tail)
            blocks.tail = None
            if same is not tail:
                for pool, block in self._whole_blocks(same):
                    pool.share(block)
                blocks.held.append(same)
            blocks.path.append(same)
            return True
        if tail is not None and not tail.is_forgotten:
            if len(tokens) > len(tail.tokens):
                self._tree.extend(tail, tokens)
        elif not is_whole and self._tree.has(parent, tokens):
            return True
        else:
            # Of a ring a later block may have replaced it.
            own = [
                table[place % kind.blocks] if blocks.prepared - place <= kind.blocks else SPARE
                for kind, table in zip(self.kinds, blocks.tables, strict=True)
            ]
            for pool, block in zip(self._pools, own, strict=True):
                if block != SPARE:
                    pool.keep(block)
            blocks.tail = self._tree.add(parent, tokens, own)
        if is_whole:
            assert blocks.tail is not None
            blocks.path.append(blocks.tail)
            blocks.tail = None
        return True

    def _whole_blocks(self, node: Prefix) -> list[tuple[BlockPool, int]]:
        """The blocks of a prefix in pools without a window, where they stay as long as the prefix."""
        return [
            (pool, block)
            for kind, pool, block in zip(self.kinds, self._pools, node.blocks, strict=True)
            if kind.window is None
        ]

    def _take(self, number: int) -> int:
        """A block of a kind; forgets a kept one if none is free. There must be one of both."""
        pool = self._pools[number]
        if not pool.free:
            self._make_free(number)
        return pool.take()

    def _make_free(self, number: int) -> None:
        pool, windowed = self._pools[number], self.kinds[number].window is not None
        busy: list[Prefix] = []
        for node in self._tree:
            block = node.blocks[number]
            if block == SPARE:
                continue
            if not pool.is_idle(block):
                busy.append(node)
            elif windowed or not node.following:
                break
        else:
            raise AssertionError("no block is idle")
        for other in busy:
            self._tree.postpone(other)
        if windowed:
            pool.forget(node.blocks[number])
            node.blocks[number] = SPARE
            self._remove_empty(node)
        else:
            self._forget(node)

    def _forget(self, node: Prefix) -> None:
        """Forget a block that nothing follows."""
        for pool, block in zip(self._pools, node.blocks, strict=True):
            if block != SPARE:
                pool.forget(block)
        parent = node.parent
        self._tree.remove(node)
        if parent is not None:
            self._remove_empty(parent)

    def _remove_empty(self, node: Prefix) -> None:
        """Remove a prefix that has no blocks and that nothing follows, and those before it that are then alike."""
        while not (
            node.parent is None or node.is_forgotten or node.following or any(block != SPARE for block in node.blocks)
        ):
            parent = node.parent
            self._tree.remove(node)
            node = parent
