"""Opposites, plurals, the calendar, and first words of other languages."""

from __future__ import annotations

from demo.lesson import Lesson, table

OPPOSITES = """
hot | cold
big | small
tall | short
fast | slow
good | bad
happy | sad
light | dark
day | night
up | down
left | right
open | closed
full | empty
rich | poor
long | short
heavy | light
young | old
new | old
early | late
easy | difficult
hard | soft
wet | dry
clean | dirty
strong | weak
loud | quiet
near | far
high | low
wide | narrow
thick | thin
deep | shallow
sweet | bitter
beautiful | ugly
brave | cowardly
safe | dangerous
true | false
love | hate
war | peace
friend | enemy
begin | end
arrive | leave
buy | sell
give | take
push | pull
win | lose
remember | forget
laugh | cry
float | sink
ask | answer
inside | outside
above | below
before | after
always | never
everything | nothing
all | none
first | last
north | south
east | west
summer | winter
spring | autumn
yes | no
black | white
male | female
life | death
success | failure
smooth | rough
sharp | blunt
awake | asleep
cheap | expensive
polite | rude
lazy | hard-working
"""

PLURALS = """
mouse | mice
child | children
man | men
woman | women
foot | feet
tooth | teeth
goose | geese
person | people
ox | oxen
sheep | sheep
fish | fish
leaf | leaves
wolf | wolves
knife | knives
life | lives
wife | wives
half | halves
city | cities
baby | babies
box | boxes
bus | buses
potato | potatoes
tomato | tomatoes
hero | heroes
cactus | cacti
crisis | crises
analysis | analyses
datum | data
criterion | criteria
phenomenon | phenomena
"""

PASTS = """
go | went
eat | ate
see | saw
take | took
come | came
write | wrote
speak | spoke
run | ran
sing | sang
drink | drank
think | thought
buy | bought
bring | brought
teach | taught
catch | caught
find | found
sleep | slept
fly | flew
know | knew
give | gave
begin | began
break | broke
swim | swam
drive | drove
"""

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
LENGTHS = [
    "31 days",
    "28 days, and 29 in a leap year",
    "31 days",
    "30 days",
    "31 days",
    "30 days",
    "31 days",
    "31 days",
    "30 days",
    "31 days",
    "30 days",
    "31 days",
]
ORDINALS = [
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
]

COUNTS = """
days are in a week | There are seven days in a week.
days are in a year | There are 365 days in a year, and 366 in a leap year.
months are in a year | There are twelve months in a year.
weeks are in a year | There are 52 weeks in a year, and one or two days more.
hours are in a day | There are 24 hours in a day.
minutes are in an hour | There are 60 minutes in an hour.
seconds are in a minute | There are 60 seconds in a minute.
seasons are there | There are four seasons: spring, summer, autumn and winter.
continents are there | There are seven continents: Africa, Antarctica, Asia, Europe, North America, Oceania and South America.
oceans are there | There are five oceans: the Pacific, the Atlantic, the Indian, the Southern and the Arctic Ocean.
planets are there | There are eight planets in the solar system.
moons does the Earth have | The Earth has one moon.
moons does Mars have | Mars has two moons: Phobos and Deimos.
letters are in the English alphabet | The English alphabet has 26 letters.
colours are in a rainbow | A rainbow is said to have seven colours: red, orange, yellow, green, blue, indigo and violet.
sides does a triangle have | A triangle has three sides.
sides does a square have | A square has four sides of equal length.
sides does a pentagon have | A pentagon has five sides.
sides does a hexagon have | A hexagon has six sides.
sides does an octagon have | An octagon has eight sides.
strings does a violin have | A violin has four strings.
strings does a guitar have | A guitar has six strings.
players are in a football team | A football team has eleven players on the field.
bones does an adult human have | An adult human has 206 bones.
teeth does an adult human have | An adult human has 32 teeth.
hearts does an octopus have | An octopus has three hearts.
bits are in a byte | There are eight bits in a byte.
years are in a century | There are one hundred years in a century.
years are in a decade | There are ten years in a decade.
squares are on a chess board | A chess board has 64 squares.
keys does a piano have | A piano has 88 keys.
states are in the United States | There are 50 states in the United States.
"""

LISTS = """
planets | The planets are Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune.
continents | The continents are Africa, Antarctica, Asia, Europe, North America, Oceania and South America.
oceans | The oceans are the Pacific, the Atlantic, the Indian, the Southern and the Arctic Ocean.
seasons | The seasons are spring, summer, autumn and winter.
days of the week | The days of the week are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday.
months of the year | The months are January, February, March, April, May, June, July, August, September, October, November and December.
colours of the rainbow | The colours of the rainbow are red, orange, yellow, green, blue, indigo and violet.
primary colours of paint | The primary colours of paint are red, yellow and blue.
five senses | The five senses are sight, hearing, smell, taste and touch.
states of matter | The states of matter are solid, liquid, gas and plasma.
points of the compass | The points of the compass are north, east, south and west.
vowels | The vowels of the English alphabet are a, e, i, o and u.
"""

# language | hello | thank you | goodbye | yes | no | please | water | friend
PHRASES = """
French | bonjour | merci | au revoir | oui | non | s'il vous plaît | eau | ami
German | hallo | danke | auf Wiedersehen | ja | nein | bitte | Wasser | Freund
Spanish | hola | gracias | adiós | sí | no | por favor | agua | amigo
Italian | ciao | grazie | arrivederci | sì | no | per favore | acqua | amico
Portuguese | olá | obrigado | adeus | sim | não | por favor | água | amigo
Dutch | hallo | dank je | tot ziens | ja | nee | alsjeblieft | water | vriend
Swedish | hej | tack | hej då | ja | nej | snälla | vatten | vän
Polish | cześć | dziękuję | do widzenia | tak | nie | proszę | woda | przyjaciel
Finnish | hei | kiitos | näkemiin | kyllä | ei | ole hyvä | vesi | ystävä
Turkish | merhaba | teşekkürler | hoşça kal | evet | hayır | lütfen | su | arkadaş
Japanese | konnichiwa | arigato | sayonara | hai | iie | onegai shimasu | mizu | tomodachi
Russian | privet | spasibo | do svidaniya | da | net | pozhaluysta | voda | drug
"""
ENGLISH = ["hello", "thank you", "goodbye", "yes", "no", "please", "water", "friend"]


def calendar_lessons() -> list[Lesson]:
    after = [(day, DAYS[(i + 1) % 7]) for i, day in enumerate(DAYS)]
    after += [(month, MONTHS[(i + 1) % 12]) for i, month in enumerate(MONTHS)]
    before = [(b, a) for a, b in after]
    following = table(
        "comes after",
        [
            "What comes after {x}?",
            "What is after {x}?",
            "Which one comes after {x}?",
            "What follows {x}?",
            "What is next after {x}?",
            "~Tell me what comes after {x}.",
        ],
        "After {x} comes {y}.",
        "x y",
        after,
        follow="after {x}",
    )
    preceding = table(
        "comes before",
        [
            "What comes before {x}?",
            "What is before {x}?",
            "Which one comes before {x}?",
            "What comes just before {x}?",
            "~Tell me what comes before {x}.",
        ],
        "Before {x} comes {y}.",
        "x y",
        before,
        follow="before {x}",
    )
    lengths = table(
        "month length",
        [
            "How many days does {month} have?",
            "How many days are in {month}?",
            "How long is {month}?",
            "How many days has {month}?",
            "What is the number of days in {month}?",
            "~Do you know how many days {month} has?",
        ],
        "{month} has {length}.",
        "month length",
        list(zip(MONTHS, LENGTHS, strict=True)),
    )
    ordinal = table(
        "ordinal month",
        [
            "What is the {ordinal} month of the year?",
            "Which month is the {ordinal}?",
            "What is the {ordinal} month?",
            "Name the {ordinal} month of the year.",
            "~Do you know the {ordinal} month?",
        ],
        "The {ordinal} month of the year is {month}.",
        "ordinal month",
        list(zip(ORDINALS, MONTHS, strict=True)),
        follow="the {ordinal}",
    )
    return following + preceding + lengths + ordinal


def translation_lessons() -> list[Lesson]:
    rows = []
    for line in PHRASES.strip().splitlines():
        language, *words = (cell.strip() for cell in line.split("|"))
        rows += [
            (f"{english} in {language}", language, english, word) for english, word in zip(ENGLISH, words, strict=True)
        ]
    return table(
        "translation",
        [
            'How do you say "{english}" in {language}?',
            "How do you say {english} in {language}?",
            "How do I say {english} in {language}?",
            "What is {english} in {language}?",
            'What is the {language} word for "{english}"?',
            "What is the {language} word for {english}?",
            "{english} in {language}?",
            "{english} in {language}",
            "Say {english} in {language}.",
            "How can I say {english} in {language}?",
            "How does one say {english} in {language}?",
            "~Translate {english} into {language}.",
            "~What do people say for {english} in {language}?",
        ],
        'In {language}, "{english}" is "{word}".',
        "key language english word",
        rows,
        follow="in {language}",
    )


def lessons() -> list[Lesson]:
    pairs = [[cell.strip() for cell in line.split("|")] for line in OPPOSITES.strip().splitlines()]
    both_ways = dict(pairs)
    for a, b in pairs:
        both_ways.setdefault(b, a)
    opposite = table(
        "opposite",
        [
            "What is the opposite of {word}?",
            'What is the opposite of "{word}"?',
            "What is the contrary of {word}?",
            "Opposite of {word}?",
            "The opposite of {word}?",
            "Tell me the opposite of {word}.",
            "Which word is the opposite of {word}?",
            "Give me the opposite of {word}.",
            "~What word means the opposite of {word}?",
            "~Do you know the opposite of {word}?",
        ],
        "The opposite of {word} is {other}.",
        "word other",
        list(both_ways.items()),
    )
    plural = table(
        "plural",
        [
            "What is the plural of {word}?",
            'What is the plural of "{word}"?',
            "The plural of {word}?",
            "Tell me the plural of {word}.",
            "What is the plural form of {word}?",
            "Which is the plural of {word}?",
            "~Do you know the plural of {word}?",
        ],
        "The plural of {word} is {plural}.",
        "word plural",
        PLURALS,
    )
    past = table(
        "past tense",
        [
            "What is the past tense of {verb}?",
            "What is the past of {verb}?",
            "Past tense of {verb}?",
            'What is the past tense of "{verb}"?',
            "Tell me the past tense of {verb}.",
            "Which is the past form of {verb}?",
            "~Do you know the past tense of {verb}?",
        ],
        "The past tense of {verb} is {past}.",
        "verb past",
        PASTS,
    )
    count = table(
        "count",
        [
            "How many {things}?",
            "Do you know how many {things}?",
            "Tell me how many {things}.",
            "Can you say how many {things}?",
            "~I wonder how many {things}.",
        ],
        "{answer}",
        "things answer",
        COUNTS,
    )
    listed = table(
        "list",
        [
            "What are the {things}?",
            "Name the {things}.",
            "List the {things}.",
            "Which are the {things}?",
            "Tell me the {things}.",
            "What are the names of the {things}?",
            "Can you name the {things}?",
            "Do you know the {things}?",
            "The {things}?",
            "~Which {things} are there?",
            "~Give me a list of the {things}.",
        ],
        "{answer}",
        "things answer",
        LISTS,
    )
    return opposite + plural + past + count + listed + calendar_lessons() + translation_lessons()
