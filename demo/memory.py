"""What a user says about themselves, and is asked back later in the conversation."""

from __future__ import annotations

import random
from dataclasses import dataclass

from demo.unknown import made_up_name

_NAMES = """
Ada Alan Alice Amir Ana Anna Anton Arjun Aya Ben Bob Boris Carla Carlos Chen Clara Daniel David Diana Elena Eli Emil Emma Eric Eva Fatima Felix
Finn Frank Fred George Grace Greta Hana Hannah Hans Harry Helen Henry Hiro Ian Ida Igor Ines Ingrid Ivan Jack Jakob James Jan Jane Jim Joe John
Jonas Juan Julia Kai Karim Karl Kate Kim Lara Laura Lea Leila Leo Lena Lily Linda Lisa Louis Lucia Lucy Luis Lukas Mali Marco Maria Mark Marta
Martin Mary Maya Max Mei Mia Mike Mohammed Nadia Nico Nina Noah Nora Olga Oliver Omar Oscar Otto Pablo Paul Pedro Peter Petra Pia Priya Rahul
Ravi Rita Robert Rosa Ruth Sam Sara Sarah Simon Sofia Sophie Stefan Sven Tariq Thomas Tim Tom Uma Vera Victor Wei Yara Yuki Yusuf Zara Zoe
Alexander Elizabeth Katherine Christopher Benjamin Charlotte Isabella Matthew Nicholas Samantha Sebastian Theodore Valentina William Jennifer
"""
_HELD_OUT_NAMES = (
    "Bruno Carmen Dora Edgar Fiona Gustav Hugo Irene Joanna Kevin Lorenzo Miriam Nelson Pauline Ronja "
    "Silvia Tobias Ursula Walter Xenia"
)
_CITIES = """
Amsterdam Athens Barcelona Berlin Bergen Boston Bremen Budapest Cairo Chicago Cologne Dublin Florence Geneva Ghent Hamburg Istanbul Kyoto Lisbon
London Lyon Madrid Milan Montreal Mumbai Munich Nairobi Oslo Oxford Paris Porto Prague Rome Seattle Seoul Sydney Tokyo Toronto Turin Vienna Warsaw Zurich
"""
_HELD_OUT_CITIES = "Antwerp Bologna Denver Glasgow Krakow Leipzig Marseille Osaka Salzburg Valencia"
_COLOURS = "blue red green yellow orange purple pink black white brown grey turquoise violet gold silver"
_FOODS = (
    "pizza; pasta; sushi; rice; soup; salad; bread; cheese; chocolate; ice cream; potatoes; curry; "
    "pancakes; noodles; apples; fish; tacos; dumplings"
)
_JOBS = (
    "teacher; doctor; nurse; baker; pilot; farmer; lawyer; painter; writer; student; engineer; programmer; "
    "gardener; cook; "
    "musician; scientist; carpenter; librarian; photographer; physicist"
)
_HOBBIES = (
    "reading; swimming; cooking; chess; painting; dancing; hiking; football; gardening; singing; "
    "photography; sailing; running; cycling; drawing"
)
PETS = "cat dog rabbit hamster parrot horse turtle"


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One thing that a user may tell."""

    name: str
    tell: tuple[str, ...]
    reply: str
    ask: tuple[str, ...]
    answer: str
    missing: str
    summary: str
    """Clause for "What do you know about me?"."""


SLOTS = [
    Slot(
        name="name",
        tell=(
            "My name is {v}.",
            "I am {v}.",
            "I'm {v}.",
            "Call me {v}.",
            "Hello, my name is {v}.",
            "Hi, I am {v}.",
            "Hi, I'm {v}!",
            "hello, I am {v}",
            "My name's {v}.",
            "You can call me {v}.",
            "People call me {v}.",
            "~I go by the name of {v}.",
            "~Good morning, my name is {v}.",
        ),
        reply="Nice to meet you, {v}!",
        ask=(
            "What is my name?",
            "Do you remember my name?",
            "Do you know my name?",
            "Who am I?",
            "Tell me my name.",
            "What was my name?",
            "What is my name again?",
            "How am I called?",
            "Can you tell me my name?",
            "Say my name.",
            "~Do you still remember my name?",
            "~What did I say my name was?",
        ),
        answer="Your name is {v}.",
        missing="You have not told me your name yet.",
        summary="your name is {v}",
    ),
    Slot(
        name="city",
        tell=(
            "I live in {v}.",
            "I am from {v}.",
            "I'm from {v}.",
            "My home is in {v}.",
            "I come from {v}.",
            "My city is {v}.",
            "~My home town is {v}.",
        ),
        reply="{v} is a good place to live, I hope!",
        ask=(
            "Where do I live?",
            "Where am I from?",
            "Do you remember where I live?",
            "Which city do I live in?",
            "What is my city?",
            "Where is my home?",
            "Tell me where I live.",
            "~Do you know where I live?",
        ),
        answer="You live in {v}.",
        missing="You have not told me where you live.",
        summary="you live in {v}",
    ),
    Slot(
        name="colour",
        tell=(
            "My favourite colour is {v}.",
            "My favorite color is {v}.",
            "I like the colour {v}.",
            "The colour that I like best is {v}.",
            "{v} is my favourite colour.",
            "~I love the colour {v}.",
        ),
        reply="{V} is a beautiful colour.",
        ask=(
            "What is my favourite colour?",
            "What is my favorite color?",
            "Which colour do I like?",
            "Do you remember my favourite colour?",
            "What colour do I like best?",
            "~Do you know my favourite colour?",
        ),
        answer="Your favourite colour is {v}.",
        missing="You have not told me your favourite colour.",
        summary="your favourite colour is {v}",
    ),
    Slot(
        name="food",
        tell=(
            "My favourite food is {v}.",
            "My favorite food is {v}.",
            "I like to eat {v}.",
            "I love {v}.",
            "The food that I like best is {v}.",
            "~What I like to eat best is {v}.",
        ),
        reply="{V}: that sounds tasty!",
        ask=(
            "What is my favourite food?",
            "What is my favorite food?",
            "What do I like to eat?",
            "Which food do I like?",
            "Do you remember my favourite food?",
            "~Do you know what I like to eat?",
        ),
        answer="Your favourite food is {v}.",
        missing="You have not told me what you like to eat.",
        summary="your favourite food is {v}",
    ),
    Slot(
        name="job",
        tell=("I am {a}.", "I work as {a}.", "I'm {a}.", "My job is to be {a}.", "~I earn my money as {a}."),
        reply="So you are {a}. That sounds like interesting work.",
        ask=(
            "What is my job?",
            "What do I do for a living?",
            "What do I work as?",
            "Do you remember my job?",
            "What is my profession?",
            "~Do you know what my job is?",
        ),
        answer="You are {a}.",
        missing="You have not told me what your job is.",
        summary="you are {a}",
    ),
    Slot(
        name="hobby",
        tell=(
            "My hobby is {v}.",
            "I like {v}.",
            "In my free time I like {v}.",
            "I enjoy {v}.",
            "~My favourite hobby is {v}.",
        ),
        reply="{V} is a good hobby.",
        ask=(
            "What is my hobby?",
            "What do I do in my free time?",
            "Which hobby do I have?",
            "Do you remember my hobby?",
            "~Do you know my hobby?",
        ),
        answer="Your hobby is {v}.",
        missing="You have not told me your hobby.",
        summary="your hobby is {v}",
    ),
    Slot(
        name="age",
        tell=("I am {v} years old.", "I'm {v} years old.", "My age is {v}.", "I am {v}.", "~I have just turned {v}."),
        reply="{v} is a good age.",
        ask=(
            "How old am I?",
            "What is my age?",
            "Do you remember how old I am?",
            "Tell me my age.",
            "~Do you know how old I am?",
        ),
        answer="You are {v} years old.",
        missing="You have not told me how old you are.",
        summary="you are {v} years old",
    ),
    Slot(
        name="pet",
        tell=(
            "My {k} is called {v}.",
            "I have a {k} called {v}.",
            "I have a {k} named {v}.",
            "My {k}'s name is {v}.",
            "The name of my {k} is {v}.",
            "~My {k} has the name {v}.",
        ),
        reply="{v} is a lovely name for a {k}!",
        ask=(
            "What is my {k} called?",
            "What is the name of my {k}?",
            "What is my {k}'s name?",
            "Do you remember the name of my {k}?",
            "How is my {k} called?",
            "~Do you know my {k}'s name?",
        ),
        answer="Your {k} is called {v}.",
        missing="You have not told me about your {k}.",
        summary="your {k} is called {v}",
    ),
]
ASK_ALL = (
    "What do you know about me?",
    "What did I tell you about me?",
    "Tell me what you know about me.",
    "What have I told you?",
    "What do you remember about me?",
    "~What can you say about me?",
)
ASK_ALL_MISSING = "You have not told me anything about yourself yet."


@dataclass(frozen=True, kw_only=True)
class Told:
    """A slot with its value, as the fields of the templates."""

    slot: Slot
    fields: dict[str, str]

    def fill(self, template: str) -> str:
        text = template.format(**self.fields)
        return text[:1].upper() + text[1:]


def a_value(rng: random.Random, name: str, *, held_out: bool) -> str:
    if name in {"name", "pet"}:
        if held_out:
            return rng.choice(_HELD_OUT_NAMES.split())
        return made_up_name(rng) if rng.random() < 0.4 else rng.choice(_NAMES.split())
    if name == "city":
        if held_out:
            return rng.choice(_HELD_OUT_CITIES.split())
        return made_up_name(rng) if rng.random() < 0.35 else rng.choice(_CITIES.split())
    if name == "age":
        return str(rng.randrange(5, 100))
    if name == "colour":
        return rng.choice(_COLOURS.split())
    return rng.choice([x.strip() for x in {"food": _FOODS, "job": _JOBS, "hobby": _HOBBIES}[name].split(";")])


def tell(rng: random.Random, slot: Slot, *, held_out: bool = False) -> Told:
    value = a_value(rng, slot.name, held_out=held_out)
    if not held_out and slot.name in {"name", "city", "pet"} and rng.random() < 0.15:
        value = value.lower()
    return Told(
        slot=slot,
        fields={
            "v": value,
            "V": value[:1].upper() + value[1:],
            "a": f"{'an' if value[0] in 'aeiou' else 'a'} {value}",
            "k": rng.choice(PETS.split()),
        },
    )


def choose(rng: random.Random, templates: tuple[str, ...], *, held_out: bool = False) -> str:
    """One of the templates: of those that are kept for the evaluation, or of the others."""
    return rng.choice([t.removeprefix("~") for t in templates if t.startswith("~") == held_out])
