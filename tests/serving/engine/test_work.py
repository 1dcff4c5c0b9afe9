"""The kinds of work: which chunks of a prompt each runs, and what its output makes of the results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mistral_jax.runtime.sampling import Sampled
from mistral_jax.runtime.sampling_params import SamplingParams
from serving.engine.messages import Request, Work
from serving.engine.work import KINDS, Output
from tests.serving.fakes import EOS, OFFSET, FakeTokenizer


class RecordingRunner:
    """Stands for a runner: says what it was asked for."""

    def chunks(self, prompt_length: int, *, score: bool = False) -> Iterator[tuple[int, bool]]:
        yield prompt_length, score


def request(work: Work, **params: Any) -> Request:
    settings = {"seed": 0, "logprobs": 1, **params}
    return Request(request_id="r", prompt=(1, 5, 6), params=SamplingParams(**settings), work=work)


def output(asked: Request, max_tokens: int) -> Output:
    make = KINDS[asked.work].output
    return make(asked, FakeTokenizer(), eos_ids={EOS}, max_tokens=max_tokens, scalings=None)


def test_every_kind_of_work_is_known() -> None:
    assert set(KINDS) == set(Work)


@pytest.mark.parametrize(
    ("work", "max_tokens", "expected"),
    [
        (Work.GENERATE, 4, [(3, False)]),
        (Work.GENERATE, None, [(3, False)]),
        (Work.GENERATE, 0, []),
        (Work.SCORE, 4, [(3, True)]),
        (Work.SCORE, 0, [(3, True)]),
    ],
)
def test_a_prompt_is_run_as_far_as_its_work_needs(work: Work, max_tokens: int | None, expected: list[Any]) -> None:
    runner: Any = RecordingRunner()
    assert list(KINDS[work].chunks(runner, request(work, max_tokens=max_tokens))) == expected


def test_only_scored_requests_have_an_entry_for_the_token_that_ends_them() -> None:
    for work, entries in ((Work.GENERATE, 0), (Work.SCORE, 1)):
        event = output(request(work), 5).push(Sampled(EOS, -0.5, ()))
        assert (event.finish_reason, len(event.logprobs)) == ("stop", entries)


def test_a_stop_string_that_the_end_token_completes_hides_it() -> None:
    asked = request(Work.SCORE, stop=("\ufffd",))
    processor = output(asked, 5)
    processor.push(Sampled(0xC3 + OFFSET, -0.5, ()))
    event = processor.push(Sampled(EOS, -0.5, ()))
    assert (event.finish_reason, event.stop_string, event.logprobs) == ("stop", "\ufffd", ())


def test_a_completion_has_no_results_of_its_prompt() -> None:
    with pytest.raises(TypeError, match="prompt"):
        output(request(Work.GENERATE), 5).push_prompt(np.zeros((1, 4), np.int32))


def test_control_tokens_are_reported_to_requests_that_want_them() -> None:
    sampled = [Sampled(token, -0.5, ()) for token in (ord("a") + OFFSET, 0, ord("b") + OFFSET)]
    plain = output(request(Work.GENERATE), 5)
    assert [plain.push(each).items for each in sampled] == [(), (), ()]
    wanting = output(replace(request(Work.GENERATE), reported_tokens=frozenset({0})), 5)
    assert [wanting.push(each).items for each in sampled] == [("a",), (0,), ("b",)]
