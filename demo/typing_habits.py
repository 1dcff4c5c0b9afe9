"""How people really type: polite wrappers, no capitals, no question marks, and the odd typing error."""

from __future__ import annotations

import random
import string

_BEFORE = [
    "Please tell me: ",
    "Can you tell me: ",
    "Could you tell me: ",
    "Hello, ",
    "Hi, ",
    "Hey, ",
    "Hello! ",
    "Hi! ",
    "I have a question: ",
    "A question: ",
    "Quick question: ",
    "Tell me: ",
    "Tell me, ",
    "Please, ",
    "Please: ",
    "So, ",
    "OK, ",
    "Well, ",
    "Now, ",
    "And ",
    "Excuse me, ",
    "I wonder: ",
    "Do you know: ",
    "I'd like to know: ",
    "Next question: ",
    "Good morning. ",
    "Dear demo, ",
    "Um, ",
]
_BEFORE_BARE = [
    "please tell me ",
    "can you tell me ",
    "could you tell me ",
    "tell me ",
    "do you know ",
    "hey ",
    "so ",
    "hi ",
]
_AFTER = [
    ", please",
    " please",
    ", thanks",
    " Thanks!",
    " Thank you.",
    ", my friend",
    " I forgot.",
    " I need to know.",
    " pls",
]


_SYNONYMS = {
    "largest": ["biggest", "greatest"],
    "highest": ["tallest"],
    "smallest": ["tiniest"],
    "start": ["run", "launch"],
    "use": ["try"],
    "show": ["give"],
}


def _lower_first(text: str) -> str:
    first, _, _ = text.partition(" ")
    return text if first.isupper() and len(first) > 1 else text[:1].lower() + text[1:]


def _typo(rng: random.Random, text: str) -> str:
    """One slip of a finger inside a longer word; the first letter and digits stay as they are."""
    places = [
        i for i in range(1, len(text) - 1) if text[i - 1].isalpha() and text[i].islower() and text[i + 1].islower()
    ]
    if not places:
        return text
    i = rng.choice(places)
    kind = rng.randrange(4)
    if kind == 0:
        return text[:i] + text[i + 1] + text[i] + text[i + 2 :]
    if kind == 1:
        return text[:i] + text[i + 1 :]
    if kind == 2:
        return text[:i] + text[i] + text[i:]
    return text[:i] + rng.choice(string.ascii_lowercase) + text[i + 1 :]


def _contract(rng: random.Random, text: str) -> str:
    for long, short in (
        ("What is ", "What's "),
        ("Who is ", "Who's "),
        ("Where is ", "Where's "),
        ("I am ", "I'm "),
        ("How is ", "How's "),
        ("do not ", "don't "),
    ):
        if long in text:
            text = text.replace(long, short, 1)
            return text.replace("'", "") if rng.random() < 0.3 else text
    return text


def _synonym(rng: random.Random, text: str) -> str:
    for word, others in _SYNONYMS.items():
        if f" {word} " in text:
            return text.replace(word, rng.choice(others), 1)
    return text


def carelessly(rng: random.Random, text: str) -> str:
    """The text in small letters, without its last mark and, half of the time, with a typing error."""
    text = text.lower().rstrip(".?!")
    return _typo(rng, text) if rng.random() < 0.5 else text


def vary(rng: random.Random, text: str, *, keep_words: bool = False, wrap: bool = True) -> str:
    """The text as somebody else might type it.

    Args:
      rng: source of randomness.
      text: a question or a statement, well written.
      keep_words: make no typing errors and change no letters, because the answer repeats words of the text.
      wrap: put polite words around the text.
    """
    if rng.random() < 0.12:
        text = _contract(rng, text)
    if not keep_words and rng.random() < 0.25:
        text = _synonym(rng, text)
    if wrap and not keep_words and rng.random() < 0.18:
        if rng.random() < 0.3:
            text = rng.choice(_BEFORE_BARE) + _lower_first(text)
        else:
            before = rng.choice(_BEFORE)
            text = before + (_lower_first(text) if before.rstrip()[-1] in ",:" or before == "And " else text)
    if wrap and not keep_words and rng.random() < 0.06:
        end = text[-1] if text[-1] in ".?!" else ""
        after = rng.choice(_AFTER)
        text = text + after if after.endswith((".", "!")) else text.rstrip(".?!") + after + end
    if not keep_words and " the " in text and rng.random() < 0.05:
        text = text.replace(" the ", " ", rng.choice([1, 2]))
    if not keep_words and rng.random() < 0.10:
        text = _typo(rng, text)
    chance = rng.random()
    if keep_words:
        pass
    elif chance < 0.28:
        text = text.lower()
    elif chance < 0.295:
        text = text.upper()
    elif chance < 0.33:
        text = _lower_first(text)
    chance = rng.random()
    if chance < 0.28:
        text = text.rstrip(".?!")
    elif chance < 0.31:
        text += rng.choice("?!") if text[-1] in ".?!" else "?"
    elif chance < 0.33:
        text += " "
    elif chance < 0.34:
        text = " " + text
    return text or "?"
