"""What can be asked of the loader, and what it finds stored; `conversion.weights.weight_forms` decides which form each
weight takes."""

from __future__ import annotations

from typing import Literal, get_args

from conversion.weights.ggml_types import GGMLType
from conversion.weights.tensor_source import PackedSource, TensorSource

Quantization = Literal["none", "auto", "q8_0", "q4_0", "q4_k", "int8"]
"""What to do with weights while loading.

- none: plain arrays in the type of the activations.
- auto: packed where the file has them packed (`conversion.weights.weight_forms.KEPT_PACKED`), plain where it has them
  plain.
- q8_0, q4_0, q4_k: every matrix in this type. As llama.cpp has it, the output matrix of a 4-bit model gets six bits;
  rows that are no whole number of blocks get the fallback of the type.
- int8: 8-bit weights with a scale for each row, and products of 8-bit integers.
"""
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)


def stored_kind(source: TensorSource, name: str) -> GGMLType | None:
    """The block type that a tensor is stored in; None for plain ones."""
    if not isinstance(source, PackedSource):
        return None
    kind = source.kind(name)
    return kind if kind.dtype is None else None
