"""The kernels are lowered for a described GPU. Compiling them needs XLA's compiler for GPUs:
tests/benchmarks/test_gpu_programs.py."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from conversion.dequantize.parts import DIVISIBLE
from conversion.weights.ggml_types import BY_NAME
from mistral_jax.model.attention_kernel import attend
from mistral_jax.model.kv_cache import LayerCache
from mistral_jax.model.norm_kernel import normalised
from mistral_jax.model.rope import Positions
from mistral_jax.model.store_kernel import rotate_and_store
from mistral_jax.quant.grouped import grouped
from mistral_jax.quant.grouped_kernel import product
from mistral_jax.quant.matrix_kernel import product as matrix_product
from mistral_jax.runtime.sampling.truncation_kernel import kth_largest, nucleus_edge

pytestmark = pytest.mark.slow


def of(*shape: int, dtype: Any = jnp.bfloat16) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def kernels(program: Callable[..., Any], *arguments: Any) -> int:
    """The number of kernels in Pallas for Triton of a program for an H100."""
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)):
        text = jax.jit(program).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    return text.count("__gpu$xla.gpu.triton")


@pytest.mark.parametrize(("T", "heads", "H", "window"), [(1, 8, 64, None), (8, 6, 96, 200), (64, 24, 128, None)])
def test_attention(T: int, heads: int, H: int, window: int | None) -> None:
    layer = LayerCache(of(8, 2, 128, H), of(8, 2, H, 128))
    where = (of(3, 4, dtype=jnp.int32), of(3, T, dtype=jnp.int32))

    def attention(queries: Any, layer: LayerCache, table: Any, positions: Any, last: Any) -> jax.Array:
        return attend(queries, layer, table=table, positions=positions, last=last, window=window)

    assert kernels(attention, of(3, T, heads, H), layer, *where, of(3, dtype=jnp.int32)) == (1 if T > 8 else 2)

    def store(qkv: Any, layer: LayerCache, at: Positions, table: Any, positions: Any, valid: Any) -> Any:
        tokens = {"table": table, "positions": positions, "valid": valid}
        return rotate_and_store(qkv, layer, at, dtype=jnp.dtype(jnp.bfloat16), **tokens)

    angles = of(3, T, 1, H // 2, dtype=jnp.float32)
    qkv = of(3, T, heads + 4, H, dtype=jnp.float32)
    at = Positions(angles, angles, None, 0.1)
    assert kernels(store, qkv, layer, at, *where, of(3, T, dtype=jnp.bool_)) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", sorted(DIVISIBLE))
def test_products_with_packed_weights(name: str, dtype: str) -> None:
    kind = BY_NAME[name]
    weight = jax.eval_shape(partial(grouped, kind=kind), of(100, kind.row_bytes(768), dtype=jnp.uint8))
    for rows in (2, 40, 256):
        assert kernels(product, of(rows, 768, dtype=dtype), weight) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("outputs", "columns"), [(100, 700), (20000, 512)])
def test_products_with_plain_matrices_and_integers(outputs: int, columns: int, dtype: str) -> None:
    for rows in (2, 40, 256):
        x = of(rows, columns, dtype=dtype)
        assert kernels(matrix_product, x, of(outputs, columns, dtype=dtype), None) == 1
        scales = of(outputs, dtype=jnp.float32)
        assert kernels(matrix_product, x, of(outputs, columns, dtype=jnp.int8), scales) == 1


def test_normalisation() -> None:
    for features, dtype in ((100, "float32"), (4096, "bfloat16"), (5120, "float16")):
        found = kernels(partial(normalised, eps=1e-5), of(3, 2, features, dtype=dtype), of(features, dtype=dtype))
        assert found == 1


@pytest.mark.parametrize("vocab_size", [97, 32000, 131072])
def test_the_edges_of_sampling(vocab_size: int) -> None:
    logits = of(8, vocab_size, dtype=jnp.float32)
    assert kernels(kth_largest, logits, of(8, 1, dtype=jnp.int32)) == 1
    assert kernels(nucleus_edge, logits, of(8, 1, dtype=jnp.float32)) == 1


def test_a_jax_without_triton_serves_from_a_cpu() -> None:
    """As on Windows."""
    program = (
        "import sys; sys.modules['jax.experimental.pallas.triton'] = None\n"
        "import mistral_jax\n"
        "model = mistral_jax.load('demo', slots=1, length=64, progress=False)\n"
        "print(model.generate('Hello', max_tokens=3, temperature=0).text)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()
