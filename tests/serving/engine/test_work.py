"""The kinds of work: which chunks of a prompt each runs, and what its output makes of the results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import NO_TOKEN, NOT_NUMBERS, Sampled
from serving.engine.messages import Request, Work
from serving.engine.work import KINDS, Output
from tests.serving.fakes import EOS, OFFSET, FakeTokenizer


class RecordingRunner:
    """Stands for a runner: says what it was asked for."""

    def chunks(self, prompt_length: int, *, start: int = 0, score: bool = False) -> Iterator[tuple[int, int, bool]]:
        yield prompt_length, start, score


def request(work: Work, *, asked: dict[str, Any] | None = None, **params: Any) -> Request:
    settings = {"seed": 0, "logprobs": 1, **params}
    return Request(request_id="r", prompt=(1, 5, 6), params=SamplingParams(**settings), work=work, **(asked or {}))


def output(asked: Request, max_tokens: int) -> Output:
    make = KINDS[asked.work].output
    return make(asked, FakeTokenizer(), eos_ids={EOS}, max_tokens=max_tokens, scalings=None)


def test_every_kind_of_work_is_known() -> None:
    assert set(KINDS) == set(Work)


@pytest.mark.parametrize(
    ("work", "max_tokens", "expected"),
    [
        (Work.GENERATE, 4, [(3, 1, False)]),
        (Work.GENERATE, None, [(3, 1, False)]),
        (Work.GENERATE, 0, []),
        (Work.SCORE, 4, [(3, 0, True)]),
        (Work.SCORE, 0, [(3, 0, True)]),
    ],
)
def test_a_prompt_is_run_as_far_as_its_work_needs(work: Work, max_tokens: int | None, expected: list[Any]) -> None:
    runner: Any = RecordingRunner()
    assert list(KINDS[work].chunks(runner, request(work, max_tokens=max_tokens), 1)) == expected


def test_the_token_that_ends_a_completion_has_an_entry_where_it_is_asked_for() -> None:
    for wanted in (False, True):
        event = output(request(Work.SCORE, asked={"logprob_of_end": wanted}), 5).push(Sampled(EOS, -0.5, ()))
        assert (event.finish_reason, len(event.logprobs)) == ("stop", int(wanted))


def test_a_stop_string_that_the_end_token_completes_hides_it() -> None:
    asked = request(Work.SCORE, stop=("\ufffd",), asked={"logprob_of_end": True})
    processor = output(asked, 5)
    processor.push(Sampled(0xC3 + OFFSET, -0.5, ()))
    event = processor.push(Sampled(EOS, -0.5, ()))
    assert (event.finish_reason, event.stop_reason, event.logprobs) == ("stop", "\ufffd", ())


def test_ids_come_with_their_tokens_and_the_mean_counts_all_of_them() -> None:
    processor = output(request(Work.GENERATE, stop=("xyz",), asked={"token_ids": True}), 5)
    events = [processor.push(Sampled(token, -1.0 - i, ())) for i, token in enumerate((OFFSET + 120, OFFSET + 121, EOS))]
    assert [event.text for event in events] == ["", "", "xy"]
    assert [event.token_ids for event in events] == [(OFFSET + 120,), (OFFSET + 121,), (EOS,)]
    assert [event.mean_logprob for event in events] == [None, None, -2.0]
    assert output(request(Work.GENERATE, logprobs=None), 5).push(Sampled(EOS, 0.0, ())).mean_logprob is None


@pytest.mark.parametrize(
    ("token", "told", "refused"), [(NOT_NUMBERS, "not numbers", False), (NO_TOKEN, "no token", True)]
)
def test_why_there_is_no_token_is_told(token: int, told: str, refused: bool) -> None:
    event = output(request(Work.GENERATE, asked={"token_ids": True}), 5).push(Sampled(token, 0.0, ()))
    assert (event.finish_reason, event.token_ids, event.refused) == ("error", (), refused)
    assert told in (event.error or "")


def test_a_completion_has_no_results_of_its_prompt() -> None:
    with pytest.raises(TypeError, match="prompt"):
        output(request(Work.GENERATE), 5).push_prompt(np.zeros((1, 4), np.int32))


def test_control_tokens_are_reported_to_requests_that_want_them() -> None:
    sampled = [Sampled(token, -0.5, ()) for token in (ord("a") + OFFSET, 0, ord("b") + OFFSET)]
    plain = output(request(Work.GENERATE), 5)
    assert [plain.push(each).items for each in sampled] == [(), (), ()]
    wanting = output(replace(request(Work.GENERATE), reported_tokens=frozenset({0})), 5)
    assert [wanting.push(each).items for each in sampled] == [("a",), (0,), ("b",)]
