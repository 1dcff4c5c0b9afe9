"""Spelling, counting letters, first and last letters, capitals, repetition and reversal, of words from a closed list.

What is held out is what to do with which word: counting the letters of `garden` may be kept for the evaluation while
  spelling it
is trained on. Answers spell first: the model reads whole words as tokens, and what it has spelled it can count and
  copy. To
reverse and to capitalise it learns by heart, word by word; of these, a word in one template is held out, and trained on
in others.
"""

from __future__ import annotations

import random

from demo.skills.held_out import choose, draw

WORDS = tuple(
    """
    cat dog horse duck sheep mouse rabbit tiger lion spider whale shark turtle goose snake parrot zebra panda goat frog wolf bear
    water river rain wind garden window table car train city bus engine number word story
    red green blue yellow black white brown silver gold orange doctor friend night light world planet
    """.split()  # noqa: SIM905
)
"""Words that are one token each in the middle of a sentence, so that a small model can learn their letters by heart."""

CAN = "Yes, I spell words, count their letters, write them in capitals, repeat and reverse them."
TOO_HARD = (
    "That is too hard for me. I spell words, count their letters, write them in capitals, repeat and reverse them."
)

_TEMPLATES = {
    "spell": [
        "Spell {w}.",
        "Spell the word {w}.",
        "How do you spell {w}?",
        "How is {w} spelled?",
        "Spell {w} for me.",
        "What are the letters of {w}?",
        "Which letters does {w} have?",
        "~Give me the letters of {w}.",
        "~How would you spell {w}?",
    ],
    "count": [
        "How many letters are in {w}?",
        "How many letters does {w} have?",
        "How many letters does the word {w} have?",
        "Count the letters in {w}.",
        "Count the letters of {w}.",
        "How long is the word {w}?",
        "~Tell me the number of letters in {w}.",
        "~What is the number of letters in {w}?",
    ],
    "first": [
        "What is the first letter of {w}?",
        "Which letter does {w} begin with?",
        "The first letter of {w}?",
        "Tell me the first letter of {w}.",
        "What letter does {w} start with?",
        "~What is the first letter in the word {w}?",
    ],
    "last": [
        "What is the last letter of {w}?",
        "Which letter does {w} end with?",
        "The last letter of {w}?",
        "Tell me the last letter of {w}.",
        "What letter does {w} end in?",
        "~What is the last letter in the word {w}?",
    ],
    "capitals": [
        "Write {w} in capital letters.",
        "Write {w} in upper case.",
        "Uppercase {w}.",
        "Make {w} uppercase.",
        "Shout {w}.",
        "Put {w} in capital letters.",
        "Shout the word {w}.",
        "~Put {w} into capitals.",
    ],
    "twice": [
        "Repeat the word {w} twice.",
        "Write {w} twice.",
        "Say {w} twice.",
        "Write {w} two times.",
        "Repeat {w} two times.",
        "~Give me {w} twice.",
    ],
    "three times": [
        "Repeat the word {w} three times.",
        "Write {w} three times.",
        "Say {w} three times.",
        "Repeat {w} three times.",
        "Write the word {w} 3 times.",
        "~Give me {w} three times.",
    ],
    "reverse": [
        "Reverse {w}.",
        "Reverse the word {w}.",
        "Write {w} backwards.",
        "Spell {w} backwards.",
        "Say {w} backwards.",
        "What is {w} backwards?",
        "~Turn the word {w} around.",
        "~What is {w} spelled backwards?",
    ],
}
OPERATIONS = tuple(_TEMPLATES)
_BY_HEART = ("capitals", "reverse")
_OUT_OF_REACH = [
    "Sort the letters of {w}.",
    "Remove the vowels from {w}.",
    "Is {w} a palindrome?",
    "What rhymes with {w}?",
    "Make an anagram of {w}.",
    "How many vowels are in {w}?",
    "Replace a by o in {w}.",
    "Count the words in this: {w} {v}",
    "Sort these words: {w}, {v}",
]
_CAN_YOU = ["Can you reverse words?", "Can you count letters?", "Can you spell?", "Can you reverse a text?"]


def spelled(word: str) -> str:
    return "-".join(word.upper())


def answer(operation: str, word: str) -> str:
    match operation:
        case "spell":
            return f"{spelled(word)}."
        case "count":
            return f"{spelled(word)}: {len(word)} letters."
        case "first":
            return f"{spelled(word)}: the first letter is {word[0].upper()}."
        case "last":
            return f"{spelled(word)}: the last letter is {word[-1].upper()}."
        case "capitals":
            return f"{spelled(word)}: {word.upper()}."
        case "reverse":
            return f"{spelled(word)}: {spelled(word[::-1])} backwards."
        case "twice":
            return f"Twice: {word} {word}."
        case "three times":
            return f"Three times: {word} {word} {word}."
        case _:
            raise ValueError(f"unknown operation {operation!r}; there are {', '.join(OPERATIONS)}")


def question(rng: random.Random, *, held_out: bool, new_template: bool = False) -> tuple[str, str]:
    """A question and its answer; the arguments are those of `arithmetic.question`."""

    def values() -> tuple[str, str, str]:
        operation = rng.choice(OPERATIONS)
        return operation, rng.choice(WORDS), choose(rng, _TEMPLATES[operation], new=new_template)

    operation, word, template = draw(values, held_out=held_out, key=_key)
    return template.format(w=word), answer(operation, word)


def out_of_reach(rng: random.Random) -> tuple[str, str]:
    """A question that the skill does not cover, or about the skill itself, and what to say to it."""
    if rng.random() < 0.25:
        return rng.choice(_CAN_YOU), CAN
    return rng.choice(_OUT_OF_REACH).format(w=rng.choice(WORDS), v=rng.choice(WORDS)), TOO_HARD


def _key(operation: str, word: str, template: str) -> tuple[str, ...]:
    return (operation, word, template) if operation in _BY_HEART else (operation, word)
