"""mistral-jax beside transformers on the same weights, alternating in one run; medians and their ratios.

Machines are noisy: a bare time says little, a ratio of medians of alternating runs says more. Each program runs in a
process and an environment of its own.

usage: python benchmarks/against_transformers.py MODEL_DIR --reference PYTHON [--dtypes bfloat16,float32] [--rows 1,8]
           [--rounds 3] [--prompt-tokens 256] [--answer-tokens 24] [--output FILE.json]
where PYTHON is the interpreter of an environment with torch and transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
METRICS = ("prefill_tokens_per_second", "decode_tokens_per_second")


def run(command: list[str]) -> dict:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--reference", required=True)
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--rows", default="1,8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--answer-tokens", type=int, default=24)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    prompt, answer = str(args.prompt_tokens), str(args.answer_tokens)

    results = []
    for dtype in args.dtypes.split(","):
        ours_command = [
            *(
                sys.executable,
                "-m",
                "serving.commands.cli",
                "bench",
                "-m",
                args.model,
                "--dtype",
                dtype,
                "--rows",
                args.rows,
                "--json",
            ),
            *(
                "--prompt-tokens",
                prompt,
                "--answer-tokens",
                answer,
                "--device",
                "cpu" if args.device == "cpu" else "gpu",
            ),
        ]
        theirs_command = [
            args.reference,
            str(HERE / "time_transformers.py"),
            args.model,
            dtype,
            args.rows,
            prompt,
            answer,
            args.device,
        ]
        rounds = [(run(ours_command), run(theirs_command)) for _ in range(args.rounds)]
        for index, count in enumerate(int(n) for n in args.rows.split(",")):
            entry: dict = {"dtype": dtype, "rows": count}
            for metric in METRICS:
                ours, theirs = (
                    [side["timings"][index][metric] for side in sides] for sides in zip(*rounds, strict=True)
                )
                entry[metric] = {
                    "mistral_jax": statistics.median(ours),
                    "transformers": statistics.median(theirs),
                    "ratio": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
                }
            results.append(entry)
        last = rounds[-1]

    report = {
        "model": Path(args.model).name,
        "parameters": last[0]["parameters"],
        "device": last[0]["device"],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "prompt_tokens": args.prompt_tokens,
        "rounds": args.rounds,
        "versions": last[0]["versions"] | last[1]["versions"],
        "results": results,
    }
    print("| type | rows | | mistral-jax tok/s | transformers tok/s | ratio |\n|---|---|---|---|---|---|")
    for entry in results:
        for metric in METRICS:
            values = entry[metric]
            print(
                f"| {entry['dtype']} | {entry['rows']} | {metric.split('_')[0]} | {values['mistral_jax']:.1f} "
                f"| {values['transformers']:.1f} | {values['ratio']:.2f} |"
            )
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
