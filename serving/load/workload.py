"""Requests for a load test: texts of chosen lengths, drawn from a seed.

A server's tokenizer is not known here, so lengths are in words, and how many tokens a word has is measured: the server
says how many a prompt has.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

_TEXT = """
the of and to in that is was for with on as by at from this had not are but which one you were all their there
been more when who will would about if no out so what up said its than into them can only other time new some
could these two may first then do any like my now over such our man me even most made after also did many
before must through back years where much your way well down should because long each just state those people
too mr how little world good make very year still see own work day life never here under long think house
water light
"""
WORDS = tuple(_TEXT.split())


@dataclass(frozen=True)
class Range:
    """Whole numbers from `least` to `most`, both included."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> Range:
        """`128`, or `64-1024`.

        Raises:
          ValueError: it is neither, or empty.
        """
        first, dash, last = text.partition("-")
        if first.strip().isdecimal() and (not dash or last.strip().isdecimal()):
            found = cls(int(first), int(last) if dash else int(first))
            if 1 <= found.least <= found.most:
                return found
        raise ValueError(f"{text!r} is not valid; expected a positive number, or two, as in 64-1024")

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.least, self.most)

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}-{self.most}"


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """What requests are drawn from."""

    prompt: Range
    """Tokens of a prompt, the shared prefix included."""
    answer: Range
    """Tokens of a completion."""
    shared_prefix: int = 0
    """Tokens that some prompts begin with, the same for all of these."""
    shared_part: float = 0.5
    """How many of the prompts begin with them, from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of the server.

    Either `clients`, each of which waits for an answer before it sends the next request, or `rates`, in requests per
    second.
    """

    lengths: Lengths
    clients: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    requests: int
    """For each number of clients, or rate."""
    warm_up: int
    """Requests before, that are not counted."""
    seed: int

    @property
    def settings(self) -> list[str]:
        clients = [f"{count} client{'s' if count > 1 else ''}" for count in self.clients]
        return clients + [f"{rate:g} requests/s" for rate in self.rates]


@dataclass(frozen=True)
class TokensOfWords:
    """How many tokens a text of our words has: `start + per_word * words`."""

    start: float
    per_word: float

    @classmethod
    def of(cls, counts: dict[int, int]) -> TokensOfWords:
        """From the tokens of two texts, by their numbers of words."""
        (few, tokens_of_few), (many, tokens_of_many) = sorted(counts.items())
        per_word = max(0.1, (tokens_of_many - tokens_of_few) / (many - few))
        return cls(tokens_of_few - per_word * few, per_word)

    def words(self, tokens: int) -> int:
        """The number of words of a text of about so many tokens, at least one."""
        return max(1, round((tokens - self.start) / self.per_word))


@dataclass(frozen=True)
class Planned:
    """One request."""

    prompt: str
    answer_tokens: int


def text_of(words: int, rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def plan(lengths: Lengths, count: int, tokens: TokensOfWords, seed: int) -> list[Planned]:
    """`count` requests; the same for the same seed."""
    rng = random.Random(seed)
    shared = text_of(tokens.words(lengths.shared_prefix), rng) if lengths.shared_prefix else ""
    planned: list[Planned] = []
    for _ in range(count):
        words, answer = tokens.words(lengths.prompt.draw(rng)), lengths.answer.draw(rng)
        prompt = text_of(words, rng)
        if shared and rng.random() < lengths.shared_part:
            own = max(1, words - len(shared.split()))
            prompt = f"{shared} {text_of(own, rng)}"
        planned.append(Planned(prompt, answer))
    return planned
