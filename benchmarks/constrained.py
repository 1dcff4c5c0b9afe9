"""What grammars cost: decode steps of rows without and with a grammar, alternating in one run.

usage: python benchmarks/constrained.py {160m|1b} [--dtype bfloat16] [--quant Q4_K] [--rows 8] [--tokens 96]
  [--rounds 5] [--output FILE.json]

The model is random, the tokenizer Mistral's first one (32,000 tokens; from the package mistral-common), and tokens are
sampled, so strings are noise. Cases, all with the same number of tokens for each row:

- free: no grammar
- text: every row under a JSON schema of long free strings, which forces almost nothing
- objects: every row under a JSON schema of many fixed names and small values, which forces most tokens
- half: every other row under the schema `objects`; the time is that of the free rows

A ratio is the median over the rounds of the speed of a case relative to `free` in the same round.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.decode_on_device import pack
from benchmarks.make_random_model import shape
from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.checkpoint.summary import summarize
from mistral_jax.grammar.compiler import CompiledGrammar, GrammarCompiler
from mistral_jax.grammar.constraint import Constraint
from mistral_jax.grammar.grammar import Grammar
from mistral_jax.model.mistral import Mistral
from mistral_jax.quant.placement import Placement
from mistral_jax.runtime.decode_loop import DecodeLoop
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.tokenizer.sentencepiece import SentencePieceTokenizer

TEXT = {"type": "array", "items": {"type": "string", "minLength": 400}, "minItems": 50}
OBJECT = {
    "type": "object",
    "properties": {
        "identifier": {"type": "integer", "minimum": 0, "maximum": 9},
        "availability": {"enum": ["available", "unavailable", "unknown"]},
        "temperature_celsius": {"type": "integer", "minimum": 0, "maximum": 99},
        "has_been_verified": {"type": "boolean"},
    },
}
OBJECT |= {"required": list(OBJECT["properties"]), "additionalProperties": False}
OBJECTS = {"type": "array", "items": OBJECT, "minItems": 200}


@dataclass(eq=False, kw_only=True)
class Row:
    slot: int
    prompt: tuple[int, ...]
    params: SamplingParams
    constraint: Constraint | None
    most: int
    choice: AdapterChoice = BASE
    wants_weights: bool = False
    steps: int = 0
    tokens: list[int] = field(default_factory=list[int])
    ended: float = 0.0

    @property
    def room(self) -> int:
        return self.most - self.steps

    @property
    def tokens_held(self) -> int:
        return len(self.prompt) - 1 + self.steps


def run(runner: Runner, grammars: list[CompiledGrammar | None], *, tokens: int, prompt: tuple[int, ...]) -> list[Row]:
    """A row for each grammar, run to its end. `ended` is in seconds from the first step on."""
    rows = [
        Row(
            slot=slot,
            prompt=prompt,
            params=SamplingParams(temperature=1.0, seed=slot, max_tokens=tokens),
            constraint=None if grammar is None else grammar.start(at_start=True),
            most=tokens,
        )
        for slot, grammar in enumerate(grammars)
    ]
    loop: DecodeLoop[Row] = DecodeLoop(runner, runner.new_state())
    chunks = [(row, chunk) for row in rows for chunk in runner.chunks(len(prompt))]
    for row in rows:
        loop.admit(row)
    loop.step(chunks, [])
    loop.step([], [])
    start = time.perf_counter()
    while loop.is_pending or any(row.room for row in rows):
        ready = [row for row in rows if row.room]
        for row in ready:
            row.steps += 1
        results = loop.step([], ready)
        assert not results.failures, results.failures
        now = time.perf_counter() - start
        for row, sampled, _ in results.tokens:
            row.tokens.append(sampled.token)
            row.ended = now
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("size", choices=("160m", "1b"))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quant", default="none")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    config = shape(args.size)
    model = nnx.jit(lambda: Mistral(config, param_dtype=jnp.dtype(args.dtype), rngs=nnx.Rngs(0)))()
    model.use_kernels(Placement.default())
    if args.quant != "none":
        pack(model, args.quant)
    runner = Runner(model, slots=args.rows, length=args.tokens + 40, row_buckets=(args.rows,))
    runner.warm_up(runner.new_state())
    tokenizer = SentencePieceTokenizer.from_file(str(files("mistral_common") / "data" / "tokenizer.model.v1"))
    compiler = GrammarCompiler(tokenizer, vocab_size=config.vocab_size, eos_ids=[2])
    text, objects = (compiler.compile(Grammar.json_schema(json.dumps(schema))) for schema in (TEXT, OBJECTS))
    cases: dict[str, list[CompiledGrammar | None]] = {
        "free": [None] * args.rows,
        "text": [text] * args.rows,
        "objects": [objects] * args.rows,
        "half": [None, objects] * (args.rows // 2),
    }
    prompt = tuple(range(3, 3 + 32))
    for grammars in cases.values():
        run(runner, grammars, tokens=8, prompt=prompt)
    speeds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(args.rounds):
        for name, grammars in cases.items():
            rows = run(runner, grammars, tokens=args.tokens, prompt=prompt)
            measured = [row for row in rows if row.constraint is None or name != "half"]
            speeds[name].append(sum(len(row.tokens) / row.ended for row in measured) / len(measured))
    report = {
        "model": f"random {args.size}",
        "weights": str(summarize(model)),
        "rows": args.rows,
        "tokens": args.tokens,
        "device": jax.devices()[0].device_kind,
        "versions": {name: version(name) for name in ("jax", "jaxlib", "llguidance")},
        "run_cost": runner.run_costs,
        "tokens_per_second_of_a_row": {name: round(median(each), 2) for name, each in speeds.items()},
        "ratio": {
            name: round(median(a / b for a, b in zip(each, speeds["free"], strict=True)), 3)
            for name, each in speeds.items()
        },
        "speeds": {name: [round(x, 3) for x in each] for name, each in speeds.items()},
    }
    print(json.dumps(report, indent=1))
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
