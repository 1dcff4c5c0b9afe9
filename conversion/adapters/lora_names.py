"""Names of the tensors in a LoRA's file.

PEFT writes `base_model.model.` before the module's own name; X-LoRA's original implementation puts `lora_model.` between the two.
An adapter's name may stand before `weight`: `….q_proj.lora_A.default.weight`. Names are matched by whole components, so that
`adapter_1` is never taken for `adapter_10`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from conversion.adapters.modules import PARTS, ModuleKey

_FACTOR = re.compile(
    rf"""
    (?:base_model\.(?:lora_model\.)?model\.)?
    (?P<prefix>(?:(?:model|language_model)\.)*)
    layers\.(?P<layer>\d{{1,5}})\.(?P<module>(?:self_attn|mlp)\.(?:{"|".join(PARTS)}))
    \.lora_(?P<factor>[AB])\.(?:(?P<adapter>[^.]+)\.)?weight
    """,
    re.VERBOSE | re.ASCII,
)
_REFUSED = {
    "lora_magnitude_vector": "belongs to DoRA",
    "lora_embedding_A": "changes the embedding",
    "lora_embedding_B": "changes the embedding",
    "embed_tokens": "changes the embedding",
    "lm_head": "changes the output matrix",
    "bias": "is a bias",
}
_STRAY = "internal_xlora_classifier"
"""Tensors of an X-LoRA classifier, which some versions of PEFT put into the files of its adapters, too."""


class FactorName(NamedTuple):
    """One factor of a module."""

    key: ModuleKey
    factor: str
    """A or B."""
    prefix: str
    """What the file has before `layers.`, in the names of the base model's modules: `model.`, or that of a wrapped text model."""
    adapter: str | None
    """The adapter's name, where the tensor has one."""


def is_stray(name: str) -> bool:
    """Whether a tensor has no business in the file of an adapter, and is known to be there at times."""
    return _STRAY in name.split(".")


def parse_factor(name: str) -> FactorName | None:
    """What a tensor is; None: no factor of a linear layer."""
    match = _FACTOR.fullmatch(name)
    if match is None:
        return None
    key = ModuleKey(int(match["layer"]), match["module"].partition(".")[2])
    if not key.path.endswith(f".{match['module']}"):
        return None
    return FactorName(key, match["factor"], match["prefix"], match["adapter"])


def why_refused(name: str) -> str:
    """What a tensor that is no factor seems to be."""
    components = name.split(".")
    known = next((why for component, why in _REFUSED.items() if component in components), None)
    return known or f"is no factor of a linear layer ({', '.join(PARTS)}) of the text decoder"
