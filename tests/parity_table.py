"""How close our logits come to the reference implementation's, for every golden of `tests/goldens/parity`.

    python -m tests.parity_table

prints a Markdown table; `tests/mistral_jax/model/test_parity.py` holds the same numbers to bounds. The error is
max |Δlogit| / max |logit| over two texts. Each model is loaded from its files by the ordinary loader and run in four
ways:

- whole: the whole text at once, without a cache;
- loop, parallel, kernel: through the cache in each form of attention (`mistral_jax.model.attention`), 3 chunks of 17
  tokens and then token by token, the shorter text beside the longer one.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conversion.weights.weight_files import find_weight_files
from mistral_jax.checkpoint.weights import load_weights, open_weights
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.kv_cache import KERNEL, LOOP, KVCache, ReadPlan
from mistral_jax.model.mistral import Mistral

GOLDENS = Path(__file__).parent / "goldens" / "parity"
VARIANTS = sorted(folder.name for folder in GOLDENS.iterdir())
WAYS = ("whole", "loop", "parallel", "kernel")
# bfloat16 has 8 bits of precision: 0.4 % at each rounding, and two layers round some dozens of times.
BOUNDS = {"float32": 1e-4, "bfloat16": 5e-2}

_CHUNK, _CHUNKS = 17, 3


def load(folder: Path, dtype: str) -> Mistral:
    """The model in `folder`, through the loader that everybody uses."""
    config = MistralConfig.from_folder(folder)
    return load_weights(config, open_weights(config, find_weight_files(folder)), dtype=jnp.dtype(dtype))


def texts(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Token ids [T] and expected logits [T, V] of each text."""
    arrays = np.load(folder / "expected.npz")
    return [(arrays[f"tokens_{i}"], arrays[f"logits_{i}"]) for i in range(len(arrays.files) // 2)]


def logits(model: Mistral, rows: list[np.ndarray], way: str) -> list[np.ndarray]:
    """Logits [T, V] of each text, computed in one of `WAYS`."""
    graphdef, state = nnx.split(model)
    lengths = np.array([len(row) for row in rows])
    tokens = np.zeros((len(rows), lengths.max()), np.int32)
    for row, text in zip(tokens, rows, strict=True):
        row[: len(text)] = text

    @jax.jit
    def whole(state: nnx.State, tokens: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, state)
        return model.logits(model.hidden_states(tokens))

    if way == "whole":
        out = np.asarray(whole(state, tokens))
        return [row[:length] for row, length in zip(out, lengths, strict=True)]

    plan = {"loop": LOOP, "parallel": ReadPlan(1), "kernel": KERNEL}[way]

    @jax.jit
    def step(
        state: nnx.State, cache: KVCache, tokens: jax.Array, start: jax.Array, lengths: jax.Array
    ) -> tuple[jax.Array, KVCache]:
        model = nnx.merge(graphdef, state)
        positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape)
        valid = positions < lengths[:, None]
        view = cache.view(jnp.arange(len(tokens)), positions=positions, valid=valid, plan=plan)
        hidden, cache = model(tokens, cache, view)
        return model.logits(hidden), cache

    cache = KVCache.allocate(model.config, slots=len(rows), length=tokens.shape[1], chunk=_CHUNK, dtype=model.dtype)
    borders = [i * _CHUNK for i in range(_CHUNKS + 1)] + list(range(_CHUNKS * _CHUNK + 1, tokens.shape[1] + 1))
    parts: list[np.ndarray] = []
    for start, stop in itertools.pairwise(borders):
        out, cache = step(state, cache, tokens[:, start:stop], jnp.int32(start), lengths)
        parts.append(np.asarray(out))
    return [row[:length] for row, length in zip(np.concatenate(parts, axis=1), lengths, strict=True)]


def error(folder: Path, dtype: str, way: str) -> float:
    """max |Δlogit| / max |logit| over the texts of a golden."""
    rows, expected = zip(*texts(folder), strict=True)
    ours = np.concatenate(logits(load(folder, dtype), list(rows), way))
    theirs = np.concatenate(expected)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def main() -> None:
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}; the error is max &#124;Δlogit&#124; / max "
        "&#124;logit&#124;.\n"
    )
    print(f"| variant | dtype | {' | '.join(WAYS)} |")
    print("|---|---|" + "---|" * len(WAYS))
    for variant in VARIANTS:
        for dtype in BOUNDS:
            errors = (error(GOLDENS / variant, dtype, way) for way in WAYS)
            print(f"| {variant} | {dtype} | {' | '.join(f'{e:.1e}' for e in errors)} |", flush=True)


if __name__ == "__main__":
    main()
