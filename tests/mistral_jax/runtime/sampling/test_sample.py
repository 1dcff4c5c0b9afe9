"""The sampler against NumPy, row by row."""

from __future__ import annotations

from dataclasses import replace
from functools import partial, reduce
from operator import or_

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax.runtime.sampling.params import SamplingParams, SamplingParamsError, TokenRules
from mistral_jax.runtime.sampling.sample import (
    COMMON_FEATURES,
    LOWEST_LOGPROB,
    Features,
    SamplerRows,
    mask_words,
    recent_tokens,
    row_bias,
    row_scalars,
    sample,
    seed_words,
    smallest_sampler,
    unpack,
)

V, W, LENGTH = 97, 5, 40


def rows_for(*params: SamplingParams, prompts: tuple[tuple[int, ...], ...] | None = None) -> SamplerRows:
    rows = SamplerRows.allocate(slots=len(params), vocab_size=V, repeat_last_n=W, length=LENGTH)
    biases = [row_bias(p, V) for p in params]
    bias = np.stack([np.zeros((V,), np.float32) if row is None else row for row in biases])
    prompts = prompts or ((),) * len(params)
    return replace(
        rows,
        scalars=jnp.asarray(np.stack([row_scalars(p) for p in params])),
        top_k=jnp.asarray([p.top_k for p in params], jnp.int32),
        seeds=jnp.asarray(np.stack([seed_words(p.seed or 0) for p in params])),
        recent=jnp.asarray(np.stack([recent_tokens(prompt, W, V) for prompt in prompts])),
        bias=jnp.asarray(bias),
    )


_sample = jax.jit(sample, static_argnames="repeat")


def packed_bits(allowed: np.ndarray) -> np.ndarray:
    """bool [B, V] as int32 [B, ceil(V / 32)]."""
    padded = np.zeros((len(allowed), mask_words(allowed.shape[1]) * 32), np.bool_)
    padded[:, : allowed.shape[1]] = allowed
    return np.packbits(padded, axis=1, bitorder="little").view(np.int32)


def draw(logits, rows: SamplerRows, params, positions=None, counts=None, allowed=None):
    features = Features()
    for p in params:
        features |= Features.of(p)
    if counts is not None:
        rows = replace(rows, output_counts=jnp.asarray(counts, jnp.int32))
    positions = jnp.zeros((len(params),), jnp.int32) if positions is None else jnp.asarray(positions, jnp.int32)
    mask = jnp.zeros((len(params), mask_words(V)), jnp.int32)
    if allowed is not None:
        features, mask = replace(features, mask=True), jnp.asarray(packed_bits(allowed))
    logits = jnp.asarray(logits, jnp.float32)
    tokens, packed = _sample(logits, rows, positions, features.as_array(), mask, repeat=True)
    return np.asarray(tokens), np.asarray(packed)


def random_logits(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, V)).astype(np.float32) * 3


def test_greedy_is_the_exact_argmax_whatever_the_neighbours_ask_for():
    params = [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.0, top_k=3, seed=1),
        SamplingParams(top_k=1),
    ]
    logits = random_logits(3)
    tokens, _ = draw(logits, rows_for(*params), params)
    assert tokens[0] == logits[0].argmax()
    assert tokens[2] == logits[2].argmax()


def test_a_draw_depends_on_seed_and_position_alone():
    params = [SamplingParams(seed=11)] * 3 + [SamplingParams(seed=12)]
    same = np.repeat(random_logits(1), 4, axis=0) * 0.1
    tokens, _ = draw(same, rows_for(*params), params, positions=[7, 7, 8, 7])
    assert tokens[0] == tokens[1]
    alone, _ = draw(same[:2], rows_for(*params[:2]), params[:2], positions=[7, 8])
    assert alone.tolist() == tokens[[0, 2]].tolist()
    seeds = [SamplingParams(seed=s) for s in range(64)]
    many, _ = draw(np.repeat(same[:1], 64, axis=0), rows_for(*seeds), seeds)
    assert len(set(many.tolist())) > 10


def test_negative_and_large_seeds_differ():
    words = {tuple(seed_words(seed).tolist()) for seed in (-1, 0, 1, 2**32, 2**63 - 1, -(2**63))}
    assert len(words) == 6


def frequencies(params: SamplingParams, logits: np.ndarray, n: int = 4000) -> np.ndarray:
    rows = rows_for(params)
    many = jax.tree.map(lambda x: jnp.repeat(x, n, axis=0), rows)
    tokens, _ = draw(np.repeat(logits, n, axis=0), many, [params] * n, positions=np.arange(n))
    return np.bincount(tokens, minlength=V) / n


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def reference(params: SamplingParams, logits: np.ndarray) -> np.ndarray:
    """Truncation the slow way: by sorting."""
    scaled = logits.astype(np.float64) / params.temperature
    keep = np.ones(V, bool)
    if params.top_k:
        keep &= scaled >= np.sort(scaled)[-params.top_k]
    p = softmax(np.where(keep, scaled, -np.inf))
    order = np.argsort(-p)
    before = np.cumsum(p[order]) - p[order]
    nucleus = np.zeros(V, bool)
    nucleus[order[before < params.top_p]] = True
    p = np.where(nucleus & (p >= params.min_p * p.max()), p, 0)
    return p / p.sum()


def shaped(params: SamplingParams, logits: np.ndarray) -> np.ndarray:
    """`reference` with top-nσ and typical sampling, by sorting."""
    scaled = logits.astype(np.float64) / params.temperature
    keep = np.ones(V, bool)
    if params.top_n_sigma:
        keep &= scaled >= scaled.max() - params.top_n_sigma * scaled.std()
    if params.top_k:
        keep &= scaled >= np.sort(scaled)[-params.top_k]
    p = softmax(np.where(keep, scaled, -np.inf))
    surprise = np.where(keep, -np.log(np.where(keep, p, 1)), np.inf)
    distance = np.abs(surprise - (p[keep] * surprise[keep]).sum())
    order = np.argsort(distance)
    before = np.cumsum(p[order]) - p[order]
    typical = np.zeros(V, bool)
    typical[order[before < params.typical_p]] = True
    left = np.where(keep & typical, np.log(np.where(keep, p, 1)) * params.temperature, -np.inf)
    return reference(replace(params, top_k=0), left)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=5),
        SamplingParams(seed=5, temperature=0.5),
        SamplingParams(seed=5, top_k=4),
        SamplingParams(seed=5, top_p=0.7),
        SamplingParams(seed=5, min_p=0.2),
        SamplingParams(seed=5, temperature=1.7, top_k=20, top_p=0.8, min_p=0.05),
    ],
)
def test_draws_follow_the_truncated_distribution(params):
    logits = random_logits(1, seed=3)
    seen, expected = frequencies(params, logits), reference(params, logits[0])
    assert not seen[expected == 0].any()
    assert np.abs(seen - expected).max() < 0.035


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=5, typical_p=0.6),
        SamplingParams(seed=5, top_n_sigma=1.0),
        SamplingParams(seed=5, temperature=1.4, typical_p=0.8, top_k=30),
        SamplingParams(seed=5, temperature=1.4, typical_p=0.9, top_n_sigma=2.0, top_p=0.8, min_p=0.02),
    ],
)
def test_draws_follow_the_distribution_that_is_shaped_by_entropy_and_deviation(params: SamplingParams):
    logits = random_logits(1, seed=3)
    seen, expected = frequencies(params, logits), shaped(params, logits[0])
    assert not seen[expected == 0].any()
    assert np.abs(seen - expected).max() < 0.035


def test_xtc_leaves_the_least_likely_of_the_top_tokens_now_and_then():
    logits = np.full((1, V), -9.0, np.float32)
    logits[0, [3, 4, 5, 6]] = np.log([0.4, 0.3, 0.2, 0.1])
    always = frequencies(SamplingParams(seed=5, xtc_probability=1.0, xtc_threshold=0.15), logits)
    assert not always[[3, 4]].any()
    assert always[5] == pytest.approx(2 / 3, abs=0.035)
    half = frequencies(SamplingParams(seed=5, xtc_probability=0.5, xtc_threshold=0.15), logits)
    assert half[3] == pytest.approx(0.2, abs=0.035)
    assert half[5] == pytest.approx(0.5 * 2 / 3 + 0.5 * 0.2, abs=0.035)
    # A single token above the threshold stays, and so does anything without one.
    for threshold in (0.35, 0.5):
        params = SamplingParams(seed=5, xtc_probability=1.0, xtc_threshold=threshold)
        assert np.array_equal(frequencies(params, logits), frequencies(SamplingParams(seed=5), logits))


def test_where_xtc_does_not_apply_the_token_is_the_one_without_it():
    logits = np.repeat(random_logits(1, seed=6), 200, axis=0)
    plain, some = SamplingParams(seed=8), SamplingParams(seed=8, xtc_probability=0.3, xtc_threshold=0.05)
    without, _ = draw(logits, rows_for(*[plain] * 200), [plain] * 200, positions=np.arange(200))
    with_xtc, _ = draw(logits, rows_for(*[some] * 200), [some] * 200, positions=np.arange(200))
    assert 0.55 < (without == with_xtc).mean() < 0.95


def test_only_allowed_tokens_are_chosen():
    logits = random_logits(2)
    params = [
        SamplingParams(temperature=0.0, allowed_token_ids=(3, 9), logit_bias={9: -100, 5: 100}, seed=1),
        SamplingParams(temperature=0.0),
    ]
    tokens, _ = draw(logits, rows_for(*params), params)
    assert tokens.tolist() == [3, int(logits[1].argmax())]
    many = frequencies(SamplingParams(seed=2, allowed_token_ids=tuple(range(7, 20))), logits[:1])
    assert many[7:20].sum() == pytest.approx(1)


def test_no_token_to_choose_is_told():
    logits = random_logits(2)
    params = [SamplingParams(seed=1, allowed_token_ids=(3,), rules=TokenRules(banned=(3,))), SamplingParams(seed=2)]
    tokens, _ = draw(logits, rows_for(*params), params)
    assert tokens[0] == -2
    assert tokens[1] == draw(logits[1:], rows_for(params[1]), params[1:])[0][0]


def test_ranks_count_the_more_likely_tokens():
    logits = random_logits(3)
    params = [SamplingParams(seed=i, logprobs=0) for i in range(3)]
    tokens, packed = draw(logits, rows_for(*params), params)
    for row, token in enumerate(tokens):
        assert unpack(packed[row], 0).rank == 1 + (logits[row] > logits[row, token]).sum()


def test_repetition_penalty_sees_the_last_tokens_only():
    params = SamplingParams(temperature=0.0, repetition_penalty=2.0)
    prompt = (3, 10, 11, 12, 13, 14)  # 3 is out of the window of five
    logits = np.full((1, V), -5.0, np.float32)
    logits[0, 10], logits[0, 3], logits[0, 20] = 8.0, 5.0, 4.5
    tokens, _ = draw(logits, rows_for(params, prompts=(prompt,)), [params])
    assert tokens[0] == 3  # 8 / 2 = 4 < 4.5 < 5
    assert recent_tokens(prompt, W, V).tolist() == [14, 10, 11, 12, 13]
    assert recent_tokens((1,), W, V).tolist() == [1, V, V, V, V]


def test_presence_and_frequency_penalties_count_generated_tokens():
    logits = np.full((2, V), -9.0, np.float32)
    logits[:, 7], logits[:, 8] = 5.0, 4.0
    counts = np.zeros((2, V), np.int32)
    counts[:, 7] = 3
    params = [
        SamplingParams(temperature=0.0, presence_penalty=0.9),
        SamplingParams(temperature=0.0, frequency_penalty=0.4),
    ]
    tokens, _ = draw(logits, rows_for(*params), params, counts=counts)
    assert tokens.tolist() == [7, 8]


def test_logit_bias_is_added_to_its_own_row_only():
    logits = np.zeros((2, V), np.float32)
    params = [SamplingParams(temperature=0.0, logit_bias={42: 5.0, 43: 4.0}), SamplingParams(temperature=0.0)]
    tokens, _ = draw(logits, rows_for(*params), params)
    assert tokens.tolist() == [42, 0]


def test_logprobs_are_those_of_the_model_not_of_the_penalised_logits():
    logits = random_logits(1)
    params = SamplingParams(temperature=0.0, logprobs=20, logit_bias={5: 50.0})
    _, packed = draw(logits, rows_for(params), [params])
    sampled = unpack(packed[0], 20)
    expected = np.log(softmax(logits[0].astype(np.float64)))
    assert sampled.token == 5
    assert sampled.logprob == pytest.approx(expected[5], abs=1e-5)
    assert [t for t, _ in sampled.top] == np.argsort(-logits[0])[:20].tolist()
    assert [p for _, p in sampled.top] == pytest.approx(np.sort(expected)[::-1][:20].tolist(), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", [200, 1000, 2500])
def test_a_row_has_the_same_bits_beside_any_number_of_others(vocabulary: int):
    """From 4096 values on, XLA computes sums and exponentials of whole arrays in other ways."""
    chosen = SamplingParams(
        temperature=0.9,
        top_p=0.8,
        min_p=0.01,
        typical_p=0.9,
        top_n_sigma=3.0,
        xtc_probability=0.5,
        xtc_threshold=0.01,
        seed=5,
        logprobs=5,
    )
    logits = 3 * np.random.default_rng(2).standard_normal((32, vocabulary)).astype(np.float32)
    features = jnp.asarray(Features.of(chosen).as_array())
    run = jax.jit(partial(sample, repeat=True))
    packed = {}
    for count in (2, 4, 32):
        rows = SamplerRows.allocate(slots=count, vocab_size=vocabulary, repeat_last_n=4, length=LENGTH)
        scalars = jnp.tile(row_scalars(chosen), (count, 1))
        rows = replace(rows, scalars=scalars, seeds=jnp.asarray(np.stack([seed_words(i) for i in range(count)])))
        positions = jnp.arange(count, dtype=jnp.int32)
        mask = jnp.zeros((count, mask_words(vocabulary)), jnp.int32)
        packed[count] = np.asarray(run(jnp.asarray(logits[:count]), rows, positions, features, mask)[1])
    np.testing.assert_array_equal(packed[4][:2], packed[2])
    np.testing.assert_array_equal(packed[32][:4], packed[4])


def test_a_probability_of_zero_is_a_finite_logprob():
    logits = np.full((1, V), -np.inf, np.float32)
    logits[0, 3] = 0.0
    params = SamplingParams(temperature=0.0, logprobs=2)
    _, packed = draw(logits, rows_for(params), [params])
    sampled = unpack(packed[0], 2)
    assert sampled.token == 3
    assert sampled.top[1][1] == LOWEST_LOGPROB


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_told_and_spoil_no_neighbour(bad):
    logits = random_logits(2)
    logits[0, 4] = bad
    params = [SamplingParams(seed=1), SamplingParams(temperature=0.0)]
    tokens, _ = draw(logits, rows_for(*params), params)
    assert tokens.tolist() == [-1, int(logits[1].argmax())]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -1.0),
        ("top_k", -1),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("max_tokens", -1),
        ("seed", 2**63),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: 101.0}),
        ("stop", ("",)),
        ("bad_words", ("",)),
        ("typical_p", 0.0),
        ("top_n_sigma", -1.0),
        ("xtc_probability", 1.1),
        ("xtc_threshold", -0.1),
        ("dry_multiplier", -1.0),
        ("dry_base", 0.9),
        ("dry_allowed_length", 0),
        ("dry_penalty_last_n", -2),
        ("min_tokens", -1),
        ("stop_token_ids", (-1,)),
        ("stop_token_ids", tuple(range(1025))),
        ("allowed_token_ids", ()),
        ("allowed_token_ids", (-1,)),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(SamplingParamsError) as caught:
        SamplingParams(**{field: value})
    assert caught.value.param == field
    assert field in str(caught.value)


def test_a_least_length_beyond_the_limit_is_refused():
    with pytest.raises(SamplingParamsError, match="min_tokens is 4; expected at most max_tokens, 3"):
        SamplingParams(min_tokens=4, max_tokens=3)


def test_logprobs_beyond_twenty_are_refused_by_the_name_that_the_api_gives_them():
    with pytest.raises(SamplingParamsError, match="top_logprobs is 21"):
        SamplingParams(logprobs=21)


@pytest.mark.parametrize("value", [5e-324, 1e-45, 1e-38, 1e-30, 1e-6])
@pytest.mark.parametrize("name", ["temperature", "top_p", "repetition_penalty"])
def test_values_just_above_zero_take_the_likeliest_token(name: str, value: float) -> None:
    logits = np.zeros((1, V), np.float32)
    logits[0, 11], logits[0, 12] = 60.0, 59.0
    params = SamplingParams(**{"temperature": 0.5, "seed": 3, name: value})
    tokens, _ = draw(logits, rows_for(params, prompts=((11,),)), (params,))
    assert tokens.tolist() == [11]


def test_stop_strings_are_limited_in_all() -> None:
    SamplingParams(stop=("a" * 10_000, "b" * 6_384))
    with pytest.raises(SamplingParamsError, match="16385 characters in all; expected at most 16384"):
        SamplingParams(stop=("a" * 10_000, "b" * 6_385))


MASKED = [
    SamplingParams(temperature=0.0),
    SamplingParams(seed=3),
    SamplingParams(seed=4, top_k=5),
    SamplingParams(seed=5, top_p=0.6),
    SamplingParams(seed=6, min_p=0.2, temperature=1.5),
    SamplingParams(seed=7, logit_bias={1: 100.0}, repetition_penalty=1.3, presence_penalty=1.0),
]


@pytest.mark.parametrize("count", [1, 2, 40])
def test_a_masked_row_chooses_as_if_the_others_tokens_had_no_probability(count: int):
    logits = random_logits(len(MASKED))
    allowed = np.zeros((len(MASKED), V), np.bool_)
    for row, chosen in enumerate(allowed):
        chosen[np.random.default_rng(row).permutation(V)[:count]] = True
    # The last token, and the first of a word.
    allowed[:, [V - 1, 64]] |= count > 2
    tokens, _ = draw(logits, rows_for(*MASKED), MASKED, allowed=allowed)
    expected, _ = draw(np.where(allowed, logits, -np.inf), rows_for(*MASKED), MASKED)
    assert allowed[np.arange(len(MASKED)), tokens].all()
    assert tokens.tolist() == expected.tolist()


def test_a_mask_that_allows_everything_changes_no_bit_of_a_row():
    params = [replace(p, logprobs=3) for p in MASKED]
    logits = random_logits(len(params), seed=1)
    allowed = np.ones((len(params), V), np.bool_)
    allowed[0] = False
    allowed[0, 7] = True
    tokens, packed = draw(logits, rows_for(*params), params, allowed=allowed)
    _, free_packed = draw(logits, rows_for(*params), params)
    assert tokens[0] == 7
    np.testing.assert_array_equal(packed[1:], free_packed[1:])
    # Log-probabilities are the model's own: the alternatives are the same with and without a mask, but for the rank of
    # the chosen token.
    np.testing.assert_array_equal(packed[0, 2:-1], free_packed[0, 2:-1])


@pytest.mark.parametrize("by_kernel", [False, True])
def test_the_samplers_of_few_features_choose_what_the_one_for_all_chooses(by_kernel: bool) -> None:
    """On a GPU common settings have samplers without decisions at run time."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((4, 300)) * 3, jnp.float32)
    settings = [
        SamplingParams(temperature=0.0, seed=1),
        SamplingParams(temperature=1.0, seed=2),
        SamplingParams(temperature=0.8, seed=3, top_k=20),
        SamplingParams(temperature=1.2, seed=4, top_p=0.7),
    ]
    rows = SamplerRows.allocate(slots=4, vocab_size=300, repeat_last_n=0, length=8)
    rows = replace(
        rows,
        scalars=jnp.stack([row_scalars(params) for params in settings]),
        top_k=jnp.asarray([params.top_k for params in settings], jnp.int32),
        seeds=jnp.stack([seed_words(params.seed or 0) for params in settings]),
    )
    mask = jnp.full((4, mask_words(300)), -1, jnp.int32)
    samplers = (*COMMON_FEATURES, None)
    positions = jnp.arange(4)
    for count in range(1, 5):
        features = reduce(or_, map(Features.of, settings[:count]))
        only = smallest_sampler(features, samplers)
        assert only is not None
        few, all_features = (
            sample(logits, rows, positions, features.as_array(), mask, repeat=False, only=chosen, by_kernel=by_kernel)
            for chosen in (only, None)
        )
        for ours, theirs in zip(few, all_features, strict=True):
            np.testing.assert_array_equal(ours[:count], theirs[:count])


def test_the_smallest_sampler_does_what_is_needed() -> None:
    samplers = (*COMMON_FEATURES, None)
    assert smallest_sampler(Features(), samplers) == Features()
    assert smallest_sampler(Features(sample=True), samplers) == Features(sample=True)
    assert smallest_sampler(Features(sample=True, top_p=True), samplers) == COMMON_FEATURES[-1]
    for other in ("adjust", "logprobs", "mask", "shape", "xtc", "dry", "bans"):
        assert smallest_sampler(Features(**{other: True}), samplers) is None
    assert smallest_sampler(Features(), (None,)) is None
