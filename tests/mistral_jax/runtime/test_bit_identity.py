"""Bits, not tolerances: what a sequence gets does not depend on its neighbours, its slot, or how its text was cut into
chunks.

What this takes on a CPU: docs/architecture/numerics.md. It holds for the loop form of attention.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mistral_jax.model.config import MistralConfig
from mistral_jax.model.kv_cache import KVCache
from mistral_jax.model.mistral import Mistral

CPU = jax.devices()[0].platform == "cpu"
pytestmark = [
    pytest.mark.skipif(not CPU, reason="on an accelerator the libraries choose kernels by shape"),
    pytest.mark.slow,
]

LENGTH, CHUNK = 384, 128
CONFIGS = {
    "demo": MistralConfig(
        vocab_size=2048, hidden_size=256, intermediate_size=768, num_layers=2, num_heads=8, num_kv_heads=2, head_dim=32
    ),
    "odd-window": MistralConfig(
        vocab_size=97,
        hidden_size=60,
        intermediate_size=44,
        num_layers=2,
        num_heads=6,
        num_kv_heads=2,
        head_dim=20,
        layer_windows=(50, None),
    ),
    # One query head on each kv head: a decode step then has a single query for each key.
    "odd-ungrouped": MistralConfig(
        vocab_size=97, hidden_size=60, intermediate_size=44, num_layers=1, num_heads=3, num_kv_heads=3, head_dim=20
    ),
}
CASES = [
    ("demo", "float32"),
    ("demo", "bfloat16"),
    ("odd-window", "float32"),
    ("odd-ungrouped", "float32"),
]

Step = Callable[[KVCache, np.ndarray, int, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, KVCache]]


class Subject:
    """A model, its one jitted step, and a text of 170 tokens with what it gives in chunks of 128."""

    def __init__(self, config: MistralConfig, dtype: str) -> None:
        self.config, self.dtype = config, jnp.dtype(dtype)
        graphdef, state = nnx.split(Mistral(config, param_dtype=self.dtype, rngs=nnx.Rngs(0)))

        @jax.jit
        def step(
            state: nnx.State, cache: KVCache, tokens: jax.Array, slot: jax.Array, positions: jax.Array, valid: jax.Array
        ) -> tuple[jax.Array, jax.Array, KVCache]:
            model = nnx.merge(graphdef, state)
            slots = slot + jnp.arange(tokens.shape[0])
            hidden, cache = model(tokens, cache, cache.view(slots, positions=positions, valid=valid))
            return hidden, model.logits(hidden), cache

        self._step, self._state = step, state
        self.text = np.random.default_rng(7).integers(0, config.vocab_size, 170).astype(np.int32)
        self.expected, _ = self.prefill(self.cache(2), 0, self.text, [CHUNK] * 2, padded_to=CHUNK)

    def cache(self, slots: int) -> KVCache:
        return KVCache.allocate(self.config, slots=slots, length=LENGTH, chunk=CHUNK, dtype=self.dtype)

    def step(
        self, cache: KVCache, tokens: np.ndarray, slot: int, positions: np.ndarray, valid: np.ndarray
    ) -> tuple[np.ndarray, KVCache]:
        """Hidden states and logits side by side [B, T, D + V], as float32."""
        hidden, logits, cache = self._step(self._state, cache, tokens, jnp.int32(slot), positions, valid)
        return np.concatenate([np.asarray(hidden, np.float32), np.asarray(logits)], axis=-1), cache

    def prefill(
        self, cache: KVCache, slot: int, text: np.ndarray, chunks: list[int], *, padded_to: int = 0
    ) -> tuple[np.ndarray, KVCache]:
        parts: list[np.ndarray] = []
        start = 0
        for size in chunks:
            part = text[start : start + size]
            if not len(part):
                break
            tokens = np.zeros((1, max(padded_to, len(part))), np.int32)
            tokens[0, : len(part)] = part
            columns = np.arange(tokens.shape[1], dtype=np.int32)[None]
            out, cache = self.step(cache, tokens, slot, start + columns, columns < len(part))
            parts.append(out[0, : len(part)])
            start += len(part)
        return np.concatenate(parts), cache


@pytest.fixture(scope="module")
def subject_of() -> Callable[[str, str], Subject]:
    made: dict[tuple[str, str], Subject] = {}

    def get(name: str, dtype: str) -> Subject:
        if jax.__version_info__ < (0, 12) and name == "odd-window":
            pytest.skip("jaxlib 0.11's exp has other bits at the ragged end of arrays of fewer than 32 numbers")
        if (name, dtype) not in made:
            made[name, dtype] = Subject(CONFIGS[name], dtype)
        return made[name, dtype]

    return get


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    different = np.flatnonzero((actual != expected).reshape(len(expected), -1).any(axis=1))
    assert not len(different), f"other bits at {different[:8]}, at most {np.abs(actual - expected).max()} apart"


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_chunk_borders_leave_no_trace(subject_of: Callable[[str, str], Subject], name: str, dtype: str) -> None:
    subject = subject_of(name, dtype)
    for chunks, padded_to in (([5, 64, 3, 98], CHUNK), ([13] * 14, 16), ([2] * 85, 2)):
        actual, _ = subject.prefill(subject.cache(2), 1, subject.text, chunks, padded_to=padded_to)
        assert_same_bits(actual, subject.expected)


@pytest.mark.parametrize(
    ("name", "dtype", "rows"),
    [(*case, rows) for case in CASES for rows in (2, 8, 16) if case[0] == "demo" or rows != 8],
)
def test_decoding_is_the_same_in_every_slot_beside_any_neighbours(
    subject_of: Callable[[str, str], Subject], name: str, dtype: str, rows: int
) -> None:
    """Neighbours are longer and shorter than we are, so that more blocks are read than we need; one of them is idle."""
    subject = subject_of(name, dtype)
    prompt, steps = 120, 12  # over the border of the first block of keys
    rng = np.random.default_rng(rows)
    neighbours = subject.cache(rows)
    lengths = rng.integers(20, LENGTH - steps, rows).astype(np.int32)
    lengths[0], lengths[-1] = LENGTH - steps, 300
    for slot in range(rows):
        text = rng.integers(0, subject.config.vocab_size, lengths[slot]).astype(np.int32)
        _, neighbours = subject.prefill(neighbours, slot, text, [CHUNK] * 3, padded_to=CHUNK)
    for slot in range(rows) if rows < 16 else (0, 5, 15):
        _, cache = subject.prefill(neighbours, slot, subject.text[:prompt], [CHUNK], padded_to=CHUNK)
        valid = np.ones((rows, 1), bool)
        if rows > 2:
            valid[(slot + 1) % rows] = False
        for i in range(steps):
            tokens = rng.integers(0, subject.config.vocab_size, (rows, 1)).astype(np.int32)
            positions = lengths[:, None] + np.int32(i)
            tokens[slot], positions[slot] = subject.text[prompt + i], prompt + i
            out, cache = subject.step(cache, tokens, 0, positions, valid)
            assert_same_bits(out[slot], subject.expected[prompt + i : prompt + i + 1])


def test_a_single_row_has_the_same_bits(subject_of: Callable[[str, str], Subject]) -> None:
    """The server never runs one, since it would be computed twice; who calls the module may."""
    subject = subject_of("demo", "float32")
    _, cache = subject.prefill(subject.cache(1), 0, subject.text[:120], [CHUNK], padded_to=CHUNK)
    out, _ = subject.step(cache, subject.text[None, 120:121], 0, np.array([[120]], np.int32), np.ones((1, 1), bool))
    assert_same_bits(out[0], subject.expected[120:121])
