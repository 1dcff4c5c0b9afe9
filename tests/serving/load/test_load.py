"""Load tests of a server: what is sent, what is measured, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from serving.commands.bench_url import run_bench_url
from serving.commands.cli import cli
from serving.load.client import Outcome, Target
from serving.load.report import Result, Spread, lines
from serving.load.run_load import closed_loop, open_loop, tokens_of_words
from serving.load.workload import Lengths, Load, Planned, Range, TokensOfWords, plan, text_of
from tests.serving.fakes import FakeEngine
from tests.serving.harness import listening

LETTERS = TokensOfWords(0, 5)
"""Of a tokenizer whose tokens are letters, roughly."""


@pytest.mark.parametrize(
    ("text", "expected"), [("128", Range(128, 128)), ("64-1024", Range(64, 1024)), ("1-1", Range(1, 1))]
)
def test_ranges(text: str, expected: Range) -> None:
    assert Range.parse(text) == expected
    assert Range.parse(str(expected)) == expected


@pytest.mark.parametrize("text", ["", "0", "-3", "5-3", "1-2-3", "a", "1.5", "3-", "0-4"])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(ValueError, match="expected a positive number, or two"):
        Range.parse(text)


def test_words_are_measured_in_tokens() -> None:
    tokens = TokensOfWords.of({50: 61, 250: 301})
    assert tokens == TokensOfWords(1, 1.2)
    assert tokens.words(601) == 500
    assert tokens.words(1) == 1
    assert TokensOfWords.of({50: 5, 250: 5}).per_word > 0


def test_plans_are_those_of_their_seed() -> None:
    lengths = Lengths(prompt=Range(100, 500), answer=Range(3, 9), shared_prefix=50, shared_part=0.5)
    planned = plan(lengths, 200, LETTERS, 3)
    assert planned == plan(lengths, 200, LETTERS, 3)
    assert planned != plan(lengths, 200, LETTERS, 4)
    assert {request.answer_tokens for request in planned} == set(range(3, 10))
    counts = [len(request.prompt.split()) for request in planned]
    assert min(counts) >= 20
    assert max(counts) <= 100
    beginnings = [" ".join(request.prompt.split()[:10]) for request in planned]
    shared = max(map(beginnings.count, beginnings))
    assert 70 < shared < 130
    assert len(set(beginnings)) == 201 - shared


def outcome(*arrivals: float, ended: float, tokens: int = 0, **given: Any) -> Outcome:
    return Outcome(started=0, arrivals=list(arrivals), ended=ended, completion_tokens=tokens, prompt_tokens=10, **given)


def test_what_is_reported() -> None:
    outcomes = [
        outcome(0.1, 0.2, 0.4, ended=0.5, tokens=4, cached_tokens=5),
        outcome(0.3, ended=1.0, tokens=1),
        Outcome(started=0, ended=9.0, error="HTTP 503: full"),
    ]
    result = Result.of("2 clients", outcomes, 2.0)
    assert (result.requests, result.errors) == (3, {"HTTP 503: full": 1})
    assert (result.requests_per_second, result.output_tokens_per_second, result.prompt_tokens_per_second) == (
        1,
        2.5,
        10,
    )
    assert result.cached_part == 0.25
    assert result.first_token_ms.p50 == pytest.approx(200)
    assert result.gap_ms.mean == pytest.approx(150)
    assert result.per_token_ms.p99 == pytest.approx(100)
    assert result.request_ms.p50 == pytest.approx(750)
    table = lines([result])
    assert " ".join(table[1].split()) == (
        "2 clients 3 1 1.00 2.5 200.0 / 280.0 / 298.0 150.0 / 190.0 / 199.0 750.0 / 950.0 / 995.0"
    )
    assert table[-1] == "2 clients: 1 failed: HTTP 503: full"
    nothing = Result.of("1 client", outcomes[2:], 1.0)
    assert nothing.first_token_ms == Spread(None, None, None, None)
    assert "- / - / -" in lines([nothing])[1]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, FakeEngine]]:
    engine = FakeEngine(lambda request: "x" * request.params.max_tokens, delay=0.001)
    with listening(engine) as found:
        yield found.url, engine


def target(url: str, **given: Any) -> Target:
    return Target(url, **{"model": None, "key": None, "timeout": 30, "extensions": True, "connections": 8} | given)


def test_a_closed_loop_keeps_its_clients_busy(server: tuple[str, FakeEngine]) -> None:
    url, engine = server
    first = len(engine.submitted)
    together: list[int] = []
    outcomes: list[Outcome] = []

    def done(outcome: Outcome) -> None:
        together.append(len(engine.submitted) - first - len(outcomes))
        outcomes.append(outcome)

    async def run() -> float:
        asked = target(f"{url}/v1/")
        try:
            assert await asked.find_model() == "acme/tiny-mistral"
            return await closed_loop(asked, [Planned(f"prompt {i}", 5 + i) for i in range(12)], 3, done)
        finally:
            await asked.aclose()

    seconds = asyncio.run(run())
    assert [outcome.error for outcome in outcomes] == [None] * 12
    assert max(together) <= 3
    assert sorted(o.completion_tokens for o in outcomes) == list(range(5, 17))
    assert all(o.prompt_tokens > 0 and 0 < o.first_token_seconds <= o.seconds <= seconds for o in outcomes)
    assert all(request.params.ignore_eos for request in engine.submitted[first:])


def test_an_open_loop_does_not_wait_for_answers() -> None:
    gate = threading.Event()
    engine = FakeEngine("ab", gate=gate)
    with listening(engine) as found:

        async def run() -> list[Outcome]:
            asked, outcomes = target(found.url), []
            await asked.find_model()
            # All have begun before the first can end.
            threading.Thread(target=lambda: (_wait(engine, 6), gate.set()), daemon=True).start()
            await open_loop(asked, [Planned("x", 2)] * 6, 500.0, 1, outcomes.append)
            await asked.aclose()
            return outcomes

        assert [outcome.error for outcome in asyncio.run(run())] == [None] * 6


def _wait(engine: FakeEngine, count: int) -> None:
    event = threading.Event()
    while len(engine.submitted) < count:
        event.wait(0.002)


def test_the_whole_command(server: tuple[str, FakeEngine], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    load = Load(
        lengths=Lengths(prompt=Range(20, 120), answer=Range(4, 6)), clients=(1, 4), requests=10, warm_up=2, seed=0
    )
    plotted = tmp_path / "plot.svg"
    options: dict[str, Any] = {"model": None, "key": None, "timeout": 30, "extensions": True}
    assert run_bench_url(server[0], load, **options, plot_file=plotted, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert [result["setting"] for result in told["results"]] == ["1 client", "4 clients"]
    assert all(result["requests"] == 10 and not result["errors"] for result in told["results"])
    assert b"<svg" in plotted.read_bytes()
    too_long = replace(load, lengths=Lengths(prompt=Range(900, 900), answer=Range(4, 4)))
    assert run_bench_url(server[0], too_long, **options, plot_file=None, as_json=False) == 1
    assert "1 client: 10 failed: HTTP 400: This model's maximum context length is N" in capsys.readouterr().out


def test_lengths_are_in_tokens(server: tuple[str, FakeEngine]) -> None:
    url, engine = server

    async def run() -> TokensOfWords:
        asked = target(url)
        try:
            await asked.find_model()
            return await tokens_of_words(asked)
        finally:
            await asked.aclose()

    tokens = asyncio.run(run())
    engine.submitted.clear()
    text = text_of(tokens.words(150), random.Random(9))
    assert 110 < len(text) + 1 < 190  # the fake's tokens are bytes, after one that begins the text


@pytest.mark.parametrize(
    ("url", "model", "message"),
    [
        ("http://127.0.0.1:9", None, "is a server running there"),
        ("{server}/docs", None, "is a server running there"),
        ("{server}", "other", "HTTP N: |HTTP 404: "),
    ],
)
def test_servers_that_do_not_answer(url: str, model: str | None, message: str, server: tuple[str, FakeEngine]) -> None:
    async def run() -> None:
        asked = target(url.format(server=server[0]), model=model)
        try:
            await asked.find_model()
            await tokens_of_words(asked)
        finally:
            await asked.aclose()

    with pytest.raises(ValueError, match=message):
        asyncio.run(run())


def test_failures_are_told_apart() -> None:
    async def outcomes(engine: FakeEngine, **given: Any) -> list[str | None]:
        with listening(engine) as found:
            asked = target(found.url, model="acme/tiny-mistral", **given)
            try:
                results = await asyncio.gather(*(asked.complete(Planned("x", 3)) for _ in range(4)))
            finally:
                await asked.aclose()
        return [result.error for result in results]

    def run(engine: FakeEngine, **given: Any) -> list[str | None]:
        return asyncio.run(outcomes(engine, **given))

    assert all("an error in the stream" in str(error) for error in run(FakeEngine("abc", fail_after=1)))
    full = run(FakeEngine("abc", slots=1, queue_limit=0, delay=0.3))
    assert sum(error is None for error in full) >= 1
    assert any(str(error).startswith("HTTP 503: ") for error in full)
    assert all("ReadTimeout" in str(error) for error in run(FakeEngine("abc", gate=threading.Event()), timeout=0.2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clients", "3"], "--clients needs --url"),
        (["--only-standard-fields"], "--only-standard-fields needs --url"),
        (["--prompt-tokens", "3-9"], "--prompt-tokens: '3-9' is not valid; expected a whole number"),
        (["--url", "localhost:1234"], "expected http://HOST:PORT"),
        (["--url", "http://x", "-m", "y"], "--model-id means nothing with --url"),
        (["--url", "http://x", "--clients", "1", "--rate", "2"], "give one of them"),
        (["--url", "http://x", "--clients", "0"], "expected positive numbers separated by commas"),
        (["--url", "http://x", "--rate", "inf"], "expected positive numbers separated by commas"),
        (["--url", "http://x", "--shared-part", "1.5"], "expected a number from 0 to 1"),
        (["--url", "http://x", "--requests", "0"], "expected a whole number of at least 1"),
        (["--url", "http://x", "--answer-tokens", "9-3"], "expected a positive number, or two"),
    ],
)
def test_options_that_do_not_fit(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, ["bench", *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
