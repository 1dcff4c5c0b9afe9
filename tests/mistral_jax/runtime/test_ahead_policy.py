"""When running ahead is chosen."""

from __future__ import annotations

from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.runtime.ahead_policy import AheadPolicy, Passes

XLORA, ONE = AdapterChoice(xlora=True), AdapterChoice(weights=((1, 1.0),))
FROZEN = AdapterChoice(xlora=True, freeze_after=3)


def share_ahead(policy: AheadPolicy, emitted: float, steps: int = 2000, rows: int = 8) -> float:
    """Share of steps that ran ahead, where each of them gave this share of its rows a token."""
    ahead = 0
    for _ in range(steps):
        if policy.choose(rows):
            ahead += 1
            policy.observe(round(emitted * 100), 100)
    return ahead / steps


def test_it_runs_ahead_while_that_pays() -> None:
    assert share_ahead(AheadPolicy({8: 0.7}), 0.9) == 1.0


def test_it_stops_where_guesses_fail_but_tries_again() -> None:
    assert 0.02 < share_ahead(AheadPolicy({8: 0.7}), 0.5) < 0.12


def test_it_comes_back_when_the_text_becomes_easier_to_guess() -> None:
    policy = AheadPolicy({2: 0.6})
    share_ahead(policy, 0.5, rows=2)
    assert share_ahead(policy, 0.98, rows=2) > 0.8


def test_the_cost_of_the_rows_at_hand_counts() -> None:
    policy = AheadPolicy({2: 0.55, 8: 0.95})
    share_ahead(policy, 0.7, steps=100, rows=2)
    assert policy.choose(2)
    assert not policy.choose(8)


def test_which_passes_a_step_runs() -> None:
    policy = AheadPolicy({})
    assert policy.passes([(BASE, 0), (ONE, 7)], 2) == Passes(scaling=False, ahead=False)
    assert policy.passes([(BASE, 0), (XLORA, 7)], 2) == Passes(scaling=True, ahead=True)
    assert policy.passes([(XLORA, 0), (FROZEN, 3)], 2) == Passes(scaling=True, ahead=False)
    assert policy.passes([(FROZEN, 3)], 2) == Passes(scaling=True, ahead=False)
    assert policy.passes([(FROZEN, 4)], 2) == Passes(scaling=False, ahead=False)
    assert AheadPolicy({}, possible=False).passes([(XLORA, 0)], 2) == Passes(scaling=True, ahead=False)
