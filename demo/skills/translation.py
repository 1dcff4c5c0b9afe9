"""Short sentences such as "the cat is black" in German, French and Spanish, put together from a closed list of words.

What is held out are combinations: a sentence of this noun, this adjective and this language is never trained on, but
  each two of
them are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from demo import unknown
from demo.skills.held_out import choose, draw

LANGUAGES = ("German", "French", "Spanish")


@dataclass(frozen=True)
class Noun:
    """With its article; the French and the Spanish one tell the gender."""

    english: str
    german: str
    french: str
    spanish: str


@dataclass(frozen=True)
class Adjective:
    """As it stands after "is": French and Spanish have one form for each gender, German has one form."""

    english: str
    german: str
    french: tuple[str, str]
    """Masculine, feminine."""
    spanish: tuple[str, str]


NOUNS = tuple(
    Noun(*(cell.strip() for cell in line.split("|")))
    for line in """
cat | die Katze | le chat | el gato
dog | der Hund | le chien | el perro
horse | das Pferd | le cheval | el caballo
duck | die Ente | le canard | el pato
house | das Haus | la maison | la casa
door | die Tür | la porte | la puerta
table | der Tisch | la table | la mesa
garden | der Garten | le jardin | el jardín
book | das Buch | le livre | el libro
car | das Auto | la voiture | el coche
ship | das Schiff | le bateau | el barco
city | die Stadt | la ville | la ciudad
bread | das Brot | le pain | el pan
milk | die Milch | le lait | la leche
flower | die Blume | la fleur | la flor
chair | der Stuhl | la chaise | la silla
moon | der Mond | la lune | la luna
king | der König | le roi | el rey
""".strip().splitlines()
)

ADJECTIVES = tuple(
    Adjective(english, german, (french, french_f), (spanish, spanish_f))
    for english, german, french, french_f, spanish, spanish_f in (
        [cell.strip() for cell in line.split("|")]
        for line in """
big | groß | grand | grande | grande | grande
small | klein | petit | petite | pequeño | pequeña
black | schwarz | noir | noire | negro | negra
white | weiß | blanc | blanche | blanco | blanca
red | rot | rouge | rouge | rojo | roja
green | grün | vert | verte | verde | verde
new | neu | nouveau | nouvelle | nuevo | nueva
old | alt | vieux | vieille | viejo | vieja
beautiful | schön | beau | belle | bonito | bonita
good | gut | bon | bonne | bueno | buena
cold | kalt | froid | froide | frío | fría
warm | warm | chaud | chaude | caliente | caliente
""".strip().splitlines()
    )
)

CAN = "Yes, I translate short sentences such as 'the cat is black' into German, French and Spanish."

_TEMPLATES = [
    "Translate '{s}' into {l}.",
    "Translate {s} to {l}",
    "Translate {s} into {l}.",
    'How do you say "{s}" in {l}?',
    "How do you say {s} in {l}?",
    "What is {s} in {l}?",
    "Say {s} in {l}.",
    "{s} in {l}?",
    "{s} in {l}",
    'Translate this into {l}: "{s}"',
    "Can you translate {s} into {l}?",
    "What is the {l} for {s}?",
    "~How would you say {s} in {l}?",
    "~Give me {s} in {l}.",
    "~Put '{s}' into {l}.",
]
_CAN_YOU = ["Can you translate texts?", "Can you translate?", "Can you speak German?", "Do you know French?"]


def answer(noun: Noun, adjective: Adjective | None, language: str) -> str:
    match language:
        case "German":
            words = [noun.german] if adjective is None else [noun.german, "ist", adjective.german]
        case "French":
            words = [noun.french]
            if adjective is not None:
                words += ["est", adjective.french[noun.french.startswith("la ")]]
        case "Spanish":
            words = [noun.spanish]
            if adjective is not None:
                words += ["es", adjective.spanish[noun.spanish.startswith("la ")]]
        case _:
            raise ValueError(f"unknown language {language!r}; there are {', '.join(LANGUAGES)}")
    text = " ".join(words)
    return f"{text[0].upper()}{text[1:]}."


def question(rng: random.Random, *, held_out: bool, new_template: bool = False) -> tuple[str, str]:
    """A question and its answer; the arguments are those of `arithmetic.question`."""
    noun, adjective, language = draw(lambda: _values(rng, held_out), held_out=held_out, key=_key)
    text = f"the {noun.english} is {adjective.english}" if adjective else f"the {noun.english}"
    asked = choose(rng, _TEMPLATES, new=new_template).format(s=text, l=language)
    return asked[:1].upper() + asked[1:], answer(noun, adjective, language)


def out_of_reach(rng: random.Random) -> tuple[str, str]:
    """A question that the skill does not cover, or about the skill itself, and what to say to it."""
    if rng.random() < 0.2:
        return rng.choice(_CAN_YOU), CAN
    while "can you" in (text := unknown.translation_question(rng).text).lower():
        pass
    return text, unknown.TRANSLATION


def _values(rng: random.Random, held_out: bool) -> tuple[Noun, Adjective | None, str]:
    # A noun alone is known or it is not: the evaluation asks sentences.
    adjective = None if not held_out and rng.random() < 0.15 else rng.choice(ADJECTIVES)
    return rng.choice(NOUNS), adjective, rng.choice(LANGUAGES)


def _key(noun: Noun, adjective: Adjective | None, language: str) -> tuple[object, ...]:
    return (noun.english, adjective.english, language) if adjective else ()
