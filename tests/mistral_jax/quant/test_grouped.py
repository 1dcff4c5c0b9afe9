"""Packed blocks in groups: the same values as in the file's order, and products by the kernel, in Pallas' interpreter.

The kernel's PTX runs nowhere here. A small interpreter of the few instructions that it uses shows that it unpacks what
the plain form unpacks.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion.dequantize import unpack
from conversion.dequantize.parts import DIVISIBLE, layout_of, parts_of
from conversion.weights.ggml_types import BY_NAME, GGMLType
from mistral_jax.checkpoint import weights
from mistral_jax.checkpoint.description import describe
from mistral_jax.checkpoint.load_module import load_module
from mistral_jax.checkpoint.summary import summarize
from mistral_jax.hub.files import find_model
from mistral_jax.quant import grouped_kernel
from mistral_jax.quant.array import Packed, RowStack
from mistral_jax.quant.grouped import ROWS, SPAN, GroupedArray, grouped, grouped_bytes
from mistral_jax.quant.grouped_kernel import assembly, kernel_works, product
from mistral_jax.quant.placement import Placement
from mistral_jax.quant.product import matmul, take_rows
from tests.mistral_jax.quant.ptx import PTX
from tests.mistral_jax.quant.test_product import random_blocks

pytestmark = pytest.mark.slow

KINDS = [BY_NAME[name] for name in sorted(DIVISIBLE)]
GOLDENS = Path(__file__).parents[2] / "goldens" / "gguf"
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def columns_of(kind: GGMLType, blocks: int) -> int:
    return blocks * kind.block_size


@each_kind
def test_parts_make_up_the_values(kind: GGMLType) -> None:
    raw = jnp.asarray(random_blocks(kind, 5, columns_of(kind, 3)))
    layout, parts = layout_of(kind), parts_of(raw, kind)
    assert int(parts.codes.max()) < 2 ** sum(layout.planes)

    def spread(x: jax.Array | None, supers: jax.Array | None) -> np.ndarray:
        whole = np.asarray(x, np.float32)
        if supers is not None:
            whole = np.repeat(np.asarray(supers, np.float32), kind.block_size // layout.group, axis=-1) * whole
        return np.repeat(whole, layout.group, axis=-1)

    codes = np.asarray(parts.codes, np.int32)
    values = np.array(layout.table)[codes] if layout.table else codes - layout.zero
    found = spread(parts.scales, parts.super_scales) * values.astype(np.float32)
    if layout.has_minima:
        found -= spread(parts.minima, parts.super_minima)
    np.testing.assert_array_equal(found, unpack(raw, kind))


@each_kind
def test_groups_hold_the_same_values_in_hardly_more_bytes(kind: GGMLType) -> None:
    raw = jnp.asarray(random_blocks(kind, 37, columns_of(kind, 3)))
    weight, plain = grouped(raw, kind), unpack(raw, kind)
    assert weight.shape == plain.shape
    np.testing.assert_array_equal(weight.dequantize(), plain)
    assert weight.dequantize(jnp.bfloat16).dtype == jnp.bfloat16
    rows = jnp.asarray([[3, 36], [0, 3]])
    np.testing.assert_array_equal(take_rows(weight, rows, jnp.dtype(jnp.float32)), plain[rows])
    assert grouped_bytes(kind, weight.shape) == weight.nbytes
    whole = grouped(jnp.asarray(random_blocks(kind, ROWS, 4 * SPAN)), kind)
    assert whole.nbytes <= 1.2 * ROWS * kind.row_bytes(4 * SPAN)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_products_equal_those_with_plain_weights(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    out, blocks = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 3 if kind.block_size == SPAN else 20))
    rows = data.draw(st.sampled_from([1, 2, 8, 16, 17, 33, 64, 129, 200]))
    dtype = data.draw(st.sampled_from(["float32", "bfloat16", "float16"]))
    raw = jnp.asarray(random_blocks(kind, out, columns_of(kind, blocks), seed=data.draw(st.integers(0, 1000))))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    x = jnp.asarray(rng.standard_normal((rows, columns_of(kind, blocks))), dtype)
    # Weights are rounded to the type of the activations.
    plain = np.asarray(unpack(raw, kind, jnp.dtype(dtype)), np.float64)
    expected = np.asarray(x, np.float64) @ plain.T
    found = product(x, grouped(raw, kind))
    assert found.dtype == jnp.float32
    # Relative to the terms, which may cancel out. On a GPU a few weights of 16 bits have another last bit.
    terms = np.abs(np.asarray(x, np.float64)) @ np.abs(plain).T
    tolerance = 1e-6 if dtype == "float32" or jax.default_backend() == "cpu" else 5e-4
    assert (np.abs(np.asarray(found, np.float64) - expected) <= tolerance * terms).all()


@pytest.mark.skipif(jax.default_backend() == "cpu", reason="dots of tiles of 16 and 32 rows may differ on a CPU")
def test_a_row_has_the_same_bits_for_every_number_of_rows() -> None:
    kind = BY_NAME["Q4_K"]
    weight = grouped(jnp.asarray(random_blocks(kind, 96, 512)), kind)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 512)), jnp.bfloat16)
    together = np.asarray(product(x, weight))
    for rows in (2, 16, 20, 33):
        np.testing.assert_array_equal(product(x[:rows], weight), together[:rows])


def test_matmul_unpacks_for_many_rows_only_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind = BY_NAME["Q6_K"]
    raw = jnp.asarray(random_blocks(kind, 40, 512))
    weight, plain = grouped(raw, kind), np.asarray(unpack(raw, kind), np.float64)
    seen: list[int] = []

    def counted(x: jax.Array, weight: GroupedArray) -> jax.Array:
        seen.append(x.shape[0])
        return product(x, weight)

    monkeypatch.setattr("mistral_jax.quant.product.product", counted)
    rng = np.random.default_rng(0)
    shapes = ((3, 512), (70, 1, 512), (2, 70, 512))
    for dtype, tolerance in (("float32", 2e-6), ("bfloat16", 2e-2)):
        for shape in shapes:
            x = rng.standard_normal(shape).astype(np.float32)
            expected = x.astype(np.float64) @ plain.T
            found = matmul(jnp.asarray(x, dtype), weight)
            np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())
    assert seen == [3, 70, 3, 70, 140]


def test_products_have_a_slope() -> None:
    """An adapter can be trained over packed weights."""
    kind = BY_NAME["Q4_K"]
    raw = jnp.asarray(random_blocks(kind, 40, 512))
    weight, plain = grouped(raw, kind), unpack(raw, kind)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 512)), jnp.float32)
    slope = jax.grad(lambda x: jnp.sum(jnp.tanh(product(x, weight) / 50)))(x)
    expected = jax.grad(lambda x: jnp.sum(jnp.tanh(jnp.matmul(x, plain.T, precision="highest") / 50)))(x)
    np.testing.assert_allclose(slope, expected, atol=1e-5 * float(jnp.abs(expected).max()))


def test_a_model_is_loaded_in_groups_where_the_kernel_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused matrices of several types among them."""
    path = GOLDENS / "wide.Q4_K_M.gguf"
    asked: list[set[str]] = []

    def works(placement: Placement, dtype: str, kinds: set[GGMLType]) -> bool:
        asked.append({kind.name for kind in kinds})
        return True

    tokens = jnp.asarray([[3, 7, 11, 2, 9]])
    plain = load_module(describe(find_model(path)), dtype="float32", activations="float")
    monkeypatch.setattr(weights, "kernel_works", works)
    in_groups = load_module(describe(find_model(path)), dtype="float32", activations="float")
    assert asked == [{"Q4_K", "Q5_0", "Q6_K", "Q8_0"}]
    leaves = jax.tree.leaves(nnx.state(in_groups), is_leaf=lambda x: isinstance(x, Packed))
    forms = [leaf for leaf in leaves if isinstance(leaf, Packed)]
    assert any(isinstance(form, RowStack) for form in forms)
    parts = [part for form in forms for part in (form.parts if isinstance(form, RowStack) else (form,))]
    assert all(isinstance(part, GroupedArray) for part in parts)
    assert summarize(in_groups).bytes_by_form.keys() == summarize(plain).bytes_by_form.keys()
    expected, found = (model.logits(model.hidden_states(tokens)) for model in (plain, in_groups))
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(jnp.abs(expected).max()))


def test_a_cpu_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not kernel_works(Placement((jax.devices("cpu")[0],)), jnp.float32, KINDS)
    # What a GPU would be asked at start, of smaller matrices: every type agrees with unpacking.
    monkeypatch.setattr(grouped_kernel, "_CHECKED", ((ROWS, 2 * SPAN, 5),))
    for kind in KINDS:
        assert grouped_kernel._agrees(kind, Placement.default(), jnp.bfloat16)
    monkeypatch.setattr(grouped_kernel, "product", lambda x, weight: 1.1 * product(x, weight))
    assert not grouped_kernel._agrees.__wrapped__(KINDS[0], Placement.default(), jnp.bfloat16)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not layout_of(kind).table], ids=lambda kind: kind.name)
def test_the_assembly_unpacks(kind: GGMLType, dtype: str) -> None:
    layout = layout_of(kind)
    rng = np.random.default_rng(0)
    for _ in range(50):
        words = rng.integers(0, 2**32, len(layout.planes), dtype=np.uint64)
        # Scales have as many bits as those of files: of codes of eight bits, that is what lets nothing be lost.
        scale = np.float32(np.float16(rng.uniform(0.001, 0.1))) * np.float32(
            rng.integers(1, 64) if layout.is_super else 1
        )
        minimum = np.float32(rng.uniform(0, 0.5) * layout.has_minima)
        # Planes of few bits are shifted by a register, others by a number.
        places = [int(rng.integers(0, 8 // bits)) * bits for bits in layout.planes]
        shifts = [place if bits in (4, 8) else None for place, bits in zip(places, layout.planes, strict=True)]
        text, operands = assembly(layout, shifts, jnp.dtype(dtype))
        base = 2**15 if max(layout.planes) == 8 else 128
        offset = np.float32(-(base + layout.zero)) * scale - minimum
        values = [int(word) for word in words]
        values += [place for place, shift in zip(places, shifts, strict=True) if shift is None for _ in range(4)]
        values += [int(np.float32(x).view(np.uint32)) for x in (scale, offset) for _ in range(4)]
        assert operands == 2 + len(values)
        machine = PTX({f"${i + 2}": value for i, value in enumerate(values)})
        machine.run(text)
        found = machine.halves(dtype)
        codes, up = np.zeros(4, np.int64), 0
        for word, place, bits in zip(words, places, layout.planes, strict=True):
            held = np.array([int(word) >> 8 * i & 255 for i in range(4)])
            codes |= (held >> place & 2**bits - 1) << up
            up += bits
        expected = (codes - layout.zero) * scale - minimum
        # One rounding to the type, and one far below it.
        tolerance = float(jnp.finfo(dtype).eps) / 2 * np.abs(expected) + 2.0**-16 * scale
        assert (np.abs(found - expected) <= tolerance).all()
