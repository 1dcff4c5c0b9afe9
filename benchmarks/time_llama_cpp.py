"""Prefill and decode speed of llama.cpp on a GGUF file, in the JSON of `mistral-jax bench`. Needs llama-cpp-python.

usage: python time_llama_cpp.py FILE.gguf ROWS[,ROWS…] PROMPT_TOKENS ANSWER_TOKENS REPEATS [THREADS]

Rows are sequences of one context, decoded together, a batch of one token of each per step. The cache is float16, its
default.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Iterable

import llama_cpp
import numpy as np


class Context:
    """A context of llama.cpp for so many sequences."""

    def __init__(self, model: object, *, rows: int, length: int, batch: int, threads: int) -> None:
        params = llama_cpp.llama_context_default_params()
        # Room of whole blocks of 256 for each sequence, as the library rounds it.
        params.n_ctx = rows * -(-length // 256) * 256
        params.n_seq_max = rows
        params.n_batch = params.n_ubatch = batch
        params.n_threads = params.n_threads_batch = threads
        self.pointer = llama_cpp.llama_init_from_model(model, params)
        if not self.pointer:
            raise SystemExit("llama.cpp could not make a context")
        self.memory = llama_cpp.llama_get_memory(self.pointer)
        self.batch = llama_cpp.llama_batch_init(batch, 0, 1)

    def run(self, entries: Iterable[tuple[int, int, int, bool]]) -> float:
        """Run (token, position, sequence, whether its logits are wanted) in one batch; the seconds it took."""
        count = 0
        for token, position, sequence, wanted in entries:
            self.batch.token[count] = token
            self.batch.pos[count] = position
            self.batch.n_seq_id[count] = 1
            self.batch.seq_id[count][0] = sequence
            self.batch.logits[count] = wanted
            count += 1
        self.batch.n_tokens = count
        start = time.perf_counter()
        if llama_cpp.llama_decode(self.pointer, self.batch):
            raise SystemExit("llama.cpp could not run a batch")
        llama_cpp.llama_synchronize(self.pointer)
        return time.perf_counter() - start

    def most_likely(self, index: int, vocab_size: int) -> int:
        """The token with the largest logit at an index of the last batch."""
        logits = llama_cpp.llama_get_logits_ith(self.pointer, index)
        return int(np.ctypeslib.as_array(logits, shape=(vocab_size,)).argmax())

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(self.memory, True)

    def close(self) -> None:
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.pointer)


def main(path: str, rows: str, prompt_tokens: str, answer_tokens: str, repeats: str, threads: str = "") -> None:
    prompt_length, answer_length = int(prompt_tokens), int(answer_tokens)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp could not load {path}")
    vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    rng = np.random.default_rng(0)
    timings = []
    for count in (int(n) for n in rows.split(",")):
        context = Context(
            model,
            rows=count,
            length=prompt_length + answer_length + 1,
            batch=max(prompt_length, count),
            threads=int(threads) if threads else os.cpu_count() or 1,
        )
        context.run([(7, 0, 0, True)])
        prefills: list[float] = []
        steps: list[float] = []
        for _ in range(int(repeats)):
            context.clear()
            prompts = rng.integers(0, vocab_size, (count, prompt_length)).tolist()
            for row, prompt in enumerate(prompts):
                last = prompt_length - 1
                prefills.append(context.run((token, i, row, i == last) for i, token in enumerate(prompt)))
            tokens = [7] * count
            for position in range(prompt_length, prompt_length + answer_length):
                start = time.perf_counter()
                context.run((token, position, row, True) for row, token in enumerate(tokens))
                tokens = [context.most_likely(row, vocab_size) for row in range(count)]
                steps.append(time.perf_counter() - start)
        context.close()
        step = statistics.median(steps)
        timings.append(
            {
                "rows": count,
                "prefill_tokens_per_second": prompt_length / statistics.median(prefills),
                "decode_tokens_per_second": count / step,
                "decode_step_ms": step * 1e3,
            }
        )
    print(json.dumps({"versions": {"llama-cpp-python": llama_cpp.__version__}, "timings": timings}))


if __name__ == "__main__":
    main(*sys.argv[1:])
