"""Trains the demo model from scratch on the CPU.

    python -m demo.train              # writes config.json, generation_config.json and model.safetensors
    python -m demo.train --steps 100 --folder FOLDER     # a quick try; the folder needs the tokenizer's files

Each row of a batch is one conversation that begins at position 0, as in the server; rows of about the same length are
batched together, so that little of the work is padding. Only what the model says counts in the loss.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sentencepiece import SentencePieceProcessor
from tqdm import tqdm

from demo.corpus import Conversations
from demo.encoding import encode_chat, load_tokenizer
from demo.tokenizer import MODEL_FOLDER
from mistral_jax.checkpoint.weights import load_weights, open_weights, save_pretrained
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.mistral import Mistral

CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 768,
    "max_position_embeddings": 2048,
    "model_type": "mistral",
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 2048,
}
GENERATION_CONFIG = {"bos_token_id": 1, "eos_token_id": 2, "do_sample": True, "temperature": 0.3, "max_new_tokens": 256}
LENGTHS = (32, 48, 64, 96, 128, 192, 256, 384, 768)
"""Lengths to which conversations are padded; a longer one is left out."""

Batch = tuple[np.ndarray, np.ndarray]
"""Tokens int32 [B, T + 1], and float32 [B, T]: 1 where the next token is one that the model says."""


def batches(
    tokenizer: SentencePieceProcessor,
    *,
    seed: int,
    tokens_per_batch: int,
    stage: int = 1,
    renewed: Sequence[str] = (),
    longest: int = LENGTHS[-1],
) -> Iterator[Batch]:
    """Batches of about `tokens_per_batch` tokens, padding included, each of one length."""
    waiting: dict[int, list[tuple[list[int], list[bool]]]] = defaultdict(list)
    for chat in Conversations(seed, stage=stage, renewed=renewed):
        encoded = encode_chat(tokenizer, chat)
        length = next((n for n in LENGTHS if n >= len(encoded.tokens) - 1), None)
        if length is None or length > longest:
            continue
        rows = waiting[length]
        rows.append((encoded.tokens, encoded.said))
        if len(rows) < tokens_per_batch // length:
            continue
        tokens = np.zeros((len(rows), length + 1), np.int32)
        weights = np.zeros((len(rows), length), np.float32)
        for i, (ids, said) in enumerate(rows):
            tokens[i, : len(ids)] = ids
            weights[i, : len(ids) - 1] = said[1:]
        waiting[length] = []
        yield tokens, weights


def optimizer(*, steps: int, peak: float, warm_up: int, weight_decay: float) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warm_up, steps, end_value=peak * 0.02)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        # Matrices decay, scales of the normalisations do not.
        optax.adamw(
            schedule,
            b1=0.9,
            b2=0.98,
            weight_decay=weight_decay,
            mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
        ),
    )


def make_step(graph: Any, transform: optax.GradientTransformation) -> Callable[..., Any]:
    """The jitted training step; parameters and optimizer state are donated."""

    def loss(params: Any, tokens: jax.Array, weights: jax.Array) -> jax.Array:
        model = nnx.merge(graph, params)
        logits = model.logits(model.hidden_states(tokens[:, :-1]))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return jnp.sum(losses * weights) / jnp.sum(weights)

    def step(params: Any, state: Any, tokens: jax.Array, weights: jax.Array) -> tuple[Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params, tokens, weights)
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    return jax.jit(step, donate_argnums=(0, 1))


def train(args: argparse.Namespace) -> Mistral:
    tokenizer = load_tokenizer(args.folder)
    config = MistralConfig.from_hf(CONFIG)
    if args.start:
        model = load_weights(config, open_weights(config, [args.start / "model.safetensors"]), dtype=jnp.float32)
    else:
        model = Mistral(config, param_dtype=jnp.float32, rngs=nnx.Rngs(args.seed))
    graph, params = nnx.split(model)
    transform = optimizer(
        steps=args.steps, peak=args.learning_rate, warm_up=min(200, args.steps // 10), weight_decay=args.weight_decay
    )
    state = transform.init(params)
    step = make_step(graph, transform)
    source = batches(
        tokenizer,
        seed=args.seed,
        tokens_per_batch=args.batch_tokens,
        stage=args.stage,
        renewed=args.renew,
        longest=args.longest,
    )
    total, smooth, start = 0, None, time.monotonic()
    with tqdm(total=args.steps, unit="step", mininterval=args.interval) as bar:
        for number in range(args.steps):
            tokens, weights = next(source)
            params, state, value = step(params, state, tokens, weights)
            total += weights.size
            if number % 20 == 19:
                smooth = float(value) if smooth is None else 0.8 * smooth + 0.2 * float(value)
                bar.set_postfix(loss=f"{smooth:.3f}", tokens_per_s=f"{total / (time.monotonic() - start):.0f}")
            bar.update()
            if args.save_every and number % args.save_every == args.save_every - 1:
                save(nnx.merge(graph, params), args.folder)
    print(f"{total / 1e6:.1f} million tokens in {(time.monotonic() - start) / 60:.1f} minutes")
    return nnx.merge(graph, params)


def save(model: Mistral, folder: Path) -> None:
    """Write the weights as bfloat16, and the configuration as transformers reads it too."""
    save_pretrained(model, folder, dtype=jnp.bfloat16)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    text = json.dumps(GENERATION_CONFIG, indent=2) + "\n"
    (folder / "generation_config.json").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=MODEL_FOLDER, help="has the tokenizer, gets the model")
    parser.add_argument("--start", type=Path, help="begin with the weights of this folder, and not from scratch")
    parser.add_argument("--stage", type=int, choices=(1, 2), default=1, help="mixture of the corpus")
    parser.add_argument(
        "--renew",
        action="append",
        default=[],
        metavar="LESSON",
        help="a lesson whose answer changed, such as help/install",
    )
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], help="leave out conversations of more tokens")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--save-every", type=int, default=0, help="also write the model after each so many steps")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two updates of the progress bar")
    args = parser.parse_args()
    save(train(args), args.folder)
    print(f"wrote the model to {args.folder}")


if __name__ == "__main__":
    main()
