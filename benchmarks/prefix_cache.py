"""What sharing the KV cache saves, and what it costs: the engine with it and without, alternating in one run.

usage: python benchmarks/prefix_cache.py {demo|160m|1b} [--dtype bfloat16] [--quant Q4_K] [--rounds 5]
  [--output FILE.json]

The model is random (demo: of the shape of the bundled one), and so are all tokens.

- prompt: a prompt of 1,000 tokens; the same again; and one that goes on after it with 20 other tokens. From submission
  to the first token
- conversation: ten turns of 40 tokens from each side after a system prompt of 200; prompt tokens that are run, and
  seconds for all turns
- pool: 32 sequences of 300 and 100 tokens over a pool of 8 x 2,048
- decode: steps of 8 rows over 1,000 tokens, each slot's blocks one after another or all blocks in random order
- move: taking a sequence of 1,000 tokens out of its slot, and putting it back
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.decode_on_device import pack
from benchmarks.make_random_model import DEMO_FOLDER, shape
from mistral_jax.checkpoint.summary import summarize
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.mistral import Mistral
from mistral_jax.model.table_kinds import BLOCK
from mistral_jax.quant.placement import Placement
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import Features
from mistral_jax.tokenizer.base import Tokenizer
from mistral_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from serving.engine.engine import JaxEngine, PrefixCache
from serving.engine.messages import EngineState, Event, Request

TOKENIZER = files("mistral_common") / "data" / "tokenizer.model.v1"
"""Mistral's first one: 32,000 tokens."""
SLOTS, LENGTH = 32, 2048
COUNTS = (8 * LENGTH // BLOCK + 1,)
PROMPT, FURTHER, SYSTEM, TURN, TURNS = 1000, 20, 200, 40, 10


@dataclass
class Answer:
    first: float
    """Seconds from submission to the first token."""
    cached: int
    tokens: list[int] = field(default_factory=list[int])


class Client:
    def __init__(self, engine: JaxEngine) -> None:
        self.engine = engine
        self._events: queue.Queue[Event] = queue.Queue()
        self._number = 0

    def ask(self, prompts: Sequence[Sequence[int]], *, max_tokens: int) -> list[Answer]:
        requests = []
        for prompt in prompts:
            params = SamplingParams(seed=1, max_tokens=max_tokens, ignore_eos=True)
            self._number += 1
            requests.append(Request(request_id=str(self._number), prompt=tuple(prompt), params=params, token_ids=True))
        answers = {request.request_id: Answer(0.0, 0) for request in requests}
        self.engine.submit(requests, self._deliver)
        open_ = set(answers)
        while open_:
            event = self._events.get(timeout=600)
            assert event.error is None, event.error
            answer = answers[event.request_id]
            answer.tokens += event.token_ids
            if event.times is not None and event.times.first_token is not None:
                answer.first, answer.cached = event.times.first_token - event.times.queued, event.cached_tokens
            if event.finish_reason is not None:
                open_.remove(event.request_id)
        return list(answers.values())

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            self._events.put(event)


@contextmanager
def serving(runner: Runner, tokenizer: Tokenizer, prefix_cache: PrefixCache) -> Generator[Client]:
    engine = JaxEngine(
        load=lambda _report: runner,
        tokenizer=tokenizer,
        eos_ids=(),
        slots=SLOTS,
        queue_limit=1000,
        prefix_cache=prefix_cache,
    )
    engine.start()
    while engine.status.state is not EngineState.READY:
        assert engine.status.state is not EngineState.FAILED, engine.status.detail
        time.sleep(0.01)
    try:
        yield Client(engine)
    finally:
        engine.drain(0)


class Tokens:
    """Random tokens."""

    def __init__(self, vocab_size: int) -> None:
        self._rng, self._most = random.Random(0), vocab_size - 1

    def __call__(self, count: int) -> list[int]:
        return [self._rng.randint(3, self._most) for _ in range(count)]


def prompts(client: Client, tokens: Tokens, rounds: int) -> dict[str, Any]:
    first, again, further = list[float](), list[float](), list[float]()
    for _ in range(rounds):
        prompt = tokens(PROMPT)
        first.append(client.ask([prompt], max_tokens=1)[0].first)
        again.append(client.ask([prompt], max_tokens=1)[0].first)
        further.append(client.ask([[*prompt, *tokens(FURTHER)]], max_tokens=1)[0].first)
    return {
        "first_s": round(median(first), 4),
        "again_s": round(median(again), 4),
        "further_s": round(median(further), 4),
        "again_over_first": round(median(b / a for a, b in zip(first, again, strict=True)), 4),
        "further_over_first": round(median(b / a for a, b in zip(first, further, strict=True)), 4),
    }


def conversation(client: Client, tokens: Tokens) -> dict[str, Any]:
    history, run, start = tokens(SYSTEM), 0, time.perf_counter()
    for _ in range(TURNS):
        history += tokens(TURN)
        (answer,) = client.ask([history], max_tokens=TURN)
        run += len(history) - 1 - answer.cached
        history += answer.tokens
    return {"prompt_tokens_run": run, "seconds": round(time.perf_counter() - start, 3)}


def pool(client: Client, tokens: Tokens) -> dict[str, Any]:
    most, stop = 0, [tokens(300) for _ in range(32)]
    before = client.engine.status.put_back
    deliver = client._deliver

    def watching(events: Sequence[Event]) -> None:
        nonlocal most
        most = max(most, client.engine.status.running)
        deliver(events)

    client._deliver = watching  # type: ignore[method-assign]
    client.ask(stop, max_tokens=100)
    client._deliver = deliver  # type: ignore[method-assign]
    return {"most_at_once": most, "put_back": client.engine.status.put_back - before}


def decode(model: Mistral, rounds: int, steps: int = 24) -> dict[str, Any]:
    runner = Runner(model, slots=8, length=LENGTH, row_buckets=(8,))
    features, slots = Features(), list(range(8))
    times: dict[str, list[float]] = {"in_order": [], "at_random": []}
    (count,) = (kind.blocks for kind in runner.kinds)
    own = 1 + np.arange(8 * count, dtype=np.int32)
    for round_ in range(-1, rounds):
        for name, seconds in times.items():
            blocks = own if name == "in_order" else np.random.default_rng(round_ + 1).permutation(own)
            state = runner.with_tables(runner.new_state(), [blocks.reshape(8, count).astype(np.int32)])
            for slot in slots:
                state = runner.admit(state, slot, tuple(range(1000)), SamplingParams(temperature=0.0, seed=1))
            stepped = runner.decode(state, slots, features, longest=1000)
            stepped.packed.block_until_ready()
            start = time.perf_counter()
            for i in range(steps):
                stepped = runner.decode(stepped.state, slots, features, longest=1001 + i)
            stepped.packed.block_until_ready()
            if round_ >= 0:
                seconds.append((time.perf_counter() - start) / steps)
    ratio = median(a / b for a, b in zip(times["in_order"], times["at_random"], strict=True))
    return {f"{name}_ms": round(1000 * median(each), 3) for name, each in times.items()} | {"speed": round(ratio, 4)}


def move(runner: Runner, rounds: int) -> dict[str, Any]:
    state = runner.new_state()
    count = -(-1000 // BLOCK)
    tables = [[*range(1, count + 1)] + [0] * (LENGTH // BLOCK - count)]
    others = [[*range(count + 1, 2 * count + 1)] + [0] * (LENGTH // BLOCK - count)]
    out, back, size = list[float](), list[float](), 0
    for _ in range(rounds):
        start = time.perf_counter()
        taken = runner.take_out(state, 0, tables)
        out.append(time.perf_counter() - start)
        start = time.perf_counter()
        state = runner.put_in(state, 1, others, taken)
        jax.block_until_ready(state.caches)
        back.append(time.perf_counter() - start)
        size = taken.nbytes
    return {"mib": round(size / 2**20, 1), "out_s": round(median(out), 4), "back_s": round(median(back), 4)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("size", choices=("demo", "160m", "1b"))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quant", default="none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    config: MistralConfig = shape(args.size)
    model = nnx.jit(lambda: Mistral(config, param_dtype=jnp.dtype(args.dtype), rngs=nnx.Rngs(0)))()
    model.use_kernels(Placement.default())
    if args.quant != "none":
        pack(model, args.quant)
    report: dict[str, Any] = {
        "model": f"random {args.size}",
        "weights": str(summarize(model)),
        "device": jax.devices()[0].device_kind,
        "versions": {name: version(name) for name in ("jax", "jaxlib")},
        "decode": decode(model, args.rounds),
    }
    runner = Runner(model, slots=SLOTS, length=LENGTH, cache_blocks=COUNTS, embeds=False)
    file = DEMO_FOLDER / "tokenizer.model" if args.size == "demo" else TOKENIZER
    tokenizer = SentencePieceTokenizer.from_file(str(file))
    tokens = Tokens(config.vocab_size)
    for prefix_cache in ("own", "off"):
        with serving(runner, tokenizer, prefix_cache) as client:
            client.ask([tokens(600)], max_tokens=4)
            found = {"prompt": prompts(client, tokens, args.rounds), "conversation": conversation(client, tokens)}
            if prefix_cache == "own":
                found["pool"] = pool(client, tokens)
            report["shared" if prefix_cache == "own" else "not_shared"] = found
    report["move"] = move(runner, args.rounds)
    print(json.dumps(report, indent=1))
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
