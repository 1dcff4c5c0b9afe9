"""The weights of a decoder, declared once: a row for each, from which everything else about them is derived.

A row says of which tensors a weight is made, what its axes are, when it has a bias, what files call it, and along
which axis it may be divided over devices. Derived from it: the modules, loading and its checks, saving, what adapters
may change, numbers of parameters, and the translation of names between the formats of files.

Axes are written by letter, `V` vocabulary, `D` model dim, `F` ffn dim, `N` query heads, `K` kv heads, `H` head dim,
`X` experts of a layer; a product of axes as `N*H`. A matrix is stored `[out, in]`: `rows` are its outputs.

Sources: the modules of transformers' Mistral, Llama and Mixtral; mistral-inference; `gguf.get_tensor_name_map`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import NamedTuple

AXES: Mapping[str, str] = {
    "V": "vocab_size",
    "D": "hidden_size",
    "F": "intermediate_size",
    "N": "num_heads",
    "K": "num_kv_heads",
    "H": "head_dim",
    "X": "num_experts",
}
"""The attribute of a configuration that has the length of an axis."""


class Format(StrEnum):
    """Whose names."""

    HF = "hf"
    MISTRAL = "mistral"
    """Mistral's own format, `consolidated.safetensors`."""
    GGUF = "gguf"


_LAYERS = {Format.HF: "model.layers.", Format.MISTRAL: "layers.", Format.GGUF: "blk."}
"""What stands before the number of a layer."""
_NUMBER = re.compile("0|[1-9][0-9]{0,5}")
_KINDS = ("weight", "bias")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One tensor of a file: all or some rows of a weight. Names are those within a layer, or whole; `{}` stands for the
    number of an expert, of which a format has one tensor each."""

    hf: str
    mistral: str
    gguf: str
    rows: str
    """Axes of the outputs; of a vector, of its elements."""
    heads: str | None = None
    """The axis of heads within which Mistral's own format and GGUF have rotary pairs side by side, and Hugging Face in
    two halves."""

    @property
    def name(self) -> str:
        """Of the linear layer, as adapters call it: `q_proj`."""
        return self.hf.rpartition(".")[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderWeight:
    """One weight of the decoder: its parts one below the other."""

    name: str
    """The module's path in `mistral_jax.model.mistral`, within a layer where `in_layer`."""
    parts: tuple[Part, ...]
    """In the order of their rows."""
    columns: str | None = None
    """Axes of the inputs; None: a vector."""
    in_layer: bool = True
    bias: str | None = None
    """The field of a configuration that says whether it has a bias; None: never."""
    absent_if: str | None = None
    """The field of a configuration that says that there is no such weight."""
    split: str | None = None
    """The axis along which its rows may be divided over devices, each part by itself, so that a device has whole heads,
    and the same elements of gate and up; None: every device has all of it. An axis of inputs never is: sums would
    be taken in another order."""
    experts: str | None = None
    """The axis of experts, each of which has rows of its own: all parts of the first expert come first."""
    gguf_fused: str | None = None
    """What a GGUF file calls all parts in one tensor, as some have them."""

    @property
    def projection(self) -> str:
        """The module's own name: `qkv_proj`."""
        return self.name.rpartition(".")[2]

    @property
    def gathers(self) -> bool:
        """Whether outputs that are divided are gathered at once: norms sum over D, sampling over V. Heads and the
        inside of an MLP stay divided until the next weight's inputs are gathered."""
        return self.split in ("D", "V")

    def part_rows(self, config: object) -> tuple[int, ...]:
        """Rows of each part, of one expert."""
        return tuple(axis_size(part.rows, config) for part in self.parts)

    def shape(self, config: object) -> tuple[int, ...]:
        """[out], [out, in] or [experts, out, in]."""
        leading = () if self.experts is None else (axis_size(self.experts, config),)
        columns = () if self.columns is None else (axis_size(self.columns, config),)
        return (*leading, sum(self.part_rows(config)), *columns)

    def is_in(self, config: object) -> bool:
        return self.absent_if is None or not getattr(config, self.absent_if)

    def has_bias(self, config: object) -> bool:
        return self.bias is not None and bool(getattr(config, self.bias))


def _norm(hf: str, mistral: str, gguf: str, *, in_layer: bool = True) -> DecoderWeight:
    name = hf.removeprefix("model.")
    return DecoderWeight(name=name, parts=(Part(hf=hf, mistral=mistral, gguf=gguf, rows="D"),), in_layer=in_layer)


DECODER = (
    DecoderWeight(
        name="embed_tokens",
        parts=(Part(hf="model.embed_tokens", mistral="tok_embeddings", gguf="token_embd", rows="V"),),
        columns="D",
        in_layer=False,
    ),
    _norm("input_layernorm", "attention_norm", "attn_norm"),
    DecoderWeight(
        name="self_attn.qkv_proj",
        parts=(
            Part(hf="self_attn.q_proj", mistral="attention.wq", gguf="attn_q", rows="N*H", heads="N"),
            Part(hf="self_attn.k_proj", mistral="attention.wk", gguf="attn_k", rows="K*H", heads="K"),
            Part(hf="self_attn.v_proj", mistral="attention.wv", gguf="attn_v", rows="K*H"),
        ),
        columns="D",
        bias="attention_bias",
        split="K",
        gguf_fused="attn_qkv",
    ),
    DecoderWeight(
        name="self_attn.o_proj",
        parts=(Part(hf="self_attn.o_proj", mistral="attention.wo", gguf="attn_output", rows="D"),),
        columns="N*H",
        bias="attention_bias",
        split="D",
    ),
    _norm("post_attention_layernorm", "ffn_norm", "ffn_norm"),
    DecoderWeight(
        name="mlp.gate_up_proj",
        parts=(
            Part(hf="mlp.gate_proj", mistral="feed_forward.w1", gguf="ffn_gate", rows="F"),
            Part(hf="mlp.up_proj", mistral="feed_forward.w3", gguf="ffn_up", rows="F"),
        ),
        columns="D",
        bias="mlp_bias",
        split="F",
    ),
    DecoderWeight(
        name="mlp.down_proj",
        parts=(Part(hf="mlp.down_proj", mistral="feed_forward.w2", gguf="ffn_down", rows="D"),),
        columns="F",
        bias="mlp_bias",
        split="D",
    ),
    _norm("model.norm", "norm", "output_norm", in_layer=False),
    DecoderWeight(
        name="lm_head",
        parts=(Part(hf="lm_head", mistral="output", gguf="output", rows="V"),),
        columns="D",
        in_layer=False,
        absent_if="tie_word_embeddings",
        split="V",
    ),
)
"""The dense Mistral and Llama families."""

ADAPTABLE = tuple(weight for weight in DECODER if weight.in_layer and weight.columns is not None)
"""The linear layers of a decoder layer, which adapters may change."""
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
"""Hugging Face's names of the matrices that a model may have in one."""


def axis_size(axes: str, config: object) -> int:
    """The length of an axis, or of a product of axes such as `N*H`."""
    return math.prod(getattr(config, AXES[letter]) for letter in axes.split("*"))


@cache
def weight_named(name: str) -> DecoderWeight:
    """The row of a module of the decoder, by its path within a layer or the model.

    Raises:
      KeyError: there is none.
    """
    found = [weight for weight in DECODER if weight.name == name]
    if not found:
        raise KeyError(name)
    return found[0]


# ---- what a model has


class FileTensor(NamedTuple):
    """One tensor of a checkpoint."""

    name: str
    """Hugging Face's."""
    shape: tuple[int, ...]


class Parameter(NamedTuple):
    """One array of a model: a weight or a bias, of a layer or of the model."""

    name: str
    """Ours, such as `layers.0.self_attn.qkv_proj.weight`."""
    weight: DecoderWeight
    shape: tuple[int, ...]
    tensors: tuple[FileTensor, ...]
    """What it is made of, in the order of its rows."""


def parameters(config: object, *, num_layers: int, table: tuple[DecoderWeight, ...] = DECODER) -> Iterator[Parameter]:
    """All arrays of a model, layer by layer."""
    before = [weight for weight in table if not weight.in_layer]
    places = [(None, weight) for weight in before]
    places += [(layer, weight) for layer in range(num_layers) for weight in table if weight.in_layer]
    for layer, weight in places:
        if weight.is_in(config):
            yield _parameter(weight, layer, "weight", config)
            if weight.has_bias(config):
                yield _parameter(weight, layer, "bias", config)


def count_parameters(config: object, *, num_layers: int, table: tuple[DecoderWeight, ...] = DECODER) -> int:
    """Number of numbers in all arrays of a model."""
    total = 0
    for weight in table:
        if weight.is_in(config):
            shape = weight.shape(config)
            bias = math.prod(_bias_shape(weight, shape)) if weight.has_bias(config) else 0
            total += (math.prod(shape) + bias) * (num_layers if weight.in_layer else 1)
    return total


def _bias_shape(weight: DecoderWeight, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if weight.columns is None else shape[:-1]


def _parameter(weight: DecoderWeight, layer: int | None, kind: str, config: object) -> Parameter:
    shape = weight.shape(config)
    if kind == "bias":
        shape = _bias_shape(weight, shape)
    row = shape[(1 if weight.experts is None else 2) :]
    numbers: Iterable[int | None] = [None] if weight.experts is None else range(shape[0])
    rows = weight.part_rows(config)
    tensors = tuple(
        FileTensor(TensorName(weight, part, layer, kind, number).spelled(Format.HF), (count, *row))
        for number in numbers
        for part, count in zip(weight.parts, rows, strict=True)
    )
    prefix = "" if layer is None else f"layers.{layer}."
    return Parameter(f"{prefix}{weight.name}.{kind}", weight, shape, tensors)


# ---- names


class TensorName(NamedTuple):
    """What a tensor is, whatever a format calls it."""

    weight: DecoderWeight
    part: Part | None
    """None: all parts in one tensor."""
    layer: int | None
    kind: str
    """weight or bias"""
    expert: int | None = None

    def spelled(self, form: Format) -> str:
        """The name in a format.

        Raises:
          ValueError: the format has no name for all parts in one.
        """
        stem = self.weight.gguf_fused if self.part is None and form == Format.GGUF else None
        if self.part is not None:
            stem = getattr(self.part, form.value)
        if stem is None:
            raise ValueError(f"{form.value} files have no name for all parts of {self.weight.name} in one tensor")
        prefix = "" if self.layer is None else f"{_LAYERS[form]}{self.layer}."
        return f"{prefix}{stem.format(self.expert)}.{self.kind}"

    def by_part(self) -> list[TensorName]:
        """Each part, where they are in one tensor."""
        return [self] if self.part is not None else [self._replace(part=part) for part in self.weight.parts]


@cache
def _stems(form: Format, table: tuple[DecoderWeight, ...]) -> dict[tuple[bool, str], tuple[DecoderWeight, Part | None]]:
    found: dict[tuple[bool, str], tuple[DecoderWeight, Part | None]] = {}
    for weight in table:
        found |= {(weight.in_layer, getattr(part, form.value)): (weight, part) for part in weight.parts}
        if form == Format.GGUF and weight.gguf_fused is not None:
            found[weight.in_layer, weight.gguf_fused] = (weight, None)
    return found


def read_name(name: str, form: Format, *, table: tuple[DecoderWeight, ...] = DECODER) -> TensorName | None:
    """What a tensor of a file is, by its name; None: none of the decoder's."""
    stem, _, kind = name.rpartition(".")
    layer = None
    if stem.startswith(_LAYERS[form]):
        number, _, stem = stem.removeprefix(_LAYERS[form]).partition(".")
        if _NUMBER.fullmatch(number) is None:
            return None
        layer = int(number)
    stems, expert = _stems(form, table), None
    found = stems.get((layer is not None, stem))
    if found is None:
        # The only number that is left is that of an expert.
        components = stem.split(".")
        numbers = [component for component in components if _NUMBER.fullmatch(component)]
        if len(numbers) == 1:
            expert = int(numbers[0])
            stem = ".".join("{}" if component == numbers[0] else component for component in components)
            found = stems.get((layer is not None, stem))
    if found is None or kind not in _KINDS or (kind == "bias" and found[0].bias is None):
        return None
    return TensorName(*found, layer, kind, expert)


def translate(name: str, source: Format, target: Format, *, table: tuple[DecoderWeight, ...] = DECODER) -> str | None:
    """A tensor's name in another format; None: it is none of the decoder's."""
    found = read_name(name, source, table=table)
    return None if found is None or found.part is None else found.spelled(target)


def spellings(name: str) -> frozenset[str]:
    """What files of all formats call the tensor with this Hugging Face name.

    Raises:
      KeyError: it is none of the decoder's.
    """
    found = read_name(name, Format.HF)
    if found is None:
        raise KeyError(name)
    return frozenset(found.spelled(form) for form in Format)
