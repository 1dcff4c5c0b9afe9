"""A limit on the memory that the bodies of all requests take together."""

from __future__ import annotations

from collections import Counter

from serving.api.errors import UnavailableError
from serving.api.service.callers import CALLER

SMALL_BODY = 65_536
"""Bytes of each body that are not counted: small requests are read however much memory large ones take."""

MIN_BUDGET = 128 * 2**20
RETRY_AFTER = 1


class BodyBudget:
    """Limits the bytes of the bodies of all requests in progress, from arrival until the response is done.

    A caller gets no more than is left for all others, so that one alone takes at most half, two together two thirds.
    Without keys there is one caller, who may take all.

    Args:
      largest: bytes of the largest body that is read. There is always room for two such bodies.
    """

    def __init__(self, largest: int) -> None:
        self.limit = max(MIN_BUDGET, 2 * largest)
        self.taken = 0
        self._by_caller: Counter[int] = Counter()

    def take(self, size: int, caller: int) -> None:
        """Reserve this many more bytes.

        Raises:
          UnavailableError: there is no room for them.
        """
        free = self.limit - self.taken
        if size > free or (caller and self._by_caller[caller] + size > free):
            raise UnavailableError(
                f"the bodies of all requests together take {self.limit >> 20} MiB, the most that this server holds "
                "at a time, or those of this API key their share; try again in a moment",
                code="too_many_bodies",
                headers={"Retry-After": str(RETRY_AFTER)},
            )
        self.taken += size
        self._by_caller[caller] += size

    def give_back(self, size: int, caller: int) -> None:
        self.taken -= size
        self._by_caller[caller] -= size


class Reservation:
    """The part of the budget that one body takes."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._caller = CALLER.get()
        self._size = 0

    def grow_to(self, size: int) -> None:
        """Reserve room for a body of this many bytes.

        Raises:
          UnavailableError: there is no room for it.
        """
        more = max(0, size - SMALL_BODY) - self._size
        if more > 0:
            self._budget.take(more, self._caller)
            self._size += more

    def end(self) -> None:
        """Release the reservation; safe to call more than once."""
        self._budget.give_back(self._size, self._caller)
        self._size = 0
