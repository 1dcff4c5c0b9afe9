"""Unpacked values are those of gguf.quants, to the bit, for every type, whatever the scales."""

from __future__ import annotations

from functools import cache
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from conversion.dequantize import PACKED, UNPACKABLE, dequantize, dequantize_into, to_device, unpack, unpack_runs
from conversion.weights.ggml_types import BY_NAME, TYPES, GGMLType

pytestmark = pytest.mark.slow

HALVES = {
    **dict.fromkeys(
        ("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS", "IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), (0,)
    ),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
    # Its scale is spread over the highest bits of four words; of the last, one bit of the exponent is cleared.
    "IQ1_M": (54,),
}
"""Where the float16 scales of a block are."""
SPECIAL = (0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x8400, 0x3C00, 0x7BFF, 0xFBFF)
"""Zeros, the least and the greatest subnormal, the least normal, one and the greatest number, of either sign."""

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def random_rows(kind: GGMLType, rows: int, columns: int) -> Bytes:
    """Random blocks whose scales are finite, the first of them special."""
    raw = np.random.default_rng(kind.id).integers(0, 256, (rows, kind.row_bytes(columns)), np.uint8)
    blocks = raw.reshape(-1, kind.block_bytes)
    for offset in HALVES.get(kind.name, ()):
        scales = blocks[:, offset].astype(np.uint16) | (blocks[:, offset + 1].astype(np.uint16) << 8)
        scales = np.where((scales & 0x7C00 == 0x7C00) | (kind.name == "IQ1_M"), scales & 0xBFFF, scales)
        if kind.name != "IQ1_M":
            scales[: len(SPECIAL)] = SPECIAL[: len(scales)]
        blocks[:, offset : offset + 2] = scales[:, None].view(np.uint8)
    return raw


def expected(raw: Bytes, kind: GGMLType) -> np.ndarray[Any, Any]:
    with np.errstate(over="ignore"):
        return gguf.dequantize(raw, gguf.GGMLQuantizationType(kind.id))


@cache
def jitted(kind: GGMLType, dtype: Any = jnp.float32) -> Any:
    return jax.jit(lambda raw: unpack(raw, kind, dtype))


def bits(values: Any) -> np.ndarray[Any, Any]:
    array = np.asarray(values)
    return array.view({2: np.uint16, 4: np.uint32}[array.dtype.itemsize])


packed = pytest.mark.parametrize("kind", [BY_NAME[name] for name in sorted(PACKED)], ids=lambda kind: kind.name)


@packed
def test_bits_are_those_of_gguf_quants(kind: GGMLType) -> None:
    raw = random_rows(kind, 7, 768)
    values = dequantize(raw, kind)
    assert values.shape == (7, 768)
    np.testing.assert_array_equal(bits(values), bits(expected(raw, kind)))


def test_all_types_are_known() -> None:
    assert {kind.name for kind in TYPES if kind.dtype is None} == PACKED
    assert {kind.name for kind in TYPES if kind.dtype is not None} - UNPACKABLE == {"F64", "I64"}


@packed
def test_compiled_and_plain_evaluation_give_the_same_bits(kind: GGMLType) -> None:
    raw = random_rows(kind, 3, 512)
    np.testing.assert_array_equal(bits(unpack(jnp.asarray(raw), kind)), bits(jitted(kind)(raw)))


@packed
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_other_types_are_the_float32_value_rounded_once(kind: GGMLType, dtype: Any) -> None:
    raw = random_rows(kind, 3, 512)
    with np.errstate(over="ignore"):
        rounded = expected(raw, kind).astype(dtype)
    np.testing.assert_array_equal(bits(jitted(kind, dtype)(raw)), bits(rounded))


def test_every_finite_scale_is_exact() -> None:
    kind = BY_NAME["Q8_0"]
    scales = np.arange(1 << 16, dtype=np.uint16)
    scales = scales[scales & 0x7C00 != 0x7C00]
    raw = np.zeros((len(scales), kind.block_bytes), np.uint8)
    raw[:, :2] = scales[:, None].view(np.uint8)
    raw[:, 2:] = np.arange(0, 256, 8)
    np.testing.assert_array_equal(bits(jitted(kind)(raw)), bits(expected(raw, kind)))


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K", "Q2_K"])
def test_differences_are_rounded_once(name: str) -> None:
    # Scale and minimum of like size: the subtraction cancels, and a fused multiply-add of inexact factors would show.
    kind = BY_NAME[name]
    raw = random_rows(kind, 64, 2048)
    blocks = raw.reshape(-1, kind.block_bytes)
    first, second = HALVES[name]
    blocks[:, second : second + 2] = blocks[:, first : first + 2]
    np.testing.assert_array_equal(bits(jitted(kind)(raw)), bits(expected(raw, kind)))


def test_every_scale_and_code_of_mxfp4_with_subnormal_results() -> None:
    kind = BY_NAME["MXFP4"]
    raw = np.zeros((256, kind.block_bytes), np.uint8)
    raw[:, 0] = np.arange(256)
    raw[:, 1:] = np.arange(16) | (np.arange(16)[::-1] << 4)
    reference = expected(raw, kind)
    assert (np.abs(reference[:2][reference[:2] != 0]) < np.finfo(np.float32).tiny).any()
    np.testing.assert_array_equal(bits(jitted(kind)(raw)), bits(reference))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(bits(jitted(kind, jnp.bfloat16)(raw)), bits(reference.astype(ml_dtypes.bfloat16)))


def test_every_scale_and_code_of_nvfp4() -> None:
    kind = BY_NAME["NVFP4"]
    raw = np.zeros((256, kind.block_bytes), np.uint8)
    raw[:, :4] = np.arange(256)[:, None] + np.array([0, 64, 128, 192])
    raw[:, 4:] = np.tile(np.arange(16) | (np.arange(16)[::-1] << 4), 2)
    np.testing.assert_array_equal(bits(jitted(kind)(raw)), bits(expected(raw, kind)))


@pytest.mark.parametrize("name", ["Q4_0", "Q6_K", "IQ3_S"])
@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (0,), (2, 0)])
def test_any_leading_axes(name: str, leading: tuple[int, ...]) -> None:
    kind = BY_NAME[name]
    raw = random_rows(kind, int(np.prod(leading)), 256).reshape(*leading, kind.row_bytes(256))
    values = dequantize(raw, kind)
    assert values.shape == (*leading, 256)
    if values.size:
        flat = raw.reshape(-1, raw.shape[-1])
        np.testing.assert_array_equal(bits(values).reshape(-1, 256), bits(expected(flat, kind)))


@pytest.mark.parametrize("name", ["Q4_K", "TQ2_0", "F16", "F64"])
def test_rows_need_not_be_contiguous_or_aligned(name: str) -> None:
    kind = BY_NAME[name]
    rows = np.zeros((5, kind.row_bytes(512)), np.uint8) if kind.dtype is not None else random_rows(kind, 5, 512)
    around = np.zeros((10, rows.shape[1] + 3), np.uint8)
    around[::2, 3:] = rows
    np.testing.assert_array_equal(dequantize(around[::2, 3:], kind), dequantize(rows, kind))


@pytest.mark.parametrize("name", [kind.name for kind in TYPES if kind.dtype is not None])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_plain_types_are_converted(name: str, dtype: Any) -> None:
    kind = BY_NAME[name]
    assert kind.dtype is not None
    numbers = np.array([[0, 1, -3, 100], [-0.0, 0.3, -7.5, 1e-3]])
    with np.errstate(over="ignore"):
        stored = np.concatenate([numbers, numbers * 1e-38, numbers * 2**60]).astype(np.float64)
        stored = stored.astype(kind.dtype) if kind.dtype.kind not in "i" else np.trunc(stored[:2]).astype(kind.dtype)
        reference = stored.astype(np.float32).astype(dtype)
    raw = stored.view(np.uint8).reshape(len(stored), -1)
    np.testing.assert_array_equal(bits(dequantize(raw, kind, dtype=dtype)), bits(reference))
    if name in UNPACKABLE:
        np.testing.assert_array_equal(bits(jitted(kind, dtype)(raw)), bits(reference))


def test_integers_keep_their_digits_when_asked_for_as_integers() -> None:
    stored = np.array([[2**31 - 1, -(2**31), 16777217]], np.int32)
    np.testing.assert_array_equal(dequantize(stored.view(np.uint8), BY_NAME["I32"], dtype=jnp.int32), stored)


def test_the_result_is_no_view_of_the_bytes_given() -> None:
    # On a 64-byte border, where a CPU would use them in place.
    room = np.zeros(4096 + 64, np.uint8)
    raw = room[-room.ctypes.data % 64 :][:4096].reshape(4, 1024)
    values = jax.block_until_ready(dequantize(raw, BY_NAME["F32"]))
    raw += 1
    assert not np.asarray(values).any()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["IQ2_XS", "NVFP4", "Q5_K", "F64", "BF16"])
def test_large_tensors_are_unpacked_in_pieces(name: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = BY_NAME[name]
    if kind.dtype is None:
        raw = random_rows(kind, 9, 1280)
        reference = expected(raw, kind)
    else:
        stored = np.random.default_rng(0).standard_normal((9, 1280)).astype(np.float32).astype(kind.dtype)
        raw, reference = stored.view(np.uint8), stored.astype(np.float32)
    monkeypatch.setattr(to_device, "_PIECE", 6 * 256)
    monkeypatch.setattr(to_device, "_THREADS", threads)
    values = dequantize(raw.reshape(3, 3, -1), kind, dtype=jnp.bfloat16)
    assert values.shape == (3, 3, 1280)
    np.testing.assert_array_equal(bits(values).reshape(9, 1280), bits(reference.astype(ml_dtypes.bfloat16)))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64])
def test_values_go_into_memory_of_the_host(dtype: Any) -> None:
    kind = BY_NAME["Q6_K"]
    raw = random_rows(kind, 4, 512).reshape(2, 2, -1)
    out = np.zeros((2, 2, 512), dtype)
    dequantize_into(raw, kind, out)
    np.testing.assert_array_equal(out.reshape(4, 512), expected(raw.reshape(4, -1), kind).astype(dtype))
    integers = np.arange(6, dtype=np.int32).reshape(2, 3)
    counted = np.zeros((2, 3), np.int32)
    dequantize_into(integers.view(np.uint8), BY_NAME["I32"], counted)
    np.testing.assert_array_equal(counted, integers)
    for wrong in (np.zeros((4, 512), dtype), np.zeros((512, 2, 2), dtype).T):
        with pytest.raises(ValueError, match=r"C-contiguous with the shape of the values, \[2, 2, 512\]"):
            dequantize_into(raw, kind, wrong)


@packed
def test_runs_are_the_values_by_32(kind: GGMLType) -> None:
    raw = jnp.asarray(random_rows(kind, 6, 512)).reshape(2, 3, -1)
    runs = jax.jit(lambda raw: unpack_runs(raw, kind))(raw)
    assert runs.shape == (2, 3, 16, 32)
    np.testing.assert_array_equal(bits(runs).reshape(2, 3, 512), bits(jitted(kind)(raw)))


def test_unpacking_composes_with_loops_and_batching() -> None:
    kind = BY_NAME["Q4_K"]
    raw = jnp.asarray(random_rows(kind, 8, 512)).reshape(4, 2, -1)
    whole = bits(jitted(kind)(raw))
    np.testing.assert_array_equal(bits(jax.jit(lambda raw: jax.lax.map(jitted(kind), raw))(raw)), whole)
    np.testing.assert_array_equal(bits(jax.jit(jax.vmap(jitted(kind)))(raw)), whole)


def test_errors_say_what_is_expected() -> None:
    kind = BY_NAME["Q4_K"]
    for function in (dequantize, unpack):
        with pytest.raises(ValueError, match=r"uint8 \[\.\.\., n \* 144\], not uint8 \[2, 145\]"):
            function(np.zeros((2, 145), np.uint8), kind)
        with pytest.raises(ValueError, match="not float32"):
            function(np.zeros((2, 144), np.float32), kind)
        with pytest.raises(ValueError, match=r"uint8 \[\]"):
            function(np.zeros((), np.uint8), kind)
    with pytest.raises(ValueError, match=r"unpack does not take F64 .* Q4_K"):
        unpack(jnp.zeros((1, 64), jnp.uint8), BY_NAME["F64"])
    with pytest.raises(ValueError, match="unpack_runs does not take F16"):
        unpack_runs(jnp.zeros((1, 64), jnp.uint8), BY_NAME["F16"])
