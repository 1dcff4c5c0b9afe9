"""Quantisers against llama.cpp: the same bits where its rounding is simple, less error where it searches."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from conversion.quantize import QUANTIZABLE, fallback, pack, quantize, to_device
from conversion.weights.ggml_types import BY_NAME, TYPES
from tests.goldens.quantizer_weights import borders, families, root_mean_square

pytestmark = pytest.mark.slow

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "quantizers.json").read_text())
EXACT = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
SEARCHED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
BLOCKS = (*EXACT, *SEARCHED)
PLAIN = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
RNG = np.random.default_rng(0)
WEIGHTS = (RNG.standard_normal((6, 512)) * 0.05).astype(np.float32)


def packed(values: Any, name: str) -> np.ndarray[Any, Any]:
    return np.asarray(quantize(values, BY_NAME[name]))


def unpacked(raw: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    return quants.dequantize(raw, gguf.GGMLQuantizationType[name])


# --- what comes out


@pytest.mark.parametrize("name", EXACT)
def test_simple_types_have_the_bits_of_llama_cpp(name: str) -> None:
    expected = np.frombuffer(base64.b64decode(GOLDENS["blocks"][name]), np.uint8)
    np.testing.assert_array_equal(packed(borders(), name).reshape(-1), expected)


@pytest.mark.parametrize("name", EXACT)
def test_simple_types_have_the_bits_of_gguf(name: str) -> None:
    # Weights in bfloat16 lie on borders between codes more often than others.
    for values in [*families().values(), WEIGHTS.astype(ml_dtypes.bfloat16).astype(np.float32)]:
        expected = quants.quantize(values, gguf.GGMLQuantizationType[name])
        np.testing.assert_array_equal(packed(values, name), expected)


@pytest.mark.parametrize("name", SEARCHED)
def test_searched_types_have_no_more_error_than_llama_cpp(name: str) -> None:
    for family, values in families().items():
        assert root_mean_square(values) == pytest.approx(GOLDENS["weights"][family], rel=1e-5)
        error = root_mean_square(unpacked(packed(values, name), name) - values)
        assert error <= GOLDENS["rms"][name][family], family


@pytest.mark.parametrize("name", BLOCKS)
def test_zeros_stay_zeros(name: str) -> None:
    values = np.zeros((2, 512), np.float32)
    values[1] = -0.0
    np.testing.assert_array_equal(unpacked(packed(values, name), name), 0)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_constant_is_kept_to_a_step_of_its_code(name: str) -> None:
    for constant in (0.37, -0.37):
        values = np.full((1, 256), constant, np.float32)
        # Signed codes reach less far on one side of zero, which is the other side of the scale's sign.
        np.testing.assert_allclose(unpacked(packed(values, name), name), values, rtol=0.01)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(BLOCKS),
    hnp.arrays(np.float32, (1, 256), elements=st.floats(-1, 1, width=32)),
    st.integers(-149, 15),
)
def test_any_finite_block_within_range_gets_finite_values_near_its_own(
    name: str, values: np.ndarray[Any, Any], exponent: int
) -> None:
    values = np.ldexp(values, exponent)
    result = unpacked(packed(values, name), name)
    assert np.isfinite(result).all()
    # The coarsest of the types has steps of a third of a run's width; float16 has none below 2^-24.
    width = np.abs(values).max() * 2
    assert np.abs(result - values).max() <= width / 3 + 2.0**-24 * 16


# --- what goes in


@pytest.mark.parametrize(
    ("name", "dtype"), [("Q8_0", ml_dtypes.bfloat16), ("Q8_0", np.float16), ("Q4_K", ml_dtypes.bfloat16)]
)
def test_sixteen_bit_weights_give_the_same_as_in_float32(name: str, dtype: Any) -> None:
    values = WEIGHTS.astype(dtype)
    np.testing.assert_array_equal(packed(values, name), packed(values.astype(np.float32), name))


@pytest.mark.parametrize("shape", [(512,), (0, 512), (3, 1, 2, 512)])
def test_leading_axes_are_kept(shape: tuple[int, ...]) -> None:
    values = np.resize(WEIGHTS, shape)
    result = quantize(values, BY_NAME["Q5_0"])
    assert isinstance(result, jax.Array)
    assert result.dtype == jnp.uint8
    assert result.shape == (*shape[:-1], 352)
    np.testing.assert_array_equal(np.asarray(result).reshape(-1, 352), packed(values.reshape(-1, 512), "Q5_0"))


def test_views_and_device_arrays_give_the_same() -> None:
    expected = packed(np.ascontiguousarray(WEIGHTS[::2, 256:]), "Q6_K")
    np.testing.assert_array_equal(packed(WEIGHTS[::2, 256:], "Q6_K"), expected)
    np.testing.assert_array_equal(packed(jnp.asarray(WEIGHTS)[::2, 256:], "Q6_K"), expected)


@pytest.mark.parametrize("name", ["Q5_1", "Q4_K", "F16"])
def test_pieces_do_not_show(name: str) -> None:
    rows = to_device._PIECE // 256 * 2 + 5
    values = np.resize(np.concatenate([WEIGHTS.reshape(-1, 256), WEIGHTS.reshape(-1, 256)[::-1] / 3]), (rows, 256))
    result = packed(values, name)
    for start in range(0, rows, 300):
        np.testing.assert_array_equal(result[start : start + 300], packed(values[start : start + 300], name))


@pytest.mark.parametrize(("name", "rows"), [("Q5_1", 700), ("Q6_K", 40), ("F16", 3), ("Q8_0", 0)])
def test_other_devices_give_the_same_as_a_cpu(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.resize(WEIGHTS, (rows, 256))
    expected = packed(values, name)
    monkeypatch.setattr(to_device, "_PIECE", 1 << 13)
    monkeypatch.setattr(to_device, "_DEVICE_PIECE", 1 << 16)
    result, sound = to_device._on_device(jnp.asarray(values).reshape(-1), BY_NAME[name])
    assert sound
    np.testing.assert_array_equal(np.asarray(result), expected.reshape(-1))


def test_new_shapes_compile_nothing() -> None:
    packed(WEIGHTS, "Q4_1")
    before = to_device._pack._cache_size()  # pyright: ignore
    for shape in [(7, 320), (1, 32), (5000, 96)]:
        packed(np.ones(shape, np.float32), "Q4_1")
    assert to_device._pack._cache_size() == before  # pyright: ignore


def test_packing_inside_a_program() -> None:
    raw, sound = jax.jit(jax.vmap(lambda row: pack(row, BY_NAME["Q8_0"])))(WEIGHTS)
    assert sound.all()
    np.testing.assert_array_equal(raw, packed(WEIGHTS, "Q8_0"))


# --- plain types


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_plain_types_are_rounded_to_nearest_and_keep_what_is_not_finite(name: str, dtype: Any) -> None:
    values = np.concatenate([WEIGHTS[:, :77] * size for size in (1, 1e-6, 60000)])
    values[0, :4] = np.inf, -np.inf, np.nan, -0.0
    values = values.astype(dtype)
    expected = values.astype(PLAIN[name])
    result = packed(values, name).view(PLAIN[name])
    np.testing.assert_array_equal(result.astype(np.float32), expected.astype(np.float32))
    assert np.signbit(result[0, 3])


def test_values_beyond_float16_are_refused() -> None:
    values = np.array([[1, 2], [3, -7e4]], np.float32)
    with pytest.raises(
        ValueError, match=r"magnitude of 70000 at \[1, 1\] overflows F16: keep this tensor in BF16 or F32"
    ):
        quantize(values, BY_NAME["F16"])
    assert packed(values, "BF16").shape == (2, 4)


# --- refusals


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", BLOCKS)
def test_what_is_not_finite_is_refused_with_its_place(name: str, wrong: float) -> None:
    values = np.resize(WEIGHTS, (2, 3, 256))
    values[1, 2, 100] = wrong
    with pytest.raises(ValueError, match=rf"{wrong} at \[1, 2, 100\] has no code in {name}"):
        quantize(values, BY_NAME[name])
    with pytest.raises(ValueError, match=r"at \[1, 2, 100\]"):
        quantize(jnp.asarray(values), BY_NAME[name])


@pytest.mark.parametrize("name", BLOCKS)
def test_magnitudes_beyond_a_float16_scale_are_refused(name: str) -> None:
    values = np.resize(WEIGHTS, (2, 256))
    values[1, 3] = 3e38
    with pytest.raises(ValueError, match=rf"magnitude of 3e\+38 at \[1, 3\] overflows the float16 scale of {name}"):
        quantize(values, BY_NAME[name])


def test_a_bad_value_in_a_late_piece_is_found() -> None:
    values = np.ones((to_device._PIECE // 32 + 9, 32), np.float32)
    values[-1, 31] = np.nan
    with pytest.raises(ValueError, match=rf"at \[{len(values) - 1}, 31\]"):
        quantize(values, BY_NAME["Q8_0"])


def test_rows_that_are_no_whole_blocks_are_refused_with_the_type_to_take() -> None:
    with pytest.raises(
        ValueError, match="rows of 288 values are no whole number of Q4_K blocks of 256: Q5_0 takes them"
    ):
        quantize(np.zeros((2, 288), np.float32), BY_NAME["Q4_K"])


@pytest.mark.parametrize("values", [np.zeros(32), np.zeros((2, 32), np.int8), np.float32(1) * np.ones(())])
def test_other_arrays_are_refused(values: Any) -> None:
    with pytest.raises(TypeError, match="must be float32, bfloat16 or float16"):
        quantize(values, BY_NAME["Q8_0"])


def test_types_that_cannot_be_written_are_refused_by_name() -> None:
    for kind in TYPES:
        if kind.name not in QUANTIZABLE:
            with pytest.raises(ValueError, match=f"{kind.name} cannot be written; these can: BF16"):
                quantize(np.zeros((1, 256), np.float32), kind)
    assert {*BLOCKS, *PLAIN} == QUANTIZABLE


@pytest.mark.parametrize(
    ("name", "columns", "expected"),
    [
        ("Q4_K", 512, "Q4_K"),
        ("Q4_K", 96, "Q5_0"),
        ("Q5_K", 96, "Q5_1"),
        ("Q6_K", 96, "Q8_0"),
        ("Q2_K", 96, "Q4_0"),
        ("Q3_K", 96, "Q4_0"),
        ("IQ4_XS", 96, "IQ4_NL"),
        ("IQ2_XS", 96, "IQ4_NL"),
        ("IQ4_NL", 80, "F16"),
        ("Q6_K", 40, "F16"),
        ("Q8_0", 40, "F16"),
        ("BF16", 41, "BF16"),
    ],
)
def test_fallbacks_are_those_of_llama_cpp(name: str, columns: int, expected: str) -> None:
    assert fallback(BY_NAME[name], columns).name == expected
