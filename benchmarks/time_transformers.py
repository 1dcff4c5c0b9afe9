"""Prefill and decode speed of transformers, in the JSON of `mistral-jax bench`. Needs torch and transformers.

usage: python time_transformers.py MODEL {float32|bfloat16} ROWS[,ROWS…] PROMPT_TOKENS ANSWER_TOKENS [DEVICE] [compiled]
MODEL is a folder, or random:7b and the like: random weights, made on the device. `compiled`: decode steps by
`torch.compile` with CUDA graphs and a static cache, the fastest form that transformers documents.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from importlib.metadata import version
from typing import Any

import torch
from transformers import AutoModelForCausalLM, MistralConfig, StaticCache

#       hidden, layers, heads, kv heads, head dim, ffn, vocabulary: as in benchmarks/make_random_model.py
SHAPES = {
    "160m": (768, 12, 12, 4, 64, 2048, 32000),
    "1b": (2048, 22, 32, 4, 64, 5632, 32000),
    "7b": (4096, 32, 32, 8, 128, 14336, 32000),
}


def load(model: str, dtype: torch.dtype, device: str) -> Any:
    if not model.startswith("random:"):
        return AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval().to(device)
    hidden, layers, heads, kv_heads, head_dim, ffn, vocabulary = SHAPES[model.removeprefix("random:")]
    config = MistralConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        sliding_window=None,
    )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def main(
    folder: str,
    dtype: str,
    rows: str,
    prompt_tokens: str,
    answer_tokens: str,
    device: str = "cpu",
    how: str = "eager",
) -> None:
    model = load(folder, getattr(torch, dtype), device)
    prompt_length, answer_length = int(prompt_tokens), int(answer_tokens)
    compiled = how == "compiled"
    forward = torch.compile(model, mode="reduce-overhead", fullgraph=True) if compiled else model

    def new_cache() -> object:
        return StaticCache(config=model.config, max_cache_len=prompt_length + answer_length + 16) if compiled else None

    def run(call: Any, tokens: torch.Tensor, cache: object, at: int) -> tuple[float, object]:
        start = time.perf_counter()
        positions = torch.arange(at, at + tokens.shape[1], device=device)
        more = {"cache_position": positions} if compiled else {}
        out = call(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1, **more)
        out.logits[:, -1].argmax(-1).tolist()
        return time.perf_counter() - start, out.past_key_values

    timings = []
    with torch.inference_mode():
        for count in (int(n) for n in rows.split(",")):
            prompt = torch.randint(0, model.config.vocab_size, (1, prompt_length), device=device)
            run(model, prompt[:, :8], new_cache(), 0)
            prefill = statistics.median(run(model, prompt, new_cache(), 0)[0] for _ in range(3))
            _, cache = run(model, prompt.repeat(count, 1), new_cache(), 0)
            token = torch.full((count, 1), 7, device=device)
            for warm in range(3 if compiled else 0):
                run(forward, token, cache, prompt_length + warm)
            steps = [run(forward, token, cache, prompt_length + 3 + step)[0] for step in range(answer_length)]
            timings.append(
                {
                    "rows": count,
                    "prefill_tokens_per_second": prompt_length / prefill,
                    "decode_tokens_per_second": count / statistics.median(steps),
                    "decode_step_ms": statistics.median(steps) * 1e3,
                }
            )
    versions = {name: version(name) for name in ("torch", "transformers")}
    print(json.dumps({"dtype": dtype, "platform": device, "how": how, "versions": versions, "timings": timings}))


if __name__ == "__main__":
    main(*sys.argv[1:])
