"""All lessons, and which of their phrasings are kept for the evaluation.

Two kinds of phrasings are never trained on: whole templates that are marked in the tables, and, of the other templates,
some combinations with a lesson, chosen by a hash, so that the training sees each template and each lesson, but not that
pair.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache

from demo import definitions, geography, help, nature, people, small_talk, words
from demo.lesson import Lesson, Phrasing

HELD_OUT_SHARE = 0.07
"""Share of the (lesson, template) pairs that the evaluation keeps."""

MODULES = (small_talk, help, geography, nature, words, people, definitions)


def normal_form(text: str) -> str:
    """Letters and digits of a question in lower case: what stays the same however it is typed."""
    return " ".join(re.findall(r"\w+", text.lower()))


@cache
def all_lessons() -> tuple[Lesson, ...]:
    """Every lesson; a phrasing that an earlier lesson answers in another way is taken from the later one."""
    taken: dict[str, tuple[str, ...]] = {}
    lessons: list[Lesson] = []
    keys: set[str] = set()
    for module in MODULES:
        for lesson in module.lessons():
            if lesson.key in keys:
                raise ValueError(f"two lessons are called {lesson.key!r}")
            keys.add(lesson.key)
            kept: list[Phrasing] = []
            seen: set[str] = set()
            for p in lesson.phrasings:
                form = normal_form(p.text) or p.text
                if taken.setdefault(form, lesson.answers) == lesson.answers and form not in seen:
                    kept.append(p)
                    seen.add(form)
            lessons.append(replace(lesson, phrasings=tuple(kept)))
    return tuple(lessons)


def _hash(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which phrasings are trained on, and which the evaluation asks."""

    train: dict[str, tuple[Phrasing, ...]]
    """By the key of the lesson."""
    held_out_pairs: dict[str, tuple[Phrasing, ...]]
    """The lesson and the template are trained on, but not together."""
    held_out_templates: dict[str, tuple[Phrasing, ...]]
    """No lesson is trained with this template."""


@cache
def split() -> Split:
    train: dict[str, tuple[Phrasing, ...]] = {}
    pairs: dict[str, tuple[Phrasing, ...]] = {}
    templates: dict[str, tuple[Phrasing, ...]] = {}
    # A template of few lessons would be missing altogether if some of them were held out.
    uses = Counter(p.template for lesson in all_lessons() for p in lesson.phrasings)
    for lesson in all_lessons():
        marked = [p for p in lesson.phrasings if p.held_out]
        rest = [p for p in lesson.phrasings if not p.held_out]
        # A way of small talk is its own template: there only the marked ones can be held out.
        share = 0.0 if lesson.category == "small talk" else HELD_OUT_SHARE
        held = [p for p in rest if uses[p.template] > 4 and _hash(f"{lesson.key}: {p.text}") < share]
        if len(held) == len(rest):
            held = held[1:]
        train[lesson.key] = tuple(p for p in rest if p not in held)
        pairs[lesson.key] = tuple(held)
        templates[lesson.key] = tuple(marked)
        if not train[lesson.key]:
            raise ValueError(f"no phrasing of {lesson.key!r} is left for the training")
    return Split(train=train, held_out_pairs=pairs, held_out_templates=templates)


@cache
def held_out_forms() -> frozenset[str]:
    kept = split()
    return frozenset(
        normal_form(p.text)
        for group in (kept.held_out_pairs, kept.held_out_templates)
        for phrasings in group.values()
        for p in phrasings
    )
