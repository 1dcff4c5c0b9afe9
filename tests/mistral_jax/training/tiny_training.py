"""A small random model to train on, and tasks that a LoRA can learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mistral_jax.checkpoint.description import ModelDescription, describe
from mistral_jax.hub.files import find_model
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.low_rank import AdapterBank, Mixture
from mistral_jax.model.mistral import Mistral
from mistral_jax.training.base import BaseModel
from mistral_jax.training.chat_data import Example
from mistral_jax.training.trainer import Trainer

VOCABULARY = 23


def tiny_config(hidden_size: int = 20) -> MistralConfig:
    return MistralConfig.from_hf(
        {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "vocab_size": VOCABULARY,
            "hidden_size": hidden_size,
            "intermediate_size": 28,
            "num_hidden_layers": 1,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 6,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
    )


@cache
def demo() -> ModelDescription:
    """Tokenizer and chat template of the bundled model."""
    return describe(find_model("demo"))


@cache
def tiny_base(dtype: str = "float32", hidden_size: int = 20) -> BaseModel:
    config = tiny_config(hidden_size)
    return BaseModel(
        module=Mistral(config, param_dtype=jnp.dtype(dtype), rngs=nnx.Rngs(3)),
        tokenizer=demo().tokenizer,
        chat=demo().chat,
        eos_ids=demo().eos_ids,
        name="tiny",
    )


def shift_task(by: int, *, marker: int, count: int = 40, seed: int = 0) -> list[Example]:
    """Texts that begin with a marker; then each token that counts is the one before it, plus `by`."""
    rng = np.random.default_rng(seed)
    examples: list[Example] = []
    for _ in range(count):
        length = int(rng.integers(4, 9))
        first = int(rng.integers(0, VOCABULARY - 5))
        run = 5 + (first + by * np.arange(length)) % (VOCABULARY - 5)
        tokens = np.array([marker, *run], np.int32)
        counted = np.arange(len(tokens)) >= 2
        examples.append(Example(tokens, counted))
    return examples


@contextmanager
def before_update(monkeypatch: pytest.MonkeyPatch, step: int, happens: Callable[[], Any]) -> Iterator[None]:
    """Runs in the block have something happen before their update of this number, from 0 on."""
    real = Trainer._update

    def update(self: Trainer, params: Any, state: Any, batches: Any, number: int) -> Any:
        if number == step:
            happens()
        return real(self, params, state, batches, number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", update)
        yield


@contextmanager
def power_cut(monkeypatch: pytest.MonkeyPatch, *, step: int) -> Iterator[None]:
    """The run in the block is cut off in its update of this number, from 0 on."""

    def cut_off() -> None:
        raise OSError("power cut")

    with before_update(monkeypatch, step, cut_off), pytest.raises(OSError, match="power cut"):
        yield


def padded(examples: list[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32 [B, T + 1], and bool [B, T]: where the next one counts."""
    length = max(map(len, examples))
    tokens = np.stack([np.pad(example.tokens, (0, length - len(example))) for example in examples])
    return tokens, np.stack([np.pad(example.counted, (0, length - len(example))) for example in examples])[:, 1:]


def accuracy(base: BaseModel, examples: list[Example], bank: AdapterBank, weights: Sequence[float]) -> float:
    """Fraction of the tokens that count which the model, with adapters of these weights, finds the most likely."""
    tokens, counted = padded(examples)
    graph, state = nnx.split(base.module)

    @jax.jit
    def most_likely(state: Any, bank: AdapterBank, weights: jax.Array) -> jax.Array:
        model = nnx.merge(graph, state)
        mixture = Mixture(bank=bank, weights=weights[None, None, None])
        return jnp.argmax(model.logits(model.hidden_states(tokens[:, :-1], mixture)), axis=-1)

    best = np.asarray(most_likely(state, bank, jnp.asarray(weights, jnp.float32)))
    return float((best == tokens[:, 1:])[counted].mean())
