"""Progress: a bar in a terminal or a notebook; a few whole lines in a file or a pipe."""

from __future__ import annotations

import sys
from typing import Any, TextIO, cast

from tqdm import tqdm
from tqdm.auto import tqdm as auto_tqdm

LINE_EVERY = 10.0
"""Seconds before the first line, and between lines, without a terminal."""


def progress_bar(
    description: str, *, total: float | None = None, initial: float = 0, unit: str = "it", shown: bool = True
) -> tqdm[Any]:
    """A progress bar on standard error, or lines of text if it is not a terminal.

    Args:
      total: None: set later, as the bar's `total`.
      initial: how much is done already.
      unit: "B" shows sizes in MB and GB.
      shown: False: nothing is written.
    """
    settings: dict[str, Any] = {
        "desc": description,
        "total": total,
        "initial": initial,
        "unit": unit,
        "unit_scale": unit == "B",
        "disable": not shown,
    }
    if in_notebook() or draws_bars(sys.stderr):
        return cast("tqdm[Any]", auto_tqdm(**settings, leave=False, mininterval=0.5))
    return tqdm(
        **settings,
        file=cast("TextIO", WholeLines(sys.stderr)),
        bar_format="{desc}: {percentage:3.0f}% ({n_fmt} of {total_fmt} {unit}, {elapsed}{postfix})",
        mininterval=LINE_EVERY,
        delay=LINE_EVERY,
        leave=True,
    )


def draws_bars(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal, where a line can be overwritten."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


def in_notebook() -> bool:
    """Whether this process is a notebook kernel."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


class WholeLines:
    """A stream for tqdm that ends each state of a bar with a newline in place of a carriage return."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if line := text.strip("\r\n "):
            self._stream.write(line + "\n")
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return False
