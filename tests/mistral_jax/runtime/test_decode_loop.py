"""The loop around a runner, with a runner that only writes down what it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.runtime.buckets import PrefillChunk
from mistral_jax.runtime.calls import Prefilled, RunnerState, Stepped
from mistral_jax.runtime.decode_loop import DecodeLoop
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling import PACKED_WIDTH, Features
from mistral_jax.runtime.sampling_params import SamplingParams

XLORA = AdapterChoice(xlora=True)
GREEDY = SamplingParams(seed=1, temperature=0.0)
M, A = 3, 2


@dataclass(eq=False, kw_only=True)
class FakeSequence:
    slot: int
    prompt: tuple[int, ...] = (5, 6, 7)
    params: SamplingParams = GREEDY
    choice: AdapterChoice = BASE
    wants_weights: bool = False
    steps: int = 0

    @property
    def tokens_held(self) -> int:
        return len(self.prompt) - 1 + self.steps


class FakeRunner:
    """Tokens count up: slot s gets 100 * s + the number of the step."""

    can_speculate = True

    def __init__(self, *, emitted: Sequence[bool] | None = None) -> None:
        self.speculation_costs: dict[int, float] = {}
        self.calls: list[Any] = []
        self.step = 0
        self.emitted = emitted
        self.weights: np.ndarray | None = None

    def admit(self, state: RunnerState, slot: int, prompt: Any, params: Any, choice: Any) -> RunnerState:
        self.calls.append(("admit", slot))
        return state

    def prefill(self, state: RunnerState, slot: int, prompt: Any, chunk: PrefillChunk, *, scaling: bool) -> Prefilled:
        self.calls.append(("prefill", slot, chunk.start, scaling))
        packed = jnp.arange(chunk.size * PACKED_WIDTH, dtype=jnp.int32).reshape(chunk.size, PACKED_WIDTH)
        return Prefilled(state, jnp.int32(0), None, packed if chunk.score else None)

    def row_bucket(self, slots: Sequence[int]) -> int:
        return 4

    def decode(
        self,
        state: RunnerState,
        slots: Sequence[int],
        features: Features,
        *,
        longest: int,
        scaling: bool,
        speculative: bool,
    ) -> Stepped:
        self.calls.append(("decode", tuple(slots), longest, scaling, speculative))
        packed = np.zeros((4, PACKED_WIDTH), np.int32)
        packed[:, 0] = 100 * np.arange(4) + self.step
        self.step += 1
        weights = None
        if scaling:
            self.weights = np.random.default_rng(self.step).random((4, M, A), np.float32)
            weights = jnp.asarray(self.weights)
        emitted = None if not speculative or self.emitted is None else jnp.asarray(self.emitted)
        return Stepped(state, jnp.asarray(packed), weights, emitted)


def loop(runner: FakeRunner) -> DecodeLoop[FakeSequence]:
    return DecodeLoop[FakeSequence](cast("Runner", runner), cast("RunnerState", None))


def step(subject: DecodeLoop[FakeSequence], *sequences: FakeSequence) -> Any:
    for sequence in sequences:
        sequence.steps += 1
    return subject.dispatch([], sequences)


def test_a_step_is_collected_after_the_next_was_dispatched() -> None:
    runner = FakeRunner()
    subject = loop(runner)
    first, second = FakeSequence(slot=0), FakeSequence(slot=2, prompt=(1, 2, 3, 4, 5))
    subject.admit(first)
    subject.admit(second)
    one = step(subject, first, second)
    two = step(subject, second)
    results = [[(t.sequence, t.sampled.token) for t in subject.collect(work).tokens] for work in (one, two)]
    assert results == [[(first, 0), (second, 200)], [(second, 201)]]
    # The longest of each step: the prompt but its last token, and the steps.
    decodes = [call for call in runner.calls if call[0] == "decode"]
    assert decodes == [("decode", (0, 2), 5, False, False), ("decode", (2,), 6, False, False)]


def test_chunks_run_before_the_step_and_scores_come_back() -> None:
    runner = FakeRunner()
    subject = loop(runner)
    sequence, other = FakeSequence(slot=1), FakeSequence(slot=0, choice=XLORA)
    for each in (sequence, other):
        subject.admit(each)
    chunks = [PrefillChunk(0, 3, 4, score=True), PrefillChunk(4, 2, 4, score=True)]
    work = subject.dispatch([*((sequence, chunk) for chunk in chunks), (other, PrefillChunk(0, 2, 4))], [])
    assert [call[1:] for call in runner.calls if call[0] == "prefill"] == [(1, 0, False), (1, 4, False), (0, 0, True)]
    results = subject.collect(work)
    assert results.tokens == ()
    assert [(score.sequence, score.packed.shape) for score in results.scores] == [
        (sequence, (3, PACKED_WIDTH)),
        (sequence, (2, PACKED_WIDTH)),
    ]


@pytest.mark.parametrize("wanted", [False, True])
def test_weights_are_read_where_somebody_wants_them(wanted: bool) -> None:
    runner = FakeRunner()
    subject = loop(runner)
    mixed, base = FakeSequence(slot=0, choice=XLORA, wants_weights=wanted), FakeSequence(slot=1)
    for each in (mixed, base):
        subject.admit(each)
    work = step(subject, mixed, base)
    assert work.reads_weights is wanted
    results = subject.collect(work)
    assert [token.weights is None for token in results.tokens] == [not wanted, True]
    read = subject.collect(step(subject, mixed, base).reading_weights())
    np.testing.assert_array_equal(read.weights, runner.weights)
    np.testing.assert_array_equal(read.tokens[0].weights, runner.weights[0])


def test_a_speculative_step_without_a_token_is_taken_again() -> None:
    runner = FakeRunner(emitted=[True, False, True, True])
    subject = loop(runner)
    sequences = [FakeSequence(slot=slot, choice=XLORA) for slot in range(3)]
    for sequence in sequences:
        subject.admit(sequence)
    work = step(subject, *sequences)
    assert runner.calls[-1][-1]
    tokens = subject.collect(work).tokens
    assert [token.sequence.slot for token in tokens] == [0, 2]
    assert [sequence.steps for sequence in sequences] == [1, 0, 1]


def test_what_is_forgotten_may_be_forgotten_again() -> None:
    subject = loop(FakeRunner())
    sequence = FakeSequence(slot=0)
    subject.admit(sequence)
    subject.forget(sequence)
    subject.forget(sequence)
    with pytest.raises(KeyError):
        step(subject, sequence)
