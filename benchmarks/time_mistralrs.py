"""Prefill and decode speed of mistral.rs on a GGUF file, in the JSON of `mistral-jax bench`. Needs the mistralrs wheel.

usage: python time_mistralrs.py FILE.gguf ROWS[,ROWS…] PROMPT_TOKENS ANSWER_TOKENS REPEATS

There is no call to run one step, so the arrival of the tokens of streamed completions is timed. The first of a single
request is the prefill. For steps of several rows it takes some care: version 0.9.5 decodes together only sequences of
one length; but prompts of one length are prefilled together, which fails where the output matrix is quantised ("input
tensor is not contiguous"). So each prompt is one token longer than the one before. The shorter ones run first, until
all are of one length, and from then on all rows advance together and end together; these steps are timed.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import mistralrs

WORDS = ("import", "os", "and", "sys", "then", "print", "all", "files", "in", "directory", "that", "found", "for")


def main(path: str, rows: str, prompt_tokens: str, answer_tokens: str, repeats: str) -> None:
    file = Path(path).resolve()
    counts = [int(n) for n in rows.split(",")]
    # No seed: this build cannot seed the generator of a CPU.
    runner = mistralrs.Runner(
        which=mistralrs.Which.GGUF(quantized_model_id=str(file.parent), quantized_filename=file.name),
        max_seqs=max(counts),
        prefix_cache_n=0,
    )
    draw = random.Random(0)
    # Tokens without text, such as the unused ones of a random model, would come in no piece.
    favourite = {runner.tokenize_text(WORDS[0], add_special_tokens=False, enable_thinking=None)[-1]: 100.0}

    def tokens_in(text: str) -> int:
        return len(runner.tokenize_text(text, add_special_tokens=False, enable_thinking=None))

    def text(length: int) -> str:
        """A random text of so many tokens."""
        words: list[str] = []
        while (missing := length - tokens_in(" ".join(words))) != 0:
            words = [] if missing < 0 else [*words, *draw.choices(WORDS, k=-(-missing // 4))]
        return " ".join(words)

    def run(rows: int, answer: int) -> tuple[float, list[float], int]:
        """Seconds to the first token of the first row, seconds of each step of all rows, and tokens of the first
        prompt."""
        streams: list[Iterator[mistralrs.ChatCompletionChunkResponse]] = []
        texts = [text(int(prompt_tokens) + row) for row in range(rows)]
        start = time.perf_counter()
        for row, content in enumerate(texts):
            request = mistralrs.ChatCompletionRequest(
                model="default",
                messages=[{"role": "user", "content": content}],
                max_tokens=answer + rows - row,
                temperature=0.0,
                logit_bias=favourite,
                ignore_eos=True,
                stream=True,
            )
            streams.append(iter(runner.send_chat_completion_request(request)))
        next(streams[0])
        first = time.perf_counter() - start
        for row, stream in enumerate(streams):
            for _ in range(rows - row - (row == 0)):
                next(stream)
        times = [time.perf_counter()]
        for _ in range(answer):
            pieces = [next(stream) for stream in streams]
            times.append(time.perf_counter())
        if any(piece.usage is None for piece in pieces):
            raise SystemExit("the rows did not end together")
        return first, [b - a for a, b in itertools.pairwise(times)], pieces[0].usage.prompt_tokens

    run(1, 2)
    timings = []
    for count in counts:
        prefills: list[float] = []
        steps: list[float] = []
        for _ in range(int(repeats)):
            first, _, length = run(1, 1)
            prefills.append(length / first)
            steps += run(count, int(answer_tokens))[1][1:]
        step = statistics.median(steps)
        # A token that comes at once had waited to be read.
        if min(steps) < step / 20:
            raise SystemExit(f"the {count} rows did not go in step: one took {min(steps):.4f} s, most {step:.4f} s")
        timings.append(
            {
                "rows": count,
                "prefill_tokens_per_second": statistics.median(prefills),
                "decode_tokens_per_second": count / step,
                "decode_step_ms": step * 1e3,
            }
        )
    print(json.dumps({"versions": {"mistralrs": version("mistralrs")}, "timings": timings}))


if __name__ == "__main__":
    main(*sys.argv[1:])
