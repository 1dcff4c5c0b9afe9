"""Products and sums have the same bits for every number of rows, whatever shape the matrix has; see `tests.dot_bits`
too."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion.quantize import quantize
from conversion.weights.ggml_types import BY_NAME
from conversion.weights.stored_shapes import storable_shape
from mistral_jax.quant.array import PaddedArray, QuantizedArray, RowStack, Weight, dense, int8_array, padded
from mistral_jax.quant.dot import batched_dot, dot, row_sum
from mistral_jax.quant.product import FEW_TOKENS, matmul, take_rows
from tests.dot_bits import differing_rows

pytestmark = pytest.mark.slow

DTYPES = ("float32", "bfloat16")


@given(st.integers(1, 40_000), st.integers(1, 20_000))
def test_a_stored_shape_has_room_and_is_stored_as_it_is(outer: int, inner: int) -> None:
    stored = storable_shape(outer, inner)
    assert stored[0] >= outer
    assert stored[1] >= inner
    assert storable_shape(*stored) == stored
    assert stored[0] - outer < 16
    assert stored[1] == inner or stored[1] <= 64


@pytest.mark.parametrize("shape", [(1031, 320), (32002, 2048), (8, 64), (32, 32), (256, 16), (0, 64)])
def test_a_product_of_which_bits_would_depend_on_the_rows_is_refused(shape: tuple[int, int]) -> None:
    weight = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    if storable_shape(*shape) == shape:
        jax.eval_shape(dot, jax.ShapeDtypeStruct((4, shape[1]), jnp.bfloat16), weight)
        return
    with pytest.raises(ValueError, match=rf"a matrix of {shape[0]} x {shape[1]} has bits that depend.*store it"):
        jax.eval_shape(dot, jax.ShapeDtypeStruct((4, shape[1]), jnp.bfloat16), weight)
    with pytest.raises(ValueError, match="has bits that depend on the number of rows"):
        jax.eval_shape(
            batched_dot,
            jax.ShapeDtypeStruct((2, 3, 4, shape[1]), jnp.bfloat16),
            jax.ShapeDtypeStruct((2, 3, *shape), jnp.bfloat16),
        )


@pytest.mark.parametrize("shape", [(1, 1), (37, 5), (97, 60), (16, 64), (64, 32), (1031, 320)])
def test_padding_leaves_the_matrix_as_it_is(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    weight = padded(jnp.asarray(matrix))
    assert isinstance(weight, PaddedArray) == (storable_shape(*shape) != shape)
    assert weight.shape == shape
    np.testing.assert_array_equal(weight[...], matrix)
    np.testing.assert_array_equal(dense(weight, jnp.float32), matrix)
    np.testing.assert_array_equal(take_rows(weight, jnp.asarray([shape[0] - 1]), jnp.dtype("float32")), matrix[-1:])
    x = np.random.default_rng(1).standard_normal((2, 3, shape[1])).astype(np.float32)
    np.testing.assert_allclose(matmul(jnp.asarray(x), weight), x @ matrix.T, rtol=1e-5, atol=1e-5)


FORMS: dict[str, Callable[[jax.Array], Weight]] = {
    "plain": padded,
    "int8": lambda matrix: int8_array(jnp.copy(matrix)),
    "Q8_0": lambda matrix: QuantizedArray(quantize(matrix, BY_NAME["Q8_0"]), BY_NAME["Q8_0"]),
    "Q4_K": lambda matrix: QuantizedArray(quantize(matrix, BY_NAME["Q4_K"]), BY_NAME["Q4_K"]),
    "stack": lambda matrix: RowStack(
        (QuantizedArray(quantize(matrix[:7], BY_NAME["Q8_0"]), BY_NAME["Q8_0"]), padded(matrix[7:]))
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_rows_keep_their_bits_for_random_shapes(form: str, dtype: str) -> None:
    """Inputs of up to 4,096, outputs of every remainder, and 2 to 64 rows: of one sequence, and one of each
    sequence."""
    rng = np.random.default_rng([*form.encode(), *dtype.encode()])
    columns = {"plain": 1, "int8": 1, "Q8_0": 32, "stack": 32, "Q4_K": 256}[form]
    for _ in range(4):
        inner = int(rng.integers(1, 4096 // columns + 1)) * columns
        outer = 16 * int(rng.integers(1, 40)) + int(rng.integers(0, 16))
        weight = FORMS[form](jnp.asarray(rng.standard_normal((outer, inner)), dtype))
        x = jnp.asarray(rng.standard_normal((64, 1, inner)), dtype)
        product = jax.jit(matmul)
        of_one, of_many = (
            np.asarray(product(x.reshape(shape), weight)).reshape(64, outer)
            for shape in ((64, 1, inner), (1, 64, inner))
        )
        for count in (1, 2, 3, int(rng.integers(4, 64))):
            # Few tokens of one sequence take the way of one.
            ways = {(count, 1, inner): of_one, (1, count, inner): of_one if count <= FEW_TOKENS else of_many}
            for own, among in ways.items():
                found = np.asarray(product(x[:count].reshape(own), weight)).reshape(count, outer)
                np.testing.assert_array_equal(found, among[:count], err_msg=f"{form} {outer} x {inner}, {own}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_that_once_had_bits_of_their_own(dtype: str) -> None:
    """A vocabulary of 1,031 or 32,002, LoRA's second product, a classifier of three outputs."""
    for shape in ((1031, 320), (32_002, 128), (256, 16), (3, 64), (24, 32), (1, 128)):
        stored = storable_shape(*shape)
        assert not differing_rows(stored, dtype, 0, product=jax.jit(dot)), f"{shape}, stored as {stored}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("terms", [1, 60, 97, 128, 1031, 4096, 4097, 32_001])
def test_a_sum_has_the_same_bits_for_any_number_of_rows(terms: int, dtype: str) -> None:
    x = jnp.asarray(np.random.default_rng(terms).random((40, terms)), dtype)
    together = np.asarray(jax.jit(row_sum)(x))
    np.testing.assert_allclose(together, np.asarray(x, np.float64).sum(axis=1), rtol=1e-5)
    for count in (1, 2, 5, 16):
        np.testing.assert_array_equal(jax.jit(row_sum)(x[:count]), together[:count])


@settings(max_examples=12, deadline=None)
@given(heads=st.integers(1, 3), head_dim=st.sampled_from([32, 48, 64, 80]), dtype=st.sampled_from(DTYPES))
def test_products_in_pairs_keep_their_bits(heads: int, head_dim: int, dtype: str) -> None:
    rng = np.random.default_rng(head_dim)
    for outer, inner in ((128, head_dim), (head_dim, 128)):
        x = jnp.asarray(rng.standard_normal((4, heads, 20, inner)), dtype)
        y = jnp.asarray(rng.standard_normal((4, heads, outer, inner)), dtype)
        among = np.asarray(jax.jit(batched_dot)(x, y))
        for pairs, rows in ((1, 2), (2, 1), (4, 5)):
            found = np.asarray(jax.jit(batched_dot)(x[:pairs, :, :rows], y[:pairs]))
            np.testing.assert_array_equal(found, among[:pairs, :, :rows])
