"""What decides, token by token, which tokens a completion may have next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Constraint(Protocol):
    """The state of one completion under a constraint. Used by one thread at a time.

    Its decisions depend on the pushed tokens alone: not on time, load, or other completions.
    """

    def fill(self, mask: np.ndarray) -> None:
        """Write which tokens may come next.

        At least one is allowed, as long as the completion is not `complete`. If `forced` is not empty, only its first
        token is.

        Args:
          mask: int32 [ceil(V / 32)], V the model's vocabulary; bit t % 32 of word t // 32 is set if token t is allowed.
            Overwritten.
        """
        ...

    def forced(self) -> Sequence[int]:
        """The tokens that certainly come next, in order; empty where there is a choice."""
        ...

    def push(self, token: int) -> None:
        """Take the next token: one that the mask allowed, or the first of `forced`.

        An end-of-sequence token may be pushed, too; the constraint is then complete.
        """
        ...

    @property
    def complete(self) -> bool:
        """Whether nothing may follow but an end-of-sequence token."""
        ...


class ConstraintError(RuntimeError):
    """A constraint cannot go on: a limit on its work was exceeded. The message is for the user."""
