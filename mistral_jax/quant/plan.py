"""Which form each weight takes on the device: the meaning of `--quant`."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from conversion.dequantize import UNPACKABLE
from conversion.ggml_types import BY_NAME, GGMLType
from conversion.quantize import fallback
from conversion.tensor_source import PackedSource, TensorSource

Quantization = Literal["none", "auto", "q8_0", "q4_0", "q4_k", "int8"]
"""What to do with weights while loading.

- none: plain arrays in the type of the activations.
- auto: packed where the file has them packed (see `stays_packed`), plain where it has them plain.
- q8_0, q4_0, q4_k: every matrix in this type. As llama.cpp has it, the output matrix of a 4-bit model gets six bits; rows that are
  no whole number of blocks get the fallback of the type.
- int8: 8-bit weights with a scale for each row, and products of 8-bit integers.
"""
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)

Form = str
"""The name of a ggml block type such as "Q4_K": packed; "int8": see `Int8Array`; "dense": a plain array."""


def stays_packed(kind: GGMLType) -> bool:
    """Whether matrices of this type can be kept as blocks: there is a traceable function that unpacks them."""
    return kind.dtype is None and kind.name in UNPACKABLE


def stored_kind(source: TensorSource, name: str) -> GGMLType | None:
    """The block type that a tensor is stored in; None for plain ones."""
    if not isinstance(source, PackedSource):
        return None
    kind = source.kind(name)
    return kind if kind.dtype is None else None


def form_of(source: TensorSource, name: str, quant: Quantization, *, is_output: bool) -> Form:
    """The form for one tensor.

    Args:
      name: its Hugging Face name.
      is_output: it is multiplied with to give logits (the embedding of a model with tied embeddings is, too).
    """
    shape = source.shape(name)
    if len(shape) != 2 or quant == "none":
        return "dense"
    if quant == "auto":
        kind = stored_kind(source, name)
        return kind.name if kind is not None and stays_packed(kind) else "dense"
    if quant == "int8":
        return "int8"
    wanted = "Q6_K" if is_output and quant in ("q4_0", "q4_k") else quant.upper()
    kind = BY_NAME[wanted] if shape[1] % BY_NAME[wanted].block_size == 0 else fallback(BY_NAME[wanted], shape[1])
    return kind.name if stays_packed(kind) else "dense"


def form_bytes(form: Form, shape: tuple[int, ...], itemsize: int) -> int:
    """Bytes on the device of a tensor of this shape.

    Args:
      itemsize: bytes of a plain element.
    """
    if form == "dense":
        return int(np.prod(shape, dtype=np.int64)) * itemsize
    rows, columns = shape
    return rows * (columns + 4) if form == "int8" else rows * BY_NAME[form].row_bytes(columns)
