"""What steps with proposals gain where text repeats itself, and cost where it does not.

usage: python benchmarks/prompt_lookup.py {demo|160m|1b} [--dtype bfloat16] [--quant Q4_K] [--rows 1] [--tokens 256]
  [--rounds 5] [--output FILE.json]

The model has the size of a real one, and costs what that costs, but its layers add almost nothing to the embedding, and
its output matrix maps every token to a fixed next one. So it recites the 600 tokens of its prompt; a temperature makes
it leave the text now and then, and it comes back at another place.

- edit: one token in 20 is not that of the text, as when a program is copied with changes
- copy: all are
- chat: every token is random, so that nothing repeats

Each runs with proposals and without, alternating; a ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.constrained import Row
from benchmarks.decode_on_device import pack
from benchmarks.make_random_model import shape
from mistral_jax.checkpoint.summary import summarize
from mistral_jax.model.mistral import Mistral
from mistral_jax.quant.placement import Placement
from mistral_jax.runtime.decode_loop import DecodeLoop
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams

FIRST, PROMPT = 5, 600
SHARPNESS = 6.0
"""Logit of the next token of the text; all others are near zero."""


def reciting(size: str, dtype: str) -> Mistral:
    """The model."""
    config = shape(size)
    model = nnx.jit(lambda: Mistral(config, param_dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)))()
    for layer in model.layers:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.weight.set_value(jax.tree.map(lambda x: x * 0.001, linear.weight[...]))
    # The text is a circle of tokens; all others look like one of it, and lead on from there.
    text = FIRST + np.arange(PROMPT)
    like = FIRST + np.arange(config.vocab_size) * 7919 % PROMPT
    like[text] = text
    embedding = np.asarray(model.embed_tokens.weight[...].astype(jnp.float32))[like]
    model.embed_tokens.weight.set_value(jnp.asarray(embedding, dtype))
    unit = embedding[text] / np.linalg.norm(embedding[text], axis=1, keepdims=True)
    head = np.zeros_like(embedding)
    head[np.roll(text, -1)] = unit * (SHARPNESS / math.sqrt(config.hidden_size))
    assert model.lm_head is not None
    model.lm_head.weight.set_value(jnp.asarray(head, dtype))
    return model


def run(
    runner: Runner, rows: int, tokens: int, temperature: float, prompt: tuple[int, ...]
) -> tuple[float, float, Any]:
    """Seconds for each token of a row, tokens that a step gave, and what was sampled."""
    loop: DecodeLoop[Row] = DecodeLoop(runner, runner.new_state())
    sequences = [
        Row(
            slot=slot,
            prompt=prompt,
            params=SamplingParams(temperature=temperature, seed=slot, max_tokens=tokens),
            constraint=None,
            most=tokens,
        )
        for slot in range(rows)
    ]
    for row in sequences:
        loop.admit(row)
    loop.step([(row, chunk) for row in sequences for chunk in runner.chunks(len(prompt))], [])
    loop.step([], [])
    steps, start = 0, time.perf_counter()
    while loop.is_pending or any(row.room > 0 for row in sequences):
        ready = [row for row in sequences if row.room > 0]
        for row in ready:
            row.steps += 1
        steps += bool(ready)
        for row, sampled, _ in loop.step([], ready).tokens:
            row.tokens.append(sampled.token)
    seconds = time.perf_counter() - start
    assert all(len(row.tokens) == tokens for row in sequences)
    return seconds / tokens, tokens / steps, [row.tokens for row in sequences]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("size", choices=("demo", "160m", "1b"))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quant", default="none")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    model = reciting(args.size, args.dtype)
    model.use_kernels(Placement.default())
    if args.quant != "none":
        pack(model, args.quant)
    sizes: dict[str, Any] = {"slots": max(args.rows, 2), "length": PROMPT + args.tokens + 8, "embeds": False}
    runners = {name: Runner(model, **sizes, looks_up=name == "proposals") for name in ("proposals", "plain")}
    for runner in runners.values():
        runner.warm_up(runner.new_state())
    prompt = range(FIRST, FIRST + PROMPT)
    # A twentieth of the probability is left to all other tokens together.
    temperatures = {"edit": SHARPNESS / math.log(19 * shape(args.size).vocab_size), "copy": 0.0, "chat": 2.0}
    cases: dict[str, Any] = {}
    for case, temperature in temperatures.items():
        times: dict[str, list[float]] = {name: [] for name in runners}
        each = 0.0
        for round_ in range(-1, args.rounds):
            texts = []
            for name, runner in runners.items():
                seconds, given, text = run(runner, args.rows, args.tokens, temperature, tuple(prompt))
                texts.append(text)
                if round_ >= 0:
                    times[name].append(seconds)
                each = given if name == "proposals" else each
            assert texts[0] == texts[1], "proposals changed a completion"
        ratios = [plain / proposals for proposals, plain in zip(times["proposals"], times["plain"], strict=True)]
        cases[case] = {
            "plain_ms": round(1000 * median(times["plain"]), 2),
            "proposals_ms": round(1000 * median(times["proposals"]), 2),
            "speed": round(median(ratios), 3),
            "speeds": [round(ratio, 3) for ratio in ratios],
            "tokens_of_a_step": round(each, 2),
        }
    report = {
        "model": f"reciting, of the size {args.size}",
        "weights": str(summarize(model)),
        "rows": args.rows,
        "device": jax.devices()[0].device_kind,
        "versions": {name: version(name) for name in ("jax", "jaxlib")},
        "cost_of_a_step": {rows: round(cost, 3) for rows, cost in runners["proposals"].lookup_costs.items()},
        "cases": cases,
    }
    print(json.dumps(report, indent=1))
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
