"""mistral-jax beside llama.cpp and mistral.rs on the same GGUF files, alternating in one run; medians and their ratios.

Machines are noisy: a bare time says little, a ratio of medians of alternating runs says more. Each program runs in a
process and an environment of its own. Before each round the memory's read bandwidth is measured too: a decode step
reads every weight once, so no program is faster than that allows, and the percentage says how close it comes.

usage: python benchmarks/against_llama_cpp.py FILE.gguf… --llama-cpp PYTHON [--mistralrs PYTHON] [--quant auto,none]
           [--rows 1,8] [--prompt-tokens 512] [--answer-tokens 32] [--rounds 3] [--repeats 1] [--output FILE.json]
where --quant takes values of that option, with `/float` for activations that are not rounded, and PYTHON is the
interpreter of an environment with llama-cpp-python, or with the mistralrs wheel.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from conversion.gguf.container.file import GGUFFile

HERE = Path(__file__).parent
METRICS = ("prefill_tokens_per_second", "decode_tokens_per_second")
OURS = "mistral-jax"


def run(command: list[str]) -> dict[str, Any]:
    """The JSON that a program prints last."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def read_bandwidth(threads: int, size: int = 512 * 2**20) -> float:
    """Bytes per second at which the given number of threads add up arrays in memory."""
    parts = [np.ones(size // 8 // threads, np.int64) for _ in range(threads)]
    times: list[float] = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(8):
            start = time.perf_counter()
            list(pool.map(np.sum, parts))
            times.append(time.perf_counter() - start)
    return size / statistics.median(times[1:])


def step_bytes(path: Path) -> int:
    """Bytes of the tensors that a decode step reads in full: all but an embedding that is not also the output
    matrix."""
    with GGUFFile(path) as file:
        sizes = {name: info.nbytes for name, info in file.tensors.items()}
    if "output.weight" in sizes:
        del sizes["token_embd.weight"]
    return sum(sizes.values())


def commands(path: Path, args: argparse.Namespace) -> dict[str, list[str]]:
    """How each program is run."""
    prompt, answer, repeats = str(args.prompt_tokens), str(args.answer_tokens), str(args.repeats)
    ours = [sys.executable, "-m", "serving.commands.cli", "bench", "-m", str(path), "--json", "--device", "cpu"]
    ours += ["--rows", args.rows, "--prompt-tokens", prompt, "--answer-tokens", answer, "--repeats", repeats]
    if args.dtype:
        ours += ["--dtype", args.dtype]
    programs: dict[str, list[str]] = {}
    for form in args.quant.split(","):
        quant, _, activations = form.partition("/")
        programs[f"{OURS} {form}"] = [*ours, "--quant", quant, "--activations", activations or "auto"]
    theirs = [str(path), args.rows, prompt, answer, repeats]
    programs["llama.cpp"] = [args.llama_cpp, str(HERE / "time_llama_cpp.py"), *theirs]
    if args.mistralrs:
        programs["mistral.rs"] = [args.mistralrs, str(HERE / "time_mistralrs.py"), *theirs]
    return programs


def compare(path: Path, args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """All rounds of one file: the medians, and the versions of all programs."""
    programs = commands(path, args)
    bandwidths: list[float] = []
    rounds: list[dict[str, dict[str, Any]]] = []
    for _ in range(args.rounds):
        bandwidths.append(read_bandwidth(os.cpu_count() or 1))
        rounds.append({name: run(command) for name, command in programs.items()})
    last = rounds[-1]
    bandwidth, size = statistics.median(bandwidths), step_bytes(path)
    results: list[dict[str, Any]] = []
    for index, rows in enumerate(int(n) for n in args.rows.split(",")):
        for metric in METRICS:
            values = {name: [r[name]["timings"][index][metric] for r in rounds] for name in programs}
            entry: dict[str, Any] = {"rows": rows, "metric": metric}
            entry["medians"] = {name: statistics.median(v) for name, v in values.items()}
            entry["over_llama_cpp"] = {
                name: statistics.median(a / b for a, b in zip(v, values["llama.cpp"], strict=True))
                for name, v in values.items()
            }
            if metric == METRICS[1]:
                entry["percent_of_read_bandwidth"] = {
                    name: statistics.median(
                        100 * size * speed / rows / read for speed, read in zip(v, bandwidths, strict=True)
                    )
                    for name, v in values.items()
                }
            results.append(entry)
    versions: dict[str, str] = {}
    for side in last.values():
        versions |= side["versions"]
    return {
        "file": path.name,
        "file_bytes": path.stat().st_size,
        "step_bytes": size,
        "weight_bytes_on_device": {name: side["weight_bytes"] for name, side in last.items() if "weight_bytes" in side},
        "read_bytes_per_second": bandwidth,
        "results": results,
    }, versions


def table(files: list[dict[str, Any]]) -> str:
    names = list(files[0]["results"][0]["medians"])
    lines = [f"| file | rows | tok/s of | {' | '.join(names)} |", "|---|---|---|" + "---|" * len(names)]
    for file in files:
        for entry in file["results"]:
            percents = entry.get("percent_of_read_bandwidth")
            cells = [
                f"{value:.1f}" + (f" ({percents[name]:.0f} %)" if percents else "")
                for name, value in entry["medians"].items()
            ]
            lines.append(
                f"| {file['file']} | {entry['rows']} | {entry['metric'].split('_')[0]} | {' | '.join(cells)} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--llama-cpp", required=True)
    parser.add_argument("--mistralrs")
    parser.add_argument("--quant", default="auto")
    parser.add_argument("--dtype")
    parser.add_argument("--rows", default="1,8")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--answer-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1, help="within a process")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    files: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    for path in args.files:
        compared, found = compare(path, args)
        files.append(compared)
        versions |= found
        print(f"{path.name} done", file=sys.stderr, flush=True)
    report = {
        "device": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "prompt_tokens": args.prompt_tokens,
        "answer_tokens": args.answer_tokens,
        "rounds": args.rounds,
        "versions": versions,
        "files": files,
    }
    print(table(files))
    print(
        "\nIn brackets: bytes of weights that the steps read, as a percentage of the memory bandwidth in the same "
        "rounds."
    )
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
