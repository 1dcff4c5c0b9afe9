"""The loop around a runner, with a runner that only writes down what it is asked."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.grammar.constraint import Constraint, ConstraintError
from mistral_jax.runtime import decode_loop
from mistral_jax.runtime.buckets import PrefillChunk
from mistral_jax.runtime.calls import Forwarded, Prefilled, RunnerState, Stepped
from mistral_jax.runtime.decode_loop import LONGEST_OF_SEVERAL, DecodeLoop, LoopResults
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import PACKED_WIDTH, Features
from mistral_jax.runtime.step import SEVERAL

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
    constraint: Constraint | None = None
    steps: int = 0
    most: int = 100

    @property
    def room(self) -> int:
        return self.most - self.steps

    @property
    def tokens_held(self) -> int:
        return len(self.prompt) - 1 + self.steps


class FakeRunner:
    """Tokens count up: slot s gets 100 * s + the number of the step."""

    can_speculate = True
    run_buckets = (4,)
    several_buckets = (4,)
    lookups: ClassVar[dict[int, int]] = {}
    config = SimpleNamespace(vocab_size=64)

    def __init__(self, *, emitted: Sequence[bool] | None = None) -> None:
        self.speculation_costs: dict[int, float] = {}
        self.run_costs: dict[int, float] = {}
        self.lookup_costs: dict[int, float] = {}
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

    def lookup_rows(self, slots: Sequence[int]) -> int | None:
        return None

    def forward(
        self,
        state: RunnerState,
        slots: Sequence[int],
        *,
        longest: int,
        scaling: bool,
        speculative: bool,
        runs: dict[int, tuple[int, ...]],
    ) -> Forwarded:
        self.calls.append(("forward", tuple(slots), longest, scaling, speculative, dict(runs)))
        return Forwarded(state, cast("Any", scaling), speculative)

    def sample(
        self,
        forwarded: Forwarded,
        slots: Sequence[int],
        features: Features,
        masks: dict[int, np.ndarray] | None,
    ) -> Stepped:
        self.calls.append(("sample", tuple(slots), {slot: allowed(mask) for slot, mask in (masks or {}).items()}))
        packed = np.zeros((4, PACKED_WIDTH), np.int32)
        packed[:, 0] = 100 * np.arange(4) + self.step
        for slot, mask in (masks or {}).items():
            packed[slot, 0] = allowed(mask)[0]
        self.step += 1
        weights = None
        if forwarded.made:
            self.weights = np.random.default_rng(self.step).random((4, M, A), np.float32)
            weights = jnp.asarray(self.weights)
        emitted = None if not forwarded.speculative or self.emitted is None else jnp.asarray(self.emitted)
        return Stepped(forwarded.state, jnp.asarray(packed), weights, emitted)

    def several(
        self, state: RunnerState, slots: Sequence[int], counts: Sequence[int], features: Features, *, longest: int
    ) -> Stepped:
        self.calls.append(("several", tuple(slots), tuple(counts), longest))
        packed = np.full((SEVERAL, 4, PACKED_WIDTH), -7, np.int32)
        for slot, count in zip(slots, counts, strict=True):
            packed[:count, slot, 0] = 100 * slot + self.step + np.arange(count)
        self.step += SEVERAL
        return Stepped(state, jnp.asarray(packed))

    def named(self, name: str) -> list[Any]:
        return [call[1:] for call in self.calls if call[0] == name]


def allowed(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


@dataclass(eq=False)
class Script:
    """A constraint that allows, one after another, the tokens of each list; a list of one is forced."""

    steps: list[list[int]]
    ready: threading.Event = field(default_factory=threading.Event)
    pushed: list[int] = field(default_factory=list[int])
    fails_at: int = -1

    def __post_init__(self) -> None:
        self.ready.set()

    def fill(self, mask: np.ndarray) -> None:
        assert self.ready.wait(10)
        if len(self.pushed) == self.fails_at:
            raise ConstraintError("too complex")
        bits = np.zeros((mask.size * 32,), np.uint8)
        bits[self.steps[len(self.pushed)]] = 1
        mask[:] = np.packbits(bits, bitorder="little").view(np.int32)

    def forced(self) -> list[int]:
        rest = self.steps[len(self.pushed) :]
        return [tokens[0] for tokens in itertools.takewhile(lambda tokens: len(tokens) == 1, rest)]

    def push(self, token: int) -> None:
        assert token in self.steps[len(self.pushed)]
        self.pushed.append(token)

    @property
    def complete(self) -> bool:
        return len(self.pushed) == len(self.steps)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows wait half a second for a mask, whatever a step of the fake runner takes: on a busy machine a thread may need
    longer to start than such a step."""
    clock = SimpleNamespace(patience=0.5, step=0.001, start=lambda: None, tick=lambda steps: None)
    monkeypatch.setattr(decode_loop, "_StepClock", lambda: clock)


def loop(runner: FakeRunner) -> DecodeLoop[FakeSequence]:
    return DecodeLoop[FakeSequence](cast("Runner", runner), cast("RunnerState", None))


def step(subject: DecodeLoop[FakeSequence], *sequences: FakeSequence, **options: bool) -> LoopResults[FakeSequence]:
    for sequence in sequences:
        sequence.steps += 1
    return subject.step([], sequences, **options)


def tokens_of(results: LoopResults[FakeSequence]) -> list[tuple[int, int]]:
    return [(token.sequence.slot, token.sampled.token) for token in results.tokens]


def test_results_come_with_the_next_call_after_its_step_was_dispatched() -> None:
    runner = FakeRunner()
    subject = loop(runner)
    first, second = FakeSequence(slot=0), FakeSequence(slot=2, prompt=(1, 2, 3, 4, 5))
    subject.admit(first)
    subject.admit(second)
    assert tokens_of(step(subject, first, second)) == []
    assert subject.is_pending
    assert tokens_of(step(subject, second)) == [(0, 0), (2, 200)]
    assert tokens_of(subject.step([], [])) == [(2, 201)]
    assert not subject.is_pending
    # The longest of each step: the prompt but its last token, and the steps.
    assert runner.named("forward") == [((0, 2), 5, False, False, {}), ((2,), 6, False, False, {})]


def test_several_steps_give_each_sequence_what_it_has_room_for() -> None:
    runner = FakeRunner()
    subject = loop(runner)
    first, second, last = FakeSequence(slot=0), FakeSequence(slot=2, most=3), FakeSequence(slot=3, most=1)
    for each in (first, second, last):
        subject.admit(each)
    step(subject, first, second, last, several=True)
    assert runner.named("several") == [((0, 2, 3), (4, 3, 1), 6)]
    assert [each.steps for each in (first, second, last)] == [4, 3, 1]
    results = step(subject, first)
    assert tokens_of(results) == [(0, 0), (2, 200), (3, 300), (0, 1), (2, 201), (0, 2), (2, 202), (0, 3)]
    assert tokens_of(subject.step([], [])) == [(0, 4)]


def test_several_steps_only_where_all_allow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = FakeRunner()
    subject = loop(runner)
    free, short = FakeSequence(slot=0), FakeSequence(slot=1, most=2)
    bound = FakeSequence(slot=2, constraint=cast("Constraint", Script([[1, 2], [3, 4], [5, 6]])))
    mixed = FakeSequence(slot=3, choice=XLORA)
    for each in (free, short, bound, mixed):
        subject.admit(each)
    for others in ((bound,), (mixed,)):
        step(subject, free, *others, several=True)
    step(subject, short, several=True)  # two tokens at most: not worth it
    step(subject, free)
    assert runner.named("several") == []
    monkeypatch.setattr(runner, "several_buckets", ())
    step(subject, free, several=True)
    monkeypatch.setattr(runner, "several_buckets", (4,))
    monkeypatch.setattr(subject._clock, "step", LONGEST_OF_SEVERAL / SEVERAL + 1e-4)
    step(subject, free, several=True)
    assert runner.named("several") == []
    monkeypatch.setattr(subject._clock, "step", LONGEST_OF_SEVERAL / SEVERAL)
    step(subject, free, several=True)
    assert len(runner.named("several")) == 1


def test_the_clock_measures_steps_and_not_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    now = 100.0
    monkeypatch.setattr(decode_loop.time, "monotonic", lambda: now)
    clock = decode_loop._StepClock()
    for _ in range(60):
        now += 50.0
        clock.start()
        now += 0.008
        clock.tick(4)
        now += 0.002
        clock.tick(1)
    assert clock.step == pytest.approx(0.002, rel=0.01)
    assert clock.patience == 0.005


def test_chunks_run_before_the_step_and_scores_come_back() -> None:
    runner = FakeRunner()
    subject = loop(runner)
    sequence, other = FakeSequence(slot=1), FakeSequence(slot=0, choice=XLORA)
    for each in (sequence, other):
        subject.admit(each)
    chunks = [PrefillChunk(0, 3, 4, score=True), PrefillChunk(4, 2, 4, score=True)]
    subject.step([*((sequence, chunk) for chunk in chunks), (other, PrefillChunk(0, 2, 4))], [])
    assert runner.named("prefill") == [(1, 0, False), (1, 4, False), (0, 0, True)]
    results = subject.step([], [])
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
    step(subject, mixed, base)
    results = step(subject, mixed, base, reads_weights=True)
    assert [token.weights is None for token in results.tokens] == [not wanted, True]
    assert (results.weights is None) is not wanted
    read = subject.step([], [])
    np.testing.assert_array_equal(read.weights, runner.weights)
    np.testing.assert_array_equal(read.tokens[0].weights, runner.weights[0])


def test_a_speculative_step_without_a_token_is_taken_again() -> None:
    runner = FakeRunner(emitted=[True, False, True, True])
    subject = loop(runner)
    sequences = [FakeSequence(slot=slot, choice=XLORA) for slot in range(3)]
    for sequence in sequences:
        subject.admit(sequence)
    step(subject, *sequences)
    assert runner.named("forward")[-1][3]
    assert [slot for slot, _ in tokens_of(subject.step([], []))] == [0, 2]
    assert [sequence.steps for sequence in sequences] == [1, 0, 1]


def constrained(steps: list[list[int]], **others: Any) -> FakeSequence:
    return FakeSequence(constraint=Script(steps), **others)


def test_a_constrained_row_gets_the_mask_after_its_last_token_in_every_step() -> None:
    runner = FakeRunner()
    subject = loop(runner)
    row, free = constrained([[3, 4], [40, 41], [2, 60]], slot=1), FakeSequence(slot=0)
    for each in (row, free):
        subject.admit(each)
    given = [tokens_of(step(subject, free, row)) for _ in range(3)]
    assert given == [[], [(0, 0), (1, 3)], [(0, 1), (1, 40)]]
    assert [masks for _, masks in runner.named("sample")] == [{1: [3, 4]}, {1: [40, 41]}, {1: [2, 60]}]
    # The forward pass does not wait for the token before: it is dispatched first.
    assert [call[0] for call in runner.calls[2:]] == ["forward", "sample"] * 3


def test_a_late_mask_holds_its_own_row_only_and_the_row_runs_again() -> None:
    runner = FakeRunner()
    subject = loop(runner)
    row, free = constrained([[3, 4], [5, 6]], slot=1), FakeSequence(slot=0)
    script = cast("Script", row.constraint)
    for each in (row, free):
        subject.admit(each)
    step(subject, free, row)
    script.ready.clear()
    assert tokens_of(step(subject, free, row)) == [(0, 0), (1, 3)]
    assert runner.named("sample")[-1] == ((0,), {})
    assert (row.steps, free.steps) == (1, 2)
    script.ready.set()
    assert tokens_of(step(subject, free, row)) == [(0, 1)]
    assert runner.named("sample")[-1] == ((0, 1), {1: [5, 6]})
    assert tokens_of(subject.step([], [])) == [(0, 2), (1, 5)]


def test_tokens_without_a_choice_run_together() -> None:
    runner = FakeRunner()
    runner.run_costs = {4: 1.1}
    subject = loop(runner)
    row = constrained([[3, 4], [10], [11], [12], [13, 14], [2, 60]], slot=1)
    subject.admit(row)
    step(subject, row)
    assert tokens_of(step(subject, row)) == [(1, 3)]
    # The first of them is sampled, as there was no forward pass for it to take part in; the next pass runs all three.
    assert tokens_of(step(subject, row)) == [(1, 10), (1, 11), (1, 12)]
    assert [call[-1] for call in runner.named("forward")] == [{}, {}, {1: (10, 11, 12)}]
    assert row.steps == 5
    assert tokens_of(subject.step([], [])) == [(1, 13)]
    assert cast("Script", row.constraint).pushed[:4] == [3, 10, 11, 12]


@pytest.mark.parametrize(
    ("cost", "others"),
    [
        ({"most": 3}, {}),
        ({"params": replace(GREEDY, logprobs=0)}, {}),
        ({"wants_weights": True}, {}),
        ({}, {4: 3.5}),
    ],
    ids=["no room for them", "log-probabilities", "adapter weights", "too dear"],
)
def test_tokens_without_a_choice_run_one_by_one_where_a_run_is_impossible(
    cost: dict[str, Any], others: dict[int, float]
) -> None:
    runner = FakeRunner()
    runner.run_costs = others
    subject = loop(runner)
    row = constrained([[3, 4], [10], [11], [12], [13, 14]], slot=1, **cost)
    subject.admit(row)
    given = [tokens_of(step(subject, row)) for _ in range(3)]
    assert given == [[], [(1, 3)], [(1, 10)]]
    assert [call[-1] for call in runner.named("forward")] == [{}] * 3


def test_a_constraint_that_cannot_go_on_ends_its_own_row_only() -> None:
    runner = FakeRunner()
    subject = loop(runner)
    row, free = constrained([[3, 4], [5, 6]], slot=1), FakeSequence(slot=0)
    cast("Script", row.constraint).fails_at = 1
    for each in (row, free):
        subject.admit(each)
    step(subject, free, row)
    results = step(subject, free, row)
    assert [(failure.sequence, failure.message) for failure in results.failures] == [(row, "too complex")]
    assert tokens_of(results) == [(0, 0), (1, 3)]
    subject.forget(row)
    assert tokens_of(step(subject, free)) == [(0, 1)]


def test_what_is_forgotten_may_be_forgotten_again() -> None:
    subject = loop(FakeRunner())
    sequence = FakeSequence(slot=0)
    subject.admit(sequence)
    subject.forget(sequence)
    subject.forget(sequence)
    with pytest.raises(KeyError):
        step(subject, sequence)
