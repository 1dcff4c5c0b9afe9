"""Warming up: every program is compiled, with progress, and running one later compiles nothing."""

from __future__ import annotations

import gc

import jax
import pytest

from mistral_jax.runtime.runner import Runner
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
    # and sampling.
    assert {total for _, total in reported} == {8}
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)
    assert reported[0] == (0, 8)
    assert reported[-1] == (8, 8)
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


def test_what_fails_to_compile_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*others: object, **options: object) -> None:
        raise MemoryError("no room to compile")

    runner = Runner(model(), slots=1, length=32, chunks=(4,))
    monkeypatch.setattr(jax.stages.Lowered, "compile", fail)
    with pytest.raises(MemoryError, match="no room"):
        runner.warm_up(runner.new_state())
    assert gc.get_freeze_count() == 0
