"""Warming up: every program is compiled, with progress, and running one later compiles nothing."""

from __future__ import annotations

import gc
import threading

import jax
import pytest

from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import Features
from mistral_jax.runtime.warming.empty_calls import EmptyCalls
from tests.mistral_jax.tiny_adapters import adapter_set, model, xlora


@pytest.fixture
def compiled() -> list[str]:
    """Names of what JAX compiles while a test runs."""
    events: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **others: events.append(event) if "backend_compile" in event else None
    )
    return events


def test_every_program_is_compiled_once(compiled: list[str]) -> None:
    runner = Runner(model(), slots=2, length=64, chunks=(4, 16))
    state = runner.new_state()
    reported: list[tuple[int, int]] = []
    state = runner.warm_up(state, lambda done, total: reported.append((done, total)))
    # Two chunk lengths, one that is scored, one of embeddings; forward passes with and without runs, appending them,
    # and sampling; the passes with proposals for one and two rows, and sampling these.
    assert {total for _, total in reported} == {12}
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)
    assert reported[0] == (0, 12)
    assert reported[-1] == (12, 12)
    compiled.clear()
    runner.warm_up(state)
    assert compiled == []
    assert gc.get_freeze_count() == 0


def test_of_chunks_that_are_scored_there_is_one_program_with_and_one_without_the_scaling_pass() -> None:
    several_lengths = Runner(model(), slots=2, length=512, chunks=(4, 16), block_buckets=(1, 2, 4))
    mixture = Runner(model(), slots=2, length=64, chunks=(4, 16), adapters=adapter_set(), xlora=xlora())
    for runner, expected in ((several_lengths, [False]), (mixture, [False, True])):
        scored = [call.keywords for call in EmptyCalls(runner).all() if call.keywords.get("score")]
        assert [call["scaling"] for call in scored] == expected


def test_plain_completions_need_a_few_programs() -> None:
    plain = Runner(model(), slots=8, length=64, chunks=(4, 16))
    mixture = Runner(model(), slots=8, length=64, chunks=(4, 16), adapters=adapter_set(), xlora=xlora())
    for runner, scaling, expected in ((plain, False, 6), (mixture, False, 6), (mixture, True, 10)):
        first, others = EmptyCalls(runner).first_and_others(scaling=scaling)
        assert len(first) == expected
        assert len(first) + len(others) == len(list(EmptyCalls(runner).all()))


@pytest.mark.parametrize("scaling", [False, True])
def test_plain_completions_run_before_the_other_programs_are_compiled(scaling: bool, compiled: list[str]) -> None:
    runner = Runner(model(), slots=2, length=64, chunks=(4, 16), adapters=adapter_set(), xlora=xlora())
    reported: list[tuple[int, int]] = []
    state, behind = runner.warm_up_first(
        runner.new_state(), lambda done, total: reported.append((done, total)), scaling=scaling
    )
    assert reported[-1][0] == reported[-1][1] == len(list(EmptyCalls(runner).all())) - behind.count
    assert runner.run_costs == {}
    compiled.clear()

    def complete(scaling: bool) -> None:
        nonlocal state
        choice = AdapterChoice(xlora=True) if scaling else BASE
        prompt = tuple(range(3, 25))
        state = runner.admit(state, 1, prompt, SamplingParams(seed=1), choice)
        for chunk in runner.chunks(len(prompt)):
            state = runner.prefill(state, 1, prompt, chunk, scaling=scaling).state
        for speculative in {False, scaling}:
            stepped = runner.decode(state, [1], Features(), longest=30, scaling=scaling, speculative=speculative)
            state = stepped.state

    complete(scaling)
    assert compiled == []
    ended = threading.Event()
    behind.start(ended.set)
    # Beside it, or afterwards: each program is compiled once.
    complete(not scaling)
    assert ended.wait(120)
    assert len(compiled) == behind.count
    compiled.clear()
    state = runner.measure(state)
    runner.warm_up(state)
    assert compiled == []
    assert runner.run_costs
    assert runner.speculation_costs


def test_compiling_behind_ends_when_it_is_told(compiled: list[str]) -> None:
    runner = Runner(model(), slots=2, length=64, chunks=(4,))
    _, behind = runner.warm_up_first(runner.new_state(), scaling=False)
    compiled.clear()
    behind.stop()
    ended = threading.Event()
    behind.start(ended.set)
    behind.join(30)
    assert compiled == []
    assert not ended.is_set()


def test_what_fails_to_compile_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*others: object, **options: object) -> None:
        raise MemoryError("no room to compile")

    runner = Runner(model(), slots=1, length=32, chunks=(4,))
    monkeypatch.setattr(jax.stages.Lowered, "compile", fail)
    with pytest.raises(MemoryError, match="no room"):
        runner.warm_up(runner.new_state())
    assert gc.get_freeze_count() == 0
