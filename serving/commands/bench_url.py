"""`mistral-jax bench --url`: a load test of a running server, of any program with OpenAI's HTTP API."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mistral_jax import __version__
from serving.load.client import Outcome, Target
from serving.load.report import Result, lines, plot
from serving.load.run_load import closed_loop, open_loop, tokens_of_words
from serving.load.workload import Load, plan

_INTERRUPTED = 130


def run_bench_url(
    url: str,
    load: Load,
    *,
    model: str | None,
    key: str | None,
    timeout: float,
    extensions: bool,
    plot_file: Path | None,
    as_json: bool,
) -> int:
    """Run the load, and print a table, or one JSON object. The exit status: 1 if a request failed, 130 if the test was
    interrupted; what had ended until then is reported."""
    measured: list[tuple[str, list[Outcome], float]] = []
    target = Target(
        url, model=model, key=key, timeout=timeout, extensions=extensions, connections=max([64, *load.clients])
    )
    interrupted = False
    try:
        asyncio.run(_measure(target, load, measured))
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted; of what ended before:", file=sys.stderr)
    results = [Result.of(setting, outcomes, seconds) for setting, outcomes, seconds in measured if outcomes]
    if plot_file is not None and results:
        plot(plot_file, [(setting, outcomes) for setting, outcomes, _ in measured])
    if as_json:
        print(json.dumps(_described(target, load, results)))
    elif results:
        print(
            f"{target.url}, model {target.model}: prompts of {load.lengths.prompt} tokens, completions of "
            f"{load.lengths.answer}"
        )
        print("\n".join(lines(results)))
    if interrupted:
        return _INTERRUPTED
    return 1 if any(result.errors for result in results) else 0


async def _measure(target: Target, load: Load, measured: list[tuple[str, list[Outcome], float]]) -> None:
    """Fills `measured` with (setting, outcomes, seconds), the last ones with what there is when it is cancelled."""
    try:
        await target.find_model()
        tokens = await tokens_of_words(target)
        if load.warm_up:
            await closed_loop(target, plan(load.lengths, load.warm_up, tokens, load.seed - 1), 4, lambda _: None)
        for number, setting in enumerate(load.settings):
            # Other texts for each setting: else a cache of prompts would answer the later ones.
            planned = plan(load.lengths, load.requests, tokens, load.seed + number)
            await _run(target, load, number, setting, planned, measured)
    finally:
        await target.aclose()


async def _run(
    target: Target,
    load: Load,
    number: int,
    setting: str,
    planned: Sequence[Any],
    measured: list[tuple[str, list[Outcome], float]],
) -> None:
    outcomes: list[Outcome] = []
    # Without a terminal nothing is drawn.
    with tqdm(total=len(planned), desc=setting, unit="request", disable=None, file=sys.stderr, leave=False) as bar:

        def done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            bar.update()

        seconds = 0.0
        try:
            if number < len(load.clients):
                seconds = await closed_loop(target, planned, load.clients[number], done)
            else:
                seconds = await open_loop(target, planned, load.rates[number - len(load.clients)], load.seed, done)
        finally:
            if outcomes:
                span = max(o.ended for o in outcomes) - min(o.started for o in outcomes)
                measured.append((setting, outcomes, seconds or span))


def _described(target: Target, load: Load, results: Sequence[Result]) -> dict[str, Any]:
    return {
        "url": target.url,
        "model": target.model,
        "prompt_tokens": str(load.lengths.prompt),
        "answer_tokens": str(load.lengths.answer),
        "shared_prefix": load.lengths.shared_prefix,
        "shared_part": load.lengths.shared_part if load.lengths.shared_prefix else 0.0,
        "seed": load.seed,
        "version": __version__,
        "results": [asdict(result) for result in results],
    }
