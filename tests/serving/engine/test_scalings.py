"""Weights of adapters: kept until their token is let go of, told in JSON, and averaged for a gauge."""

from __future__ import annotations

import numpy as np
import pytest

from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import Sampled
from serving.api.responses.xlora_scalings import ScalingsReport
from serving.api.service.asked import ReportedScalings
from serving.engine.messages import Request, TokenScalings, WantedScalings
from serving.engine.output import CompletionOutput
from serving.engine.scalings import ScalingsTrack
from serving.engine.shares import ASKED_FOR, INTERVAL, ROUNDS, AdapterShares
from tests.serving.fakes import EOS, OFFSET, FakeTokenizer

M, A = 3, 5
XLORA = AdapterChoice(xlora=True)


def weights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((M, A)).astype(np.float32)


def track(choice: AdapterChoice = XLORA, *, detail="full", adapters: tuple[int, ...] = (0, 3)) -> ScalingsTrack:
    return ScalingsTrack(WantedScalings(detail=detail, adapters=adapters), choice, columns=M, adapters=A)


def test_tokens_get_their_weights_back_in_order() -> None:
    kept = track()
    for seed in range(3):
        kept.push(weights(seed))
    for seed in range(3):
        np.testing.assert_array_equal(kept.take(), weights(seed)[:, [0, 3]])


@pytest.mark.parametrize("detail", ["tokens", "summary"])
def test_less_detail_is_the_mean_over_modules(detail) -> None:
    kept = track(detail=detail)
    kept.push(weights(1))
    np.testing.assert_allclose(kept.take(), weights(1)[:, [0, 3]].mean(0), rtol=1e-6)


def test_weights_that_nobody_made_anew_are_those_from_before() -> None:
    kept = track()
    kept.push(weights(1))
    kept.push(None)
    np.testing.assert_array_equal(kept.take(), kept.take())
    for choice, expected in ((BASE, [0, 0]), (AdapterChoice(weights=((3, -0.5), (1, 2.0))), [0, -0.5])):
        fixed = track(choice)
        fixed.push(None)
        np.testing.assert_array_equal(fixed.take(), [expected] * M)


def test_a_kept_row_does_not_hold_the_whole_step() -> None:
    step = np.ones((8, M, A), np.float32)
    kept = track()
    kept.push(step[2])
    assert kept.take().base is None


def test_weights_leave_with_the_text_of_their_token_and_not_with_what_is_no_part_of_the_answer() -> None:
    request = Request(
        request_id="r",
        prompt=(1,),
        params=SamplingParams(stop=("xyz",), seed=0),
        choice=XLORA,
        scalings=WantedScalings(detail="full", adapters=tuple(range(A))),
    )
    processor = CompletionOutput(
        request,
        FakeTokenizer(),
        eos_ids={EOS},
        max_tokens=99,
        scalings=track(adapters=tuple(range(A))),
    )
    text = "aé xyq".encode()
    events = [processor.push(Sampled(byte + OFFSET, 0.0, ()), weights(i)) for i, byte in enumerate(text)]
    events.append(processor.push(Sampled(EOS, 0.0, ()), weights(99)))
    told = [scaling for event in events for scaling in event.scalings]
    assert len(told) == len(text)
    for i, scaling in enumerate(told):
        np.testing.assert_array_equal(scaling.weights, weights(i))
    assert [len(event.scalings) for event in events] == [1, 1, 1, 1, 0, 0, 3, 0]
    assert "".join(scaling.text for scaling in told) == "a\ufffd\ufffd xyq"


def test_a_report_tells_the_mean_so_far_and_at_the_end() -> None:
    report = ScalingsReport(ReportedScalings(detail="summary", adapters=("a", "b"), modules=("*",)))
    assert report.whole().scalings is None
    tokens = [TokenScalings(text="x", weights=np.array(w, np.float32)) for w in ([1, 0], [0, 0.5], [0.1234567, 1])]
    report.take(tokens[:1])
    assert report.chunk(tokens[:1]).scalings == [1, 0]
    report.take(tokens[1:])
    end = report.last_chunk()
    assert end is not None
    assert end.scalings == report.whole().scalings == [round(1.1234567 / 3, 6), 0.5]


def test_modules_are_named_once() -> None:
    report = ScalingsReport(ReportedScalings(detail="full", adapters=("a",), modules=("m", "n")))
    token = [TokenScalings(text="x", weights=np.array([[0.25], [1]], np.float32))]
    report.take(token)
    assert report.chunk(token).modules == ["m", "n"]
    report.take(token)
    assert not report.chunk(token).modules
    assert report.whole().modules == ["m", "n"]
    assert report.last_chunk() is None


def test_shares_are_read_once_in_a_while_and_only_while_somebody_asks() -> None:
    shares = AdapterShares()
    assert not shares.is_due(0.0)
    assert shares.ask(10.0) == ()
    assert shares.is_due(10.0)
    assert not shares.is_due(10.0 + INTERVAL / 2)
    assert shares.is_due(10.0 + INTERVAL)
    assert not shares.is_due(10.0 + ASKED_FOR + 1)


def test_shares_are_means_over_modules_rows_and_the_last_rounds() -> None:
    shares = AdapterShares()
    shares.ask(0.0)
    old = np.ones((4, M, A), np.float32)
    for _ in range(3):
        shares.add([old[0]])
    rounds = np.random.default_rng(0).random((ROUNDS, 4, M, A)).astype(np.float32)
    for one in rounds:
        shares.add([one[1], one[3]])
    np.testing.assert_allclose(shares.ask(1.0), rounds[:, [1, 3]].mean((0, 1, 2)), rtol=1e-5)


def test_a_round_that_gave_no_token_to_x_lora_does_not_count() -> None:
    shares = AdapterShares()
    shares.ask(0.0)
    assert shares.is_due(0.0)
    shares.add([])
    assert shares.ask(0.1) == ()
    assert shares.is_due(0.1)
