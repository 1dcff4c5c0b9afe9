"""Types whose blocks hold 256 values: a float16 scale for all, and mostly small integer scales for sub-blocks of 16 or
32.

Each function takes blocks as uint8 [..., blocks, block_bytes] and returns float32 [..., blocks, <axes>, 32], where the
axes before the last count the eight runs of 32 the way the type's bit fields are nested.
Source: the block structs of ggml-common.h and the dequantize_row functions of ggml-quants.c in llama.cpp.

All products are exact in float32 (at most 11 + 6 + 7 bits), so that a fused multiply-add, which XLA may choose, rounds
like the separate operations. They are formed in the order (scale of the block x scale of the sub-block) x code, which
gives zeros the right sign.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from conversion.dequantize.fields import bits, centred, fold, half, halves, lookup, nibbles, signed
from conversion.dequantize.small_blocks import IQ4_VALUES


def _scale_min(block: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scale and minimum of the eight sub-blocks of Q4_K and Q5_K: [..., blocks, block_bytes] -> two of [..., blocks, 2,
    2, 2, 1].

    Twelve bytes: six bits each of scales 0..3, of minima 0..3; then four low bits of scales 4..7 and of minima 4..7
    together, whose two high bits are the spare bits of the first eight bytes.
    """
    scales, minima, rest = (fold(block[..., start : start + 4], 1, 2, 2, 1) for start in (4, 8, 12))
    second = jnp.arange(2).reshape(2, 1, 1, 1) == 1
    scale = jnp.where(second, (rest & 15) | ((scales >> 2) & 48), scales & 63)
    minimum = jnp.where(second, (rest >> 4) | ((minima >> 2) & 48), minima & 63)
    return half(block, 0, 4) * centred(scale, 0), half(block, 2, 4) * centred(minimum, 0)


def q2_k(block: jax.Array) -> jax.Array:
    fields = fold(block[..., :16], 2, 4, 2)
    scale = half(block, 80, 3) * centred(fields & 15, 0)
    minimum = half(block, 82, 3) * centred(fields >> 4, 0)
    codes = bits(fold(block[..., 16:80], 2, 1, 32), 2, 4, 1)
    return halves(scale) * centred(codes, 0) - halves(minimum)


def q3_k(block: jax.Array) -> jax.Array:
    low = bits(fold(block[..., 96:104], 1, 2, 2, 2), 4, 2, 1, 1, 1)
    high = bits(fold(block[..., 104:108], 1, 1, 2, 2), 2, 2, 2, 1, 1)
    scale = half(block, 108, 4) * centred(low | (high << 4), 32)
    low = bits(fold(block[..., 32:96], 2, 1, 1, 32), 2, 2, 2, 1)
    high = bits(fold(block[..., :32], 1, 1, 1, 32), 1, 2, 2, 2, 1)
    # The third bit is stored inverted: codes are -4..3.
    return halves(scale) * centred(low | (high << 2), 4)


def q4_k(block: jax.Array) -> jax.Array:
    scale, minimum = _scale_min(block)
    codes = bits(fold(block[..., 16:], 2, 2, 1, 32), 4, 2, 1)
    return scale * centred(codes, 0) - minimum


def q5_k(block: jax.Array) -> jax.Array:
    scale, minimum = _scale_min(block)
    low = bits(fold(block[..., 48:], 2, 2, 1, 32), 4, 2, 1)
    fifth = bits(fold(block[..., 16:48], 1, 1, 1, 32), 1, 2, 2, 2, 1)
    return scale * centred(low | (fifth << 4), 0) - minimum


def q6_k(block: jax.Array) -> jax.Array:
    scale = half(block, 208, 4) * fold(signed(block[..., 192:208]), 2, 2, 2, 2)
    low = bits(fold(block[..., :128], 2, 1, 2, 32), 4, 2, 1, 1)
    high = bits(fold(block[..., 128:192], 2, 1, 1, 32), 2, 2, 2, 1)
    return halves(scale) * centred(low | (high << 4), 32)


def iq4_xs(block: jax.Array) -> jax.Array:
    low = bits(fold(block[..., 4:8], 4, 1), 4, 2)
    word = jax.lax.bitcast_convert_type(block[..., 2:4], jnp.uint16)
    high = bits(fold(word[..., None], 1, 1), 2, 4, 2).astype(jnp.uint8)
    scale = half(block, 0, 2) * centred(low | (high << 4), 32)
    return scale[..., None] * lookup(nibbles(fold(block[..., 8:], 4, 2, 16)), IQ4_VALUES)


def tq1_0(block: jax.Array) -> jax.Array:
    """Five values -1, 0, 1 per byte, read as a fraction of 256: times 3^n, without the integer part, it begins with
    digit n."""
    powers = jnp.array([1, 3, 9, 27, 81], jnp.uint8)[:, None]
    parts = (block[..., None, :32] * powers, block[..., None, 32:48] * powers, block[..., None, 48:52] * powers[:4])
    shifted = jnp.concatenate([part.reshape(*block.shape[:-1], -1) for part in parts], -1)
    return half(block, 52, 2) * centred(fold((shifted.astype(jnp.uint16) * 3) >> 8, 8, 32), 1)


def tq2_0(block: jax.Array) -> jax.Array:
    return half(block, 64, 3) * centred(bits(fold(block[..., :64], 2, 1, 32), 2, 4, 1), 1)
