"""The jitted programs of one model with its adapters: their arguments, and what each donates.

A program takes weights as plain lists, which cost microseconds per call, and rebuilds the modules while it is traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mistral_jax.adapters.bank import AdapterSet
from mistral_jax.adapters.xlora import XLoRA
from mistral_jax.model.kv_cache import KVCache, ReadPlan
from mistral_jax.model.low_rank import AdapterBank
from mistral_jax.model.mistral import Mistral
from mistral_jax.model.split_module import SplitModule
from mistral_jax.quant.placement import Placement
from mistral_jax.runtime import admission, moving, step
from mistral_jax.runtime.mixing import AdaptedModel, Caches, MixingRows
from mistral_jax.runtime.prompt_lookup import Proposed, forward_proposed, sample_proposed
from mistral_jax.runtime.sampling.sample import COMMON_FEATURES, Features, mask_words
from mistral_jax.runtime.sampling.truncation_kernel import kernel_works as sampling_kernel_works
from mistral_jax.runtime.xlora_speculation import forward_speculative, sample_speculative

COMPILER_OPTIONS = {"xla_allow_excess_precision": False, "xla_gpu_dot_merger_threshold_mb": 0}
"""By default XLA may omit a rounding to bfloat16 between two operations that it fuses. Fusion differs between programs,
so a row's bits would, too. And for GPUs it merges products of one input with several matrices, for which it copies the
matrices side by side in every step: those of a layer and of its adapters."""

Extra = tuple[list[jax.Array], list[jax.Array]]
"""Arguments of the programs besides the model's weights: the adapters' arrays, and the classifier's weights."""


class Programs:
    """Programs, compiled at first use for each combination of shapes and static arguments.

    Args:
      model: its weights are shared, not copied.
      slots: number of rows of the caches.
      length: maximum tokens of a sequence.
      chunk: maximum tokens that are written to the caches at once.
      repeat_last_n: number of tokens that the repetition penalty looks back at.
      cache_blocks, adapters, xlora, gpu_kernels: see `mistral_jax.runtime.runner.Runner`.
    """

    speculates = True
    """Whether there is a program for speculative steps, given an X-LoRA classifier."""

    def __init__(
        self,
        model: Mistral,
        *,
        slots: int,
        length: int,
        chunk: int,
        repeat_last_n: int,
        adapters: AdapterSet | None,
        xlora: XLoRA | None,
        cache_blocks: Sequence[int] | None = None,
        gpu_kernels: bool | None = None,
    ) -> None:
        self._cache_blocks = cache_blocks
        self.config, self.dtype = model.config, model.dtype
        self.slots, self.length, self.chunk, self.repeat_last_n = slots, length, chunk, repeat_last_n
        self.split = SplitModule.of(model)
        self.adapters, self.xlora = adapters, xlora
        self.placement = Placement.of(self.split.weights)
        self._sampling = {
            "repeat": repeat_last_n > 0,
            "by_kernel": sampling_kernel_works(self.placement, self.config.vocab_size)
            if gpu_kernels is None
            else gpu_kernels,
        }
        self._bank: tuple[AdapterBank | None, list[jax.Array]] = (None, [])
        """The bank, and its arrays. Replaced at once, as the thread that compiles programs reads them, too."""
        self._bank_tree = None if adapters is None else jax.tree.structure(adapters.bank)
        self._xlora_split = None if xlora is None else SplitModule.of(xlora)
        # Placed explicitly: JAX compiles another program for an array that was placed there by default, so the first
        # calls after warm-up would compile again.
        self.allocate = jax.jit(self._allocate, out_shardings=self._places())
        self.admit = jax.jit(self._admit, donate_argnums=0)
        self.set_bias = jax.jit(admission.set_bias, donate_argnums=0)
        self.set_rules = jax.jit(admission.set_rules, donate_argnums=0)
        static = ("plan", "scaling")
        jit = partial(jax.jit, compiler_options=COMPILER_OPTIONS)
        self.prefill = jit(self._prefill, donate_argnums=2, static_argnames=static)
        self.score = jit(self._score, donate_argnums=2, static_argnames=static)
        self.embed = jit(self._embed, donate_argnums=2, static_argnames=static)
        self.forward = jit(self._forward, donate_argnums=2, static_argnames=static)
        self.forward_speculative = jit(self._forward_speculative, donate_argnums=2, static_argnames="plan")
        self.sample = jit(self._sample, donate_argnums=0, static_argnames="only")
        self.sample_speculative = jit(self._sample_speculative, donate_argnums=0, static_argnames="only")
        self.several = jit(self._several, donate_argnums=(2, 3), static_argnames=("plan", "only"))
        self.forward_proposed = jit(self._forward_proposed, donate_argnums=2, static_argnames=("K", "plan"))
        self.sample_proposed = jit(self._sample_proposed, donate_argnums=0, static_argnames="only")
        self.append = jax.jit(self._append, donate_argnums=0)
        self.copy_block = jax.jit(self._copy_block, donate_argnums=0)
        self.take_block = jax.jit(moving.take_block)
        self.put_block = jax.jit(self._put_block, donate_argnums=0)
        self.take_row = jax.jit(self._take_row)
        self.put_row = jax.jit(self._put_row, donate_argnums=0)

    def extra(self) -> Extra:
        """The current extra arguments; refreshed whenever the bank was replaced."""
        current, arrays = self._bank
        if self.adapters is not None and current is not self.adapters.bank:
            bank = self.adapters.bank
            arrays = jax.tree.leaves(bank)
            self._bank = bank, arrays
        return arrays, [] if self._xlora_split is None else self._xlora_split.weights

    def adapted(self, weights: list[jax.Array], extra: Extra) -> AdaptedModel:
        """The model with traced weights."""
        return AdaptedModel(
            model=self.split.merge(weights),
            bank=None if self._bank_tree is None else jax.tree.unflatten(self._bank_tree, extra[0]),
            adapters=0 if self.adapters is None else self.adapters.capacity,
            xlora=None if self._xlora_split is None else self._xlora_split.merge(extra[1]),
        )

    def rows(self) -> step.Rows:
        """Empty rows; traced."""
        mixing = speculation = None
        if self.adapters is not None:
            columns = 1 if self.xlora is None else self.xlora.columns.count
            sizes = {"slots": self.slots, "columns": columns, "adapters": self.adapters.capacity}
            mixing = MixingRows.allocate(**sizes)
            speculation = step.SpeculationRows.allocate(**sizes) if self.xlora is not None and self.speculates else None
        return step.Rows.allocate(
            self.config,
            slots=self.slots,
            repeat_last_n=self.repeat_last_n,
            length=self.length,
            mixing=mixing,
            speculation=speculation,
        )

    def _places(self) -> tuple[Caches, step.Rows]:
        """Shardings of what `allocate` returns: pools are sharded by kv heads, everything else is replicated."""
        placement = self.placement
        caches, rows = jax.eval_shape(self._allocate)
        scaling = None if caches.scaling is None else caches.scaling.places(placement)
        return Caches(caches.scaled.places(placement), scaling), jax.tree.map(lambda _: placement.sharding(), rows)

    def _allocate(self) -> tuple[Caches, step.Rows]:
        def cache() -> KVCache:
            sizes = {"slots": self.slots, "length": self.length, "chunk": self.chunk}
            return KVCache.allocate(self.config, **sizes, dtype=self.dtype, counts=self._cache_blocks)

        return Caches(cache(), None if self.xlora is None else cache()), self.rows()

    def _admit(self, rows: step.Rows, *args: Any) -> step.Rows:
        return admission.admit(rows, *args)

    def _prefill(
        self, weights: list[jax.Array], extra: Extra, caches: Caches, *args: Any, plan: ReadPlan, scaling: bool
    ) -> tuple[Caches, jax.Array, jax.Array | None]:
        return step.prefill(self.adapted(weights, extra), caches, *args, plan=plan, scaling=scaling)

    def _score(
        self, weights: list[jax.Array], extra: Extra, caches: Caches, *args: Any, plan: ReadPlan, scaling: bool
    ) -> tuple[Caches, jax.Array, jax.Array]:
        return step.score(self.adapted(weights, extra), caches, *args, plan=plan, scaling=scaling)

    def _embed(
        self, weights: list[jax.Array], extra: Extra, caches: Caches, *args: Any, plan: ReadPlan, scaling: bool
    ) -> tuple[Caches, jax.Array, jax.Array]:
        return step.embed(self.adapted(weights, extra), caches, *args, plan=plan, scaling=scaling)

    def _forward(
        self,
        weights: list[jax.Array],
        extra: Extra,
        caches: Caches,
        rows: step.Rows,
        active: jax.Array,
        run: step.Run | None,
        *,
        plan: ReadPlan,
        scaling: bool,
    ) -> tuple[Caches, step.Forward]:
        model = self.adapted(weights, extra)
        caches, made = step.forward(model, caches, rows, active, run, plan=plan, scaling=scaling)
        return caches, self._replicated(made)

    def _forward_speculative(
        self,
        weights: list[jax.Array],
        extra: Extra,
        caches: Caches,
        rows: step.Rows,
        active: jax.Array,
        *,
        plan: ReadPlan,
    ) -> tuple[Caches, step.Forward]:
        model = self.adapted(weights, extra)
        caches, made = forward_speculative(model, caches, rows, active, plan=plan, length=self.length)
        return caches, self._replicated(made)

    def _replicated[MadeT: (step.Forward, Proposed)](self, made: MadeT) -> MadeT:
        if self.placement.count == 1:
            return made
        return jax.lax.with_sharding_constraint(made, self.placement.sharding())

    @property
    def samplers(self) -> tuple[Features | None, ...]:
        """The sets of features that have a sampler of their own, and None for the one that decides at run time."""
        return (None,) if self.placement.platform == "cpu" else (*COMMON_FEATURES, None)

    def _sample(self, rows: step.Rows, *args: Any, only: Features | None) -> tuple[step.Rows, jax.Array]:
        return step.sample_rows(rows, *args, **self._sampling, only=only)

    def _sample_speculative(
        self, rows: step.Rows, *args: Any, only: Features | None
    ) -> tuple[step.Rows, jax.Array, jax.Array]:
        return sample_speculative(rows, *args, **self._sampling, only=only, length=self.length)

    def _several(
        self,
        weights: list[jax.Array],
        extra: Extra,
        caches: Caches,
        rows: step.Rows,
        counts: jax.Array,
        features: jax.Array,
        *,
        plan: ReadPlan,
        only: Features | None,
    ) -> tuple[Caches, step.Rows, jax.Array]:
        # No step of these has a mask, so what is in it does not matter.
        mask = jnp.zeros((counts.shape[0], mask_words(self.config.vocab_size)), jnp.int32)

        def forward(caches: Caches, rows: step.Rows, active: jax.Array) -> tuple[Caches, step.Forward]:
            return self._forward(weights, extra, caches, rows, active, None, plan=plan, scaling=False)

        def sample(rows: step.Rows, active: jax.Array, made: step.Forward) -> tuple[step.Rows, jax.Array]:
            return self._sample(rows, active, made, features, mask, only=only)

        return step.several(forward, sample, caches, rows, counts)

    def _forward_proposed(
        self,
        weights: list[jax.Array],
        extra: Extra,
        caches: Caches,
        rows: step.Rows,
        active: jax.Array,
        counts: jax.Array,
        no_weights: jax.Array | None,
        *,
        K: int,
        plan: ReadPlan,
    ) -> tuple[Caches, Proposed]:
        model = self.adapted(weights, extra)
        caches, made = forward_proposed(model, caches, rows, active, counts, no_weights, K=K, plan=plan)
        return caches, self._replicated(made)

    def _sample_proposed(
        self, rows: step.Rows, *args: Any, only: Features | None
    ) -> tuple[step.Rows, jax.Array, jax.Array]:
        return sample_proposed(rows, *args, **self._sampling, only=only)

    def _append(self, *args: Any) -> tuple[step.Rows]:
        return (step.append(*args),)

    def _copy_block(self, *args: Any) -> tuple[Caches]:
        return (moving.copy_block(*args),)

    def _put_block(self, *args: Any) -> tuple[Caches]:
        return (moving.put_block(*args),)

    def _take_row(self, *args: Any) -> tuple[Any]:
        return (moving.take_row(*args),)

    def _put_row(self, *args: Any) -> tuple[step.Rows]:
        return (moving.put_row(*args),)

    def empty_forward(self, rows: int, *, speculative: bool) -> step.Forward:
        """Zeros with the shapes and the placement of what a forward pass of `rows` rows returns."""
        weights = self.empty_weights(rows)
        logits = np.zeros((2 * rows if speculative else rows, self.config.vocab_size), np.float32)
        return step.Forward(self.placement.put(logits), weights, weights if speculative else None)

    def empty_proposed(self, rows: int, K: int) -> Proposed:
        """Zeros with the shapes and the placement of what a pass over proposals returns."""
        put = self.placement.put
        return Proposed(
            logits=put(np.zeros((K, rows, self.config.vocab_size), np.float32)),
            tokens=put(np.zeros((rows, K), np.int32)),
            counts=put(np.zeros((rows,), np.int32)),
            weights=self.empty_weights(rows),
        )

    def empty_weights(self, rows: int) -> jax.Array | None:
        """Adapter weights of zero, float32 [R, M, A]; None without adapters."""
        if self.adapters is None:
            return None
        columns = 1 if self.xlora is None else self.xlora.columns.count
        return self.placement.put(np.zeros((rows, columns, self.adapters.capacity), np.float32))
