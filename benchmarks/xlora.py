"""X-LoRA of mistral-jax beside that of PEFT and of mistral.rs, on the same files, alternating in one run.

Machines are noisy: a bare time says little, a ratio of medians of alternating runs says more. Each program runs in a
process and an environment of its own, and times the base model too: what X-LoRA costs is its own step over its own
base's. The peers differ in what they can do at all: see `time_peft_xlora.py` (no caches: its step grows with the text)
and `time_mistralrs_xlora.py` (one row, a prompt of one token).

usage: python benchmarks/xlora.py MODEL_DIR XLORA_DIR [--peft PYTHON] [--mistralrs PYTHON] [--dtype bfloat16] [--rows
           1,8] [--prompt-tokens 32] [--answer-tokens 8] [--rounds 3] [--output FILE.json]
where XLORA_DIR is what make_random_xlora.py writes for MODEL_DIR, and PYTHON the interpreter of an environment with
torch, transformers and peft, or with the mistralrs wheel.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OURS = "mistral-jax"
Steps = Mapping[tuple[str, int], float]
"""Milliseconds of a step, for each kind of model and number of rows."""


def run(command: list[str]) -> dict[str, Any]:
    """The JSON that a program prints last."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE.parent)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    lines = done.stdout.splitlines()
    return json.loads("\n".join(lines[next(i for i, line in enumerate(lines) if line.startswith("{")) :]))


def ours(args: argparse.Namespace) -> tuple[Steps, dict[str, str]]:
    command = [sys.executable, "-m", "benchmarks.decode_with_adapters", args.model, args.xlora, "--dtype", args.dtype]
    command += ["--rows", args.rows, "--prompt-tokens", str(args.prompt_tokens)]
    command += ["--steps", str(args.answer_tokens), "--rounds", "3"]
    report = run(command)
    steps = {tuple(name.rsplit(", ", 1)): step for name, step in report["milliseconds_of_a_step"].items()}
    return {(kind, int(rows)): step for (kind, rows), step in steps.items()}, report["versions"]


def peft(args: argparse.Namespace) -> tuple[Steps, dict[str, str]]:
    command = [args.peft, str(HERE / "time_peft_xlora.py"), args.model, args.xlora, args.dtype, args.rows]
    return _peer([*command, str(args.prompt_tokens), str(args.answer_tokens)])


def mistralrs(args: argparse.Namespace) -> tuple[Steps, dict[str, str]]:
    command = [args.mistralrs, str(HERE / "time_mistralrs_xlora.py"), args.model, args.xlora, args.dtype]
    return _peer([*command, str(args.answer_tokens)])


def _peer(command: list[str]) -> tuple[Steps, dict[str, str]]:
    report = run(command)
    return {(t["kind"], t["rows"]): t["decode_step_ms"] for t in report["timings"]}, report["versions"]


def compare(rounds: list[Mapping[str, Steps]]) -> list[dict[str, Any]]:
    """Medians over all rounds, and of the ratios within them."""
    results: list[dict[str, Any]] = []
    for program, steps in rounds[0].items():
        for kind, rows in steps:
            key, base = (kind, rows), ("base", rows)
            times = [r[program][key] for r in rounds]
            entry: dict[str, Any] = {"program": program, "kind": kind, "rows": rows}
            entry["decode_step_ms"] = statistics.median(times)
            entry["decode_tokens_per_second"] = 1e3 * rows / entry["decode_step_ms"]
            entry["over_own_base"] = statistics.median(r[program][key] / r[program][base] for r in rounds)
            if key in rounds[0][OURS]:
                entry["times_ours"] = statistics.median(r[program][key] / r[OURS][key] for r in rounds)
            results.append(entry)
    return results


def table(results: list[dict[str, Any]]) -> str:
    lines = ["| program | model | rows | tok/s | step over its base's | step over ours |", "|---|---|---|---|---|---|"]
    for entry in results:
        if entry["kind"].startswith("X-LoRA ahead"):
            continue  # a step that gives up to two tokens has no equal in the others
        times_ours = f"{entry['times_ours']:.2f}" if "times_ours" in entry else ""
        cells = [entry["program"], entry["kind"], str(entry["rows"]), f"{entry['decode_tokens_per_second']:.2f}"]
        lines.append(f"| {' | '.join([*cells, format(entry['over_own_base'], '.2f'), times_ours])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("xlora")
    parser.add_argument("--peft")
    parser.add_argument("--mistralrs")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", default="1,8")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--answer-tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    args.model, args.xlora = str(Path(args.model).resolve()), str(Path(args.xlora).resolve())
    programs = {OURS: ours}
    if args.peft:
        programs["PEFT"] = peft
    if args.mistralrs:
        programs["mistral.rs"] = mistralrs
    versions: dict[str, str] = {}
    rounds: list[Mapping[str, Steps]] = []
    for number in range(args.rounds):
        steps: dict[str, Steps] = {}
        for name, program in programs.items():
            steps[name], found = program(args)
            versions |= found
        rounds.append(steps)
        print(f"round {number + 1} of {args.rounds} done", file=sys.stderr, flush=True)
    results = compare(rounds)
    report = {
        "device": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "model": Path(args.model).name,
        "dtype": args.dtype,
        "prompt_tokens": args.prompt_tokens,
        "answer_tokens": args.answer_tokens,
        "rounds": args.rounds,
        "versions": versions,
        "results": results,
    }
    print(table(results))
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
