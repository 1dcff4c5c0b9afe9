"""A tiny random model with random adapters and an X-LoRA classifier over some of them, as folders."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from conversion.adapters.modules import PARTS, ModuleKey
from conversion.adapters.writing import Factors, NewLoRA, write_lora, write_xlora
from conversion.adapters.xlora.config import XLoRAConfig
from mistral_jax.hub.files import DEMO_FOLDER
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.low_rank import part_features
from tests.conversion.tiny_models import write_folder

BASE = "tiny-lab/tiny-base"
LAYERS = 2


def write_base(folder: Path, *, vocab_size: int = 2048) -> Path:
    """A model of two layers with the tokenizer of the demo, whose vocabulary has text for every token.

    Its 2 x 2048 logits are just enough for their exponentials to be computed as those of more rows are.
    """
    write_folder(folder, num_hidden_layers=LAYERS, hidden_size=64, max_position_embeddings=1024, vocab_size=vocab_size)
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(DEMO_FOLDER / name, folder / name)
    return folder


def write_all(root: Path) -> Path:
    """Folders base, mixture and poet, an adapter."""
    base = write_base(root / "base")
    write_mixture(root / "mixture", base)
    write_adapter(root / "poet", base, seed=1)
    return root


def random_factors(base: Path, *, seed: int, rank: int, parts: Sequence[str] = PARTS, layers: int = LAYERS) -> Factors:
    """Large enough to change what the model says."""
    rng = np.random.default_rng(seed)
    features = part_features(MistralConfig.from_folder(base))
    return {
        ModuleKey(layer, part): (
            (0.3 * rng.standard_normal((rank, features[part][1]))).astype(np.float32),
            (0.3 * rng.standard_normal((features[part][0], rank))).astype(np.float32),
        )
        for layer in range(layers)
        for part in parts
    }


def write_adapter(folder: Path, base: Path, *, seed: int, rank: int = 4, parts: Sequence[str] = PARTS) -> Path:
    factors = random_factors(base, seed=seed, rank=rank, parts=parts)
    write_lora(folder, NewLoRA(factors=factors, rank=rank, alpha=rank), base_model=BASE)
    return folder


def write_mixture(
    folder: Path, base: Path, *, names: Sequence[str] = ("one", "two", "three"), layers: int = LAYERS
) -> Path:
    """Layerwise, of depth 2, over experts of unequal ranks and modules."""
    parts = (("q_proj", "v_proj", "gate_proj"), ("q_proj", "down_proj"), ("o_proj",))
    adapters = {
        name: NewLoRA(
            factors=random_factors(base, seed=i, rank=3 + i, parts=parts[i % 3], layers=layers),
            rank=3 + i,
            alpha=4,
            num_layers=layers,
        )
        for i, name in enumerate(names)
    }
    modules = layers * len({part for some in parts[: len(names)] for part in some})
    hidden = MistralConfig.from_folder(base).hidden_size
    config = XLoRAConfig(hidden_size=hidden, layerwise_scalings=True, xlora_depth=2, xlora_size=24)
    rng = np.random.default_rng(9)
    classifier = [
        (rng.standard_normal((24, hidden)).astype(np.float32), rng.standard_normal(24).astype(np.float32)),
        (
            rng.standard_normal((modules * len(names), 24)).astype(np.float32),
            rng.standard_normal(modules * len(names)).astype(np.float32),
        ),
    ]
    write_xlora(folder, config=config, classifier=classifier, adapters=adapters, base_model=BASE)
    return folder
