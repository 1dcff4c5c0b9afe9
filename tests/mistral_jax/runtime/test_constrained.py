"""Constrained sequences on a real runner: the mask decides, and nothing else changes. Bits are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.grammar.constraint import Constraint
from mistral_jax.runtime.decode_loop import DecodeLoop
from mistral_jax.runtime.recomputing import RecomputingRunner
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import Sampled
from mistral_jax.runtime.speculation_policy import SpeculationPolicy
from tests.mistral_jax.adapters.test_xlora import TEXT, XLORA, runner
from tests.mistral_jax.tiny_adapters import CONFIG

pytestmark = pytest.mark.slow(by="file")

V = CONFIG.vocab_size
STEPS = 24
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, seed=11, max_tokens=STEPS, repetition_penalty=1.2)
GREEDY = SamplingParams(temperature=0.0, seed=1, max_tokens=STEPS)


@dataclass
class Pattern:
    """Allows a fifth of the vocabulary, chosen by the tokens so far; of each six tokens, four are forced."""

    tokens: list[int] = field(default_factory=list[int])

    def allowed(self, tokens: Sequence[int]) -> list[int]:
        count, last = len(tokens), tokens[-1] if tokens else 0
        if count % 6 >= 2:
            return [(13 * count + 3 * last) % V]
        return [token for token in range(V) if (7 * token + count + 3 * last) % 5 == 0]

    def fill(self, mask: np.ndarray) -> None:
        bits = np.zeros((mask.size * 32,), np.uint8)
        bits[self.allowed(self.tokens)] = 1
        mask[:] = np.packbits(bits, bitorder="little").view(np.int32)

    def forced(self) -> list[int]:
        ahead = list(self.tokens)
        while len(following := self.allowed(ahead)) == 1:
            ahead += following
        return ahead[len(self.tokens) :]

    def push(self, token: int) -> None:
        assert token in self.allowed(self.tokens)
        self.tokens.append(token)

    @property
    def complete(self) -> bool:
        return False


@dataclass
class Anything(Pattern):
    def allowed(self, tokens: Sequence[int]) -> list[int]:
        return list(range(V))


@dataclass(eq=False, kw_only=True)
class Row:
    slot: int
    prompt: tuple[int, ...]
    params: SamplingParams
    choice: AdapterChoice = BASE
    constraint: Constraint | None = None
    wants_weights: bool = False
    steps: int = 0
    got: list[Sampled] = field(default_factory=list[Sampled])

    @property
    def room(self) -> int:
        return STEPS - self.steps

    @property
    def tokens_held(self) -> int:
        return len(self.prompt) - 1 + self.steps

    @property
    def tokens(self) -> list[int]:
        return [sampled.token for sampled in self.got]


def complete(run: Runner, *sequences: Row, policy: SpeculationPolicy | None = None) -> int:
    """Run all to their ends, and return the number of steps."""
    loop: DecodeLoop[Row] = DecodeLoop(run, run.new_state())
    if policy is not None:
        loop._policy = policy
    chunks = []
    for sequence in sequences:
        loop.admit(sequence)
        chunks += [(sequence, chunk) for chunk in run.chunks(len(sequence.prompt))]
    steps = 0
    while loop.is_pending or any(s.room for s in sequences):
        ready = [s for s in sequences if s.room > 0]
        for sequence in ready:
            sequence.steps += 1
        results = loop.step(chunks, ready)
        chunks, steps = [], steps + bool(ready)
        assert results.failures == ()
        for token in results.tokens:
            token.sequence.got.append(token.sampled)
    assert all(len(s.got) == STEPS for s in sequences)
    return steps


def made(slot: int, params: SamplingParams, constraint: Constraint | None, choice: AdapterChoice = BASE) -> Row:
    return Row(slot=slot, prompt=TEXT[: 20 + 7 * slot], params=params, constraint=constraint, choice=choice)


@pytest.fixture(scope="module")
def run() -> Runner:
    made = runner("float32", slots=8)
    # Always worthwhile, so that runs are taken even beside many others.
    made.run_costs = dict.fromkeys(made.buckets.rows, 0.5)
    return made


class Always(SpeculationPolicy):
    def choose(self, rows: int) -> bool:
        return True


class Never(SpeculationPolicy):
    def choose(self, rows: int) -> bool:
        return False


def patterns(sequence: Row) -> list[int]:
    """The tokens, checked against the pattern."""
    pattern = Pattern()
    for token in sequence.tokens:
        pattern.push(token)
    return sequence.tokens


def test_a_constraint_that_allows_everything_changes_no_bit(run: Runner) -> None:
    params = [replace(SAMPLED, logprobs=3), replace(GREEDY, logprobs=0), SAMPLED]
    for choice in (BASE, AdapterChoice(weights=((1, 1.0),)), XLORA):
        free = [made(slot, p, None, choice) for slot, p in enumerate(params)]
        complete(run, *free)
        bound = [made(slot, p, Anything(), choice) for slot, p in enumerate(params)]
        complete(run, *bound)
        assert [s.got for s in bound] == [s.got for s in free]


MIXED = AdapterChoice(weights=((0, 1.0), (2, -0.5)))


@pytest.mark.parametrize("choice", [BASE, MIXED, XLORA, AdapterChoice(xlora=True, freeze_after=3)], ids=str)
def test_tokens_are_the_same_alone_in_a_batch_and_with_and_without_runs(run: Runner, choice: AdapterChoice) -> None:
    alone = made(2, SAMPLED, Pattern(), choice)
    steps = complete(run, alone, policy=Never({}))
    # X-LoRA's two passes have no program for runs.
    assert steps >= STEPS if choice.xlora else steps < STEPS - 4
    expected = patterns(alone)
    # With log-probabilities, tokens without a choice are not run together.
    slow = made(2, replace(SAMPLED, logprobs=2), Pattern(), choice)
    assert complete(run, slow) >= STEPS
    assert slow.tokens == expected
    others = [made(0, GREEDY, Pattern()), made(1, SAMPLED, None, XLORA), made(3, SAMPLED, None), made(5, GREEDY, None)]
    beside = made(2, SAMPLED, Pattern(), choice)
    complete(run, *others, beside)
    assert patterns(beside) == expected
    patterns(others[0])
    free = [made(s.slot, s.params, None, s.choice) for s in others[1:]]
    complete(run, *free)
    assert [s.got for s in others[1:]] == [s.got for s in free]


def test_speculative_steps_change_no_constrained_token(run: Runner) -> None:
    plain, speculated = made(1, SAMPLED, Pattern(), XLORA), made(1, SAMPLED, Pattern(), XLORA)
    complete(run, plain, policy=Never({}))
    complete(run, speculated, policy=Always({}))
    assert patterns(speculated) == patterns(plain)


def test_a_runner_without_caches_gives_the_same_tokens() -> None:
    cached, recomputed = (runner("float32", kind, slots=2, length=64) for kind in (Runner, RecomputingRunner))
    both = [made(1, SAMPLED, Pattern(), XLORA) for _ in range(2)]
    complete(cached, both[0])
    complete(recomputed, both[1])
    assert patterns(both[0]) == patterns(both[1])


def test_penalties_count_the_tokens_of_runs(run: Runner) -> None:
    params = replace(SAMPLED, frequency_penalty=1.5, presence_penalty=0.5, repetition_penalty=2.0)
    together, one_by_one = made(0, params, Pattern()), made(0, replace(params, logprobs=0), Pattern())
    assert complete(run, together) < complete(run, one_by_one)
    assert patterns(together) == patterns(one_by_one)
