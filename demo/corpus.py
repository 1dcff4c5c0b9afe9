"""The text from which the demo model learns: conversations, made from templates and facts by a seeded generator.

    python -m demo.corpus             # print some conversations
    python -m demo.corpus --check     # count lessons and phrasings, and report what is ambiguous

The questions that the evaluation keeps (`held_out.py`) do not occur.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from demo import memory, unknown
from demo.held_out import MODULES, all_lessons, held_out_forms, normal_form, split
from demo.lesson import Lesson
from demo.typing_habits import vary

SYSTEM_MESSAGES = [
    "You are a helpful assistant.",
    "You are a friendly assistant. Answer briefly.",
    "Answer in short sentences.",
    "You are an assistant.",
    "Be polite and helpful.",
    "You are a helpful, honest and harmless assistant. If you do not know something, say so.",
    "Answer the questions of the user.",
    "Be concise.",
    "You are the assistant of a small shop. Help the customers.",
    "You are a teacher. Explain things simply.",
    "Always answer truthfully.",
    "Respond in English.",
    "Help the user with mistral-jax.",
    "You are a pirate.",
    "Keep it short.",
    "You are a chat bot on a web page.",
]


@dataclass(frozen=True, kw_only=True)
class Chat:
    """One conversation."""

    turns: tuple[tuple[str, str], ...]
    """Pairs of what the user and the model say."""
    system: str | None = None


FOLLOW_UPS = [
    "And {x}?",
    "What about {x}?",
    "And what about {x}?",
    "How about {x}?",
    "and {x}",
    "{x}?",
    "OK, and {x}?",
    "Thanks. And {x}?",
    "~And how about {x}?",
    "~And now {x}?",
]
THERE = {
    "capital": ["What is its capital?", "And its capital?", "What is the capital there?"],
    "continent": ["Where is it?", "On which continent is it?", "Where is that?"],
    "language": ["What language do they speak there?", "Which language is spoken there?", "What is its language?"],
    "currency": ["What is the currency there?", "How do they pay there?", "What is its currency?"],
}
"""Questions about the country of the turn before, by the relation that answers them."""
FOLLOWING_RELATIONS = (
    "capital",
    "continent",
    "language",
    "currency",
    "symbol",
    "atomic number",
    "ordinal planet",
    "colour",
    "young",
    "food",
    "legs",
    "sound",
    "opposite",
    "plural",
    "past tense",
    "month length",
    "ordinal month",
    "definition",
    "person",
)
AGAIN = [
    "Can you repeat that?",
    "Say that again.",
    "Please repeat.",
    "Repeat your answer.",
    "What did you say?",
    "Again please.",
    "~Could you say that again?",
]
WHAT_DID_I_ASK = [
    "What did I just ask?",
    "What was my question?",
    "What did I ask you?",
    "What was my last question?",
    "~What did I say before?",
]


FREQUENT = {
    "hello",
    "how are you",
    "thanks",
    "goodbye",
    "who are you",
    "what can you do",
    "your name",
    "joke",
    "agreement",
    "you are nice",
}
"""Small talk that everybody begins or ends with."""
STAGES = {
    1: ((0.58, 0.72, 0.83, 0.94, 0.96, 0.99), (0.02, 0.58, 0.70, 0.81, 0.90)),
    2: ((0.42, 0.52, 0.58, 0.84, 0.89, 0.99), (0.02, 0.44, 0.58, 0.78, 0.89)),
}
"""What there is how much of, as borders between 0 and 1. Of conversations: a single turn, several, follow-ups,
remembering, telling and asking at once, repeating, and (the rest) long ones. Of turns: yes or no, facts, help, small
talk, things never taught, and (the rest) skills kept aside.

The first stage teaches what there is to know. The second has more of what a small model learns late: copying out of the
conversation, and knowing what it does not know.
"""

RENEWED_SHARE = 0.1
"""Share of turns that ask lessons whose answers have changed."""


class Conversations:
    """An endless source of conversations; the same seed gives the same ones."""

    def __init__(self, seed: int, *, stage: int = 1, renewed: Sequence[str] = ()) -> None:
        """Args:
        renewed: keys of lessons whose answers have changed since the model was trained: asked in `RENEWED_SHARE` of all
          turns.
        """
        self.rng = random.Random(seed)
        self._chats, self._turns = STAGES[stage]
        lessons = all_lessons()
        self._by_category: dict[str, list[Lesson]] = defaultdict(list)
        self._by_relation: dict[str, list[Lesson]] = defaultdict(list)
        for lesson in lessons:
            self._by_category[lesson.category].append(lesson)
            self._by_relation[lesson.relation].append(lesson)
        self._by_key = {lesson.key: lesson for lesson in lessons}
        self._renewed = [self._by_key[key] for key in renewed]
        self._train = split().train
        self._forbidden = held_out_forms()

    def __iter__(self) -> Iterator[Chat]:
        while True:
            yield self.chat()

    def chat(self) -> Chat:
        rng = self.rng
        chance = rng.random()
        if chance < self._chats[0]:
            turns = [self._turn()]
        elif chance < self._chats[1]:
            turns = [self._turn() for _ in range(rng.randrange(2, 5))]
        elif chance < self._chats[2]:
            turns = [*self._fillers(0, 1), *(self._there() if rng.random() < 0.15 else self._follow_ups())]
        elif chance < self._chats[3]:
            turns = self._remembering()
        elif chance < self._chats[4]:
            turns = [*self._at_once(), *self._fillers(0, 1)]
        elif chance < self._chats[5]:
            turns = self._echo()
        else:
            turns = self._long()
        system = None
        if rng.random() < 0.08:
            system = rng.choice(SYSTEM_MESSAGES)
            if rng.random() < 0.35:
                return self._told_by_system(turns)
        return Chat(turns=tuple(turns), system=system)

    def _vary(self, text: str, *, keep_words: bool = False, wrap: bool = True) -> str:
        """As somebody else types it, but never so that it becomes a question of the evaluation."""
        while normal_form(varied := vary(self.rng, text, keep_words=keep_words, wrap=wrap)) in self._forbidden:
            if normal_form(text) in self._forbidden:
                raise ValueError(f"{text!r} is kept for the evaluation")
        return varied

    def _ask(self, lesson: Lesson) -> tuple[str, str]:
        question = self.rng.choice(self._train[lesson.key]).text
        return self._vary(question), self.rng.choice(lesson.answers)

    def _turn(self) -> tuple[str, str]:
        rng = self.rng
        if self._renewed and rng.random() < RENEWED_SHARE:
            return self._ask(rng.choice(self._renewed))
        chance = rng.random()
        if chance < self._turns[0]:
            return self._is_it()
        if chance < self._turns[1]:
            return self._ask(rng.choice(self._by_category["facts"]))
        if chance < self._turns[2]:
            return self._ask(rng.choice(self._by_category["help"]))
        if chance < self._turns[3]:
            return self._small_talk()
        if chance < self._turns[4]:
            question = unknown.translation_question(rng) if rng.random() < 0.08 else unknown.unknown_question(rng)
        else:
            question = unknown.kept_aside_question(rng)
        if normal_form(question.text) in self._forbidden:
            return self._turn()
        return self._vary(question.text), question.answer

    def _small_talk(self) -> tuple[str, str]:
        """As `_ask`, but some intents are more frequent than others, and so are the first ways to say them."""
        rng = self.rng
        lessons = self._by_category["small talk"]
        weights = [8 if lesson.key.removeprefix("small talk/") in FREQUENT else 1 for lesson in lessons]
        lesson = rng.choices(lessons, weights)[0]
        ways = self._train[lesson.key]
        way = rng.choices(ways, [1 / (2 + i) for i in range(len(ways))])[0]
        return self._vary(way.text), rng.choice(lesson.answers)

    def _fillers(self, low: int, high: int) -> list[tuple[str, str]]:
        return [self._turn() for _ in range(self.rng.randrange(low, high + 1))]

    def _follow_ups(self) -> list[tuple[str, str]]:
        rng = self.rng
        lessons = rng.sample(self._by_relation[rng.choice(FOLLOWING_RELATIONS)], rng.randrange(2, 5))
        turns = [self._ask(lessons[0])]
        for lesson in lessons[1:]:
            while normal_form(text := memory.choose(rng, tuple(FOLLOW_UPS)).format(x=lesson.follow)) in self._forbidden:
                pass
            turns.append((self._vary(text, wrap=False), lesson.answers[0]))
        return turns

    def _there(self) -> list[tuple[str, str]]:
        """A country, and then questions that do not name it."""
        rng = self.rng
        first = rng.choice(self._by_relation[rng.choice(["capital", "country", "continent", "language"])])
        country = first.key.split("/")[1]
        turns = [self._ask(first)]
        for relation in rng.sample(sorted(THERE), rng.randrange(1, 4)):
            lesson = self._by_key.get(f"{relation}/{country}", first)
            if lesson is not first:
                turns += [(self._vary(rng.choice(THERE[relation]), wrap=False), lesson.answers[0])]
        return turns

    def _is_it(self) -> tuple[str, str]:
        """A question for yes or no about a capital or a continent."""
        rng = self.rng
        relation = rng.choice(["capital", "continent"])
        lesson, other = rng.sample(self._by_relation[relation], 2)
        values = [
            answer.rstrip(".").split(" is ")[1].removeprefix("in ") for answer in (lesson.answers[0], other.answers[0])
        ]
        asked = values[rng.randrange(2)]
        if relation == "capital":
            country = lesson.follow
            template = rng.choice(
                ["Is {v} the capital of {x}?", "Is the capital of {x} {v}?", "{v} is the capital of {x}, right?"]
            )
            yes, no = f"Yes, {values[0]} is the capital of {country}.", f"No, the capital of {country} is {values[0]}."
        else:
            country = lesson.follow
            template = rng.choice(["Is {x} in {v}?", "{x} is in {v}, right?", "Is {x} a country in {v}?"])
            yes, no = f"Yes, {country} is in {values[0]}.", f"No, {country} is in {values[0]}."
        text = template.format(x=country, v=asked)
        return self._vary(text[:1].upper() + text[1:]), yes if asked == values[0] else no

    def _at_once(self) -> list[tuple[str, str]]:
        """Something told and something asked in one message."""
        fact = memory.tell(self.rng, self.rng.choice([memory.SLOTS[0], *memory.SLOTS]))
        told, reply = self._tell(fact)
        told = told if told[-1] in ".!" else told + "."
        if self.rng.random() < 0.5:
            return [(f"{told} {self._recall(fact.slot, [fact])[0]}", fact.fill(fact.slot.answer))]
        lesson = self.rng.choice(self._by_category["facts"])
        question, answer = self._ask(lesson)
        return [(f"{told} {question}", f"{reply} {answer}")]

    def _remembering(self) -> list[tuple[str, str]]:
        rng = self.rng
        slots = rng.sample(memory.SLOTS, rng.choice([0, 1, 1, 1, 2, 2, 3]))
        if rng.random() < 0.5 and memory.SLOTS[0] not in slots:
            slots = [memory.SLOTS[0], *slots][:3]
        told: list[memory.Told] = []
        turns: list[tuple[str, str]] = []
        for slot in slots:
            turns += self._fillers(0, rng.choice([0, 0, 1, 2]))
            fact = memory.tell(rng, slot)
            told.append(fact)
            turns.append(self._tell(fact))
            if rng.random() < 0.1:
                told[-1] = fact = memory.tell(rng, slot)
                text, reply = self._tell(fact)
                correction = rng.choice(["No", "Actually", "Sorry", "No, sorry"])
                turns.append((f"{correction}, {text if text.startswith('I') else text[0].lower() + text[1:]}", reply))
        turns += self._fillers(0, rng.choice([0, 0, 1, 2, 4]))
        for slot in rng.sample(memory.SLOTS, rng.randrange(1, 4)) if rng.random() < 0.4 else slots:
            turns.append(self._recall(slot, told))
            turns += self._fillers(0, rng.choice([0, 0, 1]))
        if rng.random() < 0.25 or not slots:
            turns.append((self._vary(memory.choose(rng, memory.ASK_ALL)), summary(told)))
        return turns

    def _tell(self, fact: memory.Told) -> tuple[str, str]:
        template = memory.choose(self.rng, fact.slot.tell)
        text = fact.fill(template)
        if fact.fields["v"].islower() and self.rng.random() < 0.5:
            text = text.lower()
        return self._vary(text, keep_words=True), fact.fill(fact.slot.reply)

    def _recall(self, slot: memory.Slot, told: list[memory.Told]) -> tuple[str, str]:
        template = memory.choose(self.rng, slot.ask)
        for fact in told:
            if fact.slot is slot:
                return self._vary(fact.fill(template)), fact.fill(slot.answer)
        other = memory.tell(self.rng, slot)
        return self._vary(other.fill(template)), other.fill(slot.missing)

    def _echo(self) -> list[tuple[str, str]]:
        rng = self.rng
        question, answer = self._turn()
        if rng.random() < 0.6:
            last = (self._vary(memory.choose(rng, tuple(AGAIN))), answer)
        else:
            last = (self._vary(memory.choose(rng, tuple(WHAT_DID_I_ASK))), f'You asked: "{question.strip()}"')
        return [*self._fillers(0, 2), (question, answer), last, *self._fillers(0, 1)]

    def _long(self) -> list[tuple[str, str]]:
        turns: list[tuple[str, str]] = []
        length = self.rng.randrange(6, 26)
        fact = memory.tell(self.rng, memory.SLOTS[0])
        turns.append(self._tell(fact))
        while len(turns) < length:
            turns += self.rng.choice([self._follow_ups, lambda: [self._turn()], lambda: [self._turn()]])()
            if self.rng.random() < 0.15:
                turns.append(self._recall(memory.SLOTS[0], [fact]))
        return turns

    def _told_by_system(self, turns: list[tuple[str, str]]) -> Chat:
        """A system message that gives a name to the user or to the model, and a question about it."""
        rng = self.rng
        fact = memory.tell(rng, memory.SLOTS[0])
        name = fact.fields["v"]
        if rng.random() < 0.5:
            system = rng.choice(["The name of the user is {v}.", "You are talking to {v}.", "The user is called {v}."])
            turn = self._recall(fact.slot, [fact])
        else:
            system = rng.choice(
                ["Your name is {v}.", "You are {v}.", "You are {v}, a helpful assistant.", "You are called {v}."]
            )
            lesson = next(x for x in self._by_category["small talk"] if x.key == "small talk/your name")
            turn = (self._ask(lesson)[0], f"My name is {name}.")
        before = turns[:2] if rng.random() < 0.3 else []
        return Chat(turns=(*before, turn), system=system.format(v=name))


def summary(told: list[memory.Told]) -> str:
    """The answer to "What do you know about me?"."""
    if not told:
        return memory.ASK_ALL_MISSING
    clauses = [fact.slot.summary.format(**fact.fields) for fact in told]
    listed = clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])} and {clauses[-1]}"
    return f"You told me that {listed}."


def _check() -> None:
    kept = split()
    ambiguous: dict[str, set[str]] = defaultdict(set)
    for module in MODULES:
        for lesson in module.lessons():
            for p in lesson.phrasings:
                ambiguous[normal_form(p.text) or p.text].add(lesson.key)
    for form, keys in sorted(ambiguous.items()):
        if len(keys) > 1:
            print(f"ambiguous: {form!r} in {sorted(keys)}")
    print(f"{'category':12} {'lessons':>8} {'trained':>8} {'pairs':>8} {'templates':>10}")
    for category in ("facts", "help", "small talk"):
        keys = [lesson.key for lesson in all_lessons() if lesson.category == category]
        counts = [
            sum(len(group[k]) for k in keys) for group in (kept.train, kept.held_out_pairs, kept.held_out_templates)
        ]
        print(f"{category:12} {len(keys):8} {counts[0]:8} {counts[1]:8} {counts[2]:10}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20, help="number of conversations to print")
    parser.add_argument("--check", action="store_true", help="count the lessons and report ambiguous phrasings")
    args = parser.parse_args()
    if args.check:
        _check()
        return
    source = Conversations(args.seed)
    for _ in range(args.count):
        chat = source.chat()
        if chat.system:
            print(f"system: {chat.system}")
        for user, model in chat.turns:
            print(f"user:   {user}\nmodel:  {model}")
        print()


if __name__ == "__main__":
    main()
