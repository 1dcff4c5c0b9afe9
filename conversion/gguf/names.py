"""Tensor names of GGUF files and of Hugging Face, and which tensors have their rows in another order.

Files of architecture `llama` and `mistral3` rotate adjacent pairs of dimensions where Hugging Face rotates halves: the
rows of q and k, weights and biases, are in another order within each head. Quantised blocks lie along the other axis,
so rows can be reordered without being unpacked.
Source: `gguf.get_tensor_name_map`, and llama.cpp's converter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from conversion.gguf.container.file import GGUFError

_MODEL = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_MODEL_BACK = {hf: name for name, hf in _MODEL.items()}
_LAYER_BACK = {hf: name for name, hf in _LAYER.items()}
FUSED_QKV = "attn_qkv"
"""q, k and v one below the other in one tensor, as some files have them."""
_IN_LAYER = re.compile(r"blk\.(\d{1,6})\.([a-z_]+)\.(weight|bias)")
_SCALED = re.compile(
    r"(?:blk\.\d{1,6}\.(?:attn_q|attn_k|attn_v|attn_qkv|attn_output|ffn_gate|ffn_up|ffn_down)|output)\.scale"
)
# Frequencies that follow from the metadata, or that are read with it; scales of activations rounded to four bits, which
# ours are not; and the parts of a vision or audio tower and its projector.
_LEFT_OUT = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd\.weight|.*\.input_scale|(?:v|a|mm)\..*")
_EXPERTS = re.compile(r"blk\.\d+\.ffn_(?:gate_inp|(?:gate|up|down|gate_up)(?:_exps?|_shexp|\.\d+))\b.*")


def hf_names(name: str) -> tuple[str, ...]:
    """Hugging Face's names of the tensors in a tensor of a file: one, or three for a fused q, k and v.

    () for tensors that no model of ours needs: see `is_left_out`.

    Raises:
      GGUFError: the tensor belongs to no model that we implement.
    """
    stem, _, kind = name.rpartition(".")
    if stem in _MODEL and kind == "weight":
        return (f"{_MODEL[stem]}.{kind}",)
    match = _IN_LAYER.fullmatch(name)
    if match is not None:
        layer, part, kind = match.groups()
        prefix = f"model.layers.{int(layer)}."
        if part in _LAYER and not (part.endswith("_norm") and kind == "bias"):
            return (f"{prefix}{_LAYER[part]}.{kind}",)
        if part == FUSED_QKV:
            return tuple(f"{prefix}self_attn.{head}_proj.{kind}" for head in "qkv")
    if is_left_out(name):
        return ()
    raise GGUFError(
        f"tensor {name!r} belongs to no model that is implemented: it is of another architecture, "
        "or of a newer form of this one"
    )


def gguf_name(name: str) -> str:
    """A file's name of a tensor of Hugging Face's text models.

    Raises:
      GGUFError: the tensor belongs to no model that we implement.
    """
    stem, _, kind = name.rpartition(".")
    if stem in _MODEL_BACK and kind == "weight":
        return f"{_MODEL_BACK[stem]}.{kind}"
    match = re.fullmatch(r"model\.layers\.(\d{1,6})\.(.+)", stem)
    if match is None or match[2] not in _LAYER_BACK or kind not in ("weight", "bias"):
        raise GGUFError(f"tensor {name!r} has no name in GGUF files of the Llama and Mistral families")
    return f"blk.{int(match[1])}.{_LAYER_BACK[match[2]]}.{kind}"


def scale_name(name: str) -> str:
    """The name of the scalar factor of a weight, beside it in the file (mostly of NVFP4 weights)."""
    return name.removesuffix(".weight") + ".scale"


def is_scale(name: str) -> bool:
    """Whether a tensor is such a factor."""
    return _SCALED.fullmatch(name) is not None


def is_left_out(name: str) -> bool:
    """Whether a tensor is read elsewhere or not needed: rope factors, scales of activations, vision and audio
    towers."""
    return _LEFT_OUT.fullmatch(name) is not None


def expert_tensors(names: Iterable[str]) -> list[str]:
    """The tensors that only mixtures of experts have."""
    return [name for name in names if _EXPERTS.fullmatch(name)]


def rotary_heads(name: str, *, num_heads: int, num_kv_heads: int) -> int | None:
    """The number of heads in which the rows of a tensor, under its Hugging Face name, are to be reordered; None: not
    reordered."""
    module = name.split(".")[-2] if "." in name else ""
    return {"q_proj": num_heads, "k_proj": num_kv_heads}.get(module)
