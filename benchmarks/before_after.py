"""Times two checkouts of this project against each other, call by call, so that a busy machine disturbs both alike.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.before_after MODEL /tmp/before . --rows 1 --rows 8 --pairs 24

A process for each checkout holds the model, warmed up; they take turns, one prefill or some decode steps at a time, and
the order changes with each turn. Printed are JSON lines: the median of the ratios of neighbouring times, and the ratio
of the shortest times; above 1 the second checkout is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path


class Worker:
    """A process that runs the code of one checkout."""

    def __init__(self, checkout: Path, model: str, *, rows: int, prompt: int, steps: int) -> None:
        arguments = [
            sys.executable,
            str(Path(__file__).absolute()),
            "--worker",
            model,
            str(rows),
            str(prompt),
            str(steps),
        ]
        self._process = subprocess.Popen(
            arguments,
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout.absolute())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()

    def time(self, what: str) -> float:
        """Seconds of one "prefill", or of a "decode" step."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a worker ended; its error is above")
        return line


def compare(workers: tuple[Worker, Worker], what: str, pairs: int) -> dict[str, float]:
    before, after = [], []
    for turn in range(pairs):
        order = (0, 1) if turn % 2 == 0 else (1, 0)
        found = {index: workers[index].time(what) for index in order}
        before.append(found[0])
        after.append(found[1])
    return {
        "ratio_of_neighbours": round(statistics.median(x / y for x, y in zip(before, after, strict=True)), 3),
        "ratio_of_shortest": round(min(before) / min(after), 3),
        "before_ms": round(1e3 * statistics.median(before), 2),
        "after_ms": round(1e3 * statistics.median(after), 2),
    }


def work(model: str, rows: int, prompt_tokens: int, steps: int) -> None:
    """Serve timings, one for each line of standard input."""
    import jax
    import numpy as np

    from mistral_jax.checkpoint.description import describe
    from mistral_jax.checkpoint.load_module import load_module
    from mistral_jax.hub.files import find_model
    from mistral_jax.runtime.runner import Runner
    from mistral_jax.runtime.sampling.params import SamplingParams
    from mistral_jax.runtime.sampling.sample import Features

    runner = Runner(load_module(describe(find_model(model))), slots=rows, length=prompt_tokens + 1 + steps)
    state = runner.warm_up(runner.new_state())
    params = SamplingParams(temperature=0.0, seed=0)
    prompt = np.random.default_rng(0).integers(0, runner.config.vocab_size, prompt_tokens + 1).tolist()

    def admit(slot: int, *, prefill: bool) -> float:
        nonlocal state
        state = runner.admit(state, slot, prompt, params)
        jax.block_until_ready(state.rows)
        start, done = time.perf_counter(), None
        for chunk in runner.chunks(len(prompt)) if prefill else ():
            state, done, *_ = runner.prefill(state, slot, prompt, chunk)
        jax.block_until_ready(done)
        return time.perf_counter() - start

    def decode() -> float:
        nonlocal state
        for slot in range(rows):
            admit(slot, prefill=False)  # back to the prompt's end
        start, packed = time.perf_counter(), None
        for step in range(steps):
            state, packed, *_ = runner.decode(state, range(rows), Features(), longest=prompt_tokens + 1 + step)
        jax.block_until_ready(packed)
        return (time.perf_counter() - start) / steps

    for slot in range(rows):
        admit(slot, prefill=True)
    decode()
    print("ready", flush=True)
    for line in sys.stdin:
        print(admit(0, prefill=True) if line.strip() == "prefill" else decode(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rows", type=int, action="append")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=16, help="decode steps of one turn")
    parser.add_argument("--pairs", type=int, default=24)
    args = parser.parse_args()
    for rows in args.rows or [1, 8]:
        sizes = {"rows": rows, "prompt": args.prompt_tokens, "steps": args.steps}
        workers = (Worker(args.before, args.model, **sizes), Worker(args.after, args.model, **sizes))
        for what in ("prefill", "decode"):
            found = compare(workers, what, args.pairs)
            print(json.dumps({"model": Path(args.model).name, "what": what, **sizes, **found}), flush=True)
        for worker in workers:
            worker.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        main()
