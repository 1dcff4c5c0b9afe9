"""Names of the linear layers that adapters change."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from conversion.weights.decoder_weights import ADAPTABLE

_MODULES = {part.name: part.hf for weight in ADAPTABLE for part in weight.parts}
PARTS = tuple(_MODULES)
"""The linear layers of a decoder layer, in the order in which the reference implementation registers them; the columns
of a layerwise X-LoRA classifier are numbered in this order."""


MODULE_PATTERN = "|".join(map(re.escape, _MODULES.values()))
"""A regular expression of their names within a layer."""


class ModuleKey(NamedTuple):
    """One linear layer of the model."""

    layer: int
    """Number of the decoder layer."""
    part: str
    """One of `PARTS`."""

    @property
    def path(self) -> str:
        """The module's Hugging Face name, such as `model.layers.0.self_attn.q_proj`."""
        return f"model.layers.{self.layer}.{_MODULES[self.part]}"


def parts_of(keys: Iterable[ModuleKey]) -> tuple[str, ...]:
    """The kinds of linear layers among modules, in the order of `PARTS`."""
    present = {key.part for key in keys}
    return tuple(part for part in PARTS if part in present)


def torch_order(key: ModuleKey) -> tuple[int, int]:
    """Sorts modules as the reference implementation registers them."""
    return key.layer, PARTS.index(key.part)
