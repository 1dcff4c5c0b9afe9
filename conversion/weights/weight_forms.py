"""Which form each weight takes on the device, and its bytes there: the meaning of `--quant`, for the loader and for
`inspect`. No JAX: importing it takes longer than a whole inspection."""

from __future__ import annotations

import math

from conversion.weights.fallback import fallback
from conversion.weights.ggml_types import BY_NAME, GGMLType

KEPT_PACKED = frozenset(
    {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"}
)
"""Block types that stay packed on the device: those of `conversion.dequantize.UNPACKABLE`."""

Form = str
"""The name of a ggml block type such as "Q4_K": packed; "int8": 8-bit weights with a scale for each row; "dense": a
plain array."""


def form_of(stored: GGMLType | None, shape: tuple[int, ...], quant: str, *, is_output: bool) -> Form:
    """The form for one tensor.

    Args:
      stored: the type that it is stored in; None: not a type of ggml.
      quant: see `mistral_jax.quant.plan.Quantization`.
      is_output: it computes the logits (so does the embedding of a model with tied embeddings).
    """
    if len(shape) != 2 or quant == "none":
        return "dense"
    if quant == "auto":
        return stored.name if stored is not None and stored.name in KEPT_PACKED else "dense"
    if quant == "int8":
        return "int8"
    wanted = "Q6_K" if is_output and quant in ("q4_0", "q4_k") else quant.upper()
    name = fallback(BY_NAME[wanted], shape[1]).name
    return name if name in KEPT_PACKED else "dense"


def form_bytes(form: Form, shape: tuple[int, ...], itemsize: int) -> int:
    """Bytes on the device of a tensor of this shape.

    Args:
      itemsize: bytes of a plain element.
    """
    if form == "dense":
        return math.prod(shape) * itemsize
    rows, columns = shape
    return rows * (columns + 4) if form == "int8" else rows * BY_NAME[form].row_bytes(columns)
