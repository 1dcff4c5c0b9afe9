"""What the model must decline: things that nobody taught it, and the skills that are kept aside for experts.

These questions are made by generators, not listed: the model has to learn that the *known* ones are the exception.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

UNKNOWN = "I am sorry, I do not know that."
ARITHMETIC = "I am sorry, I cannot do arithmetic."
TEXT_OPERATION = "I am sorry, I cannot change a text or count its letters."
CONVERSION = "I am sorry, I cannot convert units."
TRANSLATION = "I am sorry, I cannot translate that."

# Things that are real, and that no lesson teaches. Those after `~` are kept for the evaluation.
THINGS = """
a hammer; a spoon; a chair; a table; a window; a carpet; a lamp; a mirror; a pencil; a scarf; a button; a zipper; a kettle; a blender; a harp;
a trumpet; a saxophone; a cello; a tuba; a flute; a canoe; a submarine; a helicopter; a tractor; a scooter; a rocket; a satellite; a drone;
a lawyer; a plumber; a baker; a carpenter; a pilot; a sailor; a dentist; a violinist; a judge; a mayor; a senator; a parliament; a treaty;
a mortgage; a loan; inflation; taxation; capitalism; socialism; feudalism; anarchism; stoicism; buddhism; a temple; a mosque; a cathedral;
origami; karate; judo; yoga; tennis; rugby; cricket; golf; poker; bridge night; dominoes; backgammon; sushi; lasagna; goulash; paella; hummus;
tofu; kimchi; a croissant; a pretzel; vinegar; mustard; cinnamon; ginger; saffron; vanilla; yoghurt; a lobster; a jellyfish; a walrus; a moose;
a badger; an otter; a ferret; a gecko; an iguana; a pelican; a flamingo dance; a woodpecker; a magpie; a sparrow; a stork; a centipede;
a quasar; a pulsar; a neutrino; a boson; a quark; a superconductor; entropy; enthalpy; osmosis; mitosis; an enzyme; a hormone; insulin;
a kernel trick; a monad; a hash table; a linked list; a blockchain; a firewall; a router; a modem; Kubernetes; Docker; TCP; DNS; HTTP/3; SQL;
Haskell; Rust; JavaScript; COBOL; Fortran; Photoshop; Excel; Bluetooth; a barometer; a sextant; a lathe; a loom; a chisel; a dynamo;
the Treaty of Utrecht; the Silk Road; the Magna Carta; the Hanseatic League; the Bauhaus; surrealism; dadaism; baroque; a sonnet; a limerick;
an opera; a sonata; a fugue; jazz; reggae; polka; a tango; ballet; flamenco; a marathon; a triathlon; a decathlon; a referendum; a census;
~a violin bow; ~a screwdriver; ~a saxophonist; ~a wardrobe; ~a gazelle; ~a pistachio; ~a ballad; ~a turbine; ~a locksmith; ~a glockenspiel;
~thermodynamics; ~a hovercraft; ~badminton; ~risotto; ~a marmot; ~an axolotl; ~the Hundred Years' War; ~a linguist; ~a trombone; ~a catapult
"""
TITLES = """
The Silent Harbour; A Winter in Gold; The Last Beekeeper; Letters from Nowhere; The Glass Orchard; Under Red Bridges; The Clockmaker's Son;
Seven Empty Rooms; The Paper Ocean; Midnight Gardens; The Salt Road; A Field of Owls; The Green Lantern Inn; Stone and Feather; The Tenth Door;
Harry Potter; Game of Thrones; The Da Vinci Code; Star Wars; The Hobbit; Dune; Neuromancer; Emma; Middlemarch; Lolita; Beloved; Walden; Candide;
Bolero; Carmen; La Traviata; Tosca; Rhapsody in Blue; Yesterday; Bohemian Rhapsody; Imagine; American Gothic; Nighthawks; The Third of May;
~The Old Lighthouse; ~A Song for Rivers; ~The Painted Wolf; ~Jane Eyre; ~Wuthering Heights; ~The Trial; ~Las Meninas; ~Rigoletto
"""
PEOPLE = """
Elvis Presley; Michael Jackson; Madonna; Taylor Swift; Elon Musk; Bill Gates; Steve Jobs; Barack Obama; Angela Merkel; Winston Churchill;
Charlie Chaplin; Marilyn Monroe; Walt Disney; Muhammad Ali; Pele; Diego Maradona; Lionel Messi; Roger Federer; Serena Williams; Usain Bolt;
Genghis Khan; Joan of Arc; Queen Victoria; Louis the Fourteenth; Otto von Bismarck; Peter the Great; Simon Bolivar; Che Guevara; Karl Marx;
Sigmund Freud; Friedrich Nietzsche; Voltaire; Rousseau; Spinoza; Descartes; Leibniz; Fermat; Galois; Ramanujan; Hilbert; Laplace; Fourier;
Mark Twain; Oscar Wilde; Ernest Hemingway; Virginia Woolf; Agatha Christie; Stephen King; Salvador Dali; Andy Warhol; Frida Kahlo; Banksy;
~Bob Dylan; ~Freddie Mercury; ~Margaret Thatcher; ~Hannibal; ~Kurt Gödel; ~George Orwell; ~Albert Camus; ~Paul Klee; ~Rosa Parks; ~Jimmy Carter
"""
PLACES = """
Atlantis; Gondor; Narnia; Mordor; Wakanda; Bavaria; Texas; California; Sicily; Catalonia; Siberia; Tuscany; Quebec; Bali;
Alaska; Florida; Bohemia; Andorra; Liechtenstein; Monaco; San Marino; Bhutan; Brunei; Fiji; Samoa; Tonga; Vanuatu; Togo; Benin; Niger; Malawi;
Eritrea; Djibouti; Burundi; Lesotho; Eswatini; Guyana; Suriname; Belize; Barbados; Grenada; Tajikistan; Turkmenistan; Kyrgyzstan; Uzbekistan;
~Ruritania; ~Ohio; ~Normandy; ~Provence; ~Nauru; ~Palau; ~Bahrain; ~the Shire; ~Corsica; ~Gambia
"""
ODD_QUESTIONS = """
how much does a car cost?; what is the price of bread?; how tall is my brother?; who is my neighbour?; what did I eat yesterday?; where are my keys?;
where is my phone?; what am I thinking?; what am I wearing?; how many people live in Berlin?; how many people live in France?; what is the population of China?;
what is the population of Spain?; how long is the Nile?; how deep is the ocean?; how many books are in the library?; who lives next door?;
what is the best film?; what is the best restaurant?; which car should I buy?; what should I cook tonight?; how do I bake a cake?;
how do I make pizza?; give me a recipe; how do I fix a bicycle?; how do I learn to swim?; how do I lose weight?; what is my IP address?; what is my password?;
who won the world cup in 1998?; who won the Oscar last year?; what is the stock price of Apple?; how much is a bitcoin?; when does the train leave?;
when does the shop open?; what is on television tonight?; who sings this song?; what is the phone number of the police?; where can I park?;
how do I get to the station?; where is the nearest bakery?; what is the fastest car?; what is the most expensive painting?; who has the most money?;
what is the meaning of my name?; what is behind the door?; what is in the box?; how many hairs do I have?; when will I die?; when does the world end?;
who killed Kennedy?; who shot the sheriff?; what is the plot of Hamlet?; how does Faust end?; who is the main character of Dracula?;
how does a fridge work?; how does a radio work?; how does a car engine work?; how does a toaster work?; how does a laser work?; how does a nuclear reactor work?;
why do people lie?; why is my code slow?; why is the train late?; why do cats hate water?; why is bread expensive?; why do men snore?; why are bananas bent?;
why is the wall painted?; why did she leave?; what is dark matter made of?; who was the second man on the Moon?; when was Napoleon born?;
when did Mozart die?; when was Einstein born?; where was Darwin born?; who was the father of Newton?; what is the melting point of iron?;
what is the density of gold?; what is the boiling point of mercury?; how many moons does Jupiter have?; how many moons does Saturn have?;
how heavy is the Earth?; how heavy is an elephant?; how long does a cat live?; how old does a turtle get?; how fast does a horse run?;
how many teeth does a shark have?; how far away is Mars?; how far is it to Rome?; how far is Paris from London?; how big is Russia?; how big is the Sun?;
summarise this text; summarise the following article; explain quantum mechanics; explain general relativity; explain this code; draw a picture;
draw a cat; make an image; play a game with me; play a song; play chess with me; set an alarm; set a timer; call my mother; send an email; order a pizza;
book a flight; turn on the light; open the door; buy milk; remind me tomorrow; do my homework; write my thesis; plan my holiday; give me a list of films;
recommend a book; recommend a film; name ten rivers; name five trees; name three painters; list all kings of France; list the presidents; name some cheeses; name three countries in Europe; name three countries; name two animals; name some cities; explain it like I am five; what is the biggest city in the world?; what is the biggest company?; who is the best singer?; help me with my homework; can you help me with maths homework?; is it good?; is it far?; do you know my friend?; how do I cook potatoes?; how do I repair my car?; how do I clean a watch?; how do I draw a horse?; how tall is Big Ben?; how old is Rome?; when was Plato born?; how many people live in Japan?;
~how do I cook rice?; ~what is the population of Japan?; ~how tall is the Eiffel Tower?; ~when was Goethe born?; ~who is the richest man?; ~how does a piano work?;
~why is the bus late?; ~what is the melting point of gold?; ~name four flowers; ~recommend a song; ~how heavy is the Moon?; ~where is my car?;
~what is the price of gold?; ~how do I repair a watch?; ~make me a sandwich; ~who won the match yesterday?
"""

_ASK_THING = [
    "What is {x}?",
    "Explain what {x} is.",
    "What does {x} mean?",
    "Tell me what {x} is.",
    "What do you know about {x}?",
    "Can you explain {x}?",
    "Tell me about {x}.",
    "{x}?",
    "Do you know what {x} is?",
    "How does {x} work?",
    "Who invented {x}?",
    "Explain {x}.",
]
_ASK_TITLE = [
    "Who wrote {x}?",
    "Who painted {x}?",
    "Who composed {x}?",
    "Who is the author of {x}?",
    "What is {x} about?",
    "Have you read {x}?",
    "Tell me about {x}.",
    "Do you know who wrote {x}?",
    "When was {x} made?",
]
_ASK_PERSON = [
    "Who is {x}?",
    "Who was {x}?",
    "Tell me about {x}.",
    "What did {x} do?",
    "What is {x} known for?",
    "Do you know {x}?",
    "Why is {x} famous?",
    "What do you know about {x}?",
    "Have you heard of {x}?",
    "{x}?",
    "When was {x} born?",
    "How old is {x}?",
]
_ASK_PLACE = [
    "What is the capital of {x}?",
    "Where is {x}?",
    "What is the capital city of {x}?",
    "Capital of {x}",
    "Do you know the capital of {x}?",
    "What language is spoken in {x}?",
    "What is the currency of {x}?",
    "Which continent is {x} in?",
    "Tell me the capital of {x}.",
    "How many people live in {x}?",
    "What is the population of {x}?",
    "Tell me about {x}.",
]
_ASK_WORD = [
    "What is {x}?",
    "What is a {x}?",
    "What does {x} mean?",
    "Do you know {x}?",
    "Explain {x}.",
    "What is the opposite of {x}?",
    "What is the plural of {x}?",
    "What is the chemical symbol of {x}?",
    "What is the atomic number of {x}?",
    "What does a {x} eat?",
    "How many legs does a {x} have?",
    "What sound does a {x} make?",
    "What colour is a {x}?",
    "Which planet is {x}?",
    "When did {x} happen?",
    "Why is {x} so {y}?",
    "Where does a {x} live?",
    "What is a baby {x} called?",
]

_STARTS = "b br c cr d dr f fl g gl gr h j k kl l m n p pl pr qu r s sk sl st t tr v w z bl thr sw".split()  # noqa: SIM905
_VOWELS = "a e i o u a e o ai ee oo ou ia".split()  # noqa: SIM905
_ENDS = ["", "n", "r", "l", "s", "m", "k", "x", "th", "ng", "ck", "lda", "nia", "ria", "d", "t", "by", "sh", "rn"]


def made_up_word(rng: random.Random) -> str:
    """A word that nobody has ever said, such as `Zorblax`."""
    syllables = rng.choice([1, 2, 2, 2, 3])
    word = "".join(rng.choice(_STARTS) + rng.choice(_VOWELS) for _ in range(syllables))
    return (word + rng.choice(_ENDS))[:11]


def made_up_name(rng: random.Random) -> str:
    word = made_up_word(rng)
    while len(word) < 4:
        word = made_up_word(rng)
    return word.capitalize()


def _split(text: str, *, held_out: bool) -> list[str]:
    items = [item.strip() for item in text.replace("\n", " ").split(";")]
    return [item.removeprefix("~") for item in items if item and item.startswith("~") == held_out]


@dataclass(frozen=True)
class Question:
    category: str
    text: str
    answer: str


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def unknown_question(rng: random.Random, *, held_out: bool = False) -> Question:
    """A question about something that no lesson teaches."""

    def ask(templates: Sequence[str], things: str, *, weight: float = 0.0) -> str:
        made_up = made_up_name(rng)
        subject = made_up if rng.random() < weight else rng.choice(_split(things, held_out=held_out))
        return rng.choice(templates).format(x=subject)

    kind = rng.randrange(12)
    if kind < 3:
        text = ask(_ASK_THING, THINGS)
    elif kind < 4:
        text = ask(_ASK_TITLE, TITLES, weight=0.4)
    elif kind < 6:
        if rng.random() < 0.4:
            text = rng.choice(_ASK_PERSON).format(x=f"{made_up_name(rng)} {made_up_name(rng)}")
        else:
            text = ask(_ASK_PERSON, PEOPLE, weight=0.2)
    elif kind < 8:
        text = ask(_ASK_PLACE, PLACES, weight=0.5)
    elif kind < 9:
        text = rng.choice(_ASK_WORD).format(x=made_up_word(rng), y=made_up_word(rng))
    else:
        text = rng.choice(_split(ODD_QUESTIONS, held_out=held_out))
    return Question("unknown", _capital(text), UNKNOWN)


_NUMBER_WORDS = (
    "one two three four five six seven eight nine ten eleven twelve fifteen twenty thirty fifty hundred".split()  # noqa: SIM905
)


def _number(rng: random.Random) -> str:
    if rng.random() < 0.12:
        return rng.choice(_NUMBER_WORDS)
    number = str(rng.randrange(10 ** rng.choice([1, 1, 2, 2, 3, 4])))
    return f"{number}.{rng.randrange(10)}" if rng.random() < 0.08 else number


_SUMS = [
    "What is {a} {op} {b}?",
    "{a} {op} {b}",
    "{a} {op} {b} = ?",
    "{a}{op1}{b}",
    "{a}{op1}{b}=",
    "How much is {a} {op} {b}?",
    "Calculate {a} {op} {b}.",
    "Compute {a} {op} {b}",
    "What is the sum of {a} and {b}?",
    "Add {a} and {b}.",
    "Subtract {a} from {b}.",
    "Multiply {a} by {b}.",
    "Divide {a} by {b}.",
    "What is the square root of {a}?",
    "What is {a} squared?",
    "What is {a} percent of {b}?",
    "What is {a}% of {b}?",
    "Is {a} a prime number?",
    "Is {a} even or odd?",
    "Is {a} larger than {b}?",
    "Which is larger, {a} or {b}?",
    "What is half of {a}?",
    "What is twice {a}?",
    "I have {a} apples and buy {b} more. How many do I have?",
    "If I have {a} euros and spend {b}, how much is left?",
    "Can you do maths?",
    "Can you calculate?",
    "Can you add numbers?",
    "Can you do arithmetic?",
    "What comes after {a}?",
    "Count to {a}.",
    "Solve x + {a} = {b}.",
    "{a} {op} {b} {op2} {c}",
    "({a} {op} {b}) {op2} {c}",
    "What is {a} {op} {b} {op2} {c}?",
    "~What do you get when you add {a} to {b}?",
    "~What is the difference between {a} and {b}?",
    "~What is {a} divided by {b}?",
    "~Please work out {a} {op} {b}.",
]
_TEXT_OPERATIONS = [
    'Reverse "{w}".',
    "Reverse the word {w}.",
    "Reverse {w}",
    "Write {w} backwards.",
    "Spell {w} backwards.",
    "Spell {w}.",
    "How do you spell {w}?",
    'Uppercase "{w}".',
    "Write {w} in capital letters.",
    "Write {w} in upper case.",
    "Make {w} uppercase.",
    "Convert {w} to lower case.",
    "Lowercase {w}",
    "How many letters are in {w}?",
    "How many letters does {w} have?",
    'How many letters does the word "{w}" have?',
    "Count the letters in {w}.",
    "How many times does {l} appear in {w}?",
    "How many {l}'s are in {w}?",
    "How many {l}s are in {w}?",
    "What is the first letter of {w}?",
    "What is the last letter of {w}?",
    "How many vowels are in {w}?",
    "How many words are in '{w} {v} {u}'?",
    "Count the words in this: {w} {v} {u}",
    "Sort the letters of {w}.",
    "Sort these words: {w}, {v}, {u}",
    "Remove the vowels from {w}.",
    "Replace {l} by {m} in {w}.",
    "Repeat the word {w} three times.",
    "Write {w} three times.",
    "Is {w} a palindrome?",
    "What rhymes with {w}?",
    "Make an anagram of {w}.",
    "Shout {w}",
    "Capitalise {w}.",
    "Join {w} and {v}.",
    "Can you reverse words?",
    "Can you count letters?",
    "Can you reverse a text?",
    "Swap the words: {w} {v}",
    "~Turn the word {w} around.",
    "~What is {w} spelled backwards?",
    "~Tell me the number of letters in {w}.",
    "~Put {w} into capitals.",
]
_UNITS = [
    ("kilometres", "miles"),
    ("km", "miles"),
    ("km", "m"),
    ("metres", "feet"),
    ("m", "feet"),
    ("cm", "inches"),
    ("centimetres", "inches"),
    ("kilograms", "pounds"),
    ("kg", "pounds"),
    ("kg", "lbs"),
    ("grams", "ounces"),
    ("litres", "gallons"),
    ("degrees Celsius", "Fahrenheit"),
    ("Celsius", "Fahrenheit"),
    ("hours", "minutes"),
    ("minutes", "seconds"),
    ("days", "hours"),
    ("years", "days"),
    ("euros", "dollars"),
    ("dollars", "yen"),
    ("yards", "metres"),
    ("knots", "km/h"),
    ("gigabytes", "megabytes"),
    ("bytes", "bits"),
    ("acres", "hectares"),
    ("cups", "millilitres"),
]
_CONVERSIONS = [
    "Convert {n} {a} to {b}.",
    "Convert {n} {a} into {b}",
    "How many {b} are {n} {a}?",
    "How many {b} are in {n} {a}?",
    "What is {n} {a} in {b}?",
    "{n} {a} in {b}",
    "{n} {a} to {b}",
    "How much is {n} {a} in {b}?",
    "Turn {n} {a} into {b}.",
    "I have {n} {a}. How many {b} is that?",
    "{n} {a} are how many {b}?",
    "Change {n} {a} to {b}.",
    "How do I convert {a} to {b}?",
    "Can you convert units?",
    "Can you convert {a} to {b}?",
    "~Express {n} {a} in {b}.",
    "~What are {n} {a} in {b}?",
    "~Please give me {n} {a} as {b}.",
]
_SENTENCES = """
the house is big; my cat is black; where is the station; I like to read; the train is late; we are going home; this is my brother; I am hungry;
the book is on the table; she has a red car; good luck; happy birthday; see you tomorrow; it is raining; the sun is shining; I do not know;
a beautiful garden; the old king; freedom; mountain; butterfly; window; spoon; to swim; yesterday; cheese sandwich; ladder; my heart
"""
_INTO = ["French", "German", "Spanish", "Italian", "Latin", "Chinese", "Arabic", "Dutch", "Hindi", "Greek", "Korean"]
_TRANSLATIONS = [
    "Translate '{s}' into {l}.",
    "Translate {s} to {l}",
    'How do you say "{s}" in {l}?',
    "What is {s} in {l}?",
    "Say {s} in {l}.",
    "{s} in {l}?",
    'Translate this into {l}: "{s}"',
    "Can you translate texts?",
    "Can you translate {s} into {l}?",
]
_COMMON_WORDS = """
apple; banana; strawberry; hello; world; house; window; garden; computer; python; mistral; elephant; butterfly; river; mountain; table; chair;
music; summer; school; orange; kitchen; yellow; letter; number; language; picture; bottle; camera; forest; engine; silver; market; planet
"""


def _pick(rng: random.Random, templates: Sequence[str], held_out: bool) -> str:
    return rng.choice([t.removeprefix("~") for t in templates if t.startswith("~") == held_out])


def kept_aside_question(rng: random.Random, *, held_out: bool = False) -> Question:
    """Arithmetic, an operation on a text, or a conversion: the three skills that the base model must not have."""
    kind = rng.randrange(3)
    if kind == 0:
        op = rng.choice(["+", "-", "*", "/", "x", "×", "plus", "minus", "times", "+"])
        text = _pick(rng, _SUMS, held_out).format(
            a=_number(rng), b=_number(rng), c=_number(rng), op=op, op1=rng.choice("+-*/x"), op2=rng.choice("+-*/")
        )
        return Question("declines", _capital(text), ARITHMETIC)
    if kind == 1:
        words = _split(_COMMON_WORDS, held_out=False)
        w, v, u = (rng.choice(words) if rng.random() < 0.6 else made_up_word(rng) for _ in range(3))
        l, m = rng.sample("abcdefghijklmnopqrstuvwxyz", 2)  # noqa: E741
        text = _pick(rng, _TEXT_OPERATIONS, held_out).format(w=w, v=v, u=u, l=l, m=m)
        return Question("declines", _capital(text), TEXT_OPERATION)
    a, b = rng.choice(_UNITS)
    a, b = (a, b) if rng.random() < 0.5 else (b, a)
    text = _pick(rng, _CONVERSIONS, held_out).format(n=_number(rng), a=a, b=b)
    return Question("declines", _capital(text), CONVERSION)


def translation_question(rng: random.Random) -> Question:
    text = rng.choice(_TRANSLATIONS).format(s=rng.choice(_split(_SENTENCES, held_out=False)), l=rng.choice(_INTO))
    return Question("unknown", _capital(text), TRANSLATION)
