"""Quantisation options of the loader, and the types that tensors are stored in. `conversion.weights.weight_forms`
chooses the form of each weight."""

from __future__ import annotations

from typing import Literal, get_args

from conversion.weights.ggml_types import GGMLType
from conversion.weights.tensor_source import PackedSource, TensorSource

Quantization = Literal["none", "auto", "q8_0", "q4_0", "q4_k", "int8"]
"""The form of weights after loading.

- none: plain arrays in the type of the activations.
- auto: as in the file: packed types stay packed (`conversion.weights.weight_forms.KEPT_PACKED`), plain ones plain.
- q8_0, q4_0, q4_k: every matrix in this type. As in llama.cpp, the output matrix of a 4-bit model gets six bits, and
  matrices whose rows are not whole blocks get the type's fallback.
- int8: 8-bit weights with one scale for each row, and products of 8-bit integers.
"""
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)

Activations = Literal["auto", "float", "int8"]
"""What products with packed weights do with activations on a CPU.

- int8: round them to 8 bits, 32 at a time, and multiply integers (`mistral_jax.quant.interleaved`).
- float: leave them as they are.
- auto: int8 where this machine can; float elsewhere.
"""
ACTIVATIONS: tuple[str, ...] = get_args(Activations)

BlockOrder = Literal["file", "groups", "interleaved"]
"""The order of packed blocks on the device: that of the file, or of `mistral_jax.quant.grouped` or
`mistral_jax.quant.interleaved`."""


def stored_kind(source: TensorSource, name: str) -> GGMLType | None:
    """The block type that a tensor is stored in; None for plain tensors."""
    if not isinstance(source, PackedSource):
        return None
    kind = source.kind(name)
    return kind if kind.dtype is None else None
