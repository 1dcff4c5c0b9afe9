"""How long sequences may be: what weights, adapters, programs and caches need of the memory of the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from conversion.weights.ggml_types import BY_NAME
from mistral_jax.adapters.load_adapters import AdapterFiles, adapter_bytes
from mistral_jax.checkpoint.description import ModelDescription
from mistral_jax.checkpoint.weights import choose_dtype, open_weights, plan_weights, settle_tying
from mistral_jax.model.kv_cache import block_bytes, own_blocks
from mistral_jax.model.table_kinds import BLOCK
from mistral_jax.quant.placement import Placement
from mistral_jax.runtime.buckets import DEFAULT_CHUNKS, cache_rows, cache_sizes
from mistral_jax.runtime.device_memory import temporary_bytes
from serving.settings.settings import Settings

LONGEST_BY_DEFAULT = {"cpu": 4096, "gpu": 32768}
"""Longest sequence in tokens if `max_seq_len` is not set; less if memory does not allow it."""

_CACHE_SHARE_OF_CPU = 0.5
"""Fraction of the memory left by the weights that caches may take on a CPU, which other programs need as well, if
`max_seq_len` is not set."""

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class MemoryNeeds:
    """Bytes on the device."""

    free: int
    """Before anything is loaded."""
    weights: int
    adapters: int
    """The X-LoRA classifier and the room for further adapters included."""
    temporary: int
    """Of the largest program, at most; on a GPU. On a CPU it is not counted."""
    slots: int

    @property
    def left(self) -> int:
        """For caches; may be negative."""
        return self.free - self.weights - self.adapters - self.temporary

    def error(self, cache: int, sequences: int, advice: str) -> ValueError:
        """That a cache of so many bytes, for so many sequences, does not fit."""
        adapters = f", {self.adapters / _GIB:.1f} of adapters" if self.adapters else ""
        programs = f", {self.temporary / _GIB:.1f} for programs" if self.temporary else ""
        whose = "one sequence" if sequences == 1 else f"{sequences} sequences"
        return ValueError(
            f"{self.weights / _GIB:.1f} GiB of weights{adapters}{programs} and a cache for {whose} "
            f"({cache / _GIB:.1f}) do not fit into the {self.free / _GIB:.1f} GiB that are free; {advice}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CachePlan:
    """The KV cache of a runner."""

    length: int
    """Longest sequence in tokens."""
    blocks: tuple[int, ...]
    """For each kind of table, the blocks of its pools, the spare one included."""
    nbytes: int
    """Of all caches."""


def plan_cache(
    settings: Settings,
    description: ModelDescription,
    placement: Placement,
    adapters: AdapterFiles | None = None,
    *,
    shared: bool = True,
) -> CachePlan:
    """How long sequences may be, and how many blocks the cache has.

    Sequences are at most `--max-seq-len` tokens long, by default the model's context, limited by a default and by
    memory. There are as many blocks as all slots can fill, or fewer if memory does not allow it; or what
    `--cache-memory` says.

    Args:
      shared: whether slots share the blocks; else each has its own, for its longest sequence.
    Raises:
      ValueError: `--max-seq-len` is longer than the model's context, or not even one sequence finds room.
    """
    sizes = _Sizes(settings, description, placement, adapters, shared=shared)
    longest, wanted = description.config.max_position_embeddings, settings.max_seq_len
    if wanted is not None and wanted > longest:
        raise ValueError(f"--max-seq-len {wanted}: this model supports a context of at most {longest} tokens")
    on_cpu = placement.platform == "cpu"
    if wanted is not None and on_cpu and settings.cache_memory is None:
        return sizes.plan(wanted, None)
    needs = memory_needs(settings, description, placement, adapters)
    room = int(needs.left * _CACHE_SHARE_OF_CPU) if on_cpu else needs.left
    sequences = 1 if shared else cache_rows(settings.max_seqs)
    if settings.cache_memory is not None:
        asked = int(settings.cache_memory * _GIB)
        if not on_cpu and asked > needs.left:
            raise needs.error(asked, sequences, "take a smaller cache (--cache-memory) or --quant q4_k")
        room = asked
    most = wanted or min(longest, LONGEST_BY_DEFAULT["cpu" if on_cpu else "gpu"])
    least = wanted or min(2 * BLOCK, longest)
    length = most if sizes.least(most) <= room else _longest(sizes.least, room, most)
    if length < least:
        if settings.cache_memory is not None:
            raise ValueError(
                f"--cache-memory {settings.cache_memory:g}: a sequence of {least} tokens takes "
                f"{sizes.least(least) / _GIB:.3f} GiB; give at least so much, or shorten sequences (--max-seq-len)"
            )
        advice = "take shorter sequences (--max-seq-len) or smaller weights (--quant q4_k)"
        if wanted is None:
            advice = "take smaller weights (--quant q4_k), or set --max-seq-len yourself"
        raise needs.error(sizes.least(least), sequences, advice)
    return sizes.plan(length, room if settings.cache_memory is not None else min(room, sizes.own(length)))


def _longest(least: Callable[[int], int], room: int, most: int) -> int:
    """The longest sequence of whole blocks that finds room."""
    low, high = 0, -(-most // BLOCK)
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if least(middle * BLOCK) <= room else (low, middle)
    return low * BLOCK


class _Sizes:
    """Bytes of caches. Args: see `plan_cache`."""

    def __init__(
        self,
        settings: Settings,
        description: ModelDescription,
        placement: Placement,
        adapters: AdapterFiles | None,
        *,
        shared: bool,
    ) -> None:
        self._config = description.config
        self._dtype = _dtype(settings, description, placement)
        self._chunks = chunk_sizes(settings)
        self._slots, self._shared, self._caches = settings.max_seqs, shared, caches_of(adapters)

    def _of(self, length: int, slots: int) -> tuple[list[int], list[int]]:
        """For each kind of table: blocks that all slots fill, and bytes of each."""
        sizes = cache_sizes(slots=slots, length=length, chunks=self._chunks)
        counts = [count - 1 for count in own_blocks(self._config, **sizes)]
        if slots == 1:
            counts = [count // cache_rows(1) for count in counts]
        bytes_of = block_bytes(self._config, length=length, chunk=sizes["chunk"], dtype=self._dtype)
        return counts, [self._caches * each for each in bytes_of]

    def own(self, length: int) -> int:
        """Bytes that all slots can fill."""
        return _bytes(*self._of(length, max(self._slots, 2)))

    def least(self, length: int) -> int:
        """Bytes with which sequences of this length can run at all."""
        return _bytes(*self._of(length, 1)) if self._shared else self.own(length)

    def plan(self, length: int, room: int | None) -> CachePlan:
        """Args:
        room: bytes to fill; None: as many as all slots can.
        """
        counts, sizes = self._of(length, max(self._slots, 2))
        one, _ = self._of(length, 1)
        if room is not None and self._shared:
            share = (room - sum(sizes)) / sum(count * size for count, size in zip(counts, sizes, strict=True))
            counts = [max(least, int(count * share)) for least, count in zip(one, counts, strict=True)]
        return CachePlan(length=length, blocks=tuple(count + 1 for count in counts), nbytes=_bytes(counts, sizes))


def _bytes(counts: Sequence[int], sizes: Sequence[int]) -> int:
    """Of pools with so many blocks and the spare one."""
    return sum((count + 1) * size for count, size in zip(counts, sizes, strict=True))


def memory_needs(
    settings: Settings, description: ModelDescription, placement: Placement, adapters: AdapterFiles | None
) -> MemoryNeeds:
    config = description.config
    temporary = 0
    if placement.platform != "cpu":
        ranks = 0 if adapters is None else sum(lora.rank for lora in adapters.loras)
        temporary = temporary_bytes(
            config,
            slots=settings.max_seqs,
            chunks=chunk_sizes(settings),
            itemsize=_dtype(settings, description, placement).itemsize,
            rank_rows=ranks + settings.room_for_loras * settings.max_lora_rank,
            layerwise=adapters is not None and adapters.xlora is not None,
        )
    return MemoryNeeds(
        free=placement.free_memory(),
        weights=weight_bytes(settings, description, placement),
        adapters=bytes_of_adapters(settings, description, placement, adapters),
        temporary=temporary,
        slots=settings.max_seqs,
    )


def _dtype(settings: Settings, description: ModelDescription, placement: Placement) -> np.dtype:
    """Of activations, plain weights and caches."""
    return choose_dtype(settings.dtype, description.config.dtype, placement.platform)


def weight_bytes(settings: Settings, description: ModelDescription, placement: Placement) -> int:
    """Bytes of the weights on the device: exact if the files are local, else computed from the configuration."""
    files, config = description.files, description.config
    dtype = _dtype(settings, description, placement)
    if files.repo_id is None or files.gguf is not None:
        source = open_weights(config, files.fetch_weights())
        config = settle_tying(config, source)
        planned = plan_weights(
            config,
            source,
            dtype=dtype,
            quant=settings.quant,
            activations=settings.activations,
            placement=placement,
        )
        return sum(weight.nbytes for weight in planned)
    if settings.quant in ("none", "auto"):
        return config.num_parameters * dtype.itemsize
    bits = 8 if settings.quant == "int8" else BY_NAME[settings.quant.upper()].bits_per_weight
    return int(config.num_parameters * bits / 8)


def bytes_of_adapters(
    settings: Settings, description: ModelDescription, placement: Placement, adapters: AdapterFiles | None
) -> int:
    """Bytes on the device of the adapters, the X-LoRA classifier, and the room for further adapters."""
    if adapters is None:
        return 0
    dtype = _dtype(settings, description, placement)
    return adapter_bytes(adapters, dtype=dtype, spare=settings.room_for_loras, spare_rank=settings.max_lora_rank)


def caches_of(adapters: AdapterFiles | None) -> int:
    """Number of KV caches: X-LoRA's two passes have one each."""
    return 1 if adapters is None or adapters.xlora is None else 2


def chunk_sizes(settings: Settings) -> tuple[int, ...]:
    """Lengths of prefill chunks: `--prefill-chunk`, and the default ones below it for the rest of a prompt."""
    longest = settings.prefill_chunk
    if longest is None:
        return DEFAULT_CHUNKS
    return (*(size for size in DEFAULT_CHUNKS if size < longest), longest)
