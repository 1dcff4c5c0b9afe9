"""The prefixes whose blocks are kept: a tree of blocks of tokens for each kind of sequence.

    root ── "You are a helpful …" ─┬─ "… What is 2 + 2?" ── "… 4. And"      three blocks, the last one partly filled
                                   └─ "… Who was"

What the cache holds for a token depends on the tokens before it and on the sequence's adapters, so a block belongs to
the path from its root, and each combination of adapters has a root of its own. A new sequence shares the blocks of the
path that its prompt matches. Of a block that matches in part, or is only partly filled, it gets a copy.

Blocks are forgotten when others need the room: the least recently used first, and a block before the one it follows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from mistral_jax.model.table_kinds import BLOCK

_MOST_COMPARED = 16
"""Blocks that follow the same one and begin with the same token, of which so many are compared with a prompt, the
newest first."""


@dataclass(eq=False, slots=True)
class Prefix:
    """A block of tokens after those of its parent. Compared by identity."""

    parent: Prefix | None
    """None: this is a root, which has no tokens and no blocks."""
    tokens: tuple[int, ...]
    blocks: list[int]
    """For each kind of table; `SPARE` where the block was forgotten. Their first `len(tokens)` places hold what belongs
    to the tokens; the sequence that filled them may write to later ones."""
    whole: dict[tuple[int, ...], Prefix] = field(default_factory=dict)
    """Whole blocks that follow, by their tokens."""
    following: dict[int, list[Prefix]] = field(default_factory=dict)
    """All blocks that follow, by their first token; newest last."""
    key: Hashable = None
    """Of a root."""
    is_forgotten: bool = False

    @property
    def is_whole(self) -> bool:
        return len(self.tokens) == BLOCK


class Match(NamedTuple):
    """What is kept of a prompt."""

    path: list[Prefix]
    """Whole blocks."""
    tail: Prefix | None = None
    """A block whose first tokens match."""
    tail_count: int = 0
    """How many."""


class PrefixTree:
    """Knows tokens and blocks; who uses a block is the allocator's affair."""

    def __init__(self) -> None:
        self._roots: dict[Hashable, Prefix] = {}
        self._recent: OrderedDict[Prefix, None] = OrderedDict()
        """All prefixes but the roots; least recently used first, a child before its parent."""

    def __len__(self) -> int:
        return len(self._recent)

    def __iter__(self) -> Iterator[Prefix]:
        """Least recently used first."""
        return iter(self._recent)

    def match(self, key: Hashable, tokens: Sequence[int], limit: int) -> Match:
        """What is kept of the first `limit` tokens.

        Args:
          key: what else the cache's content depends on.
        """
        path = list[Prefix]()
        node = self._roots.get(key)
        if node is None:
            return Match(path)
        while (len(path) + 1) * BLOCK <= limit:
            start = len(path) * BLOCK
            child = node.whole.get(tuple(tokens[start : start + BLOCK]))
            if child is None:
                break
            path.append(child)
            node = child
        start = len(path) * BLOCK
        rest = tuple(tokens[start : min(start + BLOCK, limit)])
        tail, most = None, 0
        if rest:
            for child in islice(reversed(node.following.get(rest[0], ())), _MOST_COMPARED):
                if (count := _common(child.tokens, rest)) > most:
                    tail, most = child, count
        return Match(path, tail, most)

    def has(self, parent: Prefix, tokens: tuple[int, ...]) -> bool:
        """Whether a block after `parent` begins with these tokens."""
        alike = islice(reversed(parent.following.get(tokens[0], ())), _MOST_COMPARED)
        return any(known.tokens[: len(tokens)] == tokens for known in alike)

    def root(self, key: Hashable) -> Prefix:
        """The root of a kind of sequence. Add a block to it: it is forgotten with its last one."""
        return self._roots.setdefault(key, Prefix(None, (), [], key=key))

    def add(self, parent: Prefix, tokens: tuple[int, ...], blocks: list[int]) -> Prefix:
        """Add a block after `parent`, which must not have a whole block of these tokens."""
        node = Prefix(parent, tokens, blocks)
        if node.is_whole:
            parent.whole[tokens] = node
        parent.following.setdefault(tokens[0], []).append(node)
        self._recent[node] = None
        return node

    def extend(self, node: Prefix, tokens: tuple[int, ...]) -> None:
        """More of a block is filled. `tokens` begins with those that it has, and its parent has no such whole block."""
        node.tokens = tokens
        if node.is_whole and node.parent is not None:
            node.parent.whole[tokens] = node

    def remove(self, node: Prefix) -> None:
        """Forget a block that nothing follows."""
        del self._recent[node]
        node.is_forgotten = True
        parent = node.parent
        assert parent is not None
        if node.is_whole:
            del parent.whole[node.tokens]
        alike = parent.following[node.tokens[0]]
        alike.remove(node)
        if not alike:
            del parent.following[node.tokens[0]]
        if parent.parent is None and not parent.following:
            del self._roots[parent.key]
            parent.is_forgotten = True

    def touch(self, path: Sequence[Prefix]) -> None:
        """A path was used now."""
        for node in reversed(path):
            self._recent.move_to_end(node)

    def postpone(self, node: Prefix) -> None:
        """A block is in use."""
        self._recent.move_to_end(node)


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Length of the common beginning."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low + 1 < high:
        middle = (low + high) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle
    return low
