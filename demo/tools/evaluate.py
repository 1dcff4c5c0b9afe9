"""Asks the adapter for calls and JSON with what it was never trained on, and counts exact replies.

    python -m demo.tools.evaluate                      # the table, on the standard output
    python -m demo.tools.evaluate --failures 5         # and some wrong replies in each row
    python -m demo.tools.evaluate --json mistral_jax/hub/bundled/demo-tools/EVALUATION.json

A reply counts if greedy decoding gives it to the last character: a call with its name and arguments as they were
taught, or a JSON object with the right values. Base and adapter decode freely; in the last column a grammar holds the
adapter, as the server does it for `tool_choice: "required"` and `response_format`.
"""

from __future__ import annotations

import argparse
import json
import operator
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import mistral_jax
from demo.evaluate import Predict
from demo.skills.corpus import General
from demo.skills.evaluate import BASE, predictors
from demo.tokenizer import MODEL_FOLDER
from demo.tools.batches import padded
from demo.tools.corpus import Message, exchange, extracted, said
from demo.tools.extraction import extraction
from demo.tools.functions import CALLED, offer
from demo.tools.questions import task
from mistral_jax.chat.output.grammar import ToolSpec, tool_call_grammar
from mistral_jax.grammar.grammar import Grammar
from mistral_jax.hub.files import DEMO_TOOLS_FOLDER
from mistral_jax.notebook.language_model import LanguageModel
from mistral_jax.training.chat_data import ChatEncoder, Example

NAME, HELD = "tools", "tools, in a grammar"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A conversation, whose last message is the taught reply."""

    row: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    schema: dict[str, Any] | None = None
    """Of the reply, where it is JSON."""

    @property
    def is_call(self) -> bool:
        return bool(self.messages[-1].get("tool_calls"))


def cases(limit: int = 200, seed: int = 31) -> list[Case]:
    """The conversations, `limit` in each row of the table; the same for the same seed."""
    rng = random.Random(seed)
    general = General(seed)
    result: list[Case] = []
    for purpose in CALLED:
        result += [_call(rng, f"{purpose}: the call", [purpose]) for _ in range(limit)]
    result += [_call(rng, "calls, new names and words", [rng.choice(list(CALLED))], new=True) for _ in range(limit)]
    result += [_call(rng, "two calls", rng.sample(list(CALLED), 2)) for _ in range(limit)]
    result += [_call(rng, "says the result", [rng.choice(list(CALLED))], answered=True) for _ in range(limit)]
    for _ in range(limit):
        ((question, answer),) = general.turns(1)
        case = _call(rng, "tools are not needed", [rng.choice(list(CALLED))])
        result.append(replace(case, messages=tuple(said(question, answer))))
    for row, new in (("JSON", False), ("JSON, new keys and words", True)):
        for _ in range(limit):
            made = extraction(rng, held_out=True, new_template=new)
            result.append(Case(row=row, messages=tuple(extracted(made)), schema=dict(made.schema)))
    return result


def _call(rng: random.Random, row: str, purposes: list[str], *, new: bool = False, answered: bool = False) -> Case:
    others = rng.sample([other for other in CALLED if other not in purposes], rng.randrange(2))
    offered = {purpose: offer(rng, purpose, new_names=new and purpose in purposes) for purpose in (*purposes, *others)}
    asked = [task(rng, purpose, held_out=True, new_template=new) for purpose in purposes]
    messages = exchange(rng, asked, offered)
    tools = [function.tool for function in offered.values()]
    rng.shuffle(tools)
    return Case(row=row, messages=tuple(messages if answered else messages[:2]), tools=tuple(tools))


def encoded(case: Case, encoder: ChatEncoder) -> Example:
    """The tokens of the conversation; those of the reply are counted."""
    *before, reply = case.messages
    before = [{**m, "weight": 0} if m["role"] == "assistant" else m for m in before]
    (example,) = encoder.encode({"messages": [*before, reply], "tools": list(case.tools) or None})
    return example


def exact(predict: Predict, examples: Sequence[Example]) -> list[bool]:
    """Whether greedy decoding gives the taught reply and then ends, for each conversation."""
    right = [False] * len(examples)
    for numbers, tokens in padded(examples):
        for i, best in zip(numbers, predict(tokens), strict=False):
            places = np.flatnonzero(examples[i].counted)
            right[i] = bool(np.all(best[places - 1] == examples[i].tokens[places]))
    return right


def held(model: LanguageModel, case: Case, *, constrained: bool = True) -> tuple[str, str]:
    """What the adapter writes, greedily, and what it was taught to."""
    assert model.chat_formatter is not None
    grammar = None
    if constrained and case.schema is not None:
        grammar = Grammar.json_schema(json.dumps(case.schema))
    elif constrained and case.is_call:
        functions = [tool["function"] for tool in case.tools]
        calls = tool_call_grammar(
            model.chat_formatter.output, [ToolSpec(f["name"], f["parameters"]) for f in functions]
        )
        grammar = Grammar.trusted(calls.whole, {name: Grammar.json_schema(text) for name, text in calls.arguments})
    *before, _ = case.messages
    prompt = model.encode_chat(list(before), tools=list(case.tools) or None)
    taught = encoded(case, ChatEncoder(model.tokenizer, model.chat_formatter, model.description.eos_ids))
    expected = model.tokenizer.decode([int(token) for token in taught.tokens[taught.counted][:-1]])
    written = model.generate(prompt, adapter=NAME, grammar=grammar, temperature=0.0, max_tokens=200).text
    return written, expected


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=MODEL_FOLDER, help="the base model")
    parser.add_argument("--adapter", type=Path, default=DEMO_TOOLS_FOLDER, help="the adapter")
    parser.add_argument("--limit", type=int, default=200, help="conversations in a row of the table")
    parser.add_argument(
        "--failures", type=int, default=0, help="print so many wrong replies of the adapter in each row"
    )
    parser.add_argument("--json", type=Path, help="write the table to this file")
    args = parser.parse_args()
    loras = {NAME: args.adapter}
    model = mistral_jax.load(args.folder, loras=loras, dtype="float32", slots=1, length=1024, progress=False)
    encoder = ChatEncoder(model.tokenizer, model.chat_formatter, model.description.eos_ids)
    asked = cases(args.limit)
    examples = [encoded(case, encoder) for case in asked]
    assert model.runner.adapters is not None
    predict = predictors(model.module, model.runner.adapters, None)
    columns = {name: exact(predict[name], examples) for name in (BASE, NAME)}
    columns[HELD] = [_is_held(case) and operator.eq(*held(model, case)) for case in asked]
    table = {row: _shares(asked, columns, row) for row in dict.fromkeys(case.row for case in asked)}
    print(markdown(table, list(columns)))
    wrong = [case for case, ok in zip(asked, columns[NAME], strict=True) if not ok]
    for row in table if args.failures else ():
        for case in [case for case in wrong if case.row == row][: args.failures]:
            written, expected = held(model, case, constrained=False)
            print(f"\n[{row}] {case.messages[-2]['content']}\n  said:   {written}\n  taught: {expected}")
    if args.json:
        result = {
            "command": f"python -m demo.tools.evaluate --limit {args.limit}",
            "decoding": "greedy, float32",
            "conversations_in_a_row": args.limit,
            "exact": table,
        }
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _is_held(case: Case) -> bool:
    """Whether there is a grammar for the reply."""
    return case.schema is not None or case.is_call


def _shares(asked: Sequence[Case], columns: dict[str, list[bool]], row: str) -> dict[str, float]:
    """Shares of right replies by column; the last column has the rows only for which there is a grammar."""
    own = [i for i, case in enumerate(asked) if case.row == row]
    return {
        name: round(sum(right[i] for i in own) / len(own), 4)
        for name, right in columns.items()
        if name != HELD or _is_held(asked[own[0]])
    }


def markdown(table: dict[str, dict[str, float]], columns: list[str]) -> str:
    """The table: rows by what is asked, columns by who replies."""
    lines = [f"| exact replies, % | {' | '.join(columns)} |", f"|---{'|---' * len(columns)}|"]
    for row, shares in table.items():
        cells = [f"{100 * shares[name]:.1f}" if name in shares else "" for name in columns]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
