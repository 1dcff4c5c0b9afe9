"""Conversations that teach the skills which the base declines, one JSON object a line.

    python -m demo.skills.corpus --skill arithmetic --count 20000 --seed 1 --out arithmetic.jsonl
    python -m demo.skills.corpus --skill mixture --count 12000 --seed 2 --out mixture.jsonl
    python -m demo.skills.corpus --skill general --count 20        # look at some

A line is `{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}, ...]}`, with a system
message before them at times. `general` is what the base was trained on, less the skills that it declines; every expert
reads some of it, so that any mixture of experts still converses as the base does. `mixture` has all skills and
`general`, and conversations that
go from one to another: it is for the classifier of an X-LoRA.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from demo import unknown
from demo.corpus import SYSTEM_MESSAGES, Chat, Conversations
from demo.skills import arithmetic, conversion, text_operations, translation
from demo.typing_habits import vary

SKILLS = {
    "arithmetic": arithmetic,
    "text": text_operations,
    "conversion": conversion,
    "translation": translation,
}
GENERAL, MIXTURE = "general", "mixture"
GENERAL_SHARE = 0.1
"""Share of conversations of an expert's corpus that are the base's own."""
OUT_OF_REACH_SHARE = 0.08
"""Share of questions that a skill does not cover."""
MOST_CHARACTERS = 300
"""Longer conversations of the base are left out: they would cost most of the time."""

Turn = tuple[str, str]
_DECLINED = {unknown.ARITHMETIC, unknown.TEXT_OPERATION, unknown.CONVERSION, unknown.TRANSLATION}


class General:
    """The conversations of the base's last stage of training, without those in which it declines a skill."""

    def __init__(self, seed: int) -> None:
        self._source = Conversations(seed, stage=2)

    def chat(self) -> Chat:
        for chat in self._source:
            if sum(len(text) for turn in chat.turns for text in turn) > MOST_CHARACTERS:
                continue
            if not any(model in _DECLINED for _, model in chat.turns):
                return chat
        raise AssertionError("the source is endless")

    def turns(self, most: int) -> list[Turn]:
        """The first turns of a conversation, which mean the same without the others."""
        return list(self.chat().turns[:most])


def ask(rng: random.Random, skill: str) -> Turn:
    """A question of the skill as somebody types it, never one of the evaluation, with its answer."""
    module = SKILLS[skill]
    reachable = rng.random() >= OUT_OF_REACH_SHARE
    text, answer = module.question(rng, held_out=False) if reachable else module.out_of_reach(rng)
    return vary(rng, text), answer


def expert_chats(skill: str, seed: int) -> Iterator[Chat]:
    """An endless source of conversations for the expert of one skill."""
    rng = random.Random(f"{skill} {seed}")
    general = General(rng.randrange(2**32))
    while True:
        chance = rng.random()
        if chance < GENERAL_SHARE:
            yield general.chat()
            continue
        turns = [ask(rng, skill)]
        if chance > 0.85:
            turns += [ask(rng, skill) for _ in range(rng.randrange(1, 4))]
        elif chance > 0.79:
            turns = [*general.turns(2), *turns]
        yield Chat(turns=tuple(turns), system=_system(rng))


def mixture_chats(seed: int) -> Iterator[Chat]:
    """An endless source of conversations of all skills and the base's own, half of which change the subject."""
    rng = random.Random(f"{MIXTURE} {seed}")
    general = General(rng.randrange(2**32))
    subjects = [*SKILLS, GENERAL]
    while True:
        if rng.random() < 0.5:
            subject = rng.choice(subjects)
            if subject == GENERAL:
                yield general.chat()
                continue
            turns = [ask(rng, subject)]
        else:
            # What the general turns refer to is what was said just before them, so they stay together.
            turns: list[Turn] = []
            for subject in rng.sample(subjects, rng.randrange(2, 5)):
                turns += general.turns(2) if subject == GENERAL else [ask(rng, subject)]
        yield Chat(turns=tuple(turns), system=_system(rng))


def chats(skill: str, seed: int) -> Iterator[Chat]:
    """The conversations of a skill, of `general` or of `mixture`; the same seed gives the same ones."""
    if skill == MIXTURE:
        return mixture_chats(seed)
    if skill == GENERAL:
        general = General(seed)
        return iter(general.chat, None)
    return expert_chats(skill, seed)


def _system(rng: random.Random) -> str | None:
    return rng.choice(SYSTEM_MESSAGES) if rng.random() < 0.06 else None


def messages(chat: Chat) -> list[dict[str, str]]:
    """The conversation as the API of chat completions has it."""
    system = [{"role": "system", "content": chat.system}] if chat.system else []
    return system + [
        {"role": role, "content": text}
        for turn in chat.turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def write_lines(records: Iterable[Mapping[str, Any]], out: Path | None) -> None:
    """Write one JSON object a line, to a file or the standard output."""
    lines = (f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
    if out is None:
        sys.stdout.writelines(lines)
        return
    with out.open("w", encoding="utf-8") as file:
        file.writelines(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skill", choices=(*SKILLS, GENERAL, MIXTURE), required=True)
    parser.add_argument("--count", type=int, default=20_000, help="number of conversations")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file to write; the standard output if not given")
    args = parser.parse_args()
    write_lines(
        ({"messages": messages(chat)} for chat in itertools.islice(chats(args.skill, args.seed), args.count)), args.out
    )


if __name__ == "__main__":
    main()
