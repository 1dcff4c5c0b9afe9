"""Questions about using mistral-jax itself.

A topic of `help.txt` names what one can do ("start the server") or what one can ask about ("the KV cache"), in
the words of several people; the general ways of asking (`_DO`, `_WHAT`) multiply them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from demo.lesson import HELD_OUT_MARK, Lesson, Phrasing, unmark

_DO = [
    "How do I {x}?",
    "How can I {x}?",
    "How to {x}?",
    "How do you {x}?",
    "I want to {x}.",
    "I want to {x}. What do I do?",
    "I would like to {x}.",
    "What is the command to {x}?",
    "Which command do I need to {x}?",
    "What must I type to {x}?",
    "Tell me how to {x}.",
    "Can you show me how to {x}?",
    "Is there a way to {x}?",
    "Can I {x}?",
    "Help me {x}.",
    "Is it possible to {x}?",
    "What do I have to do to {x}?",
    "How does one {x}?",
    "How would I {x}?",
    "{x}",
    "~What is the best way to {x}?",
    "~Could you explain how to {x}?",
]
_WHAT = [
    "What is {x}?",
    "What does {x} mean?",
    "Explain {x}.",
    "What is {x} for?",
    "Tell me about {x}.",
    "What does {x} do?",
    "Can you explain {x}?",
    "How does {x} work?",
    "What do you know about {x}?",
    "I do not understand {x}.",
    "Do you know what {x} is?",
    "What about {x}?",
    "{x}?",
    "~What is meant by {x}?",
    "~Could you tell me what {x} is?",
]


@dataclass(frozen=True, kw_only=True)
class Topic:
    """A paragraph of `help.txt`."""

    key: str
    do: list[str]
    """What one can do."""
    what: list[str]
    """What one can ask about."""
    ask: list[str]
    """Questions as they are."""
    say: str
    """The answer."""


def topics() -> list[Topic]:
    text = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found: dict[str, dict[str, str]] = {}
    for line in lines:
        if line.startswith("["):
            entries = found.setdefault(line.strip("[]"), {})
        else:
            name, _, value = line.partition(": ")
            entries[name] = value
    phrases = {
        key: {
            name: [p.strip() for p in entries.get(name, "").split(";") if p.strip()] for name in ("do", "what", "ask")
        }
        for key, entries in found.items()
    }
    return [Topic(key=key, say=entries["say"], **phrases[key]) for key, entries in found.items()]


def _questions(topic: Topic) -> list[Phrasing]:
    phrasings: list[Phrasing] = []
    for ways, subjects in ((_DO, topic.do), (_WHAT, topic.what), (["{x}"], topic.ask)):
        for way in ways:
            for subject in subjects:
                text = unmark(way).replace("{x}", unmark(subject))
                held_out = way.startswith(HELD_OUT_MARK) or subject.startswith(HELD_OUT_MARK)
                phrasings.append(
                    Phrasing(text=text[:1].upper() + text[1:], template=f"help: {unmark(way)}", held_out=held_out)
                )
    return phrasings


def lessons() -> list[Lesson]:
    return [
        Lesson(
            key=f"help/{topic.key}",
            category="help",
            relation="help",
            phrasings=tuple(_questions(topic)),
            answers=(topic.say,),
        )
        for topic in topics()
    ]
