"""The blocks of one kind of layers, and how many users each has."""

from __future__ import annotations

from mistral_jax.model.table_kinds import SPARE


class BlockPool:
    """Counts the users of each block: sequences, by their tables, and at most one kept prefix.

    Args:
      count: number of blocks, the spare one included.
      in_rings: whether tables are rings, in which a block that is shared is replaced when it is written again. Room is
        then counted as if every sequence had its own, so that there always is one.
    """

    def __init__(self, count: int, *, in_rings: bool = False) -> None:
        self.count = count
        self._in_rings = in_rings
        self._entries = 0
        """Of all tables."""
        # The lowest numbers are taken first, and those that were given back last.
        self._free = list(range(count - 1, SPARE, -1))
        self._users = [0] * count
        self._kept = bytearray(count)
        self.idle = 0
        """Blocks that only a kept prefix uses: they can be had by forgetting it."""

    @property
    def available(self) -> int:
        """Blocks that are free, or can be made so."""
        return self.count - 1 - self._entries if self._in_rings else len(self._free) + self.idle

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        """Blocks of sequences."""
        return self.count - 1 - self.available

    def take(self) -> int:
        """A free block, with one user. There must be one."""
        block = self._free.pop()
        self._users[block] = 1
        self._entries += 1
        return block

    def share(self, block: int) -> None:
        """One more sequence uses a block."""
        self.idle -= self.is_idle(block)
        self._users[block] += 1
        self._entries += 1

    def release(self, block: int) -> None:
        """A sequence no longer uses a block."""
        self._users[block] -= 1
        self._entries -= 1
        self.idle += self.is_idle(block)
        self._free_unused(block)

    def keep(self, block: int) -> None:
        """A prefix keeps a block that a sequence uses."""
        self._users[block] += 1
        self._kept[block] = 1

    def forget(self, block: int) -> None:
        """The prefix no longer keeps it."""
        self.idle -= self.is_idle(block)
        self._users[block] -= 1
        self._kept[block] = 0
        self._free_unused(block)

    def is_idle(self, block: int) -> bool:
        """Whether a prefix keeps it, and no sequence uses it."""
        return bool(self._kept[block]) and self._users[block] == 1

    def is_own(self, block: int) -> bool:
        """Whether the one sequence that uses it is its only user, so that all of it may be written to."""
        return self._users[block] == 1 and not self._kept[block]

    def _free_unused(self, block: int) -> None:
        if not self._users[block]:
            self._free.append(block)
