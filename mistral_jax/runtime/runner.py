"""The single owner of compiled programs: their shapes, when they are compiled, and which one a call uses.

A `Runner` holds a model and its programs; a `RunnerState` holds the sequences. Notebooks, the decode loop and the
server's engine all drive the same runner:

    runner = Runner(model, slots=8, length=2048)
    state = runner.new_state()
    state = runner.admit(state, slot, prompt, params)
    for chunk in runner.chunks(len(prompt)):
        state = runner.prefill(state, slot, prompt, chunk).state
    state, packed, *_ = runner.decode(state, active_slots, features, longest=tokens_held)   # [R, PACKED_WIDTH]

Every call is asynchronous: arrays are returned before they are computed, and reading them waits. States are donated.

With adapters, `admit` takes the adapters of a sequence. `prefill` and `decode` run X-LoRA's scaling pass if `scaling`
is set, and then return the resulting adapter weights as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, ClassVar

import jax
import numpy as np

from mistral_jax.adapters.bank import AdapterSet
from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.adapters.xlora import XLoRA
from mistral_jax.model.attention import kernel_works
from mistral_jax.model.kv_cache import KVCache, cache_bytes, own_blocks
from mistral_jax.model.mistral import Mistral
from mistral_jax.model.split_module import SplitModule
from mistral_jax.model.table_kinds import SPARE, table_kinds
from mistral_jax.quant.array import QuantizedArray
from mistral_jax.quant.placement import Device, Placement
from mistral_jax.quant.product import FEW_TOKENS
from mistral_jax.runtime.blocks.allocator import BlockAllocator, Reuse
from mistral_jax.runtime.buckets import DEFAULT_CHUNKS, Buckets, PrefillChunk, cache_sizes, chunk_sizes
from mistral_jax.runtime.calls import Forwarded, Prefilled, RunnerState, Stepped
from mistral_jax.runtime.device_memory import allocating
from mistral_jax.runtime.mixing import Caches, RowMixing
from mistral_jax.runtime.moving import TakenOut
from mistral_jax.runtime.program_calls import ProgramCalls
from mistral_jax.runtime.programs import Programs
from mistral_jax.runtime.sampling.params import SamplingParams, TokenRules
from mistral_jax.runtime.sampling.sample import Features, mask_words, recent_tokens, row_bias, row_scalars, seed_words
from mistral_jax.runtime.sampling.token_rules import history_row, row_limits, rule_row
from mistral_jax.runtime.step import Run
from mistral_jax.runtime.warming.behind import CompilingBehind
from mistral_jax.runtime.warming.empty_calls import EmptyCalls
from mistral_jax.runtime.warming.warm_up import EmptyCall, compile_and_run, time_against

_MOST_RUN_ROWS = 8

_MOST_PROPOSED, _FEW_PROPOSED = FEW_TOKENS, FEW_TOKENS // 2
"""Tokens of a step with proposals, the newest one included: of one row, and of each of several."""

_MOST_BYTES_FOR_SEVERAL = 2 << 30
"""Bytes of weights up to which there are programs of several decode steps. With more, a step takes a GPU longer than
the host, so nothing is gained."""


class Runner:
    """Compiled programs for one model at fixed shapes.

    Args:
      model: its weights are shared, not copied.
      slots: maximum number of concurrent sequences.
      length: maximum tokens of a sequence, prompt and completion together; caches round it up to whole blocks.
      chunks: lengths of prefill chunks, ascending. A prompt is cut into the longest ones, and the rest padded to the
        shortest that fits. The chunks of a prompt depend only on its length.
      repeat_last_n: number of tokens that the repetition penalty looks back at.
      cache_blocks: number of cache blocks for each of `kinds`, `SPARE` included, to share among the slots as an
        allocator says (see `new_allocator`). None: each slot has its own.
      row_buckets: numbers of rows that decode steps are compiled for, ascending, the last >= slots; None chooses by
        platform, see `Buckets.choose`.
      block_buckets: numbers of cache blocks that programs are compiled for; None chooses by platform.
      gpu_kernels: whether attention and sampling run by kernels for GPUs (`mistral_jax.model.attention_kernel`,
        `mistral_jax.runtime.sampling.truncation_kernel`); None: those that work on the device.
      looks_up: whether there are steps that look up proposals in the text so far.
      adapters: the adapters of the model; shared, and read at every call.
      xlora: the classifier, whose experts are the first adapters.
      embeds: compile the programs for embeddings in `warm_up`, too.
    """

    programs_type: ClassVar[type[Programs]] = Programs
    prefills: ClassVar[bool] = True
    """Whether prompts are prefilled in chunks."""
    takes_runs: ClassVar[bool] = True
    """Whether `forward` ever takes `runs`."""
    takes_several: ClassVar[bool] = True
    """Whether `several` can ever be called."""

    def __init__(
        self,
        model: Mistral,
        *,
        slots: int,
        length: int,
        chunks: Sequence[int] = DEFAULT_CHUNKS,
        repeat_last_n: int = 64,
        cache_blocks: Sequence[int] | None = None,
        row_buckets: Sequence[int] | None = None,
        block_buckets: Sequence[int] | None = None,
        gpu_kernels: bool | None = None,
        looks_up: bool = True,
        adapters: AdapterSet | None = None,
        xlora: XLoRA | None = None,
        embeds: bool = True,
    ) -> None:
        if xlora is not None and (adapters is None or adapters.capacity < xlora.num_experts):
            raise ValueError(f"X-LoRA over {xlora.num_experts} experts needs a bank that holds them")
        if slots < 1 or length < 2:
            raise ValueError(
                f"slots is {slots} and length is {length}; expected at least one slot of at least two tokens"
            )
        if repeat_last_n < 0:
            raise ValueError(f"repeat_last_n is {repeat_last_n}; expected 0 (off) or a number of tokens")
        self.config, self.length, self.slots = model.config, length, slots
        self.repeat_last_n = min(repeat_last_n, length)
        self.adapters, self.xlora = adapters, xlora
        self.embeds, self.looks_up = embeds, looks_up
        sizes = chunk_sizes(chunks, length)
        self._cache_sizes = cache_sizes(slots=slots, length=length, chunks=chunks)
        self._cache_blocks = None if cache_blocks is None else tuple(cache_blocks)
        sized = {name: self._cache_sizes[name] for name in ("length", "chunk")}
        self.kinds = table_kinds(self.config, **sized)[0]
        """The tables of a slot."""
        self.programs = self.programs_type(
            model,
            **self._cache_sizes,
            repeat_last_n=self.repeat_last_n,
            cache_blocks=self._cache_blocks,
            adapters=adapters,
            xlora=xlora,
            gpu_kernels=gpu_kernels,
        )
        self.buckets = Buckets.choose(
            slots=slots,
            length=length,
            blocks=self.kinds[-1].blocks,
            on_cpu=self.device.platform == "cpu",
            chunks=sizes,
            row_buckets=row_buckets,
            block_buckets=block_buckets,
            kernel=kernel_works(self.placement, self.config, self.dtype) if gpu_kernels is None else gpu_kernels,
        )
        self.speculation_costs: dict[int, float] = {}
        """Time of a speculative step relative to a step of two passes, by number of rows; see `measure`."""
        self.lookup_costs: dict[int, float] = {}
        """Time of a forward pass with proposals relative to a plain one, by number of rows; see `measure`."""
        self.run_costs: dict[int, float] = {}
        """Time of a forward pass with runs relative to one without, by number of rows; see `measure`."""
        self.calls = ProgramCalls(self.programs, self.buckets)

    @property
    def placement(self) -> Placement:
        """The placement of the weights, and of all other inputs of the programs."""
        return self.programs.placement

    @property
    def device(self) -> Device:
        """The first device of `placement`."""
        return self.placement.device

    @property
    def dtype(self) -> jax.typing.DTypeLike:
        return self.programs.dtype

    @property
    def split(self) -> SplitModule:
        """The model split into structure and weights, as the programs take it."""
        return self.programs.split

    @property
    def chunk_sizes(self) -> tuple[int, ...]:
        return self.buckets.chunks

    @property
    def run_buckets(self) -> tuple[int, ...]:
        """The row buckets with a forward pass for runs: each is a program to compile. On a CPU a pass over the runs of
        many rows takes several times as long as a step, so there are none."""
        if not self.takes_runs:
            return ()
        on_cpu = self.device.platform == "cpu"
        return tuple(bucket for bucket in self.buckets.rows if bucket <= _MOST_RUN_ROWS or not on_cpu)

    @property
    def several_buckets(self) -> tuple[int, ...]:
        """The row buckets with programs of several decode steps. None on a CPU: it takes longer for a step than the
        host needs, even with the bundled model (4 % slower)."""
        on_cpu = self.placement.platform == "cpu"
        if on_cpu or not self.takes_several or self.xlora is not None or self.weight_bytes > _MOST_BYTES_FOR_SEVERAL:
            return ()
        return self.buckets.rows

    @cached_property
    def lookups(self) -> dict[int, int]:
        """The numbers of rows with steps that look up proposals (`mistral_jax.runtime.prompt_lookup`), and the most
        tokens that a row of them gets. With many rows several tokens of each cost a CPU as much as they gain."""
        if not self.looks_up or not self.takes_runs or self.xlora is not None:
            return {}
        if self.device.platform != "cpu":
            return {self.buckets.rows[-1]: _FEW_PROPOSED}
        # One row is enough for a matrix product, if it has several tokens. The kernel for packed weights takes as long
        # for eight as for two or three times one.
        lookups = {1: _FEW_PROPOSED if self._is_packed else _MOST_PROPOSED}
        return lookups | {2: _FEW_PROPOSED} if self.slots > 1 else lookups

    def lookup_rows(self, active: Sequence[int]) -> int | None:
        """The number of rows of a step with proposals for the slots in `active`; None: there is none for them."""
        return min((rows for rows in self.lookups if rows > max(active)), default=None)

    @property
    def can_speculate(self) -> bool:
        """Whether `decode` accepts `speculative=True`."""
        return self.xlora is not None and self.programs.speculates

    @property
    def model(self) -> Mistral:
        """The module, sharing the weights that the programs use."""
        return self.split.merge(self.split.weights)

    @cached_property
    def _is_packed(self) -> bool:
        """Whether there are matrices in blocks that a CPU multiplies by another method for few tokens of a sequence
        than for many."""
        weights = jax.tree.leaves_with_path(self.split.tree, is_leaf=lambda x: isinstance(x, QuantizedArray))
        tied = self.config.tie_word_embeddings
        return any(
            isinstance(weight, QuantizedArray) and (tied or "embed_tokens" not in jax.tree_util.keystr(path))
            for path, weight in weights
        )

    @cached_property
    def weight_bytes(self) -> int:
        return sum(x.size * x.dtype.itemsize for x in self.split.weights)

    def cache_bytes(self) -> int:
        """Bytes of the KV caches that `new_state` allocates."""
        one = cache_bytes(self.config, **self._cache_sizes, dtype=self.dtype, counts=self._cache_blocks)
        return (1 if self.xlora is None else 2) * one

    def new_state(self) -> RunnerState:
        """Allocate empty caches and rows on the model's placement.

        Raises:
          DeviceMemoryError: a GPU has not so much memory.
        """
        with allocating("a cache", self.cache_bytes()):
            return RunnerState(*jax.block_until_ready(self.programs.allocate()))

    @property
    def has_pool(self) -> bool:
        """Whether slots have the blocks that an allocator gives them."""
        return self._cache_blocks is not None

    @property
    def reuse(self) -> Reuse | None:
        """Which tokens in the cache may serve other sequences with the same bits."""
        if not self.prefills:
            return None
        if self.placement.platform != "cpu" or self.placement.count > 1:
            return Reuse(unit=self.chunk_sizes[-1], completions=False)
        # Few tokens are multiplied with packed weights by another method than many: `mistral_jax.quant.product`.
        return Reuse(completions=not self._is_packed)

    def new_allocator(self, *, reuse: bool) -> BlockAllocator:
        """What gives the blocks of one state to its slots.

        Args:
          reuse: whether sequences may share the blocks of what they have in common.
        """
        counts = own_blocks(self.config, **self._cache_sizes) if self._cache_blocks is None else self._cache_blocks
        return BlockAllocator(self.kinds, counts, reuse=self.reuse if reuse else None)

    def chunks(
        self, prompt_length: int, *, start: int = 0, score: bool = False, embed: bool = False
    ) -> Iterator[PrefillChunk]:
        """The chunks of a prompt: all tokens but the last, which the first decode step runs.

        Args:
          start: so many tokens are in the cache already; not with `score` or `embed`.
          score: whether the prompt's log-probabilities are wanted.
          embed: whether its hidden states are wanted, of the last token, too.
        """
        if embed:
            return self.buckets.embedded_chunks(prompt_length)
        if score:
            return self.buckets.scored_chunks(prompt_length)
        return self.buckets.prompt_chunks(prompt_length, start=start)

    def with_tables(self, state: RunnerState, tables: Sequence[np.ndarray]) -> RunnerState:
        """Give all slots other blocks.

        Args:
          tables: int32 [slots, C] for each of `kinds`.
        """

        def changed(cache: KVCache) -> KVCache:
            # Each cache its own arrays: both are donated.
            return cache.with_tables([self.placement.put(table) for table in tables])

        scaling = state.caches.scaling
        caches = Caches(changed(state.caches.scaled), None if scaling is None else changed(scaling))
        return RunnerState(caches, state.rows)

    def take_out(self, state: RunnerState, slot: int, tables: Sequence[Sequence[int]]) -> TakenOut:
        """Copy a slot's row, and the blocks of its tables, to the host.

        Args:
          state: not donated.
          tables: its blocks for each of `kinds`, `SPARE` where it has none.
        """
        row = self.calls.take_row(state, slot)().copy
        wanted = [[_entry(table, entry) for table in tables] for entry in range(max(map(len, tables)))]
        entries = tuple(entry for entry, blocks in enumerate(wanted) if any(block != SPARE for block in blocks))
        copies = [self.calls.take_block(state, wanted[entry])().copy for entry in entries]
        return TakenOut(jax.device_get(row), entries, tuple(map(jax.device_get, copies)))

    def put_in(self, state: RunnerState, slot: int, tables: Sequence[Sequence[int]], taken: TakenOut) -> RunnerState:
        """Put back what `take_out` returned, into any slot and into other blocks. `state` is donated."""
        state = self.calls.put_row(state, slot, taken.row)().state
        for entry, copy in zip(taken.entries, taken.blocks, strict=True):
            state = self.calls.put_block(state, [_entry(table, entry) for table in tables], copy)().state
        return state

    def admit(
        self,
        state: RunnerState,
        slot: int,
        prompt: Sequence[int],
        params: SamplingParams,
        choice: AdapterChoice = BASE,
    ) -> RunnerState:
        """Give `slot` to a new sequence. Prefill its chunks before it takes part in a decode step.

        Args:
          state: donated.
          choice: the sequence's adapters.

        Raises:
          ValueError: the prompt is empty or leaves no room for a completion, `params.seed` or needed `params.rules` are
            None, or the runner lacks the chosen adapters.
        """
        most = self.length if params.max_tokens == 0 else self.length - 1
        if not 0 < len(prompt) <= most:
            raise ValueError(f"a prompt of {len(prompt)} tokens: expected 1 to {most}, to leave room for a completion")
        if params.seed is None:
            raise ValueError("params.seed is None: choose a seed before admitting a sequence")
        if params.needs_rules and params.rules is None:
            raise ValueError("params.rules is None: see mistral_jax.text.token_rules")
        mixing = self._row_mixing(choice, len(prompt))
        rows = self.programs.admit(state.rows, *self._admission(slot, prompt, params, mixing))
        if (bias := row_bias(params, self.config.vocab_size)) is not None:
            rows = self.programs.set_bias(rows, np.int32(slot), bias)
        if params.needs_rules:
            row = rule_row(params, vocab_size=self.config.vocab_size)
            rows = self.programs.set_rules(rows, np.int32(slot), row)
        return RunnerState(state.caches, rows)

    def _admission(
        self, slot: int, prompt: Sequence[int], params: SamplingParams, mixing: RowMixing | None
    ) -> tuple[Any, ...]:
        """The arguments of `admission.admit` after the rows."""
        assert params.seed is not None
        return (
            np.int32(slot),
            np.int32(prompt[-1]),
            np.int32(len(prompt) - 1),
            row_scalars(params),
            np.int32(min(params.top_k, self.config.vocab_size)),
            seed_words(params.seed),
            recent_tokens(tuple(prompt), max(self.repeat_last_n, 1), self.config.vocab_size),
            row_limits(params, len(prompt)),
            history_row(prompt, self.length),
            mixing,
        )

    def _row_mixing(self, choice: AdapterChoice, prompt_length: int) -> RowMixing | None:
        capacity = 0 if self.adapters is None else self.adapters.capacity
        if choice.xlora and self.xlora is None:
            raise ValueError("X-LoRA was chosen, but this runner has no classifier")
        if any(not 0 <= number < capacity for number, _ in choice.weights):
            raise ValueError(f"{choice.weights}: expected adapters by number, from 0 to {capacity - 1}")
        return None if self.adapters is None else RowMixing.of(choice, capacity, prompt_length)

    def prefill(
        self, state: RunnerState, slot: int, prompt: Sequence[int], chunk: PrefillChunk, *, scaling: bool = False
    ) -> Prefilled:
        """Run one chunk of `prompt` in `slot`.

        Args:
          state: donated.
          scaling: whether the sequence was admitted with X-LoRA.
        """
        after = int(chunk.score)
        tokens = np.zeros((chunk.size + after,), np.int32)
        tokens[: chunk.count + after] = prompt[chunk.start : chunk.start + chunk.count + after]
        where = {"start": chunk.start, "count": chunk.count}
        return self.calls.prefill(state, slot, tokens, **where, scaling=scaling, score=chunk.score, embed=chunk.embed)()

    def decode(
        self,
        state: RunnerState,
        active: Sequence[int],
        features: Features,
        *,
        longest: int,
        scaling: bool = False,
        speculative: bool = False,
    ) -> Stepped:
        """Run one step for the slots in `active`: `forward` and `sample`, without constraints. Args: see there."""
        forwarded = self.forward(state, active, longest=longest, scaling=scaling, speculative=speculative)
        return self.sample(forwarded, active, features)

    def forward(
        self,
        state: RunnerState,
        active: Sequence[int],
        *,
        longest: int,
        scaling: bool = False,
        speculative: bool = False,
        runs: Mapping[int, Sequence[int]] | None = None,
    ) -> Forwarded:
        """Run the newest token of the slots in `active`.

        Args:
          state: donated.
          longest: the largest number of tokens that any of them holds after the step.
          scaling: whether any of them uses X-LoRA with weights that are not frozen yet.
          speculative: run the scaling pass of guessed next tokens, so that the step reads the weights once (see
            `mistral_jax.runtime.xlora_speculation`). Some rows may sample nothing. Plain and speculative steps may
            alternate in any order. Not for sequences with `freeze_after`: the host would not know when they freeze.
          runs: by slot, tokens that certainly come next, at most `RUN_TOKENS`. The first is the slot's newest token;
            the others are appended, and all are run. Only without `scaling`, and for row buckets in `run_buckets`.
        """
        R = self.row_bucket(active)
        run = None
        if runs:
            run = Run.empty(R)
            for slot, tokens in runs.items():
                run.tokens[slot, : len(tokens)] = tokens
                run.counts[slot] = len(tokens)
            state = self.calls.append(state, R, active, run)().state
        return self.calls.forward(state, R, active, run, longest=longest, scaling=scaling, speculative=speculative)()

    def several(
        self,
        state: RunnerState,
        active: Sequence[int],
        counts: Sequence[int],
        features: Features,
        *,
        longest: int,
    ) -> Stepped:
        """Run several decode steps at once for the slots in `active`, with the results of as many single ones.

        Args:
          state: donated.
          counts: the tokens that each of them gets, at most `SEVERAL`.
          features: see `sample`; without masks.
          longest: the largest number of tokens that any of them holds after its last step.
        Returns: its `packed` is int32 [SEVERAL, R, PACKED_WIDTH], undefined from each row's count on.
        """
        return self.calls.several(state, self.row_bucket(active), active, counts, features, longest=longest)()

    def look_up(
        self,
        state: RunnerState,
        active: Sequence[int],
        counts: Sequence[int],
        features: Features,
        *,
        longest: int,
    ) -> Stepped:
        """Run a step that looks up proposals for the slots in `active`, with the results of as many single ones.

        Args:
          state: donated.
          counts: the most tokens that each of them gets, at most `lookups[rows]`.
          features: see `sample`; without masks.
          longest: the largest number of tokens that any of them holds after it.
        Returns: see `Stepped`; its `emitted` says how many tokens each row got.
        """
        R = self.lookup_rows(active)
        assert R is not None
        looked = self.calls.forward_proposed(state, R, active, counts, K=self.lookups[R], longest=longest)()
        return self.calls.sample_proposed(looked, R, active, features)()

    def sample(
        self,
        forwarded: Forwarded,
        active: Sequence[int],
        features: Features,
        masks: Mapping[int, np.ndarray] | None = None,
    ) -> Stepped:
        """Sample the next token of the slots in `active`, some or all of those that `forward` ran.

        A slot that is left out does not change; `forward` can run it again.

        Args:
          forwarded: its state is donated.
          features: the union of the sampler features that these slots need.
          masks: by slot, the tokens that it may choose, int32 [ceil(V / 32)] (see
            `mistral_jax.grammar.constraint.Constraint.fill`); others may choose any.
        """
        R = forwarded.made.logits.shape[0] // (2 if forwarded.speculative else 1)
        if masks:
            allowed = np.full((R, mask_words(self.config.vocab_size)), -1, np.int32)
            for slot, mask in masks.items():
                allowed[slot] = mask
            features = replace(features, mask=True)
            device_mask = self.placement.put(allowed)
        else:
            device_mask = self.calls.all_allowed(R)
        return self.calls.sample(forwarded, R, active, features, device_mask)()

    def row_bucket(self, active: Sequence[int]) -> int:
        """Number of rows of a step for the slots in `active`."""
        return self.buckets.rows_for(active)

    def warm_up(self, state: RunnerState, progress: Callable[[int, int], None] | None = None) -> RunnerState:
        """Compile every program, and run it once; nothing compiles after that. Then `measure`.

        Args:
          state: donated.
          progress: called with (programs done, total programs).
        Returns: a state equivalent to a new one.
        """
        return self.measure(self._compile_and_run(list(EmptyCalls(self).all()), state, progress))

    def warm_up_first(
        self, state: RunnerState, progress: Callable[[int, int], None] | None = None, *, scaling: bool
    ) -> tuple[RunnerState, CompilingBehind]:
        """Compile the programs that plain completions need, and run each once. The others can be compiled while these
        run; `measure` after that.

        Args:
          state: donated.
          progress: as of `warm_up`, of these programs.
          scaling: whether plain completions use X-LoRA's scaling pass.
        Returns: a state equivalent to a new one; and what compiles the others, not started yet.
        """
        first, others = EmptyCalls(self).first_and_others(scaling=scaling)
        state = self._compile_and_run(first, state, progress)
        return state, CompilingBehind(others, state)

    def _compile_and_run(
        self, calls: Sequence[EmptyCall], state: RunnerState, progress: Callable[[int, int], None] | None
    ) -> RunnerState:
        params = SamplingParams(temperature=0.0, seed=0, logit_bias={0: 0.0}, min_tokens=1, rules=TokenRules())
        state = self.admit(state, 0, (0,), params)
        on_cpu = self.device.platform == "cpu"
        return compile_and_run(calls, state, on_cpu=on_cpu, progress=progress or (lambda done, total: None))

    def measure(self, state: RunnerState) -> RunnerState:
        """Measure how long special forward passes take, beside plain ones: `run_costs`, `lookup_costs`,
        `speculation_costs`. No row changes.

        Args:
          state: donated.
        """
        empty = EmptyCalls(self)
        for rows in self.lookups:
            plain = partial(empty.forward, bucket=self.buckets.rows_for([rows - 1]))
            state, self.lookup_costs[rows] = time_against(partial(empty.look_up, rows=rows), plain, state)
        for bucket in self.buckets.rows:
            if bucket in self.run_buckets:
                state, self.run_costs[bucket] = time_against(
                    partial(empty.forward, bucket=bucket, run=True), partial(empty.forward, bucket=bucket), state
                )
            if self.can_speculate:
                state, self.speculation_costs[bucket] = time_against(
                    partial(empty.forward, bucket=bucket, scaling=True, speculative=True),
                    partial(empty.forward, bucket=bucket, scaling=True),
                    state,
                )
        return state


def _entry(table: Sequence[int], entry: int) -> int:
    return table[entry] if entry < len(table) else SPARE
