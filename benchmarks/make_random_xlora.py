"""Random adapters and a classifier over them for a model folder, and an ordering file, to time things on.

usage: python benchmarks/make_random_xlora.py MODEL_DIR FOLDER [--adapters 9] [--rank 16] [--seed 0]

Shaped like the published mixtures: adapters for q, k, v, o and gate, a layerwise classifier of one layer. What all
programs read: the layout of the original library, and FOLDER/ordering.json for mistral.rs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from conversion.adapters.modules import PARTS, ModuleKey
from conversion.adapters.writing import NewLoRA, write_xlora
from conversion.adapters.xlora.config import XLoRAConfig
from conversion.adapters.xlora.files import open_xlora
from conversion.adapters.xlora.ordering import derive_ordering, write_ordering
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.low_rank import part_features

ADAPTED = PARTS[:5]


def random_matrix(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return (rng.standard_normal((rows, columns), np.float32) / columns**0.5).astype(ml_dtypes.bfloat16)


def random_factors(
    rng: np.random.Generator, config: MistralConfig, rank: int
) -> Mapping[ModuleKey, tuple[np.ndarray, np.ndarray]]:
    factors: dict[ModuleKey, tuple[np.ndarray, np.ndarray]] = {}
    features = part_features(config)
    for layer in range(config.num_layers):
        for part in ADAPTED:
            rows, columns = features[part]
            factors[ModuleKey(layer, part)] = (random_matrix(rng, rank, columns), random_matrix(rng, rows, rank))
    return factors


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--adapters", type=int, default=9)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = MistralConfig.from_folder(args.model)
    rng = np.random.default_rng(args.seed)
    adapters = {
        f"adapter_{i + 1}": NewLoRA(factors=random_factors(rng, config, args.rank), rank=args.rank, alpha=args.rank)
        for i in range(args.adapters)
    }
    rows = config.num_layers * len(ADAPTED) * args.adapters
    write_xlora(
        args.folder,
        config=XLoRAConfig(hidden_size=config.hidden_size, layerwise_scalings=True),
        classifier=[(random_matrix(rng, rows, config.hidden_size), np.zeros(rows, ml_dtypes.bfloat16))],
        adapters=adapters,
        base_model=str(args.model),
    )
    opened = open_xlora(args.folder)
    write_ordering(args.folder / "ordering.json", derive_ordering(opened.adapters, base_model_id=str(args.model)))
    opened.close()


if __name__ == "__main__":
    main()
