"""The log of a run: one JSON object in each line of `training_log.jsonl`, written during the run.

{"step": 12, "loss": 1.25, "learning_rate": 0.001, "gradient_norm": 0.7, "tokens_per_s": 5200}
{"step": 100, "validation_loss": 1.31}

Where the classifier of a mixture is trained, `share/NAME` is the mean weight of each adapter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self, TextIO

from conversion.files.output_files import new_file


class TrainingLog:
    """Numbers of a run, in memory and in a file."""

    def __init__(self, path: Path | None) -> None:
        """Args: path: None: only in memory."""
        self._path = path
        self._file: TextIO | None = None
        self.losses: list[float] = []
        self.validations: list[tuple[int, float]] = []
        self.smooth = 0.0
        """Mean of the last losses, weighted by their age."""

    def begin(self) -> None:
        """Start a new file."""
        if self._path is not None:
            self._path.write_text("", encoding="utf-8")

    def resume(self, step: int) -> None:
        """Read the log up to an update, and drop what a killed run wrote after it."""
        if self._path is None or not self._path.is_file():
            return
        kept: list[str] = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                entry: dict[str, Any] = json.loads(line)
            except ValueError:
                break  # the end of a truncated file
            if entry.get("step", 0) > step:
                break
            kept.append(line + "\n")
            if "validation_loss" in entry:
                self.validations.append((entry["step"], entry["validation_loss"]))
            else:
                self._remember(entry["loss"])
        content = "".join(kept).encode()
        with new_file(self._path, size=len(content), overwrite=True) as file:
            file.write(content)

    def update(self, step: int, loss: float, **others: float) -> None:
        self._remember(loss)
        self._write({"step": step, "loss": loss, **others})

    def validate(self, step: int, loss: float, **others: float) -> None:
        self.validations.append((step, loss))
        self._write({"step": step, "validation_loss": loss, **others})

    @property
    def postfix(self) -> dict[str, str]:
        """What a progress bar shows."""
        shown = {"loss": f"{self.smooth:.4f}"} if self.losses else {}
        return shown | ({"validation_loss": f"{self.validations[-1][1]:.4f}"} if self.validations else {})

    def _remember(self, loss: float) -> None:
        self.smooth = loss if not self.losses else 0.95 * self.smooth + 0.05 * loss
        self.losses.append(loss)

    def _write(self, entry: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()

    def __enter__(self) -> Self:
        if self._path is not None:
            self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
