"""The real engine where prompts are embedded: alone, beside completions, cancelled, damaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mistral_jax.model.mistral import Mistral
from mistral_jax.quant.array import padded
from mistral_jax.runtime.pooling import Pooling
from mistral_jax.runtime.runner import Runner
from serving.engine.engine import JaxEngine
from serving.engine.messages import EngineState, Event, Request, Work
from tests.serving.engine.test_engine import CONFIG, LENGTH, Inbox, make_engine, request, run, wait_for
from tests.serving.harness import wait_until_ready

pytestmark = pytest.mark.slow(by="file")

DAMAGED = 200


def damaged(module: Mistral) -> Mistral:
    """With one token's embedding broken: only requests that contain it are."""
    module.embed_tokens.weight.set_value(padded(module.embed_tokens.weight[...].at[DAMAGED].set(jnp.nan)))
    return module


@pytest.fixture(scope="module")
def runner() -> Runner:
    module = damaged(Mistral(CONFIG, param_dtype=jnp.float32, rngs=nnx.Rngs(0)))
    return Runner(module, slots=4, length=LENGTH, chunks=(16,), repeat_last_n=16, row_buckets=(4,))


@pytest.fixture(scope="module")
def engine(runner: Runner) -> Iterator[JaxEngine]:
    engine = make_engine(runner)
    engine.start()
    wait_until_ready(engine)
    yield engine
    engine.drain(0)
    assert engine.status.state is EngineState.STOPPED


def embedded(name: str, length: int = 40, pooling: Pooling = "mean") -> Request:
    plain = request(name, length, max_tokens=0)
    prompt = tuple(token if token != DAMAGED else 100 for token in plain.prompt)
    return replace(plain, prompt=prompt, work=Work.EMBED, pooling=pooling)


def vector(events: list[Event]) -> np.ndarray:
    *others, last = events
    assert all(event.embedding is None and event.finish_reason is None for event in others)
    assert (last.finish_reason, last.completion_tokens) == ("stop", 0)
    assert last.embedding is not None
    assert last.embedding.dtype == np.float32
    return last.embedding


@pytest.mark.parametrize("length", [1, 2, 16, 17, 40, LENGTH])
def test_vectors_are_those_of_a_whole_pass(engine: JaxEngine, runner: Runner, length: int) -> None:
    asked = embedded(f"n{length}", length)
    hidden = np.asarray(runner.model.hidden_states(jnp.asarray([asked.prompt]))[0], np.float64)
    mean = vector(run(engine, asked)[asked.request_id])
    np.testing.assert_allclose(mean, hidden.mean(axis=0), atol=2e-5, rtol=1e-4)
    last = replace(asked, pooling="last")
    np.testing.assert_allclose(vector(run(engine, last)[asked.request_id]), hidden[-1], atol=2e-5, rtol=1e-4)


def test_bits_are_the_same_alone_and_beside_others_and_others_keep_theirs(engine: JaxEngine) -> None:
    texts = [embedded(f"e{i}", 20 + 9 * i) for i in range(5)]
    completions = [request(f"c{i}", 15 + i, max_tokens=30, logprobs=1) for i in range(4)]
    completions = [
        replace(each, prompt=tuple(100 if token == DAMAGED else token for token in each.prompt)) for each in completions
    ]
    alone = {each.request_id: run(engine, each)[each.request_id] for each in (*texts, *completions)}
    together = run(engine, *(each for pair in zip(completions, texts, strict=False) for each in pair), texts[-1])
    for each in texts:
        np.testing.assert_array_equal(vector(together[each.request_id]), vector(alone[each.request_id]))
    for each in completions:
        told = [
            ("".join(event.text for event in events), [entry for event in events for entry in event.logprobs])
            for events in (alone[each.request_id], together[each.request_id])
        ]
        assert told[0] == told[1]


def test_nothing_compiles_for_lengths_that_were_not_there_before(engine: JaxEngine) -> None:
    found: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_args, **_more: found.append(event) if "backend_compile" in event else None
    )
    run(engine, *(embedded(f"l{length}", length) for length in (3, 33, 97, LENGTH - 1)))
    assert found == []


def test_a_cancelled_text_frees_its_slot(engine: JaxEngine) -> None:
    inbox = Inbox()
    engine.submit([embedded(f"x{i}", LENGTH) for i in range(4)], inbox.deliver)
    for i in range(4):
        engine.cancel(f"x{i}")
    ended = inbox.until_all_end([f"x{i}" for i in range(4)])
    assert {events[-1].finish_reason for events in ended.values()} <= {"cancelled", "stop"}
    wait_for(lambda: engine.status.running == 0)
    assert vector(run(engine, embedded("after"))["after"]).shape == (CONFIG.hidden_size,)


def test_values_that_are_not_numbers_end_the_request_and_no_other(engine: JaxEngine) -> None:
    broken = embedded("broken")
    broken = replace(broken, prompt=(*broken.prompt[:-1], DAMAGED))
    fine = embedded("fine")
    expected = vector(run(engine, fine)["fine"])
    ended = run(engine, broken, fine)
    assert ended["broken"][-1].finish_reason == "error"
    assert "not numbers" in (ended["broken"][-1].error or "")
    np.testing.assert_array_equal(vector(ended["fine"]), expected)
