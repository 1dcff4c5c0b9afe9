"""How much memory the bodies of all requests take together."""

from __future__ import annotations

from serving.api.errors import UnavailableError

SMALL_BODY = 65_536
"""Bytes of each body that are not counted: a small request is read however much memory large ones take."""

MIN_BUDGET = 128 * 2**20
RETRY_AFTER = 1


class BodyBudget:
    """How many bytes the bodies of all requests may take at a time, from their arrival until their responses are done.

    Args:
      largest: the largest body that is read. There is always room for two of them.
    """

    def __init__(self, largest: int) -> None:
        self.limit = max(MIN_BUDGET, 2 * largest)
        self.taken = 0

    def take(self, size: int) -> None:
        """Count so many more bytes.

        Raises:
          UnavailableError: there is no room for them.
        """
        if self.taken + size > self.limit:
            raise UnavailableError(
                f"the bodies of all requests together take {self.limit >> 20} MiB, the most that this server holds "
                "at a time; try again in a moment",
                code="too_many_bodies",
                headers={"Retry-After": str(RETRY_AFTER)},
            )
        self.taken += size

    def give_back(self, size: int) -> None:
        self.taken -= size


class Reservation:
    """What one body takes of the budget."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._size = 0

    def grow_to(self, size: int) -> None:
        """Count a body of so many bytes.

        Raises:
          UnavailableError: there is no room for it.
        """
        more = max(0, size - SMALL_BODY) - self._size
        if more > 0:
            self._budget.take(more)
            self._size += more

    def end(self) -> None:
        """Give everything back; safe to call more than once."""
        self._budget.give_back(self._size)
        self._size = 0
