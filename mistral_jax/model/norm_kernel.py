"""Root-mean-square normalisation as a kernel for NVIDIA GPUs, in Pallas for Triton.

An instance normalises one row, so a row has the same bits in every program. XLA's own kernels for sums over rows divide
rows in ways that depend on how many there are.

Axis letters: M rows, D model dimension.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from mistral_jax.quant.dot import row_sum
from mistral_jax.quant.gpu_kernels import agrees, run_kernel, triton
from mistral_jax.quant.placement import Placement


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def normalised(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """`x` [..., D] over its root mean square, times `weight` [D], in the type of `x`. Differentiable in both."""
    rows = x.reshape(-1, x.shape[-1])
    return run_kernel(partial(_normalised, eps=eps), rows, weight).reshape(x.shape)


def plainly_normalised(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """The same, by XLA."""
    y = x.astype(jnp.float32)
    y = y * lax.rsqrt(row_sum(jnp.square(y))[..., None] / y.shape[-1] + eps)
    return y.astype(x.dtype) * weight


def _forward(x: jax.Array, weight: jax.Array, eps: float) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return normalised(x, weight, eps), (x, weight)


def _backward(eps: float, held: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.vjp(partial(plainly_normalised, eps=eps), *held)[1](slope)


normalised.defvjp(_forward, _backward)


def kernel_works(placement: Placement, features: int, dtype: jax.typing.DTypeLike) -> bool:
    """Whether the kernel runs on the one GPU of a placement, and gives there what XLA gives.

    Args:
      features: D.
      dtype: of activations.
    """
    return placement.is_one_gpu and _agrees(placement, features, jnp.dtype(dtype))


@lru_cache(maxsize=8)
def _agrees(placement: Placement, features: int, dtype: jnp.dtype) -> bool:
    rng = np.random.default_rng(0)
    arguments = rng.standard_normal((3, features)).astype(dtype), rng.uniform(0.5, 2, features).astype(dtype)
    by_kernel, plain = (partial(form, eps=1e-5) for form in (normalised, plainly_normalised))
    return agrees("normalisation", by_kernel, plain, arguments, placement=placement, dtype=dtype)


def _normalised(x: jax.Array, weight: jax.Array, *, eps: float, interpret: bool) -> jax.Array:
    M, D = x.shape
    width = pl.next_power_of_2(D)
    call: Any = pl.pallas_call(
        partial(_kernel, width=width, eps=eps),
        out_shape=jax.ShapeDtypeStruct((M, D), x.dtype),
        grid=(M,),
        compiler_params=triton.CompilerParams(num_warps=max(1, min(16, width // 512)), num_stages=1),
        interpret=interpret,
        name="rms_norm",
    )
    return call(x, weight)


def _kernel(x_ref: Any, weight_ref: Any, out_ref: Any, *, width: int, eps: float) -> None:
    row = pl.program_id(0)
    column = lax.broadcasted_iota(jnp.int32, (width,), 0)
    D = x_ref.shape[1]
    exists = None if width == D else column < D
    other = None if exists is None else 0
    y = triton.load(x_ref.at[row, column], mask=exists, other=other).astype(jnp.float32)
    y = y * lax.rsqrt(jnp.sum(y * y) / D + eps)
    weight = triton.load(weight_ref.at[column], mask=exists, other=other)
    triton.store(out_ref.at[row, column], y.astype(out_ref.dtype) * weight, mask=exists)
