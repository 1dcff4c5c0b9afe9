"""The adapter weights of each row in a running batch: none, fixed, or from X-LoRA.

Sequences of all kinds can share a batch:

    base          weights 0                             one pass
    fixed         weights of the request                one pass
    X-LoRA        weights of the classifier, per token  two passes: scaling pass, scaled pass
      frozen      the weights of one of its tokens      one pass (non-granular scalings)

If one row of a call needs the scaling pass, all rows run it; it does not change the results of the others.

Axis letters: B rows, T tokens, M scaling columns, A adapters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mistral_jax.adapters.choice import AdapterChoice
from mistral_jax.adapters.xlora import XLoRA
from mistral_jax.model.kv_cache import KVCache, ReadPlan
from mistral_jax.model.low_rank import SHARED, AdapterBank, Mixture
from mistral_jax.model.mistral import Mistral

NEVER = np.iinfo(np.int32).max


@partial(jax.tree_util.register_dataclass, data_fields=["scaled", "scaling"], meta_fields=[])
@dataclass(frozen=True)
class Caches:
    """The KV caches of a model."""

    scaled: KVCache
    """The scaled pass, which gives the logits."""
    scaling: KVCache | None = None
    """X-LoRA's scaling pass."""

    @property
    def nbytes(self) -> int:
        return self.scaled.nbytes + (0 if self.scaling is None else self.scaling.nbytes)


@partial(jax.tree_util.register_dataclass, data_fields=["weights", "live", "freeze_at"], meta_fields=[])
@dataclass(frozen=True)
class RowMixing:
    """The adapter state with which a sequence is admitted."""

    weights: jax.Array | np.ndarray
    """float32 [A]: fixed adapter weights."""
    live: jax.Array | np.bool_
    """bool scalar: whether the weights come from the classifier."""
    freeze_at: jax.Array | np.int32
    """int32 scalar: the position whose weights are kept for all later ones."""

    @classmethod
    def of(cls, choice: AdapterChoice, adapters: int, prompt_length: int) -> RowMixing:
        # The first completion token runs one position after the prompt's last token.
        freeze_at = NEVER if choice.freeze_after is None else prompt_length - 1 + choice.freeze_after
        return cls(choice.fixed_weights(adapters), np.bool_(choice.xlora), np.int32(freeze_at))


@partial(jax.tree_util.register_dataclass, data_fields=["weights", "live", "freeze_at"], meta_fields=[])
@dataclass(frozen=True)
class MixingRows:
    """The adapter state of all slots, with the fields of `RowMixing`."""

    weights: jax.Array
    """float32 [B, M, A]: the adapter weights of rows that are not live."""
    live: jax.Array
    """bool [B]"""
    freeze_at: jax.Array
    """int32 [B]"""

    @classmethod
    def allocate(cls, *, slots: int, columns: int, adapters: int) -> MixingRows:
        return cls(
            jnp.zeros((slots, columns, adapters), jnp.float32),
            jnp.zeros((slots,), jnp.bool_),
            jnp.full((slots,), NEVER, jnp.int32),
        )

    def admit(self, slot: jax.Array, row: RowMixing) -> MixingRows:
        return MixingRows(
            self.weights.at[slot].set(row.weights),
            self.live.at[slot].set(row.live),
            self.freeze_at.at[slot].set(row.freeze_at),
        )

    def first(self, rows: int) -> MixingRows:
        return jax.tree.map(lambda x: x[:rows], self)

    def slot(self, slot: jax.Array) -> MixingRows:
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, slot, 1), self)

    def freeze(self, weights: jax.Array, positions: jax.Array, active: jax.Array) -> MixingRows:
        """Freeze the adapter weights of rows that reached their `freeze_at`.

        Args:
          weights: float32 [R, M, A] of the step that ran at `positions` int32 [R].
          active: bool [R].
        """
        R = active.shape[0]
        now = active & self.live[:R] & (positions >= self.freeze_at[:R])
        return MixingRows(
            self.weights.at[:R].set(jnp.where(now[:, None, None], weights, self.weights[:R])),
            self.live.at[:R].set(self.live[:R] & ~now),
            self.freeze_at,
        )


@dataclass(frozen=True, kw_only=True)
class AdaptedModel:
    """A model with its adapters and classifier; assembled inside a jitted program."""

    model: Mistral
    bank: AdapterBank | None = None
    adapters: int = 0
    """A"""
    xlora: XLoRA | None = None

    def __call__(
        self,
        tokens: jax.Array,
        caches: Caches,
        slots: jax.Array,
        *,
        positions: jax.Array,
        valid: jax.Array,
        mixing: MixingRows | None,
        plan: ReadPlan,
        scaling: bool,
    ) -> tuple[jax.Array, Caches, jax.Array | None]:
        """Run T new tokens of B sequences, as `Mistral.__call__` does, with the adapters of each.

        Args:
          caches: donate them in the jit around this call.
          slots: int32 [B]: the slot of each sequence.
          positions: int32 [B, T], consecutive in each row.
          valid: bool [B, T]; False for padding at the end of a row and for rows that only fill the batch.
          mixing: of these B rows; None without adapters.
          plan: static.
          scaling: static; run the scaling pass for the rows that are live.
        Returns: hidden states [B, T, D], caches, and, if `scaling`, the adapter weights float32 [B, T, M, A].
        """

        def run(cache: KVCache, mixture: Mixture | None = None) -> tuple[jax.Array, KVCache]:
            view = cache.view(slots, positions=positions, valid=valid, plan=plan)
            return self.model(tokens, cache, view, mixture)

        if self.bank is None or mixing is None:
            hidden, cache = run(caches.scaled)
            return hidden, Caches(cache, caches.scaling), None
        columns = SHARED if self.xlora is None else self.xlora.columns
        weights = mixing.weights[:, None]
        scaling_cache = caches.scaling
        if scaling:
            assert self.xlora is not None
            assert scaling_cache is not None
            with jax.named_scope("scaling_pass"):
                first, scaling_cache = run(scaling_cache, self.xlora.scaling_mixture(self.bank, self.adapters))
                made = self.xlora.weights(self.xlora.scalings(first), self.adapters)
            weights = jnp.where(mixing.live[:, None, None, None], made, weights)
        with jax.named_scope("scaled_pass"):
            mixture = Mixture(bank=self.bank, weights=weights, columns=columns)
            hidden, cache = run(caches.scaled, mixture)
        return hidden, Caches(cache, scaling_cache), weights if scaling else None

    def logits(self, hidden: jax.Array) -> jax.Array:
        return self.model.logits(hidden)
