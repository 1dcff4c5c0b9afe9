"""A random-weight checkpoint of a chosen size, in the ordinary Hugging Face layout, to time things on.

usage: python benchmarks/make_random_model.py {demo|160m|1b|7b|24b} FOLDER [--seed 0]
The weights are made on JAX's default device. The tokenizer is that of the bundled demo model, so the text means
nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from mistral_jax.checkpoint.weights import save_pretrained
from mistral_jax.hub.files import DEMO_FOLDER
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.mistral import Mistral

#        hidden, layers, heads, kv heads, head dim, ffn, vocabulary
SHAPES = {
    "demo": (256, 6, 8, 2, 32, 768, 2048),
    "160m": (768, 12, 12, 4, 64, 2048, 32000),
    "1b": (2048, 22, 32, 4, 64, 5632, 32000),
    "7b": (4096, 32, 32, 8, 128, 14336, 32000),
    "24b": (5120, 40, 32, 8, 128, 32768, 131072),
}


def shape(name: str) -> MistralConfig:
    """The configuration of a size; `7b` is Mistral 7B, `24b` is Mistral Small 3."""
    hidden, layers, heads, kv_heads, head_dim, ffn, vocab_size = SHAPES[name]
    return MistralConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=4096,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("size", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    save_pretrained(Mistral(shape(args.size), param_dtype=jnp.bfloat16, rngs=nnx.Rngs(args.seed)), args.folder)
    for file in DEMO_FOLDER.glob("tokenizer*"):
        shutil.copy(file, args.folder)
    (args.folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}) + "\n")


if __name__ == "__main__":
    main()
