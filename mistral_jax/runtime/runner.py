"""The single owner of compiled programs: which shapes exist, when they are compiled, and which one a call uses.

A `Runner` holds a model and says how to run it; a `RunnerState` holds the sequences. Notebooks, the `generate` loop and
the server's engine all drive the same runner:

    runner = Runner(model, slots=8, length=2048)
    state = runner.new_state()
    state = runner.admit(state, slot, prompt, params)
    for chunk in runner.chunks(len(prompt)):
        state = runner.prefill(state, slot, prompt, chunk).state
    state, packed, *_ = runner.decode(state, active_slots, features, longest=tokens_held)   # [R, PACKED_WIDTH], on the
    device

Every call is asynchronous: arrays come back before they are computed, and reading them waits. States are donated.

With adapters, `admit` says which of them a sequence uses, and `prefill` and `decode` whether X-LoRA's scaling pass is
to be run; they then return the weights that it led to as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from mistral_jax.adapters.bank import AdapterSet
from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.adapters.xlora import XLoRA
from mistral_jax.model.kv_cache import BLOCK, KVCache, layer_lengths, stored_head_dim
from mistral_jax.model.low_rank import AdapterBank
from mistral_jax.model.mistral import Mistral
from mistral_jax.placement import Placement
from mistral_jax.runtime import step
from mistral_jax.runtime.ahead import decode_ahead
from mistral_jax.runtime.mixing import AdaptedModel, Caches, MixingRows, RowMixing
from mistral_jax.runtime.sampling import Features, recent_tokens, row_scalars, seed_words
from mistral_jax.runtime.sampling_params import SamplingParams
from mistral_jax.runtime.warm_up import warm_up

DEFAULT_CHUNKS = (16, 64, 256)

SCORE_CHUNK = 64
"""Most tokens of a chunk that is scored: it needs room for the logits of all its tokens."""

_COMPILER_OPTIONS = {"xla_allow_excess_precision": False}
"""By default XLA may leave out a rounding to bfloat16 between two operations that it fuses, and what it fuses differs
from program to program: a row would have other bits in one than in another."""

_Extra = tuple[list[jax.Array], list[jax.Array]]
"""Arguments of the programs beside the model's weights: the arrays of the adapters, and the weights of the
classifier."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of a prompt to prefill: positions `start` to `start + count - 1`, padded to `size`."""

    start: int
    count: int
    size: int
    score: bool = False
    """Whether the log-probabilities of the tokens from `start + 1` on are wanted, each given those before it."""


@dataclass(frozen=True, slots=True)
class RunnerState:
    """All sequences: caches and rows. Donated by every call that takes it."""

    caches: Caches
    rows: step.Rows


class Stepped(NamedTuple):
    """What a decode step gives."""

    state: RunnerState
    packed: jax.Array
    """int32 [R, PACKED_WIDTH], a row for each slot from 0 on; see `mistral_jax.runtime.sampling.unpack`."""
    weights: jax.Array | None = None
    """float32 [R, M, A]: of the adapters, where the scaling pass was run."""
    emitted: jax.Array | None = None
    """bool [R]: the rows that sampled a token; None: all that were active."""


class Call[R](NamedTuple):
    """A jitted program with its arguments: calling it runs it, lowering it is the first half of compiling it."""

    program: Any
    arguments: tuple[Any, ...]
    static: dict[str, Any]
    result: Callable[..., R]
    """Makes something of the program's outputs."""

    def __call__(self) -> R:
        return self.result(*self.program(*self.arguments, **self.static))

    def lower(self) -> jax.stages.Lowered:
        return self.program.lower(*self.arguments, **self.static)


class Prefilled(NamedTuple):
    """What a prefill chunk gives."""

    state: RunnerState
    done: jax.Array
    """A scalar that is ready when the chunk has run."""
    weights: jax.Array | None = None
    """float32 [T, M, A]: of the adapters, where the scaling pass was run."""
    scores: jax.Array | None = None
    """int32 [T, PACKED_WIDTH] of a chunk that is scored (see `mistral_jax.runtime.sampling.unpack`): row i is of token
    `start + i + 1`."""


class Runner:
    """Compiled programs for one model at fixed shapes.

    Args:
      model: its weights stay where they are and are shared.
      slots: most sequences at once.
      length: most tokens of a sequence, prompt and answer together; rounded up to whole key blocks inside.
      chunks: lengths of prefill chunks, ascending; a prompt is cut into the longest ones and its rest padded to the
        shortest that fits. Chunks of a prompt depend on nothing but its length.
      repeat_last_n: how many tokens the repetition penalty looks back at.
      row_buckets: numbers of rows that decode steps are compiled for, ascending, the last >= slots; None chooses by
        platform: on a GPU one (all slots), on a CPU a few (weights are read at the speed of memory for 2 rows and for 8
          alike, but not for 32).
      block_buckets: numbers of key blocks that programs are compiled for; None chooses by platform: none on a CPU (the
        loop form of attention takes any), powers of two on a GPU.
      adapters: what may be mixed into the model; shared, and read anew at every call.
      xlora: the classifier over the first of the adapters.
      keep_cache: False computes all earlier tokens anew in every decode step (slow; nothing in the caches is used
        again).
    """

    def __init__(
        self,
        model: Mistral,
        *,
        slots: int,
        length: int,
        chunks: Sequence[int] = DEFAULT_CHUNKS,
        repeat_last_n: int = 64,
        row_buckets: Sequence[int] | None = None,
        block_buckets: Sequence[int] | None = None,
        adapters: AdapterSet | None = None,
        xlora: XLoRA | None = None,
        keep_cache: bool = True,
    ) -> None:
        if xlora is not None and (adapters is None or adapters.capacity < xlora.num_experts):
            raise ValueError(f"X-LoRA over {xlora.num_experts} experts needs a bank that holds them")
        if slots < 1 or length < 2:
            raise ValueError(
                f"slots is {slots} and length is {length}; expected at least one slot of at least two tokens"
            )
        if repeat_last_n < 0:
            raise ValueError(f"repeat_last_n is {repeat_last_n}; expected 0 (off) or a number of tokens")
        self.config = model.config
        self.length = length
        self.repeat_last_n = min(repeat_last_n, length)
        self.chunk_sizes = tuple(sorted({min(size, _ceil(length, 16)) for size in chunks}))
        if self.chunk_sizes[0] < 2:
            raise ValueError("a prefill chunk needs at least two tokens: a single row has other bits on a CPU")
        self.score_size = max((size for size in self.chunk_sizes if size <= SCORE_CHUNK), default=self.chunk_sizes[0])
        """The one size of chunks that are scored."""
        self.slots = slots
        # A decode step runs at least two rows (see `mistral_jax.quant.dot.dot`); an idle second slot costs nothing but
        # memory.
        self._rows = max(slots, 2)
        self.split = step.SplitModel.of(model)
        self.adapters = adapters
        self.xlora = xlora
        self._bank: AdapterBank | None = None
        self._bank_arrays: list[jax.Array] = []
        self._bank_tree = None if adapters is None else jax.tree.structure(adapters.bank)
        self._xlora_split = None if xlora is None else step.SplitModel.of(xlora)
        self.keeps_cache = keep_cache
        """Whether tokens of earlier steps are read from the caches; else they are computed anew."""
        self.ahead_costs: dict[int, float] = {}
        """Time of a step ahead in steps of two passes, by number of rows; measured by `warm_up`."""
        self.dtype = model.dtype
        self.placement = Placement.of(self.split.weights)
        self.device = self.placement.device
        on_cpu = self.placement.platform == "cpu"
        self.row_buckets = tuple(row_buckets) if row_buckets else _row_buckets(self._rows) if on_cpu else (self._rows,)
        if block_buckets is None:
            blocks = max(layer_lengths(self.config, length=length, chunk=self.chunk_sizes[-1])) // BLOCK
            block_buckets = () if on_cpu else _powers_of_two(blocks)
        self.block_buckets = tuple(block_buckets)
        # Placed explicitly: an array that only happens to lie on the device compiles to another program than one that
        # was put there, so the first calls after warm-up would compile again.
        heads = KVCache.HEAD_AXIS if self.placement.divides(self.config.num_kv_heads) else None
        places = (self.placement.sharding(heads), self.placement.sharding())
        self._allocate = jax.jit(self._allocate_program, out_shardings=places)
        self._admit = jax.jit(step.admit, donate_argnums=0)
        self._set_bias = jax.jit(step.set_bias, donate_argnums=0)
        static = ("num_blocks", "scaling")
        jit = partial(jax.jit, compiler_options=_COMPILER_OPTIONS)
        self._prefill = jit(self._prefill_program, donate_argnums=2, static_argnames=static)
        self._score = jit(self._score_program, donate_argnums=2, static_argnames=static)
        self._decode = jit(self._decode_program, donate_argnums=(2, 3), static_argnames=static)
        self._decode_ahead = jit(self._ahead_program, donate_argnums=(2, 3), static_argnames="num_blocks")

    def _adapted(self, weights: list[jax.Array], extra: _Extra) -> AdaptedModel:
        """The model round traced weights."""
        return AdaptedModel(
            model=self.split.merge(weights),
            bank=None if self._bank_tree is None else jax.tree.unflatten(self._bank_tree, extra[0]),
            adapters=0 if self.adapters is None else self.adapters.capacity,
            xlora=None if self._xlora_split is None else self._xlora_split.merge(extra[1]),
        )

    def _extra(self) -> _Extra:
        """As plain lists, which a call passes on in microseconds; taken anew whenever the bank was replaced."""
        if self.adapters is not None and self._bank is not self.adapters.bank:
            self._bank = self.adapters.bank
            self._bank_arrays = jax.tree.leaves(self._bank)
        return self._bank_arrays, [] if self._xlora_split is None else self._xlora_split.weights

    def _prefill_program(
        self, weights: list[jax.Array], extra: _Extra, caches: Caches, *args: Any, num_blocks: int | None, scaling: bool
    ) -> tuple[Caches, jax.Array, jax.Array | None]:
        return step.prefill(self._adapted(weights, extra), caches, *args, num_blocks=num_blocks, scaling=scaling)

    def _score_program(
        self, weights: list[jax.Array], extra: _Extra, caches: Caches, *args: Any, num_blocks: int | None, scaling: bool
    ) -> tuple[Caches, jax.Array, jax.Array]:
        return step.score(self._adapted(weights, extra), caches, *args, num_blocks=num_blocks, scaling=scaling)

    def _decode_program(
        self,
        weights: list[jax.Array],
        extra: _Extra,
        caches: Caches,
        rows: step.Rows,
        *args: jax.Array,
        num_blocks: int | None,
        scaling: bool,
    ) -> tuple[Caches, step.Rows, jax.Array, jax.Array | None]:
        return step.decode(
            self._adapted(weights, extra),
            caches,
            rows,
            *args,
            num_blocks=num_blocks,
            repeat=self.repeat_last_n > 0,
            scaling=scaling,
            rerun=None if self.keeps_cache else self.chunk_sizes[-1],
        )

    def _ahead_program(
        self,
        weights: list[jax.Array],
        extra: _Extra,
        caches: Caches,
        rows: step.Rows,
        *args: jax.Array,
        num_blocks: int | None,
    ) -> tuple[Caches, step.Rows, jax.Array, jax.Array, jax.Array]:
        return decode_ahead(
            self._adapted(weights, extra),
            caches,
            rows,
            *args,
            num_blocks=num_blocks,
            repeat=self.repeat_last_n > 0,
            length=self.length,
        )

    @property
    def can_run_ahead(self) -> bool:
        """Whether `decode` takes `ahead`."""
        return self.xlora is not None and self.keeps_cache

    @property
    def model(self) -> Mistral:
        """The module, round the very weights that the programs use."""
        return self.split.merge(self.split.weights)

    @property
    def weight_bytes(self) -> int:
        return sum(x.nbytes for x in self.split.weights)

    def cache_bytes(self) -> int:
        """Bytes of the KV caches that `new_state` allocates."""
        lengths = layer_lengths(self.config, length=self.length, chunk=self.chunk_sizes[-1])
        return (
            (1 if self.xlora is None else 2)
            * 2
            * self._rows
            * sum(lengths)
            * self.config.num_kv_heads
            * stored_head_dim(self.config)
            * self.dtype.itemsize
        )

    def new_state(self) -> RunnerState:
        """Allocate an empty cache and empty rows on the model's device."""
        return RunnerState(*self._allocate())

    def _allocate_program(self) -> tuple[Caches, step.Rows]:
        def cache() -> KVCache:
            chunk = self.chunk_sizes[-1]
            return KVCache.allocate(self.config, slots=self._rows, length=self.length, chunk=chunk, dtype=self.dtype)

        mixing = ahead = None
        if self.adapters is not None:
            columns = 1 if self.xlora is None else self.xlora.columns.count
            sizes = {"slots": self._rows, "columns": columns, "adapters": self.adapters.capacity}
            mixing = MixingRows.allocate(**sizes)
            ahead = step.AheadRows.allocate(**sizes) if self.can_run_ahead else None
        return (
            Caches(cache(), None if self.xlora is None else cache()),
            step.Rows.allocate(
                self.config,
                slots=self._rows,
                repeat_last_n=self.repeat_last_n,
                mixing=mixing,
                ahead=ahead,
                history=None if self.keeps_cache else self.length,
            ),
        )

    def chunks(self, prompt_length: int, *, score: bool = False) -> Iterator[Chunk]:
        """The chunks of a prompt: all its tokens but the last, which the first decode step runs.

        None at all where nothing is kept in the cache (every decode step computes the prompt anew), unless they are
        scored.

        Args:
          score: whether the prompt's log-probabilities are wanted.
        """
        if score:
            for start in range(0, prompt_length - 1, self.score_size):
                yield Chunk(start, min(prompt_length - 1 - start, self.score_size), self.score_size, score=True)
            return
        start, stop = 0, prompt_length - 1 if self.keeps_cache else 0
        while start < stop:
            left = stop - start
            size = next((size for size in self.chunk_sizes if size >= left), self.chunk_sizes[-1])
            yield Chunk(start, min(left, size), size)
            start += size

    def admit(
        self,
        state: RunnerState,
        slot: int,
        prompt: Sequence[int],
        params: SamplingParams,
        choice: AdapterChoice = BASE,
    ) -> RunnerState:
        """Give `slot` to a new sequence. Its chunks are to be prefilled before it takes part in a decode step.

        Args:
          choice: which adapters it uses.
        Raises:
          ValueError: the prompt is empty, or leaves no room for the answer that is wanted, or `params.seed` is not set,
            or the runner has not the adapters that are chosen.
        """
        most = self.length if params.max_tokens == 0 else self.length - 1
        if not 0 < len(prompt) <= most:
            raise ValueError(f"a prompt of {len(prompt)} tokens: expected 1 to {most}, to leave room for an answer")
        if params.seed is None:
            raise ValueError("params.seed is None: choose a seed before admitting a sequence")
        window = max(self.repeat_last_n, 1)
        history = None
        if not self.keeps_cache:
            history = np.zeros((self.length,), np.int32)
            history[: len(prompt)] = prompt
        rows = self._admit(
            state.rows,
            np.int32(slot),
            np.int32(prompt[-1]),
            np.int32(len(prompt) - 1),
            row_scalars(params),
            np.int32(min(params.top_k, self.config.vocab_size)),
            seed_words(params.seed),
            recent_tokens(tuple(prompt), window, self.config.vocab_size),
            self._row_mixing(choice, len(prompt)),
            history,
        )
        if params.logit_bias:
            bias = np.zeros((self.config.vocab_size,), np.float32)
            bias[list(params.logit_bias.keys())] = list(params.logit_bias.values())
            rows = self._set_bias(rows, np.int32(slot), bias)
        return RunnerState(state.caches, rows)

    def _row_mixing(self, choice: AdapterChoice, prompt_length: int) -> RowMixing | None:
        capacity = 0 if self.adapters is None else self.adapters.capacity
        if choice.xlora and self.xlora is None:
            raise ValueError("X-LoRA was chosen, and this runner has no classifier")
        if choice.freeze_after is not None and not self.keeps_cache:
            raise ValueError("freeze_after needs the caches: what was computed before is not computed again")
        if any(not 0 <= number < capacity for number, _ in choice.weights):
            raise ValueError(f"{choice.weights}: expected adapters by number, from 0 to {capacity - 1}")
        return None if self.adapters is None else RowMixing.of(choice, capacity, prompt_length)

    def prefill(
        self, state: RunnerState, slot: int, prompt: Sequence[int], chunk: Chunk, *, scaling: bool = False
    ) -> Prefilled:
        """Run one chunk of `prompt` in `slot`.

        Args:
          scaling: whether the sequence was admitted with X-LoRA.
        """
        after = int(chunk.score)
        tokens = np.zeros((chunk.size + after,), np.int32)
        tokens[: chunk.count + after] = prompt[chunk.start : chunk.start + chunk.count + after]
        where = {"start": chunk.start, "count": chunk.count}
        return self.prefill_call(state, slot, tokens, **where, scaling=scaling, score=chunk.score)()

    def prefill_call(
        self,
        state: RunnerState,
        slot: int,
        tokens: np.ndarray,
        *,
        start: int,
        count: int,
        scaling: bool,
        score: bool = False,
    ) -> Call[Prefilled]:
        """The call that runs the first `count` of `tokens`, int32 [a chunk's size], at positions from `start` on.

        Args:
          score: tell the log-probabilities; `tokens` is then `score_size` long and one more, the token after the chunk.
        """
        return Call(
            self._score if score else self._prefill,
            (
                self.split.weights,
                self._extra(),
                state.caches,
                state.rows.mixing,
                np.int32(slot),
                tokens,
                np.int32(start),
                np.int32(count),
            ),
            # One length for all that are scored: they are few, and each length is a program.
            {"num_blocks": self._blocks(self.length if score else start + count), "scaling": scaling},
            lambda caches, done, other: Prefilled(
                RunnerState(caches, state.rows), done, None if score else other, other if score else None
            ),
        )

    def decode(
        self,
        state: RunnerState,
        active: Sequence[int],
        features: Features,
        *,
        longest: int,
        scaling: bool = False,
        ahead: bool = False,
    ) -> Stepped:
        """Run one step for the slots in `active`.

        Args:
          features: what these slots need of the sampler.
          longest: most tokens that one of them will hold after the step.
          scaling: whether one of them was admitted with X-LoRA, and its weights are not frozen yet.
          ahead: run the scaling pass ahead, of guessed tokens, so that a step reads the weights once: see
            `mistral_jax.runtime.ahead`. Then some rows may sample nothing. Steps of both kinds may follow each other in
            any order. Not for sequences whose weights are to be frozen: when that is, would not be known on the host.
        """
        mask = np.zeros((self.row_bucket(active),), np.bool_)
        mask[list(active)] = True
        return self.decode_call(state, mask, features, longest=longest, scaling=scaling, ahead=ahead)()

    def row_bucket(self, active: Sequence[int]) -> int:
        """How many rows a step for the slots in `active` runs."""
        return next(size for size in self.row_buckets if size > max(active))

    def decode_call(
        self,
        state: RunnerState,
        mask: np.ndarray,
        features: Features,
        *,
        longest: int,
        scaling: bool,
        ahead: bool = False,
    ) -> Call[Stepped]:
        """The call that runs a step for the rows in `mask`, bool [one of the row buckets]."""
        arguments = (self.split.weights, self._extra(), state.caches, state.rows, mask, features.as_array())
        if ahead:
            # The guess is one token further.
            static = {"num_blocks": self._blocks(min(longest + 1, self.length))}
            return Call(self._decode_ahead, arguments, static, _stepped)
        return Call(self._decode, arguments, {"num_blocks": self._blocks(longest), "scaling": scaling}, _stepped)

    def _blocks(self, length: int) -> int | None:
        if not self.block_buckets:
            return None
        needed = -(-length // BLOCK)
        return next((blocks for blocks in self.block_buckets if blocks >= needed), self.block_buckets[-1])

    def warm_up(self, state: RunnerState, progress: Callable[[int, int], None] | None = None) -> RunnerState:
        """Compile every program, and run it once; nothing compiles after that. Returns a state as good as new.

        Args:
          progress: called with (programs done, programs in all).
        """
        return warm_up(self, state, progress or (lambda done, total: None))


def _stepped(caches: Caches, rows: step.Rows, *others: Any) -> Stepped:
    return Stepped(RunnerState(caches, rows), *others)


def _ceil(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _row_buckets(rows: int) -> tuple[int, ...]:
    buckets = [2]
    while buckets[-1] < rows:
        buckets.append(min(buckets[-1] * 4, rows))
    return tuple(buckets)


def _powers_of_two(blocks: int) -> tuple[int, ...]:
    buckets = [min(2, blocks)]
    while buckets[-1] < blocks:
        buckets.append(min(buckets[-1] * 2, blocks))
    return tuple(buckets)
