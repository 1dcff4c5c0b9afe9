"""Many prompts over few slots, with a runner that only counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.notebook.generate import TextRequest, generate
from mistral_jax.runtime.buckets import PrefillChunk
from mistral_jax.runtime.calls import Forwarded, Prefilled, RunnerState, Stepped
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import PACKED_WIDTH, Features
from mistral_jax.text.completion import CompletionStream
from tests.serving.fakes import EOS, OFFSET, FakeTokenizer

XLORA = AdapterChoice(xlora=True)
SLOTS, LENGTH, M, A = 2, 32, 2, 3
STATE = cast("RunnerState", None)


class CountingRunner:
    """Continues a prompt with its last letter and those that follow it in the alphabet; EOS after z."""

    can_speculate = False
    run_buckets = ()
    lookups: ClassVar[dict[int, int]] = {}
    slots, length = SLOTS, LENGTH

    def __init__(self) -> None:
        self.speculation_costs: dict[int, float] = {}
        self.run_costs: dict[int, float] = {}
        self.lookup_costs: dict[int, float] = {}
        self.next: dict[int, int] = {}
        self.admitted: list[tuple[int, tuple[int, ...]]] = []
        self.steps: list[tuple[int, ...]] = []
        self.longest = 0

    def chunks(self, prompt_length: int, *, score: bool = False) -> Iterator[PrefillChunk]:
        yield PrefillChunk(0, prompt_length - 1, 16)

    def admit(self, state: Any, slot: int, prompt: tuple[int, ...], params: Any, choice: Any) -> Any:
        self.admitted.append((slot, prompt))
        self.next[slot] = prompt[-1]
        return state

    def prefill(self, state: Any, slot: int, prompt: Any, chunk: PrefillChunk, *, scaling: bool) -> Prefilled:
        return Prefilled(state, jnp.int32(0))

    def row_bucket(self, slots: Sequence[int]) -> int:
        return SLOTS

    def lookup_rows(self, slots: Sequence[int]) -> int | None:
        return None

    def forward(
        self, state: Any, slots: Sequence[int], *, longest: int, scaling: bool, speculative: bool, runs: Any
    ) -> Forwarded:
        self.longest = max(self.longest, longest)
        return Forwarded(state, cast("Any", scaling))

    def sample(self, forwarded: Forwarded, slots: Sequence[int], features: Features, masks: Any) -> Stepped:
        self.steps.append(tuple(slots))
        packed = np.zeros((SLOTS, PACKED_WIDTH), np.int32)
        for slot in slots:
            self.next[slot] += 1
            packed[slot, 0] = self.next[slot] if self.next[slot] <= ord("z") + OFFSET else EOS
        weights = jnp.full((SLOTS, M, A), len(self.steps), jnp.float32) if forwarded.made else None
        return Stepped(forwarded.state, jnp.asarray(packed), weights)


def request(text: str, *, max_tokens: int = 99, choice: AdapterChoice = BASE, keep: bool = False, **params: Any) -> Any:
    tokenizer = FakeTokenizer()
    settings = SamplingParams(seed=0, max_tokens=max_tokens, **params)
    tokens = tuple(tokenizer.encode(text))
    limit = min(max_tokens, LENGTH - len(tokens))
    stream = CompletionStream(tokenizer, settings, eos_ids={EOS}, max_tokens=limit, at_start=False)
    return TextRequest(tokens=tokens, params=settings, completion=stream, choice=choice, keep_weights=keep)


def texts(runner: CountingRunner, requests: Sequence[TextRequest]) -> list[str]:
    found = [""] * len(requests)
    for token in generate(cast("Runner", runner), STATE, requests):
        found[token.request] += token.piece.text
    return found


def test_each_request_gets_its_own_tokens_however_few_the_slots() -> None:
    runner = CountingRunner()
    asked = [request(start, max_tokens=count) for start, count in (("a", 5), ("m", 1), ("k", 9), ("x", 99), ("f", 2))]
    assert texts(runner, asked) == ["bcdef", "n", "lmnopqrst", "yz", "gh"]
    assert [prompt for _, prompt in runner.admitted] == [one.tokens for one in asked]


def test_a_freed_slot_takes_the_next_request_while_the_others_go_on() -> None:
    runner = CountingRunner()
    texts(runner, [request("a", max_tokens=8), request("m", stop=("n",)), request("q", max_tokens=3)])
    assert [slot for slot, _ in runner.admitted] == [0, 1, 1]
    # The step that was in flight when slot 1 ended still had it; then it is the next request's.
    assert runner.steps[:2] == [(0, 1), (0, 1)]


def test_what_was_in_flight_when_a_request_ended_is_dropped() -> None:
    runner = CountingRunner()
    pieces = list(generate(cast("Runner", runner), STATE, [request("a", stop=("d",))]))
    assert "".join(token.piece.text for token in pieces) == "bc"
    assert [token.piece.finish_reason for token in pieces] == [None, None, "stop"]
    assert len(runner.steps) == 4


def test_no_sequence_grows_beyond_its_slot() -> None:
    runner = CountingRunner()
    [text] = texts(runner, [request(" " * (LENGTH - 4) + "a")])
    # The last token is not run: nothing follows it.
    assert (text, runner.longest) == ("bcd", LENGTH - 1)


@pytest.mark.parametrize(
    ("choice", "keep", "expected"), [(XLORA, True, True), (XLORA, False, False), (BASE, True, False)]
)
def test_weights_come_where_they_are_wanted_and_the_classifier_gave_them(
    choice: AdapterChoice, keep: bool, expected: bool
) -> None:
    runner = CountingRunner()
    asked = [request("a", max_tokens=3, choice=choice, keep=keep), request("f", max_tokens=3, choice=XLORA)]
    for token in generate(cast("Runner", runner), STATE, asked):
        if token.request == 1:
            assert token.weights is None
        elif expected:
            assert token.weights is not None
            assert token.weights.shape == (M, A)
        else:
            assert token.weights is None


def test_nothing_asked_gives_nothing() -> None:
    assert texts(CountingRunner(), []) == []
