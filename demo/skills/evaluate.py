"""Asks the experts, their average and their mixture what they were never trained on, and counts exact answers.

    python -m demo.skills.evaluate                      # the table, on the standard output
    python -m demo.skills.evaluate --failures 5         # and some wrong answers of the mixture in each row
    python -m demo.skills.evaluate --json EVALUATION.json

An answer counts as in `demo.evaluate`: greedy decoding must give it to the last character.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from demo import evaluate as base
from demo.encoding import load_tokenizer
from demo.evaluate import Case, Predict, Turns, exact
from demo.skills.corpus import SKILLS
from demo.tokenizer import MODEL_FOLDER
from mistral_jax.adapters.bank import AdapterSet
from mistral_jax.adapters.load_adapters import load_adapters, open_adapters
from mistral_jax.adapters.xlora import XLoRA
from mistral_jax.checkpoint.weights import load_weights, open_weights
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.low_rank import AdapterBank, Mixture
from mistral_jax.model.mistral import Mistral

XLORA_FOLDER = MODEL_FOLDER.parent / "demo-xlora"
BASE, AVERAGE, XLORA = "base", "average", "X-LoRA"


def cases(limit: int = 200, seed: int = 21) -> list[Case]:
    """The questions, `limit` in each row of the table; the same for the same seed.

    For each skill: values that are never trained on, in known templates; the same in new templates; and in known
      templates after
    turns of other skills. Then a sample of what the base is evaluated on, less the skills.
    """
    rng = random.Random(seed)
    result: list[Case] = []
    for name, skill in SKILLS.items():
        asked = [skill.question(rng, held_out=True) for _ in range(limit)]
        result += [Case(row=f"{name}, new values", question=q, answers=(a,)) for q, a in asked]
        asked = [skill.question(rng, held_out=True, new_template=True) for _ in range(limit)]
        result += [Case(row=f"{name}, new values and templates", question=q, answers=(a,)) for q, a in asked]
        for _ in range(limit):
            question, answer = skill.question(rng, held_out=True)
            row = f"{name}, after other skills"
            result.append(Case(row=row, question=question, answers=(answer,), before=_other_skills(rng, name)))
    general = [case for case in base.cases() if "skills kept aside" not in case.row]
    result += [
        Case(row="general", question=c.question, answers=c.answers, before=c.before, system=c.system)
        for c in rng.sample(general, limit)
    ]
    return result


def _other_skills(rng: random.Random, name: str) -> Turns:
    others = rng.sample([other for other in SKILLS if other != name], rng.randrange(1, 3))
    return tuple(SKILLS[other].question(rng, held_out=True) for other in others)


def predictors(model: Mistral, adapters: AdapterSet, xlora: XLoRA | None) -> dict[str, Predict]:
    """By column of the table: base, each adapter alone, all of them with equal weights and, where there is one, the
    mixture."""
    graph, params = nnx.split(model)
    numbers = {name: entry.number for name, entry in adapters.entries.items()}
    count = len(numbers)

    def weighted(params: nnx.State, bank: AdapterBank, weights: jax.Array, tokens: jax.Array) -> jax.Array:
        model = nnx.merge(graph, params)
        return jnp.argmax(model.logits(model.hidden_states(tokens, Mixture(bank=bank, weights=weights))), axis=-1)

    fixed = jax.jit(weighted)

    def column(weights: np.ndarray) -> Predict:
        # One program for all columns: they differ in the weights alone.
        shaped = jnp.asarray(weights, jnp.float32)[None, None, None]
        return lambda tokens: np.asarray(fixed(params, adapters.bank, shaped, tokens))

    one = np.eye(adapters.capacity)
    result = {BASE: column(np.zeros(adapters.capacity))}
    result |= {name: column(one[number]) for name, number in numbers.items()}
    result[AVERAGE] = column(sum((one[number] for number in numbers.values()), np.zeros(adapters.capacity)) / count)
    if xlora is not None:
        head, classifier = nnx.split(xlora)

        def mixed(params: nnx.State, classifier: nnx.State, bank: AdapterBank, tokens: jax.Array) -> jax.Array:
            model = nnx.merge(graph, params)
            hidden, _ = nnx.merge(head, classifier).hidden_states(model, bank, tokens, adapters=adapters.capacity)
            return jnp.argmax(model.logits(hidden), axis=-1)

        program = partial(jax.jit(mixed), params, classifier, adapters.bank)
        result[XLORA] = lambda tokens: np.asarray(program(tokens))
    return result


def markdown(rows: dict[str, dict[str, float]]) -> str:
    """A table of shares: rows by what is asked, columns by who answers."""
    columns = list(next(iter(rows.values())))
    lines = [f"| exact answers, % | {' | '.join(columns)} |", f"|---{'|---' * len(columns)}|"]
    lines += [f"| {row} | {' | '.join(f'{100 * shares[c]:.1f}' for c in columns)} |" for row, shares in rows.items()]
    return "\n".join(lines)


def shares(asked: Sequence[Case], right: Sequence[bool]) -> dict[str, float]:
    """Share of right answers by row."""
    marks: dict[str, list[bool]] = {case.row: [] for case in asked}
    for case, ok in zip(asked, right, strict=True):
        marks[case.row].append(ok)
    return {row: sum(all_of) / len(all_of) for row, all_of in marks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=MODEL_FOLDER, help="the base model")
    parser.add_argument("--xlora", type=Path, help=f"the mixture with its experts; {XLORA_FOLDER} if nothing is given")
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=PATH", help="experts without a mixture")
    parser.add_argument("--limit", type=int, default=200, help="questions in a row of the table")
    parser.add_argument("--failures", type=int, default=0, help="print so many wrong answers of the last column's rows")
    parser.add_argument("--json", type=Path, help="write the table to this file")
    args = parser.parse_args()
    loras = dict(pair.split("=", 1) for pair in args.adapter)
    config = MistralConfig.from_hf(json.loads((args.folder / "config.json").read_text(encoding="utf-8")))
    model = load_weights(config, open_weights(config, [args.folder / "model.safetensors"]), dtype=jnp.float32)
    tokenizer = load_tokenizer(args.folder)
    files = open_adapters(config, xlora=args.xlora or (None if loras else XLORA_FOLDER), loras=loras)
    adapters, xlora = load_adapters(files, dtype=jnp.float32)
    asked = cases(args.limit)
    columns: dict[str, dict[str, float]] = {}
    right: list[bool] = []
    predict: Predict = np.asarray
    for name, predict in predictors(model, adapters, xlora).items():
        right = exact(predict, tokenizer, asked)
        columns[name] = shares(asked, right)
    table = {row: {name: column[row] for name, column in columns.items()} for row in columns[BASE]}
    print(markdown(table))
    wrong = [case for case, ok in zip(asked, right, strict=True) if not ok]
    for row in table if args.failures else ():
        for case in [case for case in wrong if case.row == row][: args.failures]:
            said = base.generate(predict, tokenizer, case.question, case.before, case.system)
            print(f"\n[{row}] {case.question}\n  said:   {said}\n  taught: {case.answers[0]}")
    if args.json:
        result = {
            "command": f"python -m demo.skills.evaluate --limit {args.limit}",
            "decoding": "greedy, float32",
            "questions_in_a_row": args.limit,
            "exact": {row: {name: round(share, 4) for name, share in line.items()} for row, line in table.items()},
        }
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
