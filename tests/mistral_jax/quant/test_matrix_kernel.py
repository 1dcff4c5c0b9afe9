"""Products with plain matrices and those of 8-bit integers by the kernel, in Pallas' interpreter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_jax.adapters.choice import AdapterChoice
from mistral_jax.checkpoint.description import describe
from mistral_jax.checkpoint.load_module import load_module
from mistral_jax.hub.files import find_model
from mistral_jax.model import norm_kernel
from mistral_jax.quant import matrix_kernel
from mistral_jax.quant.array import Int8Array, PaddedArray, RowStack, int8_array, padded
from mistral_jax.quant.matrix_kernel import MOST_ROWS, assembly, kernel_works, product
from mistral_jax.quant.placement import Placement
from mistral_jax.quant.product import matmul
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import Features
from tests.mistral_jax import tiny_adapters
from tests.mistral_jax.quant.ptx import PTX

FORMS = ["plain", "int8"]


def operands(
    rows: int, outputs: int, columns: int, form: str, dtype: str, seed: int = 0
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.standard_normal((rows, columns)), dtype)
    if form == "plain":
        return x, jnp.asarray(rng.standard_normal((outputs, columns)), dtype), None
    integers = jnp.asarray(rng.integers(-128, 128, (outputs, columns)), jnp.int8)
    return x, integers, jnp.asarray(rng.uniform(0.001, 0.02, outputs), jnp.float32)


def exact(x: jax.Array, values: jax.Array, scales: jax.Array | None) -> tuple[np.ndarray, np.ndarray]:
    """The product, and the sum of its terms' magnitudes."""
    left, right = np.asarray(x, np.float64), np.asarray(values, np.float64)
    if scales is not None:
        right = right * np.asarray(scales, np.float64)[:, None]
    return left @ right.T, np.abs(left) @ np.abs(right).T


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_products_equal_exact_ones(data: st.DataObject) -> None:
    rows = data.draw(st.sampled_from([1, 2, 8, 16, 17, 64, 129, 200]))
    outputs, columns = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 1100))
    form, dtype = data.draw(st.sampled_from(FORMS)), data.draw(st.sampled_from(["float32", "bfloat16", "float16"]))
    arguments = operands(rows, outputs, columns, form, dtype, seed=data.draw(st.integers(0, 1000)))
    found = product(*arguments)
    assert (found.dtype, found.shape) == (jnp.float32, (rows, outputs))
    expected, terms = exact(*arguments)
    assert (np.abs(np.asarray(found, np.float64) - expected) <= 1e-6 * terms).all()


@pytest.mark.parametrize("form", FORMS)
def test_a_row_has_the_same_bits_for_every_number_of_rows(form: str) -> None:
    x, values, scales = operands(MOST_ROWS, 96, 1000, form, "bfloat16")
    if jax.default_backend() == "cpu":  # whose dots of tiles differ: numbers that are added up exactly
        x, values = jnp.round(x), jnp.round(values)
    together = np.asarray(product(x, values, scales))
    for rows in (1, 2, 16, 20, 33):
        np.testing.assert_array_equal(product(x[:rows], values, scales), together[:rows])


def test_matmul_takes_the_kernel_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, str]] = []

    def counted(x: jax.Array, values: jax.Array, scales: jax.Array | None) -> jax.Array:
        seen.append((x.shape[0], str(values.dtype)))
        return product(x, values, scales)

    monkeypatch.setattr("mistral_jax.quant.product.matrix_product", counted)
    rng = np.random.default_rng(0)
    plain = jnp.asarray(rng.standard_normal((45, 81)), jnp.bfloat16)
    ragged = padded(plain)
    assert isinstance(ragged, PaddedArray)
    whole = padded(jnp.asarray(rng.standard_normal((64, 81)), jnp.bfloat16))
    integers = int8_array(jnp.copy(plain))
    stack = RowStack((integers, ragged, whole))
    for shape in ((3, 81), (5, 2, 81), (2, 100, 81)):
        x = jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)
        found = matmul(x, stack, by_kernel=True)
        expected = np.asarray(x, np.float64) @ np.asarray(stack.dequantize(), np.float64).T
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
        matmul(x, stack)
    # More rows are left to XLA where the matrix is plain.
    kinds = ["int8", "bfloat16", "bfloat16"]
    assert seen == [*((3, kind) for kind in kinds), *((10, kind) for kind in kinds), (200, "int8")]


@pytest.mark.parametrize("form", FORMS)
def test_products_have_slopes(form: str) -> None:
    x, values, scales = operands(3, 40, 90, form, "float32")

    def loss(x: jax.Array, values: jax.Array, *, plain: bool) -> jax.Array:
        matrix = values if scales is None else values * scales[:, None]
        y = jnp.matmul(x, matrix.T, precision="highest") if plain else product(x, values, scales)
        return jnp.sum(jnp.tanh(y / 50))

    wanted = (0, 1) if form == "plain" else (0,)
    found = jax.grad(lambda *args: loss(*args, plain=False), argnums=wanted)(x, values)
    expected = jax.grad(lambda *args: loss(*args, plain=True), argnums=wanted)(x, values)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(other).max()))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_assembly_converts_all_integers(dtype: str) -> None:
    text = assembly(jnp.dtype(dtype))
    for first in range(-128, 128, 4):
        integers = np.arange(first, first + 4, dtype=np.int8)
        machine = PTX({"$2": int(integers.view(np.uint32)[0])})
        machine.run(text)
        np.testing.assert_array_equal(machine.halves(dtype), integers)


def test_a_cpu_does_without_and_a_gpu_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not kernel_works(Placement((jax.devices("cpu")[0],)), jnp.bfloat16)
    monkeypatch.setattr(Placement, "is_one_gpu", True)
    monkeypatch.setattr(matrix_kernel, "_CHECKED", ((70, 300, 5), (40, 200, 130)))
    matrix_kernel._agrees.cache_clear()
    assert kernel_works(Placement.default(), jnp.bfloat16)
    assert not kernel_works(Placement.default(), jnp.float32)
    matrix_kernel._agrees.cache_clear()
    monkeypatch.setattr(matrix_kernel, "product", lambda *arguments: 1.1 * product(*arguments))
    assert not kernel_works(Placement.default(), jnp.bfloat16)
    matrix_kernel._agrees.cache_clear()


@pytest.mark.parametrize("quant", ["auto", "int8"])
def test_a_model_is_loaded_for_the_kernel_where_it_works(quant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = jnp.asarray([[3, 7, 11, 2, 9]])
    description = describe(find_model("demo"))
    plain = load_module(description, dtype="bfloat16", quant=quant)
    monkeypatch.setattr(matrix_kernel, "kernel_works", lambda placement, dtype: True)
    monkeypatch.setattr(norm_kernel, "kernel_works", lambda placement, features, dtype: True)
    model = load_module(description, dtype="bfloat16", quant=quant)
    assert [module.by_kernel for module in model.matrices()] == [True] * (4 * model.config.num_layers + 1)
    assert [norm.by_kernel for norm in model.norms()] == [True] * (2 * model.config.num_layers + 1)
    assert not any(module.by_kernel for module in (*plain.matrices(), *plain.norms()))
    assert quant != "int8" or isinstance(model.layers[0].mlp.down_proj.weight.get_value(), Int8Array)
    expected, found = (each.logits(each.hidden_states(tokens)) for each in (plain, model))
    # Without the kernel, int8 rounds activations as well.
    np.testing.assert_allclose(
        found, expected, atol=(0.1 if quant == "int8" else 0.03) * float(jnp.abs(expected).max())
    )


def test_several_tokens_of_a_row_have_the_bits_of_single_steps() -> None:
    """Products of 2 rows and of 16 are the same, those of adapters included."""
    model = tiny_adapters.model("bfloat16")
    for module in model.matrices():
        module.by_kernel = True
    adapters = tiny_adapters.adapter_set("bfloat16")
    runner = Runner(model, slots=2, length=64, chunks=(16,), adapters=adapters)
    choice, params = AdapterChoice(weights=((0, 1.0),)), SamplingParams(seed=0, temperature=0.0, logprobs=3)
    prompt, forced = (5, 6, 7), (8, 9, 10, 11)

    def last(*, at_once: bool) -> np.ndarray:
        state = runner.admit(runner.new_state(), 1, (*prompt, forced[0]), params, choice)
        for chunk in runner.chunks(len(prompt) + 1):
            state = runner.prefill(state, 1, prompt, chunk).state
        if at_once:
            made = runner.forward(state, [1], longest=16, runs={1: forced})
            return np.asarray(runner.sample(made, [1], Features.of(params)).packed)[1]
        packed = np.zeros(0)
        for token in forced:
            state = runner.admit(state, 1, (*prompt, *forced[: forced.index(token) + 1]), params, choice)
            stepped = runner.decode(state, [1], Features.of(params), longest=16)
            state, packed = stepped.state, np.asarray(stepped.packed)[1]
        return packed

    np.testing.assert_array_equal(last(at_once=True), last(at_once=False))
