"""A tiny model with random adapters of different ranks and target modules, and a classifier over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
from flax import nnx

from conversion.adapters.modules import PARTS, ModuleKey
from conversion.adapters.xlora.config import XLoRAConfig
from conversion.quantize import quantize
from conversion.weights.ggml_types import BY_NAME
from mistral_jax.adapters.bank import AdapterSet
from mistral_jax.adapters.xlora import XLoRA
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.low_rank import ScalingColumns, part_features
from mistral_jax.model.mistral import Mistral
from mistral_jax.quant.array import QuantizedArray, int8_array
from mistral_jax.quant.interleaved import interleaved

CONFIG = MistralConfig.from_hf(
    {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "vocab_size": 97,
        "hidden_size": 40,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
)


@dataclass(frozen=True, kw_only=True)
class Scale:
    rank: int
    scale: float


@dataclass(frozen=True, kw_only=True)
class RandomLoRA:
    """Stands where the files of an adapter would."""

    name: str
    rank: int
    modules: Mapping[ModuleKey, Scale]
    factors: Mapping[ModuleKey, tuple[np.ndarray, np.ndarray]] = field(repr=False)

    def read(self, key: ModuleKey) -> tuple[np.ndarray, np.ndarray]:
        return self.factors[key]

    @classmethod
    def make(cls, name: str, *, rank: int, parts: Sequence[str], scale: float = 1.5, seed: int = 0) -> RandomLoRA:
        rng = np.random.default_rng([seed, *name.encode()])
        features = part_features(CONFIG)
        keys = [ModuleKey(layer, part) for layer in range(CONFIG.num_layers) for part in parts]
        factors = {
            key: (
                0.2 * rng.standard_normal((rank, features[key.part][1]), np.float32),
                0.3 * rng.standard_normal((features[key.part][0], rank), np.float32),
            )
            for key in keys
        }
        return cls(name=name, rank=rank, modules={key: Scale(rank=rank, scale=scale) for key in keys}, factors=factors)


LORAS = (
    RandomLoRA.make("one", rank=4, parts=PARTS[:5]),
    RandomLoRA.make("two", rank=6, parts=PARTS[:2], scale=0.7),
    RandomLoRA.make("three", rank=3, parts=PARTS),
)


def model(dtype: str = "float32") -> Mistral:
    """Args:
    dtype: of plain weights; "int8-float32" is that of the activations of weights held as int8.
    """
    *form, dtype = dtype.split("-")
    module = Mistral(CONFIG, param_dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    return hold_matrices_as(form[0], module) if form else module


def hold_matrices_as(form: str, module: Mistral) -> Mistral:
    """Quantise all matrices of a model in place, as loading would: "int8", or a block type that their rows are made
    of, with "/int8" behind it for activations of 8 bits."""
    name, _, activations = form.partition("/")
    for path, variable in nnx.to_flat_state(nnx.state(module)):
        if path[-1] == "weight" and len(variable.get_value().shape) == 2:
            owner = module
            for step in path[:-1]:
                owner = owner[step] if isinstance(step, int) else getattr(owner, step)
            plain = jnp.copy(variable.get_value()[...])
            kind = BY_NAME.get(name)
            if kind is None:
                held = int8_array(plain)
            elif activations:
                held = interleaved(quantize(plain, kind), kind)
            else:
                held = QuantizedArray(quantize(plain, kind), kind)
            owner.weight.set_value(held)
    return module


def adapter_set(dtype: str = "float32", *, spare: int = 0) -> AdapterSet:
    return AdapterSet(CONFIG, LORAS, dtype=jnp.dtype(dtype.split("-")[-1]), spare=spare, spare_rank=8)


def xlora(**settings: object) -> XLoRA:
    """A layerwise classifier of two layers, but for what the settings say."""
    chosen: dict[str, object] = {"layerwise_scalings": True, "xlora_depth": 2, "xlora_size": 32} | settings
    config = XLoRAConfig(hidden_size=CONFIG.hidden_size, **chosen)  # type: ignore[arg-type]
    keys = [ModuleKey(layer, part) for layer in range(CONFIG.num_layers) for part in PARTS]
    columns = ScalingColumns(count=len(keys), index=tuple((key, i) for i, key in enumerate(keys)))
    return XLoRA(
        config,
        num_experts=len(LORAS),
        columns=columns if config.layerwise_scalings else ScalingColumns(),
        rngs=nnx.Rngs(3),
    )
