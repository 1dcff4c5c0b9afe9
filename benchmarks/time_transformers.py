"""Prefill and decode speed of transformers on a model folder, in the JSON of `mistral-jax bench`. Needs torch and
transformers.

usage: python time_transformers.py MODEL_DIR {float32|bfloat16} ROWS[,ROWS…] PROMPT_TOKENS ANSWER_TOKENS [DEVICE]
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from importlib.metadata import version

import torch
from transformers import AutoModelForCausalLM


def main(folder: str, dtype: str, rows: str, prompt_tokens: str, answer_tokens: str, device: str = "cpu") -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval().to(device)
    prompt_length, answer_length = int(prompt_tokens), int(answer_tokens)

    def run(tokens: torch.Tensor, cache: object, keep: int) -> tuple[float, object]:
        start = time.perf_counter()
        out = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=keep)
        out.logits[:, -1].argmax(-1).tolist()
        return time.perf_counter() - start, out.past_key_values

    timings = []
    with torch.inference_mode():
        for count in (int(n) for n in rows.split(",")):
            prompt = torch.randint(0, model.config.vocab_size, (1, prompt_length), device=device)
            run(prompt[:, :8], None, 1)
            prefill = statistics.median(run(prompt, None, 1)[0] for _ in range(3))
            _, cache = run(prompt.repeat(count, 1), None, 1)
            token = torch.full((count, 1), 7, device=device)
            step = statistics.median(run(token, cache, 1)[0] for _ in range(answer_length))
            timings.append(
                {
                    "rows": count,
                    "prefill_tokens_per_second": prompt_length / prefill,
                    "decode_tokens_per_second": count / step,
                    "decode_step_ms": step * 1e3,
                }
            )
    versions = {name: version(name) for name in ("torch", "transformers")}
    print(json.dumps({"dtype": dtype, "platform": device, "versions": versions, "timings": timings}))


if __name__ == "__main__":
    main(*sys.argv[1:])
