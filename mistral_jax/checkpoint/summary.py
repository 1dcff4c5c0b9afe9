"""How many bytes a model's weights take on the device, by form."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from flax import nnx

from mistral_jax.model.mistral import Mistral
from mistral_jax.quant.array import Int8Array, QuantizedArray, RowStack, Weight
from mistral_jax.quant.grouped import GroupedArray
from mistral_jax.quant.interleaved import InterleavedArray


@dataclass(frozen=True, kw_only=True)
class WeightSummary:
    """Number of weights, their bytes on the device, and the bytes of each form."""

    weights: int
    nbytes: int
    bytes_by_form: dict[str, int]
    """By ggml type, "int8", or dtype of plain arrays; largest first."""

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.weights

    def __str__(self) -> str:
        forms = ", ".join(f"{form} {size / self.nbytes:.0%}" for form, size in self.bytes_by_form.items())
        return f"{self.nbytes / 2**20:,.0f} MiB, {self.bits_per_weight:.2f} bits per weight ({forms})"


def summarize(model: Mistral) -> WeightSummary:
    """Sum up the weights of a model."""
    sizes: Counter[str] = Counter()
    weights = 0
    for _, variable in nnx.to_flat_state(nnx.state(model)):
        for part in _parts(variable.get_value()):
            weights += _count(part.shape)
            sizes[_form(part)] += part.nbytes
    return WeightSummary(weights=weights, nbytes=sizes.total(), bytes_by_form=dict(sizes.most_common()))


def _parts(weight: Weight) -> tuple[Weight, ...]:
    return weight.parts if isinstance(weight, RowStack) else (weight,)


def _form(weight: Weight) -> str:
    match weight:
        case QuantizedArray() | GroupedArray() | InterleavedArray():
            return weight.kind.name
        case Int8Array() | RowStack():
            return "int8"
        case _:
            return str(weight.dtype)  # plain, padded or not


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
