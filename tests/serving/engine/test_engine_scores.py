"""The real engine where prompts are scored: alone and in company, interrupted, with nothing to generate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from mistral_jax.model.mistral import Mistral
from mistral_jax.quant.array import padded
from mistral_jax.runtime.runner import Runner
from serving.engine.engine import JaxEngine
from serving.engine.messages import EngineState, Event, Request, Work
from tests.serving.engine.test_engine import CONFIG, LENGTH, Inbox, make_engine, request, run
from tests.serving.fakes import EOS, VOCAB
from tests.serving.harness import wait_until_ready


@pytest.fixture(scope="module")
def runner() -> Runner:
    model = Mistral(CONFIG, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    # One token's embedding is damaged: only requests that contain it are.
    model.embed_tokens.weight.set_value(padded(model.embed_tokens.weight[...].at[DAMAGED].set(jnp.nan)))
    return Runner(model, slots=4, length=LENGTH, chunks=(16,), repeat_last_n=16, row_buckets=(4,))


@pytest.fixture(scope="module")
def engine(runner: Runner) -> Iterator[JaxEngine]:
    engine = make_engine(runner)
    engine.start()
    wait_until_ready(engine)
    yield engine
    engine.drain(0)
    assert engine.status.state is EngineState.STOPPED


DAMAGED = 200


def scored(name: str, length: int = 60, **params) -> Request:
    plain = request(name, length, **{"logprobs": 2, "max_tokens": 0, **params})
    prompt = tuple(token if token != DAMAGED else 100 for token in plain.prompt)
    wanted = plain.params.logprobs or 0
    return replace(plain, prompt=prompt, work=Work.SCORE, prompt_logprobs=wanted, logprob_of_end=True)


def entries(events: list[Event]) -> tuple:
    return tuple(entry for event in events for entry in event.prompt_logprobs)


def told(events: list[Event]) -> tuple:
    """All that an answer says, to the last bit."""
    text = "".join(event.text for event in events)
    generated = tuple(entry for event in events for entry in event.logprobs)
    return text, entries(events), generated, events[-1].finish_reason, events[-1].completion_tokens


def test_each_token_but_the_first_has_its_entry(engine: JaxEngine) -> None:
    for length in (1, 2, 17, 18, LENGTH):
        asked = scored(f"n{length}", length)
        events = run(engine, asked)[asked.request_id]
        assert [entry.token for entry in entries(events)] == list(asked.prompt[1:])
        assert (events[-1].finish_reason, events[-1].completion_tokens) == ("length", 0)
        assert all(len(entry.top) == 2 and entry.top[0].logprob >= entry.logprob for entry in entries(events))


def test_the_probabilities_of_all_next_tokens_sum_to_one_and_one_is_the_likeliest(engine: JaxEngine) -> None:
    context = scored("context", 20).prompt
    asked = [
        replace(scored(f"t{token}", logprobs=1), prompt=(*context, token)) for token in range(VOCAB) if token != DAMAGED
    ]
    ended = run(engine, *asked)
    last = [entries(ended[each.request_id])[-1] for each in asked]
    left_out = 1 - math.fsum(math.exp(entry.logprob) for entry in last)
    assert 0 < left_out < 0.1
    assert sum(entry.top[0].logprob == entry.logprob for entry in last) == 1


def test_scores_have_the_same_bits_alone_and_beside_others(engine: JaxEngine) -> None:
    requests = [scored(f"s{i}", length=3 + 29 * i, logprobs=i, max_tokens=i % 3) for i in range(7)]
    requests += [request(f"g{i}", length=5 + i, max_tokens=40) for i in range(3)]
    alone = {r.request_id: told(run(engine, r)[r.request_id]) for r in requests}
    for _ in range(2):
        together = run(engine, *requests)
        assert {name: told(events) for name, events in together.items()} == alone


def test_what_follows_a_scored_prompt_is_what_follows_it_otherwise(engine: JaxEngine) -> None:
    asked = scored("scored", max_tokens=9)
    plain = replace(asked, request_id="plain", work=Work.GENERATE)
    with_scores, without = run(engine, asked)["scored"], run(engine, plain)["plain"]
    assert told(with_scores)[0] == told(without)[0]
    assert told(with_scores)[2:] == told(without)[2:]
    assert told(without)[1] == ()


def test_an_end_of_sequence_token_that_is_generated_has_an_entry(engine: JaxEngine) -> None:
    asked = scored("eos", max_tokens=1, ignore_eos=False, logit_bias={EOS: 100.0})
    events = run(engine, asked)["eos"]
    [end] = [entry for event in events for entry in event.logprobs]
    assert (end.token, end.raw) == (EOS, b"")
    assert (events[-1].finish_reason, events[-1].completion_tokens) == ("stop", 1)


def test_a_prompt_that_is_not_scored_and_followed_by_nothing_is_not_run(
    engine: JaxEngine, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "calls", None)
    asked = replace(scored("nothing"), work=Work.GENERATE)
    events = run(engine, asked)["nothing"]
    assert told(events) == ("", (), (), "length", 0)
    assert (engine.status.running, engine.status.waiting) == (0, 0)


def test_others_decode_while_a_long_prompt_is_scored(engine: JaxEngine) -> None:
    inbox = Inbox()
    engine.submit([scored("long", LENGTH)], inbox.deliver)
    engine.submit([request("short", 2, max_tokens=4)], inbox.deliver)
    got: list[Event] = []
    while not got or got[-1].request_id != "long" or got[-1].finish_reason is None:
        got.append(inbox._events.get(timeout=60))
    order = [event.request_id for event in got]
    # 16 chunks of 16 tokens, one in each round.
    assert order.count("long") == 17
    assert order.index("short") < 8


def test_cancelling_frees_the_slots_of_prompts_that_are_being_scored(engine: JaxEngine) -> None:
    inbox = Inbox()
    names = [f"cancel{i}" for i in range(40)]
    for name in names:
        engine.submit([scored(name, LENGTH)], inbox.deliver)
    for name in names:
        engine.cancel(name)
    ended = inbox.until_all_end(names)
    assert sum(events[-1].finish_reason == "cancelled" for events in ended.values()) > 30
    assert (engine.status.running, engine.status.waiting) == (0, 0)
    after = scored("after")
    assert len(entries(run(engine, after)["after"])) == 59


def test_damaged_weights_fail_a_scored_prompt_once_and_nobody_else(engine: JaxEngine) -> None:
    good = scored("good", max_tokens=2, temperature=0.0)
    for max_tokens in (0, 3):
        bad = scored(f"bad{max_tokens}", length=9, max_tokens=max_tokens)
        bad = replace(bad, prompt=(*bad.prompt[:3], DAMAGED, *bad.prompt[4:]))
        ended = run(engine, bad, replace(good, request_id=f"good{max_tokens}"))
        [last] = [event for event in ended[bad.request_id] if event.finish_reason is not None]
        assert (last.finish_reason, "not numbers" in (last.error or "")) == ("error", True)
        assert ended[f"good{max_tokens}"][-1].finish_reason == "length"
    assert (engine.status.running, engine.status.waiting) == (0, 0)


def test_nothing_compiles_for_scores_after_warm_up(engine: JaxEngine) -> None:
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **others: compiled.append(event) if "backend_compile" in event else None
    )
    run(engine, *(scored(f"c{i}", 1 + 31 * i, max_tokens=i % 2) for i in range(6)))
    assert compiled == []


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_prompts_that_do_not_fit_are_refused_when_submitted(engine: JaxEngine, max_tokens: int) -> None:
    bad = scored("bad", LENGTH + 1 - max_tokens, max_tokens=max_tokens)
    with pytest.raises(ValueError, match=f"expected 1 to {LENGTH - max_tokens}"):
        engine.submit([bad], lambda events: None)
