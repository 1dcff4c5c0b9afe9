"""Rotary embeddings against formulas written out in float64. That they are the *reference's* formulas is test_parity's
matter."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax.model.config import MistralConfig, RopeConfig
from mistral_jax.model.rope import attention_temperature, inverse_frequencies, rotate, rotation


def config(rope: RopeConfig, head_dim: int = 20, **changes: float) -> MistralConfig:
    shape = {"vocab_size": 7, "hidden_size": 12, "intermediate_size": 8, "num_layers": 1, "num_heads": 3}
    return MistralConfig(**shape, num_kv_heads=1, head_dim=head_dim, rope=rope, **changes)  # pyright: ignore


PLAIN = [1e6 ** (-2 * i / 20) for i in range(10)]


def test_plain_frequencies_are_powers_of_theta() -> None:
    np.testing.assert_allclose(inverse_frequencies(RopeConfig(theta=1e6), 20), PLAIN, rtol=1e-6)


def test_linear_stretches_all_frequencies_alike() -> None:
    rope = RopeConfig(theta=1e6, kind="linear", factor=2.5)
    np.testing.assert_allclose(inverse_frequencies(rope, 20), np.array(PLAIN) / 2.5, rtol=1e-6)


def test_llama3_keeps_short_wavelengths_stretches_long_ones_and_blends_between() -> None:
    rope = RopeConfig(
        theta=1e6,
        kind="llama3",
        factor=8,
        low_freq_factor=1,
        high_freq_factor=4,
        original_max_position_embeddings=1024,
    )
    expected: list[float] = []
    for frequency in PLAIN:
        wavelength = 2 * math.pi / frequency
        if wavelength < 256:
            expected.append(frequency)
        elif wavelength > 1024:
            expected.append(frequency / 8)
        else:
            smooth = (1024 / wavelength - 1) / 3
            expected.append((1 - smooth) * frequency / 8 + smooth * frequency)
    actual = inverse_frequencies(rope, 20)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    ratios = actual / np.array(PLAIN)
    assert ratios[0] == pytest.approx(1)
    assert ratios[-1] == pytest.approx(1 / 8)
    assert any(1 / 8 + 1e-3 < ratio < 1 - 1e-3 for ratio in ratios), "no frequency in the blend: the test tests nothing"


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_blends_over_a_ramp_between_two_numbers_of_rotations(truncate: bool) -> None:
    rope = RopeConfig(
        theta=1e6,
        kind="yarn",
        factor=16,
        original_max_position_embeddings=4096,
        beta_fast=32,
        beta_slow=1,
        truncate=truncate,
    )

    def dimension(rotations: float) -> float:
        return 20 * math.log(4096 / (rotations * 2 * math.pi)) / (2 * math.log(1e6))

    low, high = dimension(32), dimension(1)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    expected: list[float] = []
    for i, frequency in enumerate(PLAIN):
        stretched = min(max((i - low) / (high - low), 0), 1)
        expected.append(frequency / 16 * stretched + frequency * (1 - stretched))
    np.testing.assert_allclose(inverse_frequencies(rope, 20), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["factors", "llama3"])
def test_factors_divide_the_frequencies_and_go_before_the_rule(kind: str) -> None:
    factors = tuple(1 + 0.75 * i for i in range(10))
    rope = RopeConfig(theta=1e6, kind=kind, factor=8, original_max_position_embeddings=64, frequency_factors=factors)  # pyright: ignore
    np.testing.assert_allclose(inverse_frequencies(rope, 20), np.array(PLAIN) / np.array(factors), rtol=1e-6)


def test_rotation_turns_each_pair_of_halves_by_position_times_frequency() -> None:
    rope = RopeConfig(theta=100.0)
    positions = jnp.array([[0, 1, 7], [3, 4, 1000]])
    cos, sin = rotation(config(rope, head_dim=6), positions)
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 6)).astype(np.float32)
    actual = np.asarray(rotate(jnp.asarray(x), cos, sin))
    for b in range(2):
        for t in range(3):
            for i in range(3):
                angle = float(positions[b, t]) * 100.0 ** (-2 * i / 6)
                turned = (x[b, t, :, i] + 1j * x[b, t, :, i + 3]) * np.exp(1j * angle)
                np.testing.assert_allclose(actual[b, t, :, i], turned.real, atol=1e-4)
                np.testing.assert_allclose(actual[b, t, :, i + 3], turned.imag, atol=1e-4)


def test_yarn_scales_cosines_and_sines_by_the_attention_factor() -> None:
    rope = RopeConfig(kind="yarn", factor=4.0, original_max_position_embeddings=64, attention_factor=1.25)
    cos, sin = rotation(config(rope), jnp.array([[0, 5]]))
    np.testing.assert_allclose(np.asarray(cos**2 + sin**2), 1.25**2, rtol=1e-5)


def test_angles_stay_exact_far_out() -> None:
    """float32 holds every position up to 2^24; the angle is then off by a rounding of the product, not of the
    position."""
    rope = RopeConfig(theta=1e6)
    cos, _ = rotation(config(rope), jnp.array([[131_071]]))
    angle = 131_071 * inverse_frequencies(rope, 20).astype(np.float64)
    np.testing.assert_allclose(np.asarray(cos)[0, 0, 0], np.cos(angle), atol=131_071 * 2**-23)


def test_attention_temperature_rises_with_each_original_context() -> None:
    tempered = config(RopeConfig(), attention_temperature_beta=0.1, attention_temperature_length=16)
    scale = attention_temperature(tempered, jnp.array([[0, 15, 16, 47, 160]]))
    assert scale is not None
    expected = [1 + 0.1 * math.log(1 + position // 16) for position in (0, 15, 16, 47, 160)]
    np.testing.assert_allclose(np.asarray(scale)[0, :, 0, 0], expected, rtol=1e-6)


def test_attention_temperature_is_exact_at_every_multiple_of_every_length() -> None:
    """In compiled programs, where a division may become a product with a reciprocal."""
    positions = np.arange(200_001, dtype=np.int32)
    for length in (
        1,
        2,
        3,
        7,
        16,
        41,
        47,
        55,
        61,
        82,
        83,
        94,
        97,
        107,
        113,
        188,
        239,
        1000,
        4095,
        4096,
        8191,
        16384,
        99_991,
    ):
        tempered = config(RopeConfig(), attention_temperature_beta=1.0, attention_temperature_length=length)
        scale = jax.jit(lambda p, c=tempered: attention_temperature(c, p))(positions[None])
        assert scale is not None
        steps = np.rint(np.expm1(np.asarray(scale, np.float64)[0, :, 0, 0] - 1))
        # What float32 leaves of a logarithm tells neighbouring steps apart up to some ten thousand.
        told = positions // length < 20_000
        np.testing.assert_array_equal(steps[told], (positions // length)[told], err_msg=f"length {length}")


def test_other_models_have_no_attention_temperature() -> None:
    assert attention_temperature(config(RopeConfig()), jnp.zeros((1, 3), jnp.int32)) is None
