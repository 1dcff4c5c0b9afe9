"""Logits of models over several CPU devices beside those of one, printed as JSON. In a process of its own: the number
of CPU devices is settled when JAX starts.

    XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m tests.mistral_jax.quant.over_four_devices \
        '[{"sizes": {…}, "dtype": "float32"}]'
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conversion.weights.decoder_weights import parameters
from mistral_jax.adapters.bank import AdapterSet
from mistral_jax.checkpoint.weights import hf_tensors, load_weights
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.kv_cache import KVCache
from mistral_jax.model.low_rank import AdapterBank, Mixture
from mistral_jax.model.mistral import Mistral
from mistral_jax.quant.array import SplitRows, Weight
from mistral_jax.quant.placement import Placement
from mistral_jax.quant.plan import Quantization
from mistral_jax.quant.product import matmul
from tests.conversion.arrays import Arrays
from tests.mistral_jax.tiny_adapters import CONFIG, LORAS

PROMPT, STEPS = 7, 3
_jit = partial(jax.jit, compiler_options={"xla_allow_excess_precision": False})
"""As the runner's programs are compiled."""


def tensors_of(config: MistralConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {
        name: rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5 if len(shape) > 1 else 0.1)
        for parameter in parameters(config, num_layers=config.num_layers)
        for name, shape in parameter.tensors
    }
    return {name: array + np.float32("norm" in name) for name, array in found.items()}


def logits_of(model: Mistral, placement: Placement, bank: AdapterBank | None) -> np.ndarray:
    """Of a prompt and some tokens after it, through the cache: [B, PROMPT + STEPS, V]."""
    config = model.config
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (2, PROMPT + STEPS), np.int32)
    make = partial(KVCache.allocate, config, slots=2, length=128, chunk=16, dtype=model.dtype)
    allocate = jax.jit(make, out_shardings=jax.eval_shape(make).places(placement))
    graphdef, state = nnx.split(model)

    @_jit
    def run(
        state: Any, cache: KVCache, tokens: jax.Array, positions: jax.Array, bank: AdapterBank | None
    ) -> tuple[jax.Array, KVCache]:
        model = nnx.merge(graphdef, state)
        weights = jnp.asarray([0.5, 0.3, 0.2]).reshape(1, 1, 1, -1)
        view = cache.view(jnp.arange(2), positions=positions, valid=jnp.ones(tokens.shape, bool))
        mixture = None if bank is None else Mixture(bank=bank, weights=weights)
        hidden, cache = model(tokens, cache, view, mixture)
        return model.logits(hidden), cache

    cache, found = allocate(), []
    for start, stop in [(0, PROMPT), *((at, at + 1) for at in range(PROMPT, PROMPT + STEPS))]:
        positions = np.broadcast_to(np.arange(start, stop, dtype=np.int32), (2, stop - start))
        logits, cache = run(state, cache, tokens[:, start:stop], positions, bank)
        found.append(np.asarray(logits))
        keys = cache.layers[0].keys
        kept = config.num_kv_heads // (placement.count if placement.divides(config.num_kv_heads) else 1)
        assert keys.sharding.shard_shape(keys.shape)[1] == kept, "the cache is not divided as it was allocated"
    return np.concatenate(found, axis=1)


def _weights(model: Mistral) -> dict[str, Weight]:
    return {".".join(map(str, path)): value.get_value() for path, value in nnx.to_flat_state(nnx.state(model))}


def _same_product(one: Weight, many: Weight, dtype: str) -> bool:
    """Whether the product with a weight has the same bits where it is divided."""
    rng = np.random.default_rng(2)
    found = []
    for rows in (PROMPT, 1):
        x = np.asarray(rng.standard_normal((2, rows, one.shape[1])), jnp.dtype(dtype))
        found.append(np.array_equal(_jit(matmul)(x, one), _jit(matmul)(x, many)))
    return all(found)


def compare(
    dtype: str,
    sizes: dict[str, Any] | None = None,
    quant: Quantization = "none",
    devices: int = 4,
    adapters: bool = False,
) -> dict[str, Any]:
    """A model over so many devices beside the same one on one device."""
    config = CONFIG if sizes is None else MistralConfig(**sizes)
    source = Arrays(tensors_of(config))
    places = [Placement(tuple(jax.devices("cpu")[:count])) for count in (1, devices)]
    one, many = (
        load_weights(config, source, dtype=dtype, quant=quant, activations="float", placement=place) for place in places
    )
    banks: list[AdapterBank | None] = [None, None]
    if adapters:
        banks = [AdapterSet(config, LORAS, dtype=dtype, placement=place).bank for place in places]
    here, there = (logits_of(model, place, bank) for model, place, bank in zip((one, many), places, banks, strict=True))
    divided = {name: weight for name, weight in _weights(many).items() if isinstance(weight, SplitRows)}
    saved = [hf_tensors(model) for model in (one, many)]
    return {
        "divided": sorted({name.split(".")[-2] for name in divided}),
        "equal": bool(np.array_equal(here, there)),
        "largest": float(np.max(np.abs(here - there)) / np.max(np.abs(here))),
        "same products": all(_same_product(_weights(one)[name], weight, dtype) for name, weight in divided.items()),
        "saved": all(np.array_equal(saved[0][name], saved[1][name]) for name in saved[0]),
        "held": sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(nnx.state(many))
            for shard in leaf.addressable_shards
            if shard.device == places[1].device
        )
        / sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(one))),
    }


if __name__ == "__main__":
    print(json.dumps([compare(**case) for case in json.loads(sys.argv[1])]))
