"""The frozen model of a training run, with its tokenizer and chat format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from mistral_jax.chat import ChatFormatter
from mistral_jax.checkpoint.description import ModelDescription
from mistral_jax.model.mistral import Mistral
from mistral_jax.notebook.language_model import LanguageModel
from mistral_jax.quant.array import Int8Array, Packed
from mistral_jax.quant.placement import Placement
from mistral_jax.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A model without the programs and caches of serving."""

    module: Mistral
    tokenizer: Tokenizer
    chat: ChatFormatter | None
    """None: only raw text can be trained on."""
    eos_ids: frozenset[int]
    """Tokens that end generation."""
    name: str
    """The base model that the trained adapter names: a Hub id or a folder."""

    @classmethod
    def of(cls, model: LanguageModel | BaseModel) -> BaseModel:
        if isinstance(model, BaseModel):
            return model
        return cls.described(model.description, model.module)

    @classmethod
    def described(cls, description: ModelDescription, module: Mistral) -> BaseModel:
        return cls(
            module=module,
            tokenizer=description.tokenizer,
            chat=description.chat,
            eos_ids=description.eos_ids,
            name=description.files.name,
        )

    @property
    def placement(self) -> Placement:
        """Where the weights are."""
        return Placement.of(nnx.state(self.module, nnx.Param))

    @property
    def identity(self) -> dict[str, Any]:
        """Values that must be the same when a run on this model is resumed."""
        return {"base model": self.name, "dtype": str(self.module.dtype)}

    def check_differentiable(self) -> None:
        """Check that gradients can pass through the weights.

        Raises:
          ValueError: some are held as int8, whose products round the activations: their gradients would be zero.
        """
        leaves = jax.tree.leaves(nnx.state(self.module, nnx.Param), is_leaf=lambda x: isinstance(x, Packed))
        packed = [leaf for leaf in leaves if isinstance(leaf, Packed)]
        if any(isinstance(x, Int8Array) for leaf in packed for x in _parts(leaf)):
            raise ValueError(
                "the model's weights are held as int8, whose products round their inputs, "
                "so that no gradient passes; load it with --quant none, or with q8_0"
            )


def _parts(weight: Packed) -> list[object]:
    return list(getattr(weight, "parts", (weight,)))
