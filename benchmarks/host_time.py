"""What a decode step costs on the host: Python, the dispatch of the programs, and reading the results.

usage: python -m benchmarks.host_time [--layers 32] [--weights bfloat16,Q4_K] [--rows 1,8,64] [--steps 2000]
  [--rounds 5] [--output FILE.json]

The programs take all arguments of the real ones, and donate the same, but compute nothing. So a token of each row
takes what the host needs for it, by the clock:
- loop: `DecodeLoop.step`, one decode step in each call;
- several: the same, with several decode steps in each call, as the server runs them while nobody waits;
- engine: a whole round of the server's engine with several steps, from its scheduler to the events that it delivers,
  the text of the tokens included.

On a GPU, dispatch goes through another client, and may take another time.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from conversion.weights.ggml_types import BY_NAME
from mistral_jax.hub.files import DEMO_FOLDER
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.layers import Linear
from mistral_jax.model.mistral import Mistral
from mistral_jax.quant.grouped import grouped
from mistral_jax.runtime.decode_loop import DecodeLoop
from mistral_jax.runtime.mixing import Caches
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import PACKED_WIDTH
from mistral_jax.runtime.step import SEVERAL, Forward, Rows
from mistral_jax.tokenizer.base import Tokenizer
from mistral_jax.tokenizer.from_files import load_tokenizer
from serving.engine.clock import SequenceClock
from serving.engine.engine import JaxEngine
from serving.engine.messages import EngineState, Event, Request
from serving.engine.scheduler import LiveSequence

PROMPT = (1, 2, 3)


def tiny_model(layers: int, weights: str, vocab_size: int, length: int) -> Mistral:
    """Small matrices, but as many arrays as a large model has."""
    config = MistralConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=64,
        num_layers=layers,
        num_heads=2,
        num_kv_heads=1,
        head_dim=32,
        max_position_embeddings=length,
    )
    model = Mistral(config, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    if weights != "bfloat16":
        kind = BY_NAME[weights]
        for _, module in nnx.iter_modules(model):
            if isinstance(module, Linear):
                out, columns = module.weight.get_value().shape
                raw = jnp.zeros((out, kind.row_bytes(-(-columns // kind.block_size) * kind.block_size)), jnp.uint8)
                module.weight = nnx.Param(grouped(raw, kind))
    return model


class _OnGPU(Runner):
    """With the programs that a GPU has."""

    @property
    def several_buckets(self) -> tuple[int, ...]:
        return self.buckets.rows


def without_work(runner: Runner) -> None:
    """Replace the programs of a decode step by ones that compute nothing."""

    def forward(
        weights: Any, extra: Any, caches: Caches, rows: Rows, active: jax.Array, run: Any, *, plan: Any, scaling: Any
    ) -> tuple[Caches, Forward]:
        return caches, Forward(jnp.zeros((active.shape[0], 1), jnp.float32))

    def sample(
        rows: Rows, active: jax.Array, made: Forward, features: jax.Array, mask: jax.Array, *, only: Any
    ) -> tuple[Rows, jax.Array]:
        packed = jnp.zeros((active.shape[0], PACKED_WIDTH), jnp.int32).at[:, 0].set(300)
        return rows, packed

    def several(
        weights: Any,
        extra: Any,
        caches: Caches,
        rows: Rows,
        counts: jax.Array,
        features: jax.Array,
        *,
        plan: Any,
        only: Any,
    ) -> tuple[Caches, Rows, jax.Array]:
        return caches, rows, jnp.zeros((SEVERAL, counts.shape[0], PACKED_WIDTH), jnp.int32).at[:, :, 0].set(300)

    programs, kept = runner.programs, partial(jax.jit, keep_unused=True)
    programs.several = kept(several, donate_argnums=(2, 3), static_argnames=("plan", "only"))
    programs.forward = kept(forward, donate_argnums=2, static_argnames=("plan", "scaling"))
    programs.sample = kept(sample, donate_argnums=0, static_argnames="only")


def loop_step(runner: Runner, rows: int, steps: int, *, several: bool) -> float:
    """Seconds of a token of each row in the loop."""
    loop = DecodeLoop[LiveSequence[Any]](runner, runner.new_state())
    sequences = [_sequence(slot, steps) for slot in range(rows)]
    for sequence in sequences:
        loop.admit(sequence)

    def step() -> None:
        for sequence in sequences:
            sequence.steps += 1
        loop.step((), sequences, several=several)

    for _ in range(20):
        step()
    before = sequences[0].steps
    start = time.perf_counter()
    while sequences[0].steps < steps:
        step()
    return (time.perf_counter() - start) / (sequences[0].steps - before)


def _sequence(slot: int, steps: int) -> LiveSequence[Any]:
    return LiveSequence(
        request=_request(slot, steps),
        deliver=lambda events: None,
        max_tokens=2 * steps,
        slot=slot,
        clock=SequenceClock(),
    )


def _request(number: int, tokens: int) -> Request:
    return Request(request_id=f"{number}", prompt=PROMPT, params=SamplingParams(seed=0, max_tokens=tokens))


def engine_round(runner: Runner, tokenizer: Tokenizer, rows: int, steps: int) -> float:
    """Seconds of a token of each row in the engine."""
    engine = JaxEngine(
        load=lambda report: runner, tokenizer=tokenizer, eos_ids=(), slots=rows, queue_limit=rows, warm_up=False
    )
    engine.start()
    while engine.status.state is not EngineState.READY:
        time.sleep(0.01)
    ended = threading.Semaphore(0)
    tokens: list[tuple[float, int]] = []

    def deliver(events: Sequence[Event]) -> None:
        tokens.append((time.perf_counter(), events[-1].completion_tokens))
        for event in events:
            if event.finish_reason is not None:
                ended.release()

    engine.submit([_request(number, steps) for number in range(rows)], deliver)
    for _ in range(rows):
        ended.acquire()
    engine.drain(1.0)
    # Without the first tokens, in whose rounds programs are compiled.
    (first, before), (last, after) = tokens[len(tokens) // 5], tokens[-1]
    return (last - first) / (after - before)


@dataclass(frozen=True, kw_only=True)
class Case:
    weights: str
    rows: int
    arguments: int
    """Arrays that a forward pass takes."""
    measure: dict[str, Callable[[], float]]


def cases(args: argparse.Namespace) -> list[Case]:
    tokenizer = load_tokenizer(DEMO_FOLDER)
    found: list[Case] = []
    for weights in args.weights.split(","):
        model = tiny_model(args.layers, weights, tokenizer.vocab_size, 2 * args.steps)
        for rows in map(int, args.rows.split(",")):
            runner = _OnGPU(model, slots=rows, length=2 * args.steps, row_buckets=(max(rows, 2),), embeds=False)
            without_work(runner)
            state = jax.eval_shape(runner.programs.allocate)
            measure = {
                "loop": partial(loop_step, runner, rows, args.steps, several=False),
                "several": partial(loop_step, runner, rows, args.steps, several=True),
                "engine": partial(engine_round, runner, tokenizer, rows, args.steps),
            }
            arguments = len(runner.split.weights) + len(jax.tree.leaves(state)) + 1
            found.append(Case(weights=weights, rows=rows, arguments=arguments, measure=measure))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--weights", default="bfloat16,Q4_K")
    parser.add_argument("--rows", default="1,8,64")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    prepared = cases(args)
    times: dict[tuple[int, str], list[float]] = {}
    for _ in range(args.rounds):  # alternating, since a machine's speed changes
        for number, case in enumerate(prepared):
            for name, measure in case.measure.items():
                times.setdefault((number, name), []).append(measure())
    results = [
        {
            "weights": case.weights,
            "rows": case.rows,
            "arguments": case.arguments,
            **{f"{name}_microseconds": round(median(times[number, name]) * 1e6, 1) for name in case.measure},
        }
        for number, case in enumerate(prepared)
    ]
    for result in results:
        print(result)
    if args.output is not None:
        versions = {name: version(name) for name in ("jax", "jaxlib", "numpy")}
        report = {"layers": args.layers, "versions": versions, "steps": results}
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
