"""What each form of the weights costs in quality: perplexity of the bundled model on conversations that it was not
trained on.

usage: python benchmarks/quantization_quality.py [--batches 24] [--dtype bfloat16] [--output FILE.json]
The conversations are freshly drawn from the generators of its training data; perplexity counts the assistant's tokens.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from itertools import islice, product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from demo.encoding import load_tokenizer
from demo.train import batches
from mistral_jax.checkpoint.summary import summarize
from mistral_jax.checkpoint.weights import load_weights, open_weights
from mistral_jax.hub.files import DEMO_FOLDER
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.mistral import Mistral
from mistral_jax.quant.plan import QUANTIZATIONS

SEED = 987_654


@jax.jit
def log_likelihoods(model: Mistral, tokens: jax.Array) -> jax.Array:
    """int32 [B, T + 1] -> float32 [B, T]: of each token given those before it."""
    logits = model.logits(model.hidden_states(tokens[:, :-1]))
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)[..., 0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    config = MistralConfig.from_folder(DEMO_FOLDER)
    text = list(islice(batches(load_tokenizer(DEMO_FOLDER), seed=SEED, tokens_per_batch=4096), args.batches))
    rows: list[dict[str, Any]] = []
    # "auto" is as none, for a model that is stored plain; of the forms without blocks, activations are not chosen.
    in_blocks = [quant for quant in QUANTIZATIONS if quant not in ("auto", "none", "int8")]
    forms: list[Any] = [("none", "float"), ("int8", "float"), *product(in_blocks, ("float", "int8"))]
    for quant, activations in forms:
        source = open_weights(config, [DEMO_FOLDER / "model.safetensors"])
        model = load_weights(config, source, dtype=args.dtype, quant=quant, activations=activations)
        total, count = 0.0, 0.0
        for tokens, said in text:
            total += float((np.asarray(log_likelihoods(model, jnp.asarray(tokens))) * said).sum())
            count += float(said.sum())
        perplexity = float(np.exp(-total / count))
        rows.append(
            {
                "quant": quant,
                "activations": activations,
                "bits_per_weight": summarize(model).bits_per_weight,
                "perplexity": perplexity,
            }
        )
        loss = perplexity / rows[0]["perplexity"] - 1
        print(
            f"{quant:6} {activations:6} {rows[-1]['bits_per_weight']:6.2f} bits per weight  "
            f"perplexity {perplexity:.5f}  {loss:+.3%}",
            flush=True,
        )
    report = {
        "model": "demo",
        "dtype": args.dtype,
        "tokens": int(sum(said.sum() for _, said in text)),
        "versions": {name: version(name) for name in ("jax", "jaxlib")},
        "results": rows,
    }
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
