"""Gives the base output rows for tokens of calls and JSON that its own conversations never contain: `<`, `*`, `vert`.

    python -m demo.tools.output_rows --data tools.jsonl --adapter demo-tools      # changes model.safetensors of the demo

Rows of the output matrix whose tokens are never a target all become the same in training, so that no adapter can choose
one of them: each of 300 tokens then has 1/300 of the probability that their group should have. Only these rows are
trained here, over hidden states of the adapter for conversations with tools, and of the base for its own. All other
logits keep their bits, and the base still never says these tokens.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import mistral_jax
from demo.skills.corpus import GENERAL, chats, messages
from demo.tokenizer import MODEL_FOLDER
from demo.tools.batches import padded
from demo.train import save
from mistral_jax.hub.files import DEMO_TOOLS_FOLDER
from mistral_jax.model.low_rank import AdapterBank, Mixture
from mistral_jax.model.mistral import Mistral
from mistral_jax.training.chat_data import ChatEncoder, Example

NEAR = 0.35
"""A row is that of a token that is never a target if its distance from their median is at most this share of the median's
length."""


def hidden_states(model: Mistral, bank: AdapterBank | None, examples: list[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states float32 [N, D] before each counted token, and these tokens int32 [N].

    Args:
      bank: of one adapter; None: the base alone.
    """
    graph, params = nnx.split(model)

    @jax.jit
    def states(params: nnx.State, bank: AdapterBank | None, tokens: jax.Array) -> jax.Array:
        mixture = None if bank is None else Mixture(bank=bank, weights=jnp.ones((1, 1, 1, 1), jnp.float32))
        return nnx.merge(graph, params).hidden_states(tokens, mixture)

    found: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for numbers, tokens in padded(examples):
        for i, hidden in zip(numbers, np.asarray(states(params, bank, tokens)), strict=False):
            places = np.flatnonzero(examples[i].counted)
            found.append(hidden[places - 1])
            targets.append(examples[i].tokens[places])
    return np.concatenate(found), np.concatenate(targets)


def rows_never_said(output: np.ndarray, said: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The tokens in `wanted` whose rows are those of tokens that are never a target.

    Args:
      output: the matrix, float32 [V, D].
      said: tokens of the base's own replies, a sample; those that it lacks are never said for the most part.
      wanted: tokens of the adapter's replies.
    """
    center = np.median(np.delete(output, np.unique(said), axis=0), axis=0)
    apart = np.linalg.norm(output - center, axis=1) / np.linalg.norm(center)
    return np.array([token for token in np.unique(wanted) if apart[token] < NEAR], np.int64)


def train_rows(
    output: np.ndarray, rows: np.ndarray, hidden: np.ndarray, targets: np.ndarray, *, steps: int
) -> np.ndarray:
    """New values of some rows of the output matrix: float32 [len(rows), D].

    Args:
      output: the matrix, float32 [V, D].
      rows: their numbers.
      hidden, targets: what follows which hidden state.
      steps: updates, each over all of them.
    """
    others = np.setdiff1d(np.arange(len(output)), rows)
    # The other logits do not change: of them only their sum matters, and the target's own.
    logits = hidden @ output.T
    rest = jax.nn.logsumexp(jnp.asarray(logits[:, others]), axis=-1)
    own = jnp.asarray(np.take_along_axis(logits, targets[:, None], axis=1)[:, 0])
    number = np.full((len(output),), -1)
    number[rows] = np.arange(len(rows))
    which = jnp.asarray(number[targets])
    states = jnp.asarray(hidden)

    def loss(values: jax.Array) -> jax.Array:
        new = states @ values.T
        chosen = jnp.where(which < 0, own, jnp.take_along_axis(new, jnp.maximum(which, 0)[:, None], axis=1)[:, 0])
        everything = jnp.logaddexp(rest, jax.nn.logsumexp(new, axis=-1))
        return jnp.mean(everything - chosen)

    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, steps))
    values = jnp.asarray(output[rows])
    state = optimizer.init(values)

    @jax.jit
    def step(values: jax.Array, state: optax.OptState) -> tuple[jax.Array, optax.OptState, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(values)
        updates, state = optimizer.update(gradient, state)
        return values + updates, state, value

    for update in range(steps):
        values, state, value = step(values, state)
        if update % 100 == 0 or update == steps - 1:
            print(f"step {update}: loss {float(value):.4f}")
    return np.asarray(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=MODEL_FOLDER, help="the base model, which is changed")
    parser.add_argument("--adapter", type=Path, default=DEMO_TOOLS_FOLDER)
    parser.add_argument("--data", type=Path, required=True, help="conversations of demo.tools.corpus")
    parser.add_argument("--count", type=int, default=1500, help="conversations with tools, and as many of the base")
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    loras = {"tools": args.adapter}
    model = mistral_jax.load(args.folder, loras=loras, dtype="float32", slots=1, length=64, progress=False)
    encoder = ChatEncoder(model.tokenizer, model.chat_formatter, model.description.eos_ids)
    with args.data.open(encoding="utf-8") as file:
        lines = list(itertools.islice(file, args.count))
    with_tools = [example for line in lines for example in encoder.encode(json.loads(line))]
    own = itertools.islice(chats(GENERAL, 5), args.count)
    without = [example for chat in own for example in encoder.encode({"messages": messages(chat)})]
    base, adapters = model.module, model.runner.adapters
    assert base.lm_head is not None
    assert adapters is not None
    found = [hidden_states(base, adapters.bank, with_tools), hidden_states(base, None, without)]
    hidden, targets = (np.concatenate(parts) for parts in zip(*found, strict=True))
    output = np.asarray(base.lm_head.weight[...])
    rows = rows_never_said(output[: model.config.vocab_size], found[1][1], found[0][1])
    print("rows of", " ".join(repr(model.tokenizer.decode([int(row)])) for row in rows))
    changed = output.copy()
    changed[rows] = train_rows(output[: model.config.vocab_size], rows, hidden, targets, steps=args.steps)
    base.lm_head.weight.set_value(jnp.asarray(changed))
    save(base, args.folder)


if __name__ == "__main__":
    main()
