"""Interleaved blocks: the values of the file, and integer products with the bits that their rule gives."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conversion.weights.ggml_types import BY_NAME, GGMLType
from mistral_jax.quant.interleaved import InterleavedArray, interleaved, interleaved_bytes, product
from mistral_jax.quant.native import native
from mistral_jax.quant.product import matmul, take_rows
from tests.mistral_jax.quant.test_native import random_blocks, reference, same_bits

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler, as the kernels do"
)
KINDS = [BY_NAME[name] for name in sorted(native.KINDS)]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
multiply = jax.jit(product)


def matrix(kind: GGMLType, rows: int, columns: int, seed: int = 0) -> tuple[InterleavedArray, np.ndarray]:
    """A matrix, and its values."""
    raw = random_blocks(kind, rows, columns, seed)
    return interleaved(jnp.asarray(raw), kind), reference(raw, kind)


def activations(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def rounded(x: np.ndarray) -> np.ndarray:
    """Activations as products see them: to 8 bits, 32 at a time."""
    cells = x.reshape(len(x), -1, 32)
    largest = np.abs(cells).max(axis=-1, keepdims=True)
    whole = np.rint(cells * (np.float32(127) / largest))
    assert np.abs(whole).max() <= 127
    return (whole * (largest / np.float32(127))).reshape(x.shape)


def check(y: object, x: np.ndarray, weight: np.ndarray) -> None:
    """The product of rounded activations, but for what summing in float32 rounds."""
    x, weight = rounded(x).astype(np.float64), weight.astype(np.float64)
    error = np.abs(np.asarray(y) - x @ weight.T)
    assert (error <= 1e-6 * (np.abs(x) @ np.abs(weight).T)).all()


@each_kind
def test_interleaving_keeps_the_values_in_hardly_more_bytes(kind: GGMLType) -> None:
    weight, values = matrix(kind, 39, 768)
    assert weight.shape == (39, 768)
    np.testing.assert_array_equal(weight.dequantize(), values)
    assert weight.dequantize(jnp.bfloat16).dtype == jnp.bfloat16
    rows = jnp.asarray([[3, 38], [0, 17]])
    np.testing.assert_array_equal(take_rows(weight, rows, jnp.dtype(jnp.float32)), values[rows])
    assert weight.nbytes == interleaved_bytes(kind, weight.shape)
    assert interleaved_bytes(kind, (4096, 4096)) <= 1.2 * 4096 * kind.row_bytes(4096)


@each_kind
@pytest.mark.parametrize("columns", [256, 1280])
def test_products_are_those_of_rounded_activations(kind: GGMLType, columns: int) -> None:
    for outputs in (1, 15, 16, 103):
        weight, values = matrix(kind, outputs, columns)
        x = activations(9, columns)
        check(multiply(x, weight), x, values)
    y = matmul(jnp.asarray(x, jnp.bfloat16).reshape(3, 3, columns), weight)
    assert (y.shape, y.dtype) == ((3, 3, 103), jnp.float32)
    check(np.asarray(y).reshape(9, -1), np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)), values)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.block_size == 32], ids=lambda kind: kind.name)
@pytest.mark.parametrize("columns", [32, 96, 544])
def test_rows_of_any_number_of_blocks(kind: GGMLType, columns: int) -> None:
    weight, values = matrix(kind, 21, columns)
    for rows in (1, 3, 11):
        x = activations(rows, columns)
        check(multiply(x, weight), x, values)


@each_kind
def test_a_row_has_the_same_bits_alone_and_among_any_number(kind: GGMLType) -> None:
    weight, _ = matrix(kind, 41, 1536)
    x = activations(300, 1536)
    together = np.asarray(multiply(x, weight))
    for first, last in [(0, 1), (299, 300), (3, 5), (40, 47), (1, 9), (5, 14), (5, 21), (60, 125), (0, 131)]:
        assert same_bits(multiply(x[first:last], weight), together[first:last])
    order = np.random.default_rng(4).permutation(300)
    assert same_bits(multiply(x[order], weight), together[order])


@each_kind
def test_sums_of_the_largest_numbers_are_exact(kind: GGMLType) -> None:
    """No sum of products may overflow on the way: all bits of codes set, or none, and activations of either sign."""
    blocks = random_blocks(kind, 4, 512).reshape(4, -1, kind.block_bytes)
    same = blocks[0, 0].copy()
    for row, byte in enumerate((0, 255, 0x80, 0x7F)):
        at = {"Q4_K": 16, "Q5_K": 16, "Q2_K": 16, "Q3_K": 0, "Q6_K": 0, "IQ4_XS": 8, "MXFP4": 1}.get(kind.name, 2)
        end = {"Q2_K": 80, "Q3_K": 96, "Q6_K": 192}.get(kind.name, kind.block_bytes)
        blocks[row] = same
        blocks[row, :, at + (2 if kind.name.endswith("_1") else 0) : end] = byte
    raw = blocks.reshape(4, -1)
    weight, values = interleaved(jnp.asarray(raw), kind), reference(raw, kind)
    signs = np.array([[1.0], [-1.0]], np.float32)
    x = np.concatenate([np.ones((2, 512), np.float32) * signs, np.tile(np.float32([1, -1]), 256)[None] * signs])
    check(multiply(x, weight), x, values)
    check(multiply(x[:1], weight), x[:1], values)
    check(multiply(np.tile(x, (5, 1)), weight), np.tile(x, (5, 1)), values)


@pytest.mark.parametrize("rows", [1, 8, 20])
def test_the_split_among_threads_changes_no_bits(rows: int) -> None:
    kind = BY_NAME["Q5_K"]
    raw = jnp.asarray(random_blocks(kind, 3001, 512))
    x = activations(rows, 512)
    weight = interleaved(raw, kind)
    whole = np.asarray(multiply(x, weight))
    for first, last in [(0, 1), (7, 12), (1500, 1517), (2998, 3001)]:
        assert same_bits(multiply(x, interleaved(raw[first:last], kind)), whole[:, first:last])
    assert all(same_bits(multiply(x, weight), whole) for _ in range(20))


@each_kind
def test_activations_of_every_size(kind: GGMLType) -> None:
    weight, values = matrix(kind, 33, 512)
    x = activations(7, 512)
    x[0] = 0
    x[1] *= 1e30
    x[2] *= 1e-25
    x[3, :32], x[3, 32:64] = 0, 1e4
    y = np.asarray(multiply(x, weight))
    assert (y[0] == 0).all()
    check(y[1:3], x[1:3], values)
    check(y[4:], x[4:], values)
    assert np.isfinite(y).all()
    for wrong in (np.nan, np.inf, -np.inf):
        x[5, 100] = wrong
        y = np.asarray(multiply(x, weight))
        assert np.isnan(y[5]).all()
        assert np.isfinite(y[[0, 1, 2, 3, 4, 6]]).all()


@each_kind
def test_any_bytes_are_multiplied_without_harm(kind: GGMLType) -> None:
    """Scales of every kind, infinities among them: finite outputs are right, and each row minds its own."""
    raw = np.random.default_rng(1).integers(0, 256, (64, 2 * kind.block_bytes), dtype=np.uint8)
    x = activations(3, 2 * kind.block_size)
    with np.errstate(all="ignore"):
        values = reference(raw, kind)
    sane = np.abs(values).max(axis=1) < 1e30
    y = np.asarray(multiply(x, interleaved(jnp.asarray(raw), kind)))
    assert sane.any()
    check(y[:, sane], x, values[sane])


def test_gradients_are_those_of_the_plain_product() -> None:
    weight, values = matrix(BY_NAME["Q4_K"], 40, 512)
    x, toward = activations(5, 512), activations(5, 40, 1)
    gradient = jax.jit(jax.grad(lambda x: jnp.vdot(product(x, weight), toward)))(x)
    np.testing.assert_allclose(gradient, toward @ values, rtol=1e-4, atol=1e-5)


def test_nothing_times_something_is_zero_and_no_rows_give_no_rows() -> None:
    weight, _ = matrix(BY_NAME["Q8_0"], 20, 64)
    assert multiply(np.zeros((0, 64), np.float32), weight).shape == (0, 20)
    none = interleaved(jnp.zeros((0, 68), jnp.uint8), BY_NAME["Q8_0"])
    assert none.shape == (0, 64)
    assert multiply(np.zeros((3, 64), np.float32), none).shape == (3, 0)


@pytest.mark.parametrize(
    ("x", "tiles", "out", "kind", "message"),
    [
        ((2, 512), (1, 4737), (2, 16), 12, "rows of 4737 bytes do not hold 512 weights of ggml type 12"),
        ((2, 500), (1, 4736), (2, 16), 12, "rows of 4736 bytes do not hold 500 weights"),
        ((2, 512), (1, 4736), (2, 16), 99, "of ggml type 99"),
        ((2, 512), (1, 4736), (2, 17), 12, "takes x"),
        ((2, 512), (4736,), (2, 16), 12, "takes x"),
    ],
)
def test_the_kernel_itself_trusts_no_shape(x, tiles, out, kind, message) -> None:
    assert native.available()
    call = jax.ffi.ffi_call("mistral_jax_integer_matmul", jax.ShapeDtypeStruct(out, jnp.float32))
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match=message):
        call(jnp.zeros(x, jnp.float32), jnp.zeros(tiles, jnp.uint8), kind=np.int32(kind)).block_until_ready()


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match="whole Q4_K blocks of 144 bytes"):
        interleaved(jnp.zeros((8, 140), jnp.uint8), BY_NAME["Q4_K"])
    with pytest.raises(ValueError, match="there is no kernel for IQ1_S"):
        native.interleave(jnp.zeros((8, 50), jnp.uint8), BY_NAME["IQ1_S"], 100)
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="have no tiles of 100 bytes"):
        native.interleave(jnp.zeros((8, 144), jnp.uint8), BY_NAME["Q4_K"], 100).block_until_ready()


def digests() -> list[str]:
    """Of products of every type, for a few and for many rows."""
    weights = [matrix(kind, 50, 768)[0] for kind in KINDS]
    products = [multiply(activations(rows, 768), weight) for weight in weights for rows in (1, 6, 19)]
    return [hashlib.sha256(np.asarray(y).tobytes()).hexdigest() for y in products]


OTHER = """
import sys
from pathlib import Path
from mistral_jax.quant.native import native
native._TARGETS = (tuple(sys.argv[2].split()),)
native._kernels = native.Kernels(Path(sys.argv[1]))
from tests.mistral_jax.quant.test_interleaved import digests, each_is_right
each_is_right()
print(digests())
"""


def each_is_right() -> None:
    for kind in KINDS:
        weight, values = matrix(kind, 50, 768)
        for rows in (1, 6, 19):
            x = activations(rows, 768)
            check(multiply(x, weight), x, values)
    test_sums_of_the_largest_numbers_are_exact(BY_NAME["Q8_0"])
    test_sums_of_the_largest_numbers_are_exact(BY_NAME["IQ4_XS"])


@pytest.mark.slow
@pytest.mark.parametrize("target", ["-march=haswell", "-march=x86-64-v2", "-march=haswell -mavxvnni"])
def test_other_instruction_sets_give_the_same_bits(target: str, tmp_path: Path) -> None:
    """All sums are of whole numbers, and merged in one order; without fused multiply-add, last bits differ."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    needed = {"-march=haswell": " fma ", "-march=x86-64-v2": " sse4_2 ", "-march=haswell -mavxvnni": " avx_vnni "}
    if needed[target] not in flags:
        pytest.skip(f"this processor lacks{needed[target]}")
    run = subprocess.run(
        [sys.executable, "-c", OTHER, str(tmp_path / "kernels"), target],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    if " fma " in flags and target != "-march=x86-64-v2":
        assert run.stdout.strip() == str(digests())
