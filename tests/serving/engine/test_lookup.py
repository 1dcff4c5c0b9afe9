"""Requests whose text repeats itself: several tokens in a step, and the events that single steps give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mistral_jax.runtime.lookup_policy import LookupPolicy, Repetition
from mistral_jax.runtime.runner import Runner
from serving.engine.engine import JaxEngine
from serving.engine.messages import Request
from tests.memory_maps import release_programs
from tests.serving.engine.test_engine import answer, make_engine, note_compilations, request, run
from tests.serving.engine.test_prefix_cache import model_of
from tests.serving.fakes import EOS
from tests.serving.harness import wait_until_ready


def engine_of(*, looks_up: bool) -> JaxEngine:
    model = model_of("plain", "float32", (48, None))
    engine = make_engine(Runner(model, slots=4, length=256, chunks=(16,), repeat_last_n=16, looks_up=looks_up))
    engine.start()
    wait_until_ready(engine)
    return engine


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[JaxEngine, JaxEngine]]:
    engines = engine_of(looks_up=True), engine_of(looks_up=False)
    yield engines
    for engine in engines:
        engine.drain(0)
    release_programs()


def requests() -> list[Request]:
    again: dict[str, Any] = {"temperature": 0.0, "logit_bias": {70: 60.0}, "max_tokens": 60}
    return [
        request("repeats", 20, **again, logprobs=2),
        request("repeats-and-stops", 20, **{**again, "stop": ("C" * 17,)}),
        request("cut", 20, **{**again, "max_tokens": 33}),
        # It ends while further tokens of the step come after the end.
        request("ends", 20, **{**again, "ignore_eos": False, "logit_bias": {EOS: 60.0}, "min_tokens": 0}),
        request("does-not-repeat", 30, temperature=1.3, logprobs=1, max_tokens=40),
        request("penalised", 30, temperature=0.0, frequency_penalty=1.9, logit_bias={71: 9.0, 72: 9.0}, max_tokens=50),
    ]


@pytest.mark.parametrize("at_once", [1, 2])
def test_completions_are_those_of_single_steps(engines: tuple[JaxEngine, JaxEngine], at_once: int) -> None:
    looking, plain = engines
    assert looking._rounds is not None
    policy = looking._rounds._loop._lookups
    compiled = note_compilations()
    before = looking.status
    for first in range(0, len(requests()), at_once):
        some = requests()[first : first + at_once]
        # As if a step of several tokens were free.
        policy.measured({1: 0.5, 2: 0.5})
        found, expected = run(looking, *some), run(plain, *some)
        for each in some:
            name = each.request_id
            assert answer(found[name]) == answer(expected[name])
            last, wanted = found[name][-1], expected[name][-1]
            assert (last.finish_reason, last.completion_tokens) == (wanted.finish_reason, wanted.completion_tokens)
    accepted = looking.status.accepted - before.accepted
    assert accepted > 30
    assert looking.status.proposed - before.proposed >= accepted
    assert compiled == []
    assert plain.status.proposed == 0


def test_text_that_repeats_nothing_is_never_looked_up() -> None:
    policy = LookupPolicy({1: 1.1})
    for token in range(200):
        policy.push(1, (5, 6, 7), token)
        assert not policy.chooses({1: 8}, 1)
    # From here on it repeats the text so far.
    chosen = []
    for token in range(60):
        policy.push(1, (), token)
        chosen.append(policy.chooses({1: 8}, 1))
    assert not chosen[0]
    assert all(chosen[20:])
    assert not policy.chooses({1: 8}, 4)
    # The last token that it may get gains nothing.
    assert not policy.chooses({1: 1}, 1)


def test_steps_that_give_too_little_pause() -> None:
    policy = LookupPolicy({2: 1.5})
    for token in [1, 2, 3] * 20:
        policy.push(1, (), token)
    assert policy.chooses({1: 4}, 2)
    while policy.chooses({1: 4}, 2):
        policy.observe((1,), 2)
    assert sum(not policy.chooses({1: 4}, 2) for _ in range(100)) >= 60
    assert policy.chooses({1: 4}, 2)
    policy.forget(1)
    assert not policy.chooses({1: 4}, 2)


def test_the_latest_of_the_longest_earlier_places_counts() -> None:
    repetition = Repetition([1, 2, 9, 1, 2, 3, 1, 2])
    repetition.push(3)
    assert repetition.share > 0
    before = repetition.share
    repetition.push(9)
    assert repetition.share < before
