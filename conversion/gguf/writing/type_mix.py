"""The type of each tensor of a GGUF file: the meaning of a name such as "q4_k_m".

A name stands for a mix, since not all tensors tolerate few bits equally well. Ours are those of llama.cpp
(`llama-quant.cpp`, for dense models and without an importance matrix), so that files of the same name have the same
size and quality:

- Vectors (norms, biases) stay float32.
- The output matrix, or the embedding that serves as one, gets six bits where others get fewer.
- In the "_m" mixes, so do the value and down projections of the first and last eighth of the layers, and of every third
  between.
- Rows that are not a whole number of blocks get the type's `fallback`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from conversion.quantize import fallback
from conversion.weights.ggml_types import BY_NAME, GGMLType

_SENSITIVE = re.compile(r"blk\.(\d+)\.(?:attn_v|ffn_down)\.weight")


@dataclass(frozen=True, kw_only=True)
class TypeMix:
    """What one name stands for."""

    name: str
    """As users write it, in lower case."""
    file_type: int
    """Its number in `general.file_type`, for display only."""
    matrices: GGMLType
    output: GGMLType
    """Of the matrix that computes the logits."""
    sensitive: GGMLType
    """Of value and down projections in some of the layers."""


def _mix(name: str, file_type: int, matrices: str, output: str | None = None, sensitive: str | None = None) -> TypeMix:
    return TypeMix(
        name=name,
        file_type=file_type,
        matrices=BY_NAME[matrices],
        output=BY_NAME[output or matrices],
        sensitive=BY_NAME[sensitive or matrices],
    )


_ALL = (
    _mix("f32", 0, "F32"),
    _mix("f16", 1, "F16"),
    _mix("bf16", 32, "BF16"),
    _mix("q8_0", 7, "Q8_0"),
    _mix("q4_0", 2, "Q4_0", "Q6_K"),
    _mix("q4_1", 3, "Q4_1", "Q6_K"),
    _mix("q5_0", 8, "Q5_0", "Q6_K"),
    _mix("q5_1", 9, "Q5_1", "Q6_K"),
    _mix("q4_k", 14, "Q4_K", "Q6_K"),
    _mix("q4_k_m", 15, "Q4_K", "Q6_K", "Q6_K"),
    _mix("q5_k", 16, "Q5_K", "Q6_K"),
    _mix("q5_k_m", 17, "Q5_K", "Q6_K", "Q6_K"),
    _mix("q6_k", 18, "Q6_K"),
)
MIXES = {mix.name: mix for mix in _ALL}


def find_mix(name: str) -> TypeMix:
    """The mix of a name, in whatever case.

    Raises:
      ValueError: there is none.
    """
    if name.lower() not in MIXES:
        raise ValueError(f"there is no type {name!r} to convert to; expected one of {', '.join(MIXES)}")
    return MIXES[name.lower()]


def choose_type(mix: TypeMix, name: str, shape: tuple[int, ...], *, layers: int, tied: bool) -> GGMLType:
    """The type for one tensor.

    Args:
      name: as GGUF files have it.
      layers: how many the model has.
      tied: the model has no output matrix of its own.
    """
    if len(shape) < 2:
        return BY_NAME["F32"]
    match = _SENSITIVE.fullmatch(name)
    if name == ("token_embd.weight" if tied else "output.weight"):
        wanted = mix.output
        if mix.matrices.dtype is None and shape[-1] % mix.matrices.block_size:
            wanted = BY_NAME["Q8_0"]
    elif match is not None and gets_more_bits(int(match[1]), layers):
        wanted = mix.sensitive
    else:
        wanted = mix.matrices
    return fallback(wanted, shape[-1])


def gets_more_bits(layer: int, layers: int) -> bool:
    """Whether a layer is one of those whose sensitive projections get more bits."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
