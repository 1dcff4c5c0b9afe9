"""A module split for `jax.jit`: static structure, and weights as a plain list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx


@dataclass(frozen=True)
class Structure:
    """A module without its weights: hashable, so that it can be a static argument."""

    graphdef: Any
    treedef: Any

    def merge(self, weights: list[jax.Array]) -> Any:
        """The module with other (traced) weights."""
        return nnx.merge(self.graphdef, jax.tree.unflatten(self.treedef, weights))


@dataclass(frozen=True)
class SplitModule:
    """Passing a list of arrays to a jitted function costs microseconds at each call; passing the module costs
    milliseconds."""

    structure: Structure
    weights: list[jax.Array]

    @classmethod
    def of(cls, module: nnx.Module) -> SplitModule:
        graphdef, state = nnx.split(module)
        weights, treedef = jax.tree.flatten(state)
        return cls(Structure(graphdef, treedef), weights)

    @property
    def tree(self) -> Any:
        """The weights as a pytree, packed arrays whole."""
        return jax.tree.unflatten(self.structure.treedef, self.weights)

    def merge(self, weights: list[jax.Array]) -> Any:
        """The module with other (traced) weights."""
        return self.structure.merge(weights)
