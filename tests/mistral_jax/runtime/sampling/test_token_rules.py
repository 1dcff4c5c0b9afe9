"""DRY, banned words and the earliest end, against plain Python over lists of tokens."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_jax.runtime.sampling.params import SamplingParams, TokenRules
from mistral_jax.runtime.sampling.token_rules import (
    RuleRows,
    apply_rules,
    history_row,
    row_limits,
    rule_row,
    token_bits,
)

V, S = 41, 67
_apply = jax.jit(partial(apply_rules, dry=jnp.bool_(True), bans=jnp.bool_(True)), static_argnames="copies")


def rule_rows(cases: list[tuple[SamplingParams, list[int], list[int]]]) -> RuleRows:
    """The rows after prompts and completions. What lies behind the newest token is left from others."""
    rows = [rule_row(params, vocab_size=V) for params, _, _ in cases]
    histories = [history_row(prompt, S) for _, prompt, _ in cases]
    for history, (_, prompt, completion) in zip(histories, cases, strict=True):
        history[len(prompt) :] = np.arange(S - len(prompt)) % V
        history[len(prompt) : len(prompt) + len(completion)] = completion
    stacked = {name: jnp.asarray(np.stack([getattr(row, name) for row in rows])) for name in rows[0]._fields}
    limits = np.stack([row_limits(params, len(prompt)) for params, prompt, _ in cases])
    return RuleRows(history=jnp.asarray(np.stack(histories)), limits=jnp.asarray(limits), **stacked)


def ruled(cases: list[tuple[SamplingParams, list[int], list[int]]], logits: np.ndarray) -> np.ndarray:
    positions = jnp.asarray([len(prompt) + len(completion) for _, prompt, completion in cases], jnp.int32)
    return np.asarray(_apply(jnp.asarray(logits), rule_rows(cases), positions))


def dry(params: SamplingParams, text: list[int]) -> dict[int, float]:
    """Penalties by token, as the sampler's author describes them."""
    assert params.rules is not None
    breakers, last_n = params.rules.breakers, params.dry_penalty_last_n
    text = text if last_n < 0 else text[-last_n:] if last_n else []
    longest: dict[int, int] = {}
    for i in range(len(text) - 1):
        length = 0
        while length < min(i + 1, 50) and text[i - length] == text[-1 - length] and text[i - length] not in breakers:
            length += 1
        if length and text[i + 1] not in breakers:
            longest[text[i + 1]] = max(longest.get(text[i + 1], 0), length)
    return {
        token: params.dry_multiplier * params.dry_base ** (length - params.dry_allowed_length)
        for token, length in longest.items()
        if length >= params.dry_allowed_length
    }


tokens = st.lists(st.integers(0, 3), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(
    tokens, tokens, st.sampled_from([-1, 0, 1, 5, 12, 60]), st.integers(1, 5), st.sets(st.integers(0, 3), max_size=1)
)
def test_dry_penalises_what_would_continue_a_repetition(
    prompt: list[int], completion: list[int], last_n: int, allowed: int, breakers: set[int]
) -> None:
    params = SamplingParams(
        dry_multiplier=0.8,
        dry_penalty_last_n=last_n,
        dry_allowed_length=allowed,
        rules=TokenRules(breakers=tuple(breakers)),
    )
    other = SamplingParams(rules=TokenRules())
    found = ruled([(params, prompt, completion), (other, prompt, completion)], np.zeros((2, V), np.float32))
    expected = np.zeros((V,))
    for token, penalty in dry(params, prompt + completion).items():
        expected[token] = -penalty
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    # A row without rules keeps its bits.
    assert not found[1].view(np.int32).any()


def test_repetitions_are_followed_for_fifty_tokens() -> None:
    params = SamplingParams(dry_multiplier=1.0, dry_base=1.01, rules=TokenRules())
    found = ruled([(params, [7] * 60, [])], np.zeros((1, V), np.float32))
    assert found[0, 7] == pytest.approx(-(1.01**48))
    huge = SamplingParams(dry_multiplier=100.0, dry_base=10.0, rules=TokenRules())
    assert np.isfinite(ruled([(huge, [7] * 60, [])], np.zeros((1, V), np.float32))).all()


def test_the_last_token_of_a_bad_word_is_banned_where_the_others_were_generated() -> None:
    rules = TokenRules(banned_sequences=((5, 6), (1, 2, 3), (9,) * 16))
    params, plain = SamplingParams(bad_words=("x",), rules=rules), SamplingParams(rules=TokenRules())
    cases = [
        (params, [4], [5]),
        (params, [1, 2], [5, 1, 2]),
        (params, [5], []),  # a prompt's token does not begin a word
        (params, [1], [2]),
        (params, [8], [9] * 15),
        (params, [9], [9] * 14),
        (plain, [4], [5]),
    ]
    found = ruled(cases, np.zeros((len(cases), V), np.float32))
    banned = [set(np.flatnonzero(row == -np.inf).tolist()) for row in found]
    assert banned == [{6}, {3}, set(), set(), {9}, set(), set()]


def test_no_end_before_the_least_length() -> None:
    params = SamplingParams(min_tokens=2, rules=TokenRules(ends=(2, 40)))
    cases = [(params, [1, 1, 1], [5] * count) for count in range(4)]
    found = ruled([*cases, (SamplingParams(rules=TokenRules()), [1], [])], np.zeros((5, V), np.float32))
    banned = [set(np.flatnonzero(row == -np.inf).tolist()) for row in found]
    assert banned == [{2, 40}, {2, 40}, set(), set(), set()]


def test_rules_do_not_depend_on_other_rows() -> None:
    rng = np.random.default_rng(0)
    cases = []
    for i in range(6):
        params = SamplingParams(
            dry_multiplier=float(rng.uniform(0, 2)),
            min_tokens=i,
            bad_words=("x",),
            rules=TokenRules(ends=(2,), breakers=(i,), banned_sequences=((3, i),)),
        )
        cases.append((params, rng.integers(0, 5, 20).tolist(), rng.integers(0, 5, 3 + i).tolist()))
    logits = rng.standard_normal((6, V)).astype(np.float32)
    together = ruled(cases, logits)
    for i, case in enumerate(cases):
        np.testing.assert_array_equal(ruled([case, case], logits[[i, i]])[1], together[i])
    # Two rows of each slot, as in speculative steps.
    positions = jnp.asarray([len(prompt) + len(completion) for _, prompt, completion in cases], jnp.int32)
    twice = _apply(jnp.tile(logits, (2, 1)), rule_rows(cases), jnp.tile(positions, 2), copies=2)
    np.testing.assert_array_equal(twice, np.tile(together, (2, 1)))


def test_bits_of_tokens() -> None:
    assert token_bits((), 33).tolist() == [0, 0]
    assert token_bits((0, 31, 32), 33).tolist() == [1 - 2**31, 1]
