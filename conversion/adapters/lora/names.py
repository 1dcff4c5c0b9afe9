"""Names of the tensors in a LoRA's file.

PEFT writes `base_model.model.` before the module's own name, and `base_model.lora_model.model.` in experts of X-LoRA
models. An adapter's name may stand before `weight`: `….q_proj.lora_A.default.weight`. Names are matched by whole
components, so that `adapter_1` is never mistaken for `adapter_10`.

PEFT selects the tensors of an expert, which it calls "0", "1" and so on, by substrings such as ".1." and "bias". The
file of one may therefore also hold tensors of the classifier, of the frozen base model and of other experts, the latter
under their numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from conversion.adapters.modules import MODULE_PATTERN, PARTS, ModuleKey

_FACTOR = re.compile(
    rf"""
    (?:base_model\.(?:lora_model\.)?model\.)?
    (?P<prefix>(?:(?:model|language_model)\.)*)
    layers\.(?P<layer>\d{{1,5}})\.(?P<module>{MODULE_PATTERN})
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
_CLASSIFIER = "internal_xlora_classifier"
_EXPERT_PREFIX = "base_model.lora_model."


class FactorName(NamedTuple):
    """One factor of a module."""

    key: ModuleKey
    factor: str
    """A or B."""
    prefix: str
    """What the file has before `layers.`, in the names of the base model's modules: `model.`, or that of a wrapped text
    model."""
    adapter: str | None
    """The adapter's name, where the tensor has one."""


def is_stray(name: str) -> bool:
    """Whether a tensor is part of an X-LoRA classifier, or of the frozen model below an expert: these are not part of
    the adapter."""
    components = name.removeprefix(_EXPERT_PREFIX).split(".")
    frozen = name.startswith(_EXPERT_PREFIX) and not any(
        part.startswith(("lora_", "modules_to")) for part in components
    )
    return _CLASSIFIER in components or frozen


def own_factors(factors: Mapping[str, FactorName]) -> dict[str, FactorName]:
    """Without the tensors of other experts: if some tensors are under no name, those under numbers are not the
    adapter's own."""
    if all(factor.adapter is not None for factor in factors.values()):
        return dict(factors)
    return {
        name: factor for name, factor in factors.items() if factor.adapter is None or not factor.adapter.isdecimal()
    }


def parse_factor(name: str) -> FactorName | None:
    """What a tensor is; None: not a factor of a linear layer."""
    match = _FACTOR.fullmatch(name)
    if match is None:
        return None
    key = ModuleKey(int(match["layer"]), match["module"].rpartition(".")[2])
    return FactorName(key, match["factor"], match["prefix"], match["adapter"])


def why_refused(name: str) -> str:
    """What a tensor that is not a factor seems to be."""
    components = name.split(".")
    known = next((why for component, why in _REFUSED.items() if component in components), None)
    return known or f"is no factor of a linear layer ({', '.join(PARTS)}) of the text decoder"
