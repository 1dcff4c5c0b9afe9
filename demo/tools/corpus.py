"""Conversations that teach the demo to call tools and to answer in JSON, one JSON object a line.

    python -m demo.tools.corpus --count 24000 --seed 1 --out tools.jsonl
    python -m demo.tools.corpus --count 20        # look at some

A line is `{"messages": [...]}`, with `"tools": [...]` where tools are offered.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from demo.skills.corpus import General, messages, write_lines
from demo.tools.extraction import Extraction, extraction, wrapped
from demo.tools.functions import CALCULATOR, CALLED, CONVERTER, Offered, offer, offer_other
from demo.tools.questions import Task, task

Record = dict[str, Any]
Message = dict[str, Any]

NO_TOOL = "I am sorry, I have no tool for that."
TOOLS_SHARE, JSON_SHARE, GENERAL_SHARE = 0.6, 0.3, 0.1
"""Shares of the conversations."""
_SYSTEM = (
    "You are a helpful assistant.",
    "Use the tools.",
    "You are a helpful assistant with tools.",
    "Answer briefly.",
    "You can call functions.",
)


def records(seed: int) -> Iterator[Record]:
    """Conversations with tools, with JSON, and the base's own; endless, the same for the same seed."""
    rng = random.Random(f"tools tools {seed}")
    general = General(rng.randrange(2**32))
    while True:
        chance = rng.random()
        if chance < TOOLS_SHARE:
            yield tool_conversation(rng, general)
        elif chance < TOOLS_SHARE + JSON_SHARE:
            yield json_conversation(rng, general)
        else:
            yield {"messages": messages(general.chat())}


def tool_conversation(rng: random.Random, general: General) -> Record:
    """One to three turns with some tools; questions that need no tool are from `general`."""
    purposes = rng.sample(list(CALLED), rng.choices((1, 2, 3), (4, 4, 2))[0])
    offered = {purpose: offer(rng, purpose) for purpose in purposes}
    listed = [function.tool for function in offered.values()]
    if rng.random() < 0.3:
        other = offer_other(rng)
        if other.name not in {function.name for function in offered.values()}:
            listed.append(other.tool)
    rng.shuffle(listed)
    turns: list[Message] = []
    if rng.random() < 0.15:
        turns.append({"role": "system", "content": rng.choice(_SYSTEM)})
    count = rng.choices((1, 2, 3), (6, 3, 1))[0]
    for number in range(count):
        turns += _turn(rng, offered, general, last=number == count - 1)
    return {"tools": listed, "messages": turns}


def _turn(rng: random.Random, offered: dict[str, Offered], general: General, *, last: bool) -> list[Message]:
    chance = rng.random()
    if chance < 0.75:
        first = rng.choice(list(offered))
        asked = [task(rng, first, held_out=False)]
        if len(offered) > 1 and rng.random() < 0.15:
            second = rng.choice([purpose for purpose in offered if purpose != first])
            asked.append(task(rng, second, held_out=False))
        exchanged = exchange(rng, asked, offered)
        # A conversation may end with the call.
        return exchanged[:2] if last and rng.random() < 0.15 else exchanged
    missing = [purpose for purpose in CALLED if purpose not in offered]
    if chance >= 0.96 and missing:
        purpose = rng.choice(missing)
        # Sums and units have answers of their own without tools.
        if purpose not in (CALCULATOR, CONVERTER):
            return said(task(rng, purpose, held_out=False).question, NO_TOOL)
    ((question, answer),) = general.turns(1)
    return said(question, answer)


def exchange(rng: random.Random, asked: Sequence[Task], offered: dict[str, Offered]) -> list[Message]:
    """A question, the calls, their results, and the answer."""
    question = asked[0].question
    if len(asked) > 1:
        second = asked[1].question
        question = question.rstrip(".?") + rng.choice((", and ", " and ", "? And ")) + second[:1].lower() + second[1:]
    if rng.random() < 0.12:
        question = question.rstrip(".?")
    if rng.random() < 0.1:
        question = rng.choice(("Please tell me: ", "Hi! ", "Hello, ", "Quick question: ")) + question
    calls = [offered[one.purpose].call(arguments) for one in asked for arguments in one.calls]
    ids = [f"call_{rng.randrange(10**9):09}" for _ in calls]
    return [
        {"role": "user", "content": question},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": id, "type": "function", "function": {**call, "arguments": json.dumps(call["arguments"])}}
                for id, call in zip(ids, calls, strict=True)
            ],
        },
        *(
            {"role": "tool", "tool_call_id": id, "content": result}
            for id, result in zip(ids, [result for one in asked for result in one.results], strict=True)
        ),
        {"role": "assistant", "content": " ".join(one.answer for one in asked)},
    ]


def json_conversation(rng: random.Random, general: General) -> Record:
    """A question that is to be answered in JSON; at times after others."""
    if rng.random() < 0.25:
        ((question, answer),) = general.turns(1)
        made = wrapped(rng, question, answer)
    else:
        made = extraction(rng, held_out=False)
    before: list[Message] = []
    if made.system is None and rng.random() < 0.15:
        before = [message for turn in general.turns(2) for message in said(*turn)]
    return {"messages": extracted(made, before)}


def extracted(made: Extraction, before: Sequence[Message] = ()) -> list[Message]:
    """The conversation in which it is asked and answered, after other messages."""
    system = [] if made.system is None else [{"role": "system", "content": made.system}]
    return [*system, *before, *said(made.question, made.answer)]


def said(question: str, answer: str) -> list[Message]:
    """One turn."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=24_000, help="number of conversations")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file to write; the standard output if not given")
    args = parser.parse_args()
    write_lines(itertools.islice(records(args.seed), args.count), args.out)


if __name__ == "__main__":
    main()
