"""The `config.json` of the model in a GGUF file, from its metadata and tensors.

**Sliding windows.** Mistral 7B v0.1 and its descendants (Zephyr, OpenHermes, OpenChat, Starling, …) were trained with a
window of 4096, but files do not contain it: llama.cpp's converter writes no window for architecture `llama`, and
llama.cpp computes none. So:

1. `attention.sliding_window` applies where a file has it; 0 means no window. (Files that we write have it.)
2. Otherwise a file of architecture `llama` has a window of 4096 if its rope is plain with theta 10000, its context is
   longer than 4096, and it either has the width of Mistral 7B (hidden size 4096, feed-forward 14336, 32 heads, 8 kv
   heads; Llama 3 8B has the same, but theta 500000) or says Mistral in `general.name`, `general.basename`,
   `general.finetune` or `general.base_model.*`. Later Mistral models have a larger theta and no window; within a
   context of 4096 a window would change nothing.
3. Otherwise there is none.

Sources: llama.cpp (loader and converter), the `config.json` of the models, and `transformers`, whose MistralConfig has
a window of 4096 by default.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from conversion.gguf.container.fields import Fields
from conversion.gguf.container.file import GGUFError, GGUFFile
from conversion.gguf.names import expert_tensors
from conversion.gguf.rope import rope_parameters

ARCHITECTURES = ("llama", "mistral3")
"""Of `general.architecture`: the dense models of the Llama and Mistral families."""

_OTHER_KINDS = {
    "adapter": "an adapter (LoRA) for a model that is in another file",
    "imatrix": "an importance matrix, which quantisers use",
    "mmproj": "the vision or audio part of a model whose text part is in another file",
    "vocab": "a vocabulary without a model",
}
"""Of `general.type`."""
_OTHER_ARCHITECTURES = {
    "deepseek2": "Mistral Large 3 and DeepSeek: latent attention and experts",
    "mistral4": "Mistral Small 4: latent attention and experts",
    "llama4": "Llama 4: experts",
    "clip": "the vision tower of another model",
}
# Keys that change the computation, with the values that do not. None stands for absence, and always passes.
_UNIMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.output_scale": (0, 1),
    "attention.shared_kv_layers": (0,),
    "attention.value_scale": (0, 1),
    "attn_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "final_logit_softcapping": (0,),
    "hidden_activation": ("silu", "swish"),
    "logit_scale": (0, 1),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "residual_scale": (0, 1),
    "rope.dimension_sections": (),
    "rope.scaling.alpha": (0, 1),
    "use_parallel_residual": (False,),
}
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16"}
_NAMES = re.compile(r"general\.(name|basename|finetune|base_model\..*)")
_V01_WINDOW, _V01_THETA = 4096, 10000.0
_V01_WIDTH = (4096, 14336, 32, 8)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a model. Axis letters as in `mistral_jax.model.config`."""

    vocab_size: int
    """V: rows of the embedding."""
    hidden_size: int
    """D"""
    intermediate_size: int
    """F"""
    num_layers: int
    """L"""
    num_heads: int
    """N"""
    num_kv_heads: int
    """K"""
    head_dim: int
    """H"""


@contextmanager
def naming(gguf: GGUFFile) -> Generator[None]:
    """Errors raised inside name the file."""
    try:
        yield
    except GGUFError as error:
        path = str(gguf.paths[0])
        if path in str(error):
            raise
        raise GGUFError(f"{path}: {error}") from error


def fields_of(gguf: GGUFFile) -> Fields:
    """The metadata of a model that we implement.

    Raises:
      GGUFError: the file is not a language model of `ARCHITECTURES`; the message says what it is.
    """
    general = Fields(gguf.metadata, "")
    kind = general.text("general.type", "model")
    if kind != "model":
        held = _OTHER_KINDS.get(kind, "something else than a whole model")
        raise GGUFError(f"the file holds {held} (general.type is {kind!r}); expected a file with a language model")
    architecture = general.text("general.architecture")
    if architecture not in ARCHITECTURES:
        known = _OTHER_ARCHITECTURES.get(architecture)
        named = f"{architecture!r} ({known})" if known else repr(architecture)
        raise GGUFError(f"architecture {named} is not implemented; implemented are {', '.join(ARCHITECTURES)}")
    fields = Fields(gguf.metadata, architecture)
    if fields.natural("expert_count", 0, least=0) or expert_tensors(gguf.tensors):
        raise GGUFError("the model is a mixture of experts (Mixtral), which is not implemented; dense models are")
    for key, harmless in _UNIMPLEMENTED.items():
        if fields.has(key, *harmless):
            value = fields.get(key)
            raise fields.unexpected(
                key, value, f"{' or '.join(map(repr, harmless)) or 'no such key'}: others are not implemented"
            )
    return fields


def shape_of(gguf: GGUFFile, fields: Fields) -> Shape:
    """The sizes of a model, each checked against the shapes of tensors where possible.

    Raises:
      GGUFError: a size is missing, out of range, differs between layers, or contradicts the tensors.
    """
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise GGUFError("the file has no embedding (token_embd.weight, a matrix): it is not a complete language model")
    vocab_size = embedding.shape[0]
    hidden_size = fields.natural("embedding_length")
    if embedding.shape[1] != hidden_size:
        raise GGUFError(
            f"{fields.full('embedding_length')} is {hidden_size}, and the embedding has rows of {embedding.shape[1]}"
        )
    layers = fields.natural("block_count", most=len(gguf.tensors))
    found = {int(match[1]) for name in gguf.tensors if (match := re.match(r"blk\.(\d{1,6})\.", name))}
    if found != set(range(layers)):
        raise GGUFError(
            f"{fields.full('block_count')} is {layers}, and the file has tensors of layers {_ranges(found)}; "
            f"expected 0 to {layers - 1}"
        )
    heads = fields.per_layer("attention.head_count", layers, most=2**16)
    kv_heads = fields.per_layer("attention.head_count_kv", layers, heads, most=heads)
    if heads % kv_heads:
        raise GGUFError(
            f"{kv_heads} key-value heads do not divide {heads} heads; grouped-query attention needs equal groups"
        )
    return Shape(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=fields.per_layer("feed_forward_length", layers),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=_head_dim(fields, hidden_size, heads),
    )


def _head_dim(fields: Fields, hidden_size: int, heads: int) -> int:
    if fields.get("attention.key_length") is not None:
        head_dim = fields.natural("attention.key_length")
    elif hidden_size % heads:
        raise GGUFError(
            f"{fields.full('embedding_length')} {hidden_size} is no multiple of {heads} heads, and "
            f"{fields.full('attention.key_length')} is not given"
        )
    else:
        head_dim = hidden_size // heads
    for key in ("attention.value_length", "rope.dimension_count"):
        if (other := fields.natural(key, head_dim)) != head_dim:
            raise GGUFError(
                f"{fields.full(key)} is {other} where heads have {head_dim} dimensions; others are not implemented"
            )
    if head_dim % 2:
        raise GGUFError(f"heads have {head_dim} dimensions; rotary embeddings need an even number")
    if fields.has("attention.scale", 0) and abs(fields.real("attention.scale") * head_dim**0.5 - 1) > 1e-5:
        raise fields.unexpected(
            "attention.scale", fields.get("attention.scale"), f"1 / sqrt({head_dim}): others are not implemented"
        )
    return head_dim


def _ranges(numbers: set[int]) -> str:
    return f"{min(numbers)} to {max(numbers)} ({len(numbers)} of them)" if numbers else "none"


@dataclass(frozen=True, kw_only=True)
class SlidingWindow:
    """The window of a model, and how it was determined."""

    size: int | None
    reason: str
    """A sentence for people."""


def sliding_window(fields: Fields, shape: Shape, *, theta: float, context: int, plain_rope: bool) -> SlidingWindow:
    """The window of the layers that have one. See the rule at the top of this module."""
    key = "attention.sliding_window"
    if fields.get(key) is not None:
        size = fields.natural(key, least=0)
        return SlidingWindow(size=size or None, reason=f"{fields.full(key)} is {size}")
    if fields.architecture != "llama" or theta != _V01_THETA or not plain_rope or context <= _V01_WINDOW:
        return SlidingWindow(size=None, reason="neither the file nor its kind of rope indicates one")
    width = (shape.hidden_size, shape.intermediate_size, shape.num_heads, shape.num_kv_heads)
    if width == _V01_WIDTH:
        return SlidingWindow(
            size=_V01_WINDOW, reason="the file does not say; shape and rope are those of Mistral 7B v0.1"
        )
    if _names_say(fields, r"mistral"):
        return SlidingWindow(size=_V01_WINDOW, reason="the file does not say; name and rope are those of Mistral v0.1")
    return SlidingWindow(size=None, reason="the file does not say, and neither name nor shape is Mistral's")


def _names_say(fields: Fields, pattern: str) -> bool:
    """Whether one of the names in the file, its own or its base model's, matches."""
    return any(re.search(pattern, text, re.IGNORECASE) for text in fields.texts(_NAMES))


def hf_config(gguf: GGUFFile) -> dict[str, Any]:
    """The `config.json` of the model in a file, in the form of transformers 4 where it can express the model.

    A file does not distinguish Mistral from Llama, and for most models the two are the same: the name decides, and a
    window makes it Mistral. `torch_dtype` is the type of the largest tensor, bfloat16 for packed ones.

    Raises:
      GGUFError: the model is not implemented, or its metadata is incomplete, contradictory or out of range.
    """
    with naming(gguf):
        return _config(gguf)


def _config(gguf: GGUFFile) -> dict[str, Any]:
    fields = fields_of(gguf)
    shape = shape_of(gguf, fields)
    theta = fields.real("rope.freq_base", _V01_THETA, above=1.0)
    context = fields.natural("context_length", most=2**31 - 1)
    rope = rope_parameters(gguf, fields, theta=theta, head_dim=shape.head_dim, context=context)
    window = sliding_window(fields, shape, theta=theta, context=context, plain_rope=not rope)
    tempered = "llama_4_scaling_beta" in rope
    layer_types = _layer_types(fields, shape.num_layers, window.size)
    attention_bias = _has(gguf, r"attn_(q|k|v|qkv|output)\.bias")
    mlp_bias = _has(gguf, r"ffn_(gate|up|down)\.bias")
    if tempered and layer_types is not None:
        raise GGUFError("windows that differ between layers, with an attention temperature, are not implemented")
    if (attention_bias or mlp_bias) and (tempered or window.size is not None):
        raise GGUFError("biases of projections, with a sliding window or an attention temperature, are not implemented")
    if attention_bias or mlp_bias:  # of these classes, only Llama's knows biases
        architecture, model_type = "LlamaForCausalLM", "llama"
    elif tempered:
        architecture, model_type = "Ministral3ForCausalLM", "ministral3"
    elif layer_types is not None:
        architecture, model_type = "MinistralForCausalLM", "ministral"
    elif (
        window.size is not None
        or fields.architecture == "mistral3"
        or _names_say(fields, r"(mi|mini|code|dev|magi|math)stral")
    ):
        architecture, model_type = "MistralForCausalLM", "mistral"
    else:
        architecture, model_type = "LlamaForCausalLM", "llama"
    largest = max(gguf.tensors.values(), key=lambda info: info.nbytes)
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": fields.real("attention.layer_norm_rms_epsilon", most=1.0),
        "sliding_window": window.size,
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "attention_bias": attention_bias,
        "mlp_bias": mlp_bias,
        "bos_token_id": _token(fields, "bos", 1, shape.vocab_size),
        "eos_token_id": _token(fields, "eos", 2, shape.vocab_size),
        "torch_dtype": _DTYPES.get(largest.type_name, "bfloat16"),
    }
    if layer_types is not None:
        config["layer_types"] = layer_types
    if tempered:  # a model of transformers 5
        return config | {"rope_parameters": {"rope_theta": theta, **rope}}
    return config | {"rope_theta": theta, "rope_scaling": rope or None}


def _has(gguf: GGUFFile, tensor: str) -> bool:
    pattern = re.compile(r"blk\.\d+\." + tensor)
    return any(pattern.fullmatch(name) for name in gguf.tensors)


def _layer_types(fields: Fields, layers: int, window: int | None) -> list[str] | None:
    """Which layers have the window; None: all of them or none.

    A pattern is a list of booleans, or a number n: every nth layer is without.
    """
    key = "attention.sliding_window_pattern"
    if window is None or fields.get(key) is None:
        return None
    if isinstance(fields.get(key), int):
        period = fields.natural(key)
        sliding = [layer % period < period - 1 for layer in range(layers)]
    else:
        sliding = fields.flags(key)
    if len(sliding) != layers:
        raise fields.unexpected(key, sliding, f"a boolean for each of {layers} layers")
    return ["sliding_attention" if slides else "full_attention" for slides in sliding]


def _token(fields: Fields, name: str, sentencepiece_id: int, vocab_size: int) -> int | None:
    """A special token's id. Without a key, sentencepiece tokenizers have the usual ids, and others none."""
    key = f"tokenizer.ggml.{name}_token_id"
    if fields.get(key) is not None:
        return fields.natural(key, least=0, most=vocab_size - 1)
    return (
        sentencepiece_id
        if fields.text("tokenizer.ggml.model", "") == "llama" and vocab_size > sentencepiece_id
        else None
    )
