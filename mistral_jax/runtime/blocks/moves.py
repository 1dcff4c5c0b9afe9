"""What is decided about slots and blocks: for the device to carry out in this order, before the work planned next."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class SetTables(NamedTuple):
    """Give slots their blocks."""

    tables: tuple[np.ndarray, ...]
    """int32 [slots, C] for each kind of table."""


class CopyBlock(NamedTuple):
    """Copy a block, for each kind of table. `SPARE` to `SPARE`: none of this kind."""

    sources: tuple[int, ...]
    targets: tuple[int, ...]


class TakeOut(NamedTuple):
    """Take a sequence out of a slot, with the blocks in its tables; it may go on later in any slot."""

    sequence: Any
    slot: int
    tables: tuple[tuple[int, ...], ...]
    """For each kind of table, `SPARE` where there is nothing to take."""


class PutIn(NamedTuple):
    """Let a sequence go on that was taken out, in its slot now and with the blocks in its tables."""

    sequence: Any
    tables: tuple[tuple[int, ...], ...]


Move = SetTables | CopyBlock | TakeOut | PutIn
