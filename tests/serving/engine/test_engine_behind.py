"""An engine that serves before all programs are compiled."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

import jax
import pytest

from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.warming.behind import CompilingBehind
from serving.engine.engine import JaxEngine, PlainCompletions
from serving.engine.messages import EngineState, Work
from tests.serving.engine.test_engine import answer, make_runner, note_compilations, request, run, wait_for
from tests.serving.fakes import EOS, FakeTokenizer
from tests.serving.harness import wait_until_ready


def engine_of(runner: Runner) -> JaxEngine:
    return JaxEngine(
        load=lambda report: runner,
        tokenizer=FakeTokenizer(),
        eos_ids={EOS},
        slots=runner.slots,
        queue_limit=64,
        behind=PlainCompletions(scaling=False),
    )


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is compiled behind before it is set."""
    opened = threading.Event()
    compile_all = CompilingBehind._run

    def later(self: CompilingBehind, done: Callable[[], None]) -> None:
        assert opened.wait(60)
        compile_all(self, done)

    monkeypatch.setattr(CompilingBehind, "_run", later)
    return opened


def join_behind(engine: JaxEngine) -> None:
    """Wait for the thread that compiles: it starts when requests are taken already."""
    wait_for(lambda: engine._behind is not None and engine._behind._thread is not None)
    assert engine._behind is not None
    engine._behind.join(30)


def test_completions_come_before_the_other_programs(gate: threading.Event, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mistral_jax")
    runner = make_runner()
    engine = engine_of(runner)
    engine.start()
    wait_until_ready(engine)
    compiled = note_compilations()
    plain = [request(f"plain{i}", length=3 + 9 * i, logprobs=2, temperature=0.5 * i) for i in range(4)]
    first = run(engine, *plain)
    assert compiled == []
    # What is not compiled yet is compiled when it is needed.
    scored = replace(request("scored", length=20), work=Work.SCORE, prompt_logprobs=1)
    assert [event.finish_reason for event in run(engine, scored)["scored"]][-1] == "length"
    assert len(compiled) == 1
    gate.set()
    wait_for(lambda: bool(runner.run_costs))
    assert "programs are compiled" in caplog.text
    compiled.clear()
    again = run(engine, *(replace(each, request_id=f"{each.request_id} again") for each in plain))
    run(engine, replace(scored, request_id="scored again"))
    assert compiled == []
    assert [answer(events) for events in again.values()] == [answer(events) for events in first.values()]
    engine.drain(5)
    assert engine.status.state is EngineState.STOPPED


def test_an_engine_stops_while_programs_are_compiled(gate: threading.Event) -> None:
    engine = engine_of(make_runner())
    engine.start()
    wait_until_ready(engine)
    engine.drain(5)
    assert engine.status.state is EngineState.STOPPED
    compiled = note_compilations()
    gate.set()
    join_behind(engine)
    assert compiled == []


def test_a_program_that_cannot_be_compiled_leaves_the_others(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of(make_runner())
    engine.start()
    wait_until_ready(engine)

    def fails(*others: object, **options: object) -> None:
        raise MemoryError("no room to compile")

    with monkeypatch.context() as context:
        context.setattr(jax.stages.Lowered, "compile", fails)
        gate.set()
        join_behind(engine)
    assert "a program could not be compiled" in caplog.text
    assert run(engine, request("after"))["after"][-1].finish_reason == "length"
    engine.drain(5)
