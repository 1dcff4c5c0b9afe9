"""Asks the demo model what it was taught, in phrasings that it has never seen, and counts exact answers.

    python -m demo.evaluate                      # the table, on the standard output
    python -m demo.evaluate --failures 5         # and some wrong answers of each row
    python -m demo.evaluate --json mistral_jax/hub/bundled/demo/EVALUATION.json
    python -m demo.evaluate --ask "What is JAX?" # greedy answers to questions of your own

An answer counts if greedy decoding gives exactly one of the answers that were taught, and then `</s>`. That is so if
and only if at each of its positions the most likely token is the next one of the answer; one pass over each question
with its answer therefore tells, without generating.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from sentencepiece import SentencePieceProcessor

from demo import memory, unknown
from demo.corpus import (
    AGAIN,
    FOLLOW_UPS,
    FOLLOWING_RELATIONS,
    summary,
)
from demo.encoding import EOS, encode, load_tokenizer
from demo.held_out import all_lessons, split
from demo.lesson import Lesson, Phrasing
from demo.tokenizer import MODEL_FOLDER
from demo.typing_habits import carelessly
from mistral_jax.checkpoint.weights import load_weights, open_weights
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.mistral import Mistral

Turns = tuple[tuple[str, str], ...]
_ROWS, _PAD_TO = 16, 64


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question of the evaluation."""

    row: str
    """Row of the table."""
    question: str
    answers: tuple[str, ...]
    before: Turns = ()
    system: str | None = None


def _sample(rng: random.Random, cases: list[Case], limit: int) -> list[Case]:
    return rng.sample(cases, min(limit, len(cases)))


def _questions(row: str, category: str, group: dict[str, tuple[Phrasing, ...]]) -> list[Case]:
    return [
        Case(row=row, question=p.text, answers=lesson.answers)
        for lesson in all_lessons()
        if lesson.category == category
        for p in group[lesson.key]
    ]


def _follow_up(rng: random.Random) -> Case:
    """A question in full, and then the same for another thing in a phrasing that is never trained on."""
    relation = rng.choice(FOLLOWING_RELATIONS)
    first, second = rng.sample([x for x in all_lessons() if x.relation == relation], 2)
    question = rng.choice(split().train[first.key]).text
    template = memory.choose(rng, tuple(FOLLOW_UPS), held_out=True)
    return Case(
        row="follow-ups, new template",
        question=template.format(x=second.follow),
        answers=second.answers,
        before=((question, first.answers[0]),),
    )


def _fillers(rng: random.Random, low: int, high: int) -> list[tuple[str, str]]:
    lessons = rng.sample(all_lessons(), rng.randrange(low, high + 1))
    return [(rng.choice(split().train[x.key]).text, rng.choice(x.answers)) for x in lessons]


def _remember(rng: random.Random, *, held_out_templates: bool) -> Case:
    """A name and other things are told, in values that are never trained on, and asked for some turns later."""
    slots = rng.sample(memory.SLOTS, rng.randrange(1, 4))
    if memory.SLOTS[0] not in slots:
        slots[0] = memory.SLOTS[0]
    facts = [memory.tell(rng, slot, held_out=True) for slot in slots]
    turns: list[tuple[str, str]] = []
    for fact in facts:
        template = memory.choose(rng, fact.slot.tell, held_out=held_out_templates)
        turns += [(fact.fill(template), fact.fill(fact.slot.reply)), *_fillers(rng, 0, 1)]
    turns += _fillers(rng, 0, 2)
    if not held_out_templates and rng.random() < 0.15:
        return Case(
            row="memory, new names",
            question=memory.choose(rng, memory.ASK_ALL),
            answers=(summary(facts),),
            before=tuple(turns),
        )
    fact = rng.choice(facts)
    return Case(
        row="memory, new templates and names" if held_out_templates else "memory, new names",
        question=fact.fill(memory.choose(rng, fact.slot.ask, held_out=held_out_templates)),
        answers=(fact.fill(fact.slot.answer),),
        before=tuple(turns),
    )


def _long(rng: random.Random, turns: int) -> Case:
    """The name, told at the beginning of a conversation of many turns, or a fact at its end."""
    fact = memory.tell(rng, memory.SLOTS[0], held_out=True)
    before = ((fact.fill("My name is {v}."), fact.fill(fact.slot.reply)), *_fillers(rng, turns, turns))
    if rng.random() < 0.5:
        return Case(
            row=f"after {turns} turns",
            question=fact.fill("What is my name?"),
            answers=(fact.fill(fact.slot.answer),),
            before=before,
        )
    lesson = rng.choice(all_lessons())
    return Case(
        row=f"after {turns} turns",
        question=rng.choice(split().train[lesson.key]).text,
        answers=lesson.answers,
        before=before,
    )


def _declined(row: str, make: Callable[..., unknown.Question], rng: random.Random) -> Case:
    question = make(rng, held_out=True)
    return Case(row=row, question=question.text, answers=(question.answer,))


def cases(limit: int = 400, seed: int = 11) -> list[Case]:
    """The questions of the evaluation, at most `limit` for each row; the same for the same seed."""
    rng = random.Random(seed)
    kept = split()
    taught = [Case(row="facts, as trained", question=p.text, answers=x.answers) for x, p in _trained("facts")]
    result = _sample(rng, taught, limit)
    for category in ("facts", "help"):
        pairs = _questions(f"{category}, new pairs", category, kept.held_out_pairs)
        result += _sample(rng, pairs, limit)
        result += _sample(rng, _questions(f"{category}, new templates", category, kept.held_out_templates), limit)
        careless = [
            Case(row=f"{category}, new pairs, careless typing", question=carelessly(rng, c.question), answers=c.answers)
            for c in pairs
        ]
        result += _sample(rng, careless, limit)
    result += _questions("small talk, new phrasings", "small talk", kept.held_out_templates)
    result += [_follow_up(rng) for _ in range(limit)]
    result += [_remember(rng, held_out_templates=False) for _ in range(limit // 2)]
    result += [_remember(rng, held_out_templates=True) for _ in range(limit // 2)]
    result += [_again(rng) for _ in range(limit // 4)]
    result += [_long(rng, turns) for turns in (8, 20) for _ in range(limit // 4)]
    result += [_declined("declines: skills kept aside", unknown.kept_aside_question, rng) for _ in range(limit)]
    result += [_declined("declines: never taught", unknown.unknown_question, rng) for _ in range(limit)]
    return result


def _trained(category: str) -> list[tuple[Lesson, Phrasing]]:
    train = split().train
    return [(lesson, p) for lesson in all_lessons() if lesson.category == category for p in train[lesson.key]]


def _again(rng: random.Random) -> Case:
    ((question, answer),) = _fillers(rng, 1, 1)
    again = memory.choose(rng, tuple(AGAIN), held_out=True)
    return Case(row="repeats its answer", question=again, answers=(answer,), before=((question, answer),))


Predict = Callable[[np.ndarray], np.ndarray]
"""int32 [B, T] tokens -> int32 [B, T] most likely next tokens."""


def load(folder: Path) -> tuple[Predict, SentencePieceProcessor]:
    config = MistralConfig.from_hf(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    source = open_weights(config, [folder / "model.safetensors"])
    return predictor(load_weights(config, source, dtype=jnp.float32)), load_tokenizer(folder)


def predictor(model: Mistral) -> Predict:
    graph, params = nnx.split(model)

    def predict(params: nnx.State, tokens: jax.Array) -> jax.Array:
        model = nnx.merge(graph, params)
        return jnp.argmax(model.logits(model.hidden_states(tokens)), axis=-1)

    jitted = partial(jax.jit(predict), params)
    return lambda tokens: np.asarray(jitted(tokens))


def exact(predict: Predict, tokenizer: SentencePieceProcessor, asked: Sequence[Case]) -> list[bool]:
    """Whether greedy decoding gives one of the taught answers, for each case."""
    rows: list[tuple[int, list[int], int]] = []
    for number, case in enumerate(asked):
        for answer in case.answers:
            encoded = encode(tokenizer, [*case.before, (case.question, answer)], system=case.system)
            start = len(encoded.tokens) - len(tokenizer.encode(answer)) - 1
            rows.append((number, encoded.tokens, start))
    rows.sort(key=lambda row: len(row[1]))
    right = [False] * len(asked)
    for first in range(0, len(rows), _ROWS):
        batch = rows[first : first + _ROWS]
        length = -(-max(len(tokens) for _, tokens, _ in batch) // _PAD_TO) * _PAD_TO
        padded = np.zeros((_ROWS, length), np.int32)
        for i, (_, tokens, _) in enumerate(batch):
            padded[i, : len(tokens)] = tokens
        best = predict(padded)
        for i, (number, tokens, start) in enumerate(batch):
            right[number] |= bool(np.array_equal(best[i, start - 1 : len(tokens) - 1], tokens[start:]))
    return right


def generate(
    predict: Predict, tokenizer: SentencePieceProcessor, question: str, before: Turns = (), system: str | None = None
) -> str:
    """The greedy answer, computed the simple way: the whole text again for each token."""
    prompt = encode(tokenizer, [*before, (question, "")], system=system).tokens[:-1]
    tokens = list(prompt)
    while len(tokens) < len(prompt) + 160:
        length = -(-len(tokens) // _PAD_TO) * _PAD_TO
        padded = np.zeros((2, length), np.int32)
        padded[:, : len(tokens)] = tokens
        token = int(predict(padded)[0, len(tokens) - 1])
        if token == EOS:
            break
        tokens.append(token)
    return tokenizer.decode(tokens[len(prompt) :])


def _table(asked: Sequence[Case], right: Sequence[bool]) -> Iterator[tuple[str, int, int]]:
    for row in dict.fromkeys(case.row for case in asked):
        marks = [ok for case, ok in zip(asked, right, strict=True) if case.row == row]
        yield row, sum(marks), len(marks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=MODEL_FOLDER)
    parser.add_argument("--limit", type=int, default=400, help="most questions in a row of the table")
    parser.add_argument("--failures", type=int, default=0, help="print so many wrong answers of each row")
    parser.add_argument("--json", type=Path, help="write the table to this file")
    parser.add_argument("--ask", nargs="+", help="answer these questions, each by itself, instead")
    parser.add_argument("--chat", nargs="+", help="answer these messages as turns of one conversation instead")
    args = parser.parse_args()
    predict, tokenizer = load(args.folder)
    turns: list[tuple[str, str]] = []
    for question in args.ask or args.chat or ():
        answer = generate(predict, tokenizer, question, tuple(turns) if args.chat else ())
        turns.append((question, answer))
        print(f"> {question}\n{answer}")
    if turns:
        return
    asked = cases(args.limit)
    right = exact(predict, tokenizer, asked)
    table = list(_table(asked, right))
    print("| what is asked | exact | of | share |\n|---|---|---|---|")
    for row, good, count in table:
        print(f"| {row} | {good} | {count} | {100 * good / count:.1f} % |")
    wrong = [case for case, ok in zip(asked, right, strict=True) if not ok]
    for row, _, _ in table if args.failures else ():
        for case in [case for case in wrong if case.row == row][: args.failures]:
            answer = generate(predict, tokenizer, case.question, case.before, case.system)
            print(f"\n[{row}] {case.question}\n  said:   {answer}\n  taught: {case.answers[0]}")
    if args.json:
        rows = {row: {"exact": good, "of": count, "share": round(good / count, 4)} for row, good, count in table}
        result = {
            "command": f"python -m demo.evaluate --limit {args.limit}",
            "decoding": "greedy, float32",
            "rows": rows,
        }
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
