"""Sentences about people, and what they say as a JSON object with the keys that the user names."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from demo import memory
from demo.lesson import with_article
from demo.skills.held_out import choose, draw
from demo.tools.places import place
from demo.tools.varied_names import at_times_varied


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """A question that asks for JSON, its schema, and the answer."""

    question: str
    system: str | None
    """Has the keys where they are told before the conversation."""
    schema: Mapping[str, Any]
    answer: str


_KEYS = {
    "name": ("name", "name", "first_name", "person", "~who"),
    "age": ("age", "age", "years", "~years_old"),
    "city": ("city", "city", "town", "home", "location", "~residence"),
    "job": ("job", "job", "profession", "work", "~occupation"),
    "food": ("food", "likes", "favourite_food", "~favorite_food"),
    "pet": ("pet", "pet", "animal", "~owns"),
}
_CLAUSES = {
    "age": ("is {v} years old", "is {v}", "has just turned {v}", "~is aged {v}"),
    "city": ("lives in {v}", "lives in {v}", "comes from {v}", "~has a house in {v}"),
    "job": ("works as {a}", "is {a}", "~earns money as {a}"),
    "food": ("likes {v}", "loves {v}", "~enjoys {v}"),
    "pet": ("has {a}", "owns {a}", "~keeps {a}"),
}
_ASKED = (
    "{s} Give {k} as JSON.",
    "{s} Answer as JSON with the keys {k}.",
    "{s} Write JSON with {k}.",
    "Extract {k} as JSON: {s}",
    "JSON with {k}: {s}",
    "Turn this into JSON with {k}: {s}",
    "Answer as JSON with the keys {k}. {s}",
    "~{s} I need {k} in JSON.",
    "~Read this and answer in JSON with {k}: {s}",
)
_SYSTEM = (
    "Answer as JSON with the keys {k}.",
    "Always answer in JSON with the keys {k}.",
    "You extract data. Answer as JSON with the keys {k}.",
    "Return JSON with {k}.",
    "~Reply in JSON only. The keys are {k}.",
)


def extraction(rng: random.Random, *, held_out: bool, new_template: bool = False) -> Extraction:
    """A sentence with the question for its contents.

    Args:
      held_out: With a name and other values that are never trained on together, or only with others.
      new_template: Asked in words, and for keys, that are never trained on.
    """

    def values() -> tuple[tuple[str, Any], ...]:
        told = rng.sample(list(_CLAUSES), rng.choices((1, 2, 3), (2, 4, 2))[0])
        return tuple((slot, _value(rng, slot, held_out)) for slot in ("name", *told))

    told = draw(values, held_out=held_out, key=lambda *told: ("person", *told))
    clauses = [
        choose(rng, _CLAUSES[slot], new=new_template).format(v=value, a=with_article(str(value)))
        for slot, value in told[1:]
    ]
    sentence = f"{told[0][1]} {_listed(clauses)}."
    wanted = list(told)
    if len(wanted) > 2 and rng.random() < 0.3:
        wanted.pop(rng.randrange(len(wanted)))
    rng.shuffle(wanted)
    keys = {slot: choose(rng, _KEYS[slot], new=new_template) for slot, _ in wanted}
    if not new_template:
        keys = dict(zip(keys, at_times_varied(rng, keys.values()), strict=True))
    listed = _listed(list(keys.values()), comma_only=rng.random() < 0.3)
    if rng.random() < 0.3:
        system, question = choose(rng, _SYSTEM, new=new_template).format(k=listed), sentence
    else:
        system, question = None, choose(rng, _ASKED, new=new_template).format(s=sentence, k=listed)
    return Extraction(
        question=question,
        system=system,
        schema={
            "type": "object",
            "properties": {key: {"type": "integer" if slot == "age" else "string"} for slot, key in keys.items()},
            "required": list(keys.values()),
            "additionalProperties": False,
        },
        answer=json.dumps({keys[slot]: value for slot, value in wanted}, ensure_ascii=False),
    )


def wrapped(rng: random.Random, question: str, answer: str) -> Extraction:
    """Any question, whose answer is to be the only value of an object."""
    (key,) = at_times_varied(rng, [rng.choice(("answer", "answer", "text", "reply"))])
    form = rng.choice(
        (
            f'{question} Answer as JSON with the key "{key}".',
            f"{question} Answer as JSON with the key {key}.",
            f"{question} Give {key} as JSON.",
        )
    )
    return Extraction(
        question=form,
        system=None,
        schema={"type": "object", "properties": {key: {"type": "string"}}, "required": [key]},
        answer=json.dumps({key: answer}, ensure_ascii=False),
    )


def _value(rng: random.Random, slot: str, held_out: bool) -> Any:
    if slot == "age":
        return rng.randrange(4, 100)
    if slot == "city":
        return place(rng, held_out=held_out)
    if slot == "pet":
        return rng.choice(memory.PETS.split())
    return memory.a_value(rng, slot, held_out=held_out)


def _listed(parts: list[str], *, comma_only: bool = False) -> str:
    if len(parts) < 2 or comma_only:
        return ", ".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
