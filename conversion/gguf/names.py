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
from conversion.weights.decoder_weights import Format, read_name, translate

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
    found = read_name(name, Format.GGUF)
    if found is not None:
        return tuple(part.spelled(Format.HF) for part in found.by_part())
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
    found = translate(name, Format.HF, Format.GGUF)
    if found is None:
        raise GGUFError(f"tensor {name!r} has no name in GGUF files of the Llama and Mistral families")
    return found


def scale_name(name: str) -> str:
    """The name of the scalar factor of a weight, beside it in the file (mostly of NVFP4 weights)."""
    return name.removesuffix(".weight") + ".scale"


def is_scale(name: str) -> bool:
    """Whether a tensor is such a factor: of a matrix that activations are multiplied by."""
    found = read_name(name.removesuffix(".scale") + ".weight", Format.GGUF) if name.endswith(".scale") else None
    return found is not None and found.weight.columns is not None and found.weight.name != "embed_tokens"


def is_left_out(name: str) -> bool:
    """Whether a tensor is read elsewhere or not needed: rope factors, scales of activations, vision and audio
    towers."""
    return _LEFT_OUT.fullmatch(name) is not None


def expert_tensors(names: Iterable[str]) -> list[str]:
    """The tensors that only mixtures of experts have."""
    return [name for name in names if _EXPERTS.fullmatch(name)]
