"""When speculative steps are chosen."""

from __future__ import annotations

from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.runtime.speculation_policy import Passes, SpeculationPolicy

XLORA, ONE = AdapterChoice(xlora=True), AdapterChoice(weights=((1, 1.0),))
FROZEN = AdapterChoice(xlora=True, freeze_after=3)


def share_speculative(policy: SpeculationPolicy, emitted: float, steps: int = 2000, rows: int = 8) -> float:
    """Share of steps that were speculative, where each of them gave this share of its rows a token."""
    speculative = 0
    for _ in range(steps):
        if policy.choose(rows):
            speculative += 1
            policy.observe(round(emitted * 100), 100)
    return speculative / steps


def test_it_speculates_while_that_pays() -> None:
    assert share_speculative(SpeculationPolicy({8: 0.7}), 0.9) == 1.0


def test_it_stops_where_guesses_fail_but_tries_again() -> None:
    assert 0.02 < share_speculative(SpeculationPolicy({8: 0.7}), 0.5) < 0.12


def test_it_comes_back_when_the_text_becomes_easier_to_guess() -> None:
    policy = SpeculationPolicy({2: 0.6})
    share_speculative(policy, 0.5, rows=2)
    assert share_speculative(policy, 0.98, rows=2) > 0.8


def test_the_cost_of_the_rows_at_hand_counts() -> None:
    policy = SpeculationPolicy({2: 0.55, 8: 0.95})
    share_speculative(policy, 0.7, steps=100, rows=2)
    assert policy.choose(2)
    assert not policy.choose(8)


def test_which_passes_a_step_runs() -> None:
    policy = SpeculationPolicy({})
    assert policy.passes([(BASE, 0), (ONE, 7)], 2) == Passes(scaling=False, speculative=False)
    assert policy.passes([(BASE, 0), (XLORA, 7)], 2) == Passes(scaling=True, speculative=True)
    assert policy.passes([(XLORA, 0), (FROZEN, 3)], 2) == Passes(scaling=True, speculative=False)
    assert policy.passes([(FROZEN, 3)], 2) == Passes(scaling=True, speculative=False)
    assert policy.passes([(FROZEN, 4)], 2) == Passes(scaling=False, speculative=False)
    assert SpeculationPolicy({}, possible=False).passes([(XLORA, 0)], 2) == Passes(scaling=True, speculative=False)
