"""Weights that stay packed: products, rows, and the plan of which weight takes which form."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from conversion.dequantize import UNPACKABLE
from conversion.weights.ggml_types import BY_NAME, TYPES, GGMLType
from mistral_jax.quant import product
from mistral_jax.quant.array import QuantizedArray, RowStack, dense, int8_array, padded
from mistral_jax.quant.native import native
from mistral_jax.quant.product import matmul, take_rows

pytestmark = pytest.mark.slow

PACKED = [kind for kind in TYPES if kind.dtype is None and kind.name in UNPACKABLE]


def random_blocks(kind: GGMLType, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Random bytes whose scales are finite and of ordinary size: uint8 [rows, row_bytes]."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows, columns // kind.block_size, kind.block_bytes), dtype=np.uint8)
    # Where each type has its float16 scales: at the front, but for Q6_K and Q3_K (at the end) and Q2_K (its last four
    # bytes).
    places = {
        "Q6_K": [-2],
        "Q3_K": [-2],
        "Q2_K": [-4, -2],
        "Q4_1": [0, 2],
        "Q5_1": [0, 2],
        "Q4_K": [0, 2],
        "Q5_K": [0, 2],
    }
    if kind.name == "MXFP4":
        raw[..., 0] = rng.integers(120, 130, raw.shape[:2])
    else:
        for place in places.get(kind.name, [0]):
            scales = (
                rng.uniform(0.001, 0.02, raw.shape[:2]).astype(np.float16).view(np.uint8).reshape(*raw.shape[:2], 2)
            )
            end = None if place == -2 else place + 2
            raw[..., place:end] = scales
    return raw.reshape(rows, -1)


def reference(raw: np.ndarray, kind: GGMLType) -> np.ndarray:
    return quants.dequantize(raw, GGMLQuantizationType(kind.id)).astype(np.float32)


@pytest.fixture(params=["native", "xla"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "xla":
        monkeypatch.setattr(native, "available", lambda kind=None: False)
    elif not native.available():
        pytest.skip("there is no C++ compiler here")
    jax.clear_caches()
    yield request.param
    jax.clear_caches()


@pytest.mark.parametrize("kind", PACKED, ids=lambda kind: kind.name)
def test_products_with_packed_weights_are_those_with_plain_ones(kind: GGMLType, kernel: str) -> None:
    raw = random_blocks(kind, 37, 768)
    plain = reference(raw, kind)
    weight = QuantizedArray(jnp.asarray(raw), kind)
    x = np.random.default_rng(1).normal(size=(3, 5, 768)).astype(np.float32)
    expected = x.astype(np.float64) @ plain.T.astype(np.float64)
    scale = np.abs(expected).max()
    for given, wanted in ((x, expected), (x[:, :1], expected[:, :1]), (x[:, 0], expected[:, 0])):
        found = jax.jit(matmul)(jnp.asarray(given), weight)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted, atol=2e-5 * scale)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "Q6_K"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_has_the_same_bits_alone_and_beside_others(name: str, dtype: str, kernel: str) -> None:
    kind = BY_NAME[name]
    weight = QuantizedArray(jnp.asarray(random_blocks(kind, 200, 512)), kind)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(40, 1, 512)), dtype)
    product = jax.jit(matmul)
    together = np.asarray(product(x, weight))
    for count in (2, 3, 8, 17):
        np.testing.assert_array_equal(product(x[:count], weight), together[:count])
        np.testing.assert_array_equal(product(x[-count:], weight), together[-count:])


def test_tiles_and_their_rest_make_the_whole_product(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "_CPU_TILE_BYTES", 64 * 512 * 4)
    kind = BY_NAME["Q8_0"]
    raw = random_blocks(kind, 3 * 64 + 5, 512)
    x = np.random.default_rng(3).normal(size=(1, 20, 512)).astype(np.float32)
    found = jax.jit(matmul)(jnp.asarray(x), QuantizedArray(jnp.asarray(raw), kind))
    np.testing.assert_allclose(found, x @ reference(raw, kind).T, atol=1e-3)


def test_the_fused_form_of_other_devices_gives_the_same_product() -> None:
    kind = BY_NAME["Q4_K"]
    raw = random_blocks(kind, 33, 512)
    x = np.random.default_rng(4).normal(size=(2, 512)).astype(np.float32)
    found = jax.jit(product.fused_product, static_argnums=2)(jnp.asarray(x), jnp.asarray(raw), kind)
    np.testing.assert_allclose(found, x @ reference(raw, kind).T, atol=1e-3)


def test_a_stack_of_forms_multiplies_and_unpacks_as_one_matrix() -> None:
    parts = [("Q4_K", 9), ("Q6_K", 7)]
    raws = [random_blocks(BY_NAME[name], rows, 256, seed=rows) for name, rows in parts]
    plain = np.random.default_rng(5).normal(size=(4, 256)).astype(np.float32)
    stack = RowStack(
        (
            *(QuantizedArray(jnp.asarray(raw), BY_NAME[name]) for raw, (name, _) in zip(raws, parts, strict=True)),
            padded(jnp.asarray(plain)),
        )
    )
    whole = np.concatenate(
        [*(reference(raw, BY_NAME[name]) for raw, (name, _) in zip(raws, parts, strict=True)), plain]
    )
    assert stack.shape == whole.shape == (20, 256)
    np.testing.assert_array_equal(dense(stack, jnp.float32), whole)
    x = np.random.default_rng(6).normal(size=(2, 1, 256)).astype(np.float32)
    np.testing.assert_allclose(jax.jit(matmul)(jnp.asarray(x), stack), x @ whole.T, atol=1e-3)


@pytest.mark.parametrize("kind", PACKED, ids=lambda kind: kind.name)
def test_rows_of_a_packed_embedding_are_exact(kind: GGMLType) -> None:
    raw = random_blocks(kind, 11, 512)
    rows = jnp.asarray([[3, 0], [10, 3]])
    found = jax.jit(take_rows, static_argnums=2)(QuantizedArray(jnp.asarray(raw), kind), rows, jnp.dtype(jnp.float32))
    np.testing.assert_array_equal(found, reference(raw, kind)[np.asarray(rows)])


def test_int8_rounds_weights_and_activations_to_one_part_in_254_of_their_largest() -> None:
    rng = np.random.default_rng(7)
    plain = rng.normal(size=(31, 640)).astype(np.float32)
    plain[3] = 0
    weight = int8_array(jnp.asarray(plain))
    assert weight.shape == plain.shape
    assert weight.nbytes == 31 * 640 + 31 * 4
    error = np.abs(np.asarray(weight.dequantize()) - plain)
    assert (error <= np.abs(plain).max(axis=1, keepdims=True) / 254 * 1.001).all()
    x = rng.normal(size=(3, 1, 640)).astype(np.float32)
    x[1] = 0
    found = np.asarray(jax.jit(matmul)(jnp.asarray(x), weight))
    expected = x @ plain.T
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.02 * np.sqrt(np.mean(expected**2))
    assert (found[1] == 0).all()
    assert (found[:, :, 3] == 0).all()
    np.testing.assert_array_equal(take_rows(weight, jnp.asarray([2]), jnp.dtype(jnp.float32)), weight.dequantize()[2:3])
