"""What requests share in the KV cache never shows in what they get, nor that they had to make room for others."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mistral_jax.model.config import MistralConfig
from mistral_jax.model.kv_cache import own_blocks
from mistral_jax.model.mistral import Mistral
from mistral_jax.model.table_kinds import BLOCK
from mistral_jax.runtime.buckets import cache_sizes
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams
from serving.engine.engine import JaxEngine, PrefixCache
from serving.engine.messages import Event, Request
from tests.memory_maps import release_programs
from tests.mistral_jax.tiny_adapters import hold_matrices_as
from tests.serving.engine.test_engine import Inbox, answer, note_compilations, run
from tests.serving.fakes import EOS, VOCAB, FakeTokenizer
from tests.serving.harness import wait_until_ready

LENGTH = 4 * BLOCK
SIZES: Any = {"slots": 8, "length": LENGTH, "chunks": (16, 64)}


def model_of(form: str, dtype: str, windows: tuple[int | None, ...]) -> Mistral:
    config = MistralConfig(
        vocab_size=VOCAB,
        hidden_size=256 if form.startswith("Q4_K") else 64,
        intermediate_size=256 if form.startswith("Q4_K") else 96,
        num_layers=len(windows),
        num_heads=4,
        num_kv_heads=2,
        head_dim=64 if form.startswith("Q4_K") else 16,
        max_position_embeddings=LENGTH,
        layer_windows=windows,
    )
    module = Mistral(config, param_dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    return module if form == "plain" else hold_matrices_as(form, module)


@contextmanager
def serving(model: Mistral, *, prefix_cache: PrefixCache = "own", share: float = 1.0) -> Iterator[JaxEngine]:
    """An engine.

    Args:
      share: size of the pool of layers without a window, relative to what all slots can fill.
    """
    own = own_blocks(model.config, **cache_sizes(**SIZES))
    least = own_blocks(model.config, slots=1, **{k: v for k, v in cache_sizes(**SIZES).items() if k != "slots"})
    counts = [*own[:-1], max(int(own[-1] * share), least[-1])]
    runner = Runner(model, **SIZES, repeat_last_n=16, row_buckets=(2, 8), cache_blocks=counts, embeds=False)
    engine = JaxEngine(
        load=lambda _report: runner,
        tokenizer=FakeTokenizer(),
        eos_ids={EOS},
        slots=8,
        queue_limit=256,
        prefix_cache=prefix_cache,
    )
    engine.start()
    wait_until_ready(engine)
    try:
        yield engine
    finally:
        engine.drain(0)
        release_programs()


def tokens(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(3, VOCAB) for _ in range(count))


def request(name: str, prompt: Sequence[int], **asked: Any) -> Request:
    params = {"seed": sum(name.encode()), "max_tokens": 12, "ignore_eos": True, "temperature": 0.8, "logprobs": 3}
    others = {key: asked.pop(key) for key in ("caller", "cache_salt", "uses_cache", "work") if key in asked}
    chosen = SamplingParams(**{**params, **asked})
    return Request(request_id=name, prompt=tuple(prompt), params=chosen, token_ids=True, **others)


def conversations(seed: int, count: int = 14) -> list[Request]:
    """Prompts that begin alike to different lengths, some of them twice."""
    rng = random.Random(seed)
    system = tokens(rng, 150)
    prompts: list[tuple[int, ...]] = []
    for _ in range(count):
        known = rng.choice([(), system[:100], system, *prompts[-4:]])
        prompts.append((known + tokens(rng, rng.randrange(0, 90)))[: LENGTH - 40] or system[:1])
    return [
        request(f"{seed}-{i}", prompt, max_tokens=rng.randrange(1, 40), temperature=rng.choice([0.0, 0.9]))
        for i, prompt in enumerate(prompts)
    ]


def one_by_one(engine: JaxEngine, requests: Sequence[Request]) -> dict[str, Any]:
    return {each.request_id: answer(run(engine, each)[each.request_id]) for each in requests}


def together(engine: JaxEngine, requests: Sequence[Request]) -> dict[str, Any]:
    return {name: answer(events) for name, events in run(engine, *requests).items()}


FORMS = [
    ("plain", "bfloat16", (None, None)),
    ("plain", "float32", (48, None)),
    ("int8", "bfloat16", (48, 48)),
    ("Q4_K", "float32", (None, None)),
    ("Q8_0", "bfloat16", (48, None)),
    ("Q4_K/int8", "bfloat16", (48, None)),
]


@pytest.mark.slow(by="form")
@pytest.mark.parametrize(("form", "dtype", "windows"), FORMS)
def test_bits_do_not_depend_on_the_cache(form: str, dtype: str, windows: tuple[int | None, ...]) -> None:
    model = model_of(form, dtype, windows)
    requests = conversations(1)
    with serving(model, prefix_cache="off") as engine:
        expected = one_by_one(engine, requests)
        # The next turn of each conversation.
        told = {name: list(run(engine, each)[name]) for name, each in ((r.request_id, r) for r in requests[:6])}
        rng = random.Random(7)
        further = [
            request(f"next-{each.request_id}", (*each.prompt, *ids_of(told[each.request_id]), *tokens(rng, 30)))
            for each in requests[:6]
            if len(each.prompt) < LENGTH - 120
        ]
        expected |= one_by_one(engine, further)
        assert engine.status.cache_queries == 0
    everything = [*requests, *further]
    for share in (1.0, 0.3):
        with serving(model, share=share) as engine:
            compiled = note_compilations()
            for ask in (one_by_one, together, together):
                found = ask(engine, everything)
                assert found == expected, (share, ask.__name__, [n for n in expected if found[n] != expected[n]])
            status = engine.status
            assert status.cache_hits > status.cache_queries / 4
            assert status.cache_usage == 0.0
            assert compiled == []


def ids_of(events: Sequence[Event]) -> list[int]:
    return [token for event in events for token in event.token_ids]


def cached(events: Sequence[Event]) -> int:
    (count,) = {event.cached_tokens for event in events}
    return count


@pytest.fixture(scope="module")
def engine() -> Iterator[JaxEngine]:
    with serving(model_of("plain", "float32", (None, None))) as engine:
        yield engine


PROMPT = tokens(random.Random(5), 300)


def test_a_prompt_that_comes_again_is_not_run_again(engine: JaxEngine) -> None:
    first = run(engine, request("first", PROMPT))["first"]
    second = run(engine, request("second", PROMPT, seed=sum(b"first")))["second"]
    assert (cached(first), cached(second)) == (0, len(PROMPT) - 1)
    assert answer(first) == answer(second)
    # The next turn: the last token that was generated has not been run.
    further = (*PROMPT, *ids_of(first), 40, 41)
    third = run(engine, request("third", further))["third"]
    assert cached(third) == len(PROMPT) + len(ids_of(first)) - 1


def test_choices_that_are_submitted_together_run_their_prompt_once(engine: JaxEngine) -> None:
    prompt = tokens(random.Random(6), 200)
    requests = [request(f"choice{i}", prompt) for i in range(8)]
    inbox = Inbox()
    engine.submit(requests, inbox.deliver)
    events = inbox.until_all_end([each.request_id for each in requests])
    assert [cached(events[each.request_id]) for each in requests] == [0, *[199] * 7]


def test_callers_and_salts_share_nothing_with_others(engine: JaxEngine) -> None:
    prompt = tokens(random.Random(8), 100)

    def asked(name: str, **how: Any) -> int:
        return cached(run(engine, request(name, prompt, **how))[name])

    assert asked("a1", caller=1) == 0
    assert asked("a2", caller=1) == 99
    assert asked("b1", caller=2) == 0
    assert asked("c1", caller=1, cache_salt="x") == 0
    assert asked("c2", caller=1, cache_salt="x") == 99
    assert asked("d1", caller=3, uses_cache=False) == 0
    assert asked("d2", caller=3, uses_cache=True) == 0


def test_all_callers_share_where_they_are_to() -> None:
    prompt = tokens(random.Random(8), 100)
    with serving(model_of("plain", "float32", (None,)), prefix_cache="shared") as engine:
        for caller in range(3):
            name = f"caller{caller}"
            assert cached(run(engine, request(name, prompt, caller=caller))[name]) == (99 if caller else 0)


def test_a_cancelled_sequence_leaves_what_it_has_run(engine: JaxEngine) -> None:
    prompt = tokens(random.Random(9), 400)
    inbox = Inbox()
    engine.submit([request("cancelled", prompt, max_tokens=90)], inbox.deliver)
    engine.cancel("cancelled")
    inbox.until_all_end(["cancelled"])
    events = run(engine, request("after", prompt, seed=3))["after"]
    again = run(engine, request("again", prompt, seed=3))["again"]
    assert answer(events) == answer(again)
    assert cached(again) == 399


def test_many_short_sequences_share_a_pool_for_few_long_ones() -> None:
    """A quarter of what all slots could fill holds eight sequences of a block each at once."""
    model = model_of("plain", "float32", (None, None))
    requests = [request(f"short{i}", tokens(random.Random(i), 60), max_tokens=40) for i in range(8)]
    with serving(model, prefix_cache="off", share=0.28) as engine:
        most = 0

        class Watching(Inbox):
            def deliver(self, events: Sequence[Event]) -> None:
                nonlocal most
                most = max(most, engine.status.running)
                super().deliver(events)

        inbox = Watching()
        engine.submit(requests, inbox.deliver)
        inbox.until_all_end([each.request_id for each in requests])
        assert most == 8
        assert engine.status.put_back == 0


@pytest.mark.parametrize("constrained", [False, True])
def test_sequences_that_were_taken_out_go_on_as_if_they_had_not_been(constrained: bool) -> None:
    """With penalties, biases and log-probabilities, whose state goes with them."""
    model = model_of("plain", "bfloat16", (None, 48))
    asked: dict[str, Any] = {"max_tokens": 250, "repetition_penalty": 1.2, "frequency_penalty": 0.3}
    rng = random.Random(4)
    requests = [request(f"long{i}", tokens(rng, 20 + 30 * i), logit_bias={5 + i: 1.5}, **asked) for i in range(6)]
    if constrained:
        requests = [replace(each, constraint=OnlyEven()) if i % 2 else each for i, each in enumerate(requests)]
    with serving(model, prefix_cache="off") as engine:
        expected = one_by_one(engine, requests)
        assert engine.status.put_back == 0
    with serving(model, share=0.3) as engine:
        assert together(engine, requests) == expected
        assert engine.status.put_back >= 2
        assert engine.status.cache_usage == 0


class OnlyEven:
    """A constraint: tokens with even ids."""

    complete = False

    def start(self, *, at_start: bool) -> OnlyEven:
        del at_start
        return self

    def push(self, token: int) -> None:
        assert token % 2 == 0

    def forced(self) -> Sequence[int]:
        return ()

    def fill(self, mask: np.ndarray) -> None:
        mask[:] = 0x55555555
