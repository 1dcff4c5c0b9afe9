"""What a load test found: rates, and percentiles of what clients waited for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.load.client import Outcome


@dataclass(frozen=True)
class Spread:
    """Percentiles, and the mean; milliseconds. None: nothing was measured."""

    p50: float | None
    p90: float | None
    p99: float | None
    mean: float | None

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        if not seconds:
            return cls(None, None, None, None)
        values = 1e3 * np.asarray(seconds)
        p50, p90, p99 = (float(found) for found in np.percentile(values, (50, 90, 99)))
        return cls(p50, p90, p99, float(values.mean()))

    def __str__(self) -> str:
        return " / ".join("-" if value is None else f"{value:.1f}" for value in (self.p50, self.p90, self.p99))


@dataclass(frozen=True, kw_only=True)
class Result:
    """One setting of the load."""

    setting: str
    requests: int
    errors: dict[str, int]
    """How often each error came."""
    seconds: float
    requests_per_second: float
    prompt_tokens_per_second: float
    output_tokens_per_second: float
    cached_part: float
    """Of the tokens of prompts, those that the server says it did not run."""
    first_token_ms: Spread
    gap_ms: Spread
    """Between two parts of a text; a part is a token, or several that came together."""
    per_token_ms: Spread
    """Of each request, the time after its first token divided by the tokens after it."""
    request_ms: Spread

    @classmethod
    def of(cls, setting: str, outcomes: Sequence[Outcome], seconds: float) -> Result:
        good = [outcome for outcome in outcomes if outcome.error is None]
        prompt = sum(outcome.prompt_tokens for outcome in good)
        per_token = [found for outcome in good if (found := outcome.seconds_per_token) is not None]
        return cls(
            setting=setting,
            requests=len(outcomes),
            errors=dict(Counter(outcome.error for outcome in outcomes if outcome.error is not None).most_common()),
            seconds=seconds,
            requests_per_second=len(good) / seconds,
            prompt_tokens_per_second=prompt / seconds,
            output_tokens_per_second=sum(outcome.completion_tokens for outcome in good) / seconds,
            cached_part=sum(outcome.cached_tokens for outcome in good) / prompt if prompt else 0.0,
            first_token_ms=Spread.of([outcome.first_token_seconds for outcome in good]),
            gap_ms=Spread.of([gap for outcome in good for gap in outcome.gaps]),
            per_token_ms=Spread.of(per_token),
            request_ms=Spread.of([outcome.seconds for outcome in good]),
        )


def lines(results: Sequence[Result]) -> list[str]:
    """A table, and the errors under it."""
    head = ("load", "requests", "failed", "req/s", "output tok/s", "first token ms", "gap ms", "request ms")
    rows = [
        (
            result.setting,
            str(result.requests),
            str(sum(result.errors.values())),
            f"{result.requests_per_second:.2f}",
            f"{result.output_tokens_per_second:.1f}",
            str(result.first_token_ms),
            str(result.gap_ms),
            str(result.request_ms),
        )
        for result in results
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
    table.append("Times are the 50th, 90th and 99th percentile.")
    for result in results:
        table += [f"{result.setting}: {count} failed: {error}" for error, count in result.errors.items()]
    return table


def plot(path: Path, measured: Sequence[tuple[str, Sequence[Outcome]]]) -> None:
    """Draw which part of the requests had its first token, and which part of the gaps had ended, after what time.

    Raises:
      ValueError: matplotlib is not installed, or does not write files of that name.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ValueError("--plot needs matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, title in zip(figure.subplots(1, 2), ("first token", "between parts of the text"), strict=True):
        for setting, outcomes in measured:
            good = [outcome for outcome in outcomes if outcome.error is None]
            seconds = (
                [o.first_token_seconds for o in good] if title == "first token" else [g for o in good for g in o.gaps]
            )
            if seconds:
                axes.ecdf(1e3 * np.asarray(seconds), label=setting)
        axes.set(title=title, xlabel="ms", ylabel="part", xscale="log", ylim=(0, 1))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    try:
        figure.savefig(path)
    except ValueError as error:
        raise ValueError(f"--plot {path}: {error}") from error
