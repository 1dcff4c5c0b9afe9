"""Elements, planets, animals, colours of things."""

from __future__ import annotations

from demo.lesson import Lesson, table

# name | symbol | atomic number
ELEMENTS = """
hydrogen | H | 1
helium | He | 2
lithium | Li | 3
beryllium | Be | 4
boron | B | 5
carbon | C | 6
nitrogen | N | 7
oxygen | O | 8
fluorine | F | 9
neon | Ne | 10
sodium | Na | 11
magnesium | Mg | 12
aluminium | Al | 13
silicon | Si | 14
phosphorus | P | 15
sulfur | S | 16
chlorine | Cl | 17
argon | Ar | 18
potassium | K | 19
calcium | Ca | 20
titanium | Ti | 22
chromium | Cr | 24
manganese | Mn | 25
iron | Fe | 26
cobalt | Co | 27
nickel | Ni | 28
copper | Cu | 29
zinc | Zn | 30
bromine | Br | 35
silver | Ag | 47
tin | Sn | 50
iodine | I | 53
tungsten | W | 74
platinum | Pt | 78
gold | Au | 79
mercury | Hg | 80
lead | Pb | 82
radon | Rn | 86
radium | Ra | 88
uranium | U | 92
"""

# name | ordinal | description
PLANETS = """
Mercury | first | the planet closest to the Sun, and the smallest one
Venus | second | the hottest planet: thick clouds keep its heat in
Earth | third | our home, and the only planet known to have life
Mars | fourth | called the red planet, because its dust is rusty
Jupiter | fifth | the largest planet, with a storm called the Great Red Spot
Saturn | sixth | the planet with the bright rings of ice and rock
Uranus | seventh | an ice giant that rolls around the Sun on its side
Neptune | eighth | the outermost planet, blue and very windy
"""

SKY = """
the closest planet to the Sun | Mercury
the largest planet | Jupiter
the smallest planet | Mercury
the hottest planet | Venus
the red planet | Mars
the planet with the big rings | Saturn
the farthest planet from the Sun | Neptune
the closest star to the Earth | the Sun
the galaxy that we live in | the Milky Way
the largest moon of Saturn | Titan
the largest moon of Jupiter | Ganymede
the force that keeps us on the ground | gravity
the hardest natural material | diamond
the lightest element | hydrogen
the most common gas in the air | nitrogen
the gas that we need to breathe | oxygen
the gas that plants take in | carbon dioxide
the metal that is liquid at room temperature | mercury
the largest animal | the blue whale
the largest land animal | the African elephant
the tallest animal | the giraffe
the fastest land animal | the cheetah
the fastest bird | the peregrine falcon
the largest bird | the ostrich
the smallest bird | the bee hummingbird
the largest fish | the whale shark
the largest cat | the tiger
the slowest mammal | the sloth
the only mammal that can really fly | the bat
the largest organ of the human body | the skin
the longest bone of the human body | the thigh bone
the chemical formula of water | H2O
the chemical formula of table salt | NaCl
the chemical formula of carbon dioxide | CO2
"""

# animal | class | young | what it eats | legs
ANIMALS = """
cat | mammal | a kitten | meat, such as mice and fish | four
dog | mammal | a puppy | mostly meat | four
cow | mammal | a calf | grass | four
horse | mammal | a foal | grass and hay | four
sheep | mammal | a lamb | grass | four
goat | mammal | a kid | grass and leaves | four
pig | mammal | a piglet | nearly everything | four
bear | mammal | a cub | berries, fish and much else | four
lion | mammal | a cub | meat | four
tiger | mammal | a cub | meat | four
wolf | mammal | a pup | meat | four
fox | mammal | a kit | mice, birds and berries | four
deer | mammal | a fawn | grass and leaves | four
rabbit | mammal | a kit | grass and leaves | four
elephant | mammal | a calf | grass, leaves and bark | four
giraffe | mammal | a calf | leaves of tall trees | four
kangaroo | mammal | a joey | grass | four
koala | mammal | a joey | eucalyptus leaves | four
panda | mammal | a cub | bamboo | four
zebra | mammal | a foal | grass | four
camel | mammal | a calf | dry grass and thorny plants | four
hedgehog | mammal | a hoglet | beetles, worms and snails | four
squirrel | mammal | a kit | nuts and seeds | four
mouse | mammal | a pup | seeds and grains | four
bat | mammal | a pup | insects or fruit | two
whale | mammal | a calf | krill or fish | no
dolphin | mammal | a calf | fish | no
seal | mammal | a pup | fish | no
owl | bird | an owlet | mice and insects | two
eagle | bird | an eaglet | fish and small animals | two
duck | bird | a duckling | water plants and insects | two
goose | bird | a gosling | grass | two
swan | bird | a cygnet | water plants | two
chicken | bird | a chick | grains and worms | two
penguin | bird | a chick | fish | two
ostrich | bird | a chick | plants and seeds | two
parrot | bird | a chick | seeds and fruit | two
crocodile | reptile | a hatchling | meat and fish | four
turtle | reptile | a hatchling | plants and small animals | four
snake | reptile | a snakelet | mice, frogs and eggs | no
lizard | reptile | a hatchling | insects | four
frog | amphibian | a tadpole | insects | four
toad | amphibian | a tadpole | insects and worms | four
newt | amphibian | an eft | insects and worms | four
salmon | fish | a fry | smaller fish and shrimps | no
shark | fish | a pup | fish and seals | no
trout | fish | a fry | insects and small fish | no
bee | insect | a larva | nectar and pollen | six
ant | insect | a larva | seeds, sweet juice and other insects | six
butterfly | insect | a caterpillar | nectar | six
beetle | insect | a grub | leaves, wood or other insects | six
mosquito | insect | a larva | nectar, and the females take blood | six
spider | arachnid | a spiderling | insects | eight
scorpion | arachnid | a scorpling | insects | eight
octopus | mollusc | a larva | crabs and fish | no
snail | mollusc | a hatchling | leaves | no
crab | crustacean | a larva | algae and small animals | ten
"""

SOUNDS = """
cat | meow
dog | woof
cow | moo
sheep | baa
pig | oink
horse | neigh
duck | quack
rooster | cock-a-doodle-doo
chicken | cluck
lion | roar
wolf | howl
frog | ribbit
owl | hoot
bee | buzz
snake | hiss
mouse | squeak
donkey | hee-haw
crow | caw
goose | honk
"""

HOMES = """
a bird | in a nest
a bee | in a hive
a fox | in a den
a rabbit | in a burrow
a spider | in a web
a polar bear | in the Arctic
a penguin | in the south of the world, most of all in Antarctica
a kangaroo | in Australia
a koala | in Australia
a panda | in China
a camel | in deserts
a lion | on the plains of Africa
a tiger | in the forests of Asia
a beaver | in a lodge that it builds in the water
a horse | in a stable
a pig | in a sty
"""

THINGS = """
the sky | blue
grass | green
snow | white
coal | black
blood | red
a banana | yellow
a ripe tomato | red
a lemon | yellow
an orange | orange
a carrot | orange
milk | white
chocolate | brown
the Sun | white, although it looks yellow from the Earth
a flamingo | pink
a polar bear | white
a crow | black
a cucumber | green
a strawberry | red
an aubergine | purple
an emerald | green
a ruby | red
a sapphire | blue
sulfur | yellow
copper | reddish brown
a frog | mostly green
a school bus in the United States | yellow
a giraffe | yellow with brown patches
a zebra | black and white
"""

MIXES = """
red and yellow | orange
blue and yellow | green
red and blue | purple
red and white | pink
black and white | grey
red and green | brown
blue and white | light blue
"""


IRREGULAR = {
    "sheep": "sheep",
    "deer": "deer",
    "wolf": "wolves",
    "mouse": "mice",
    "goose": "geese",
    "salmon": "salmon",
    "trout": "trout",
    "butterfly": "butterflies",
    "mosquito": "mosquitoes",
    "fox": "foxes",
    "ostrich": "ostriches",
}


def _with_plural(text: str) -> list[list[str]]:
    """The rows of a table of animals, with the plural of each as the last column."""
    rows = [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]
    return [[*row, IRREGULAR.get(row[0], row[0] + "s")] for row in rows]


def animal_lessons() -> list[Lesson]:
    columns = "animal kind young food legs plural"
    animals = _with_plural(ANIMALS)
    kind = table(
        "animal kind",
        [
            "What kind of animal is {a_animal}?",
            "What are {plural}?",
            "What type of animal is {a_animal}?",
            "Which class of animals does {a_animal} belong to?",
            "What is {a_animal}?",
            "Is {a_animal} a mammal, a bird or something else?",
            "What sort of animal is {a_animal}?",
            "Tell me what {a_animal} is.",
            "~{a_animal} is what kind of animal?",
        ],
        "{a_animal} is {a_kind}.",
        columns,
        animals,
    )
    young = table(
        "young",
        [
            "What is a baby {animal} called?",
            "What do you call a baby {animal}?",
            "What is the name of a young {animal}?",
            "What is a young {animal} called?",
            "How do you call the young of {a_animal}?",
            "What is the baby of {a_animal} called?",
            "A baby {animal} is called what?",
            "~Do you know what a baby {animal} is called?",
        ],
        "A baby {animal} is called {young}.",
        columns,
        animals,
        follow="a baby {animal}",
    )
    food = table(
        "food",
        [
            "What does {a_animal} eat?",
            "{a_animal} eats what?",
            "What do {plural} eat?",
            "What do {plural} like to eat?",
            "What is the food of {a_animal}?",
            "What food does {a_animal} like?",
            "What does {a_animal} live on?",
            "Tell me what {a_animal} eats.",
            "~What can {a_animal} eat?",
        ],
        "{a_animal} eats {food}.",
        columns,
        animals,
        follow="{a_animal}",
    )
    legs = table(
        "legs",
        [
            "How many legs does {a_animal} have?",
            "How many legs has {a_animal}?",
            "How many legs do {plural} have?",
            "What number of legs does {a_animal} have?",
            "Does {a_animal} have legs, and how many?",
            "Tell me how many legs {a_animal} has.",
            "~Do you know how many legs {a_animal} has?",
        ],
        "{a_animal} has {legs} legs.",
        columns,
        animals,
        follow="{a_animal}",
    )
    sound = table(
        "sound",
        [
            "What sound does {a_animal} make?",
            "What does {a_animal} say?",
            "What sound do {plural} make?",
            "Which sound does {a_animal} make?",
            "What noise does {a_animal} make?",
            "How does {a_animal} sound?",
            "~What is the sound of {a_animal}?",
        ],
        'The sound of {a_animal} is "{sound}".',
        "animal sound plural",
        _with_plural(SOUNDS),
        follow="{a_animal}",
    )
    home = table(
        "home",
        [
            "Where does {animal} live?",
            "Where can you find {animal}?",
            "What is the home of {animal}?",
            "Tell me where {animal} lives.",
            "~Where is {animal} at home?",
        ],
        "{animal} lives {home}.",
        "animal home",
        HOMES,
    )
    return kind + young + food + legs + sound + home


def lessons() -> list[Lesson]:
    symbol = table(
        "symbol",
        [
            "What is the chemical symbol of {element}?",
            "What is the chemical symbol for {element}?",
            "What is the symbol for {element}?",
            "What is the symbol of {element}?",
            "Which chemical symbol does {element} have?",
            "How do chemists write {element}?",
            "The symbol of {element}?",
            "Tell me the chemical symbol of {element}.",
            "~Which symbol stands for {element}?",
        ],
        "The chemical symbol of {element} is {symbol}.",
        "element symbol number",
        ELEMENTS,
    )
    stands_for = table(
        "element",
        [
            "Which element has the symbol {symbol}?",
            "What element is {symbol}?",
            "Which element is {symbol}?",
            "What does the chemical symbol {symbol} stand for?",
            "What element has the chemical symbol {symbol}?",
            "{symbol} is the symbol of which element?",
            "~The symbol {symbol} stands for which element?",
        ],
        "{symbol} is the chemical symbol of {element}.",
        "symbol element",
        [(line.split("|")[1].strip(), line.split("|")[0].strip()) for line in ELEMENTS.strip().splitlines()],
    )
    number = table(
        "atomic number",
        [
            "What is the atomic number of {element}?",
            "Which atomic number does {element} have?",
            "The atomic number of {element}?",
            "Tell me the atomic number of {element}.",
            "How many protons does {element} have?",
            "What number is {element} in the periodic table?",
            "~Do you know the atomic number of {element}?",
        ],
        "The atomic number of {element} is {number}.",
        "element symbol number",
        ELEMENTS,
    )
    planet = table(
        "planet",
        [
            "What is {planet}?",
            "Tell me about {planet}.",
            "What do you know about {planet}?",
            "What kind of planet is {planet}?",
            "Describe {planet}.",
            "What is special about {planet}?",
            "What can you tell me about {planet}?",
            "Tell me something about the planet {planet}.",
            "What is the planet {planet}?",
            "~What is interesting about {planet}?",
        ],
        "{planet} is {what}.",
        "planet ordinal what",
        [line.split(" | ") for line in PLANETS.strip().splitlines() if not line.startswith("Mercury")],
    )
    ordinal = table(
        "ordinal planet",
        [
            "Which planet is the {ordinal} from the Sun?",
            "What is the {ordinal} planet?",
            "What is the {ordinal} planet from the Sun?",
            "Which planet is {ordinal} from the Sun?",
            "Name the {ordinal} planet.",
            "~What is the name of the {ordinal} planet?",
        ],
        "The {ordinal} planet from the Sun is {planet}.",
        "ordinal planet",
        [(line.split(" | ")[1], line.split(" | ")[0]) for line in PLANETS.strip().splitlines()],
        follow="the {ordinal}",
    )
    sky = table(
        "nature",
        [
            "What is {thing}?",
            "Which is {thing}?",
            "Do you know {thing}?",
            "Name {thing}.",
            "Tell me {thing}.",
            "Tell me what {thing} is.",
            "What do you call {thing}?",
            "What is the name of {thing}?",
            "~Could you tell me {thing}?",
        ],
        "{thing} is {what}.",
        "thing what",
        SKY,
    )
    colour = table(
        "colour",
        [
            "What colour is {thing}?",
            "What color is {thing}?",
            "Which colour does {thing} have?",
            "What is the colour of {thing}?",
            "What is the color of {thing}?",
            "Tell me the colour of {thing}.",
            "~Do you know the colour of {thing}?",
        ],
        "{thing} is {colour}.",
        "thing colour",
        THINGS,
    )
    mix = table(
        "mix",
        [
            "What do you get if you mix {pair}?",
            "What colour do you get from {pair}?",
            "Which colour do {pair} make?",
            "What do {pair} make?",
            "What happens when I mix {pair}?",
            "Mix {pair}: what colour is it?",
            "~What colour comes from mixing {pair}?",
        ],
        "If you mix {pair} paint, you get {colour}.",
        "pair colour",
        MIXES,
    )
    return symbol + stands_for + number + planet + ordinal + sky + colour + mix + animal_lessons()
