"""Tensor names and layouts of the formats that we read, translated to those of Hugging Face's text models.

- Wrapped models (`Mistral3ForConditionalGeneration`) put the text model under a prefix and add a vision tower.
- Mistral's own format (`consolidated.safetensors`) has other names, and rotates adjacent pairs where Hugging Face
  rotates halves: the rows of its q and k matrices are permuted back while reading.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from conversion.weights.decoder_weights import AXES, EMBEDDING, Format, read_name, translate
from conversion.weights.tensor_source import Array, TensorSource

_TEXT_PREFIXES = (
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
_NOT_TEXT = re.compile(
    r"(model\.)?(vision_tower|multi_modal_projector|vision_encoder|vision_language_adapter|patch_merger|pre_mm_projector_norm)\."
)
_DERIVED = re.compile(r".*rotary_emb\.inv_freq$")


class RenamedSource:
    """Tensors of another source under other names.

    Args:
      source: where they are.
      stored: the name in `source` by new name; other tensors are left out.
    """

    def __init__(self, source: TensorSource, stored: Mapping[str, str]) -> None:
        self._source = source
        self._stored = stored

    def names(self) -> Iterable[str]:
        return self._stored.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(self._stored[name])

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._source.dtype(self._stored[name])

    def read_into(self, name: str, out: Array) -> None:
        self._source.read_into(self._stored[name], out)


class HuggingFaceText(RenamedSource):
    """The text model of a Hugging Face checkpoint: prefixes stripped, the vision tower and derived buffers left out."""

    def __init__(self, source: TensorSource) -> None:
        kept = (name for name in source.names() if not _NOT_TEXT.match(name) and not _DERIVED.match(name))
        super().__init__(source, {_text_name(name): name for name in kept})


def _text_name(name: str) -> str:
    for prefix, text in _TEXT_PREFIXES:
        if name.startswith(prefix):
            return text + name[len(prefix) :]
    return name


class MistralFormat(RenamedSource):
    """A checkpoint in Mistral's own format under Hugging Face names, with q and k in the halves layout."""

    def __init__(self, source: TensorSource, *, num_heads: int, num_kv_heads: int) -> None:
        stored = {_mistral_name(name): name for name in source.names() if not _NOT_TEXT.match(name)}
        super().__init__(source, stored)
        self._heads = {
            name: heads
            for name in stored
            if (heads := rotary_heads(name, num_heads=num_heads, num_kv_heads=num_kv_heads)) is not None
        }

    def read_into(self, name: str, out: Array) -> None:
        super().read_into(name, out)
        if name in self._heads:
            out[...] = pairs_to_halves(out, self._heads[name])


def is_mistral_format(names: Iterable[str]) -> bool:
    """Whether tensors with these names are in Mistral's own format."""
    return translate(EMBEDDING, Format.HF, Format.MISTRAL) in set(names)


def _mistral_name(name: str) -> str:
    return translate(name, Format.MISTRAL, Format.HF) or name


def rotary_heads(name: str, *, num_heads: int, num_kv_heads: int) -> int | None:
    """How many heads the rows of a tensor, under its Hugging Face name, are to be reordered in; None where they are
    not."""
    found = read_name(name, Format.HF)
    if found is None or found.part is None or found.part.heads is None:
        return None
    return {"num_heads": num_heads, "num_kv_heads": num_kv_heads}[AXES[found.part.heads]]


def pairs_to_halves(weight: Array, heads: int) -> Array:
    """Reorder the rows [heads * H, ...] of a q or k matrix from adjacent rotary pairs (2i, 2i + 1) to halves (i, i +
    H/2)."""
    rows, *rest = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, *rest).swapaxes(1, 2).reshape(weight.shape)


def halves_to_pairs(weight: Array, heads: int) -> Array:
    """The inverse of `pairs_to_halves`."""
    rows, *rest = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, *rest).swapaxes(1, 2).reshape(weight.shape)
