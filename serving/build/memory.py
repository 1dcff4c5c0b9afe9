"""How long sequences may be: what weights, adapters, programs and caches need of the memory of the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from conversion.weights.ggml_types import BY_NAME
from mistral_jax.adapters.load_adapters import AdapterFiles, adapter_bytes
from mistral_jax.checkpoint.description import ModelDescription
from mistral_jax.checkpoint.weights import choose_dtype, open_weights, plan_weights, settle_tying
from mistral_jax.model.kv_cache import BLOCK, cache_bytes
from mistral_jax.quant.placement import Placement
from mistral_jax.runtime.buckets import DEFAULT_CHUNKS, cache_sizes
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

    def error(self, cache: int, advice: str) -> ValueError:
        """That a cache of so many bytes does not fit."""
        adapters = f", {self.adapters / _GIB:.1f} of adapters" if self.adapters else ""
        programs = f", {self.temporary / _GIB:.1f} for programs" if self.temporary else ""
        return ValueError(
            f"{self.weights / _GIB:.1f} GiB of weights{adapters}{programs} and a cache for {self.slots} sequences "
            f"({cache / _GIB:.1f}) do not fit into the {self.free / _GIB:.1f} GiB that are free; {advice}"
        )


def sequence_length(
    settings: Settings, description: ModelDescription, placement: Placement, adapters: AdapterFiles | None = None
) -> int:
    """Longest sequence in tokens: `--max-seq-len`, or the model's context, limited by a default and by memory.

    Raises:
      ValueError: `--max-seq-len` is longer than the model's context, or does not fit on a GPU; or not even a short
        sequence fits.
    """
    config = description.config
    longest, wanted = config.max_position_embeddings, settings.max_seq_len
    if wanted is not None and wanted > longest:
        raise ValueError(f"--max-seq-len {wanted}: this model supports a context of at most {longest} tokens")
    on_cpu = placement.platform == "cpu"
    if wanted is not None and on_cpu:
        return wanted
    needs = memory_needs(settings, description, placement, adapters)

    def cache(length: int) -> int:
        return all_cache_bytes(settings, description, placement, adapters, length=length)

    if wanted is not None:
        if cache(wanted) > needs.left:
            raise needs.error(
                cache(wanted), "take fewer slots (--max-seqs), shorter sequences (--max-seq-len) or --quant q4_k"
            )
        return wanted
    most = min(longest, LONGEST_BY_DEFAULT["cpu" if on_cpu else "gpu"])
    room = int(needs.left * _CACHE_SHARE_OF_CPU) if on_cpu else needs.left
    itemsize = _dtype(settings, description, placement).itemsize
    per_token = caches_of(adapters) * config.kv_bytes_per_token(itemsize) * max(settings.max_seqs, 2)
    length = min(most, max(room // per_token // BLOCK * BLOCK, 0))
    if length < min(2 * BLOCK, longest):
        raise needs.error(
            cache(min(2 * BLOCK, longest)),
            "take fewer slots (--max-seqs), smaller weights (--quant q4_k), or set --max-seq-len yourself",
        )
    return length


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
        planned = plan_weights(
            settle_tying(config, source),
            source,
            dtype=dtype,
            quant=settings.quant,
            in_groups=placement.is_one_gpu,
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


def all_cache_bytes(
    settings: Settings,
    description: ModelDescription,
    placement: Placement,
    adapters: AdapterFiles | None,
    *,
    length: int,
) -> int:
    """Bytes of the caches for sequences of at most `length` tokens."""
    dtype = _dtype(settings, description, placement)
    sizes = cache_sizes(slots=settings.max_seqs, length=length, chunks=chunk_sizes(settings))
    return caches_of(adapters) * cache_bytes(description.config, **sizes, dtype=dtype)


def caches_of(adapters: AdapterFiles | None) -> int:
    """Number of KV caches: X-LoRA's two passes have one each."""
    return 1 if adapters is None or adapters.xlora is None else 2


def chunk_sizes(settings: Settings) -> tuple[int, ...]:
    """Lengths of prefill chunks: `--prefill-chunk`, and the default ones below it for the rest of a prompt."""
    longest = settings.prefill_chunk
    if longest is None:
        return DEFAULT_CHUNKS
    return (*(size for size in DEFAULT_CHUNKS if size < longest), longest)
