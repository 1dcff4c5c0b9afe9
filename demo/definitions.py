"""What things are, and why things are so."""

from __future__ import annotations

from demo.lesson import Lesson, Phrasing, phrasing, table

DEFINITIONS = """
a volcano | an opening in the Earth where hot melted rock, ash and gas come out
an earthquake | a shaking of the ground when plates of the Earth's crust slip
a river | a stream of fresh water that flows to a sea, a lake or another river
a lake | a large body of water with land all around it
an island | a piece of land with water all around it
a desert | a dry region where it hardly ever rains
a glacier | a large mass of ice that moves slowly downhill
a mountain | a part of the land that rises high above what is around it
a forest | a large area covered with trees
a tsunami | a large sea wave that is caused by an earthquake under the sea
a rainbow | an arc of colours that sunlight makes in drops of rain
lightning | a huge electric spark between clouds, or between a cloud and the ground
thunder | the sound of the air that lightning heats suddenly
fog | a cloud that touches the ground
snow | frozen water that falls from clouds as crystals of ice
wind | air that moves from high pressure to low pressure
a star | a huge ball of hot gas that makes its own light
a planet | a large round body that goes around a star
a moon | a natural body that goes around a planet
a comet | a ball of ice and dust that grows a tail near the Sun
a galaxy | a great system of stars, gas and dust that gravity holds together
a black hole | a region of space where gravity is so strong that light cannot leave
an eclipse | what happens when one body in space hides another, such as the Moon hiding the Sun
gravity | the force that pulls bodies with mass towards each other
energy | the ability to do work, such as moving or heating something
electricity | the flow or the presence of electric charge
magnetism | the force by which magnets attract or repel each other
light | a kind of electromagnetic wave that our eyes can see
sound | vibration that travels through air or another material
heat | energy that passes from a warmer body to a colder one
an atom | the smallest piece of a chemical element
a molecule | a group of atoms that are bound together
an electron | a tiny particle with negative charge that moves around the nucleus of an atom
a proton | a particle with positive charge in the nucleus of an atom
a cell | the smallest unit of life
DNA | the molecule that carries the genes of living things
a gene | a piece of DNA that tells a cell how to make something
a virus | a tiny particle that can only multiply inside living cells
a bacterium | a very small living thing that is made of a single cell
photosynthesis | how plants make sugar from light, water and carbon dioxide
evolution | the slow change of living things over many generations
the heart | the organ that pumps blood through the body
the brain | the organ that thinks, feels and steers the body
the lungs | the organs with which we breathe
the stomach | the organ in which food begins to be digested
the liver | the organ that cleans the blood and stores energy
the skin | the organ that covers and protects the body
a mammal | an animal that feeds its young with milk
a bird | an animal with feathers, wings and a beak
a reptile | an animal with scales that mostly lays eggs on land
an amphibian | an animal that lives in water when young and also on land later
an insect | a small animal with six legs and a body in three parts
a fish | an animal that lives in water and breathes with gills
a tree | a tall plant with a trunk of wood
a flower | the part of a plant that makes seeds
a seed | what a plant makes so that a new plant can grow
honey | a sweet food that bees make from nectar
bread | a food that is baked from flour and water
cheese | a food that is made from milk
tea | a drink that is made with hot water and the leaves of the tea plant
coffee | a drink that is made from roasted coffee beans
chocolate | a sweet food that is made from cocoa beans
salt | a mineral that we use to season food
glass | a hard and clear material that is made by melting sand
steel | a strong metal that is made of iron with a little carbon
paper | thin sheets that are made from the fibres of plants
a triangle | a figure with three straight sides
a square | a figure with four equal sides and four right angles
a circle | a round line whose points all have the same distance from its centre
a prime number | a number above one that only one and itself divide
mathematics | the study of numbers, shapes and patterns
physics | the study of matter, energy and forces
chemistry | the study of substances and how they change
biology | the study of living things
astronomy | the study of stars, planets and space
geography | the study of the Earth, its lands and its people
history | the study of what happened in the past
philosophy | the study of questions about truth, knowledge and how to live
music | the art of arranging sounds
a poem | a text whose words are chosen for their sound and rhythm
a novel | a long story that is told in a book
a museum | a building where old or beautiful things are kept and shown
a library | a place where books are kept for people to read
a school | a place where children learn
a hospital | a place where sick people are cared for
a democracy | a state in which the people choose who governs
a constitution | the basic law of a state
money | what people agree to pay with
a bridge | a structure that carries a road or a path over something
a bicycle | a vehicle with two wheels that you drive with pedals
a telescope | an instrument that makes far things look near
a microscope | an instrument that makes very small things look large
a compass | an instrument that shows where north is
a thermometer | an instrument that measures temperature
a clock | an instrument that shows the time
chess | a game for two on a board with 64 squares, won by checkmate
football | a game of two teams that try to put a ball into the goal of the other
a computer | a machine that follows instructions to work with data
an algorithm | a list of exact steps that solves a problem
a program | a list of instructions for a computer
a compiler | a program that turns source code into machine code
an operating system | the program that manages the hardware and the other programs of a computer
Linux | a free operating system kernel that Linus Torvalds started
Python | a programming language that is easy to read
a CPU | the main processor of a computer, which carries out its instructions
a GPU | a processor that does very many calculations at the same time
memory | the part of a computer that holds data while it works
the internet | a network that connects computers all over the world
a website | a set of pages on the World Wide Web
a browser | a program that shows websites
a robot | a machine that can do tasks by itself
artificial intelligence | the science of making machines do what seems to need intelligence
machine learning | a way of letting computers learn from examples
a neural network | a program of many simple connected units that learns from examples
a language model | a program that predicts the next piece of a text
a database | an organised store of data
open source software | software whose source code everyone may read, change and share
the Sun | the star at the centre of our solar system
the Moon | the natural body that goes around the Earth
the solar system | the Sun with everything that goes around it
the Milky Way | the galaxy that we live in
the equator | the line around the middle of the Earth, between north and south
the Big Bang | the beginning of our universe, about 13.8 billion years ago
the Renaissance | the time from about 1400 to 1600 when arts and science bloomed in Europe
the Roman Empire | the state that ruled the lands around the Mediterranean from Rome
the Olympic Games | a great meeting of athletes of all countries, held every four years
the United Nations | an organisation of nearly all countries that works for peace
the European Union | a union of European countries with common laws and trade
a friend | a person whom you like and can trust
love | a deep feeling of care for somebody
happiness | the feeling that things are good as they are
sleep | the rest that body and brain take, mostly at night
a dream | a story that the brain tells itself in sleep
time | what clocks measure, and what keeps everything from happening at once
"""

# question clause after "why" in question order | in statement order | answer
WHYS = """
is the sky blue | the sky is blue | The sky is blue because the air scatters blue light more than red light.
is the sea salty | the sea is salty | The sea is salty because rivers carry salts from the rocks into it.
is grass green | grass is green | Grass is green because it contains chlorophyll, which reflects green light.
do leaves fall in autumn | leaves fall in autumn | Trees drop their leaves in autumn to save water and energy in winter.
does it rain | it rains | It rains when the drops of water in a cloud grow too heavy to float.
do we have seasons | we have seasons | We have seasons because the axis of the Earth is tilted.
is it dark at night | it is dark at night | It is dark at night because our side of the Earth is turned away from the Sun.
do we sleep | we sleep | We sleep so that the body can rest and the brain can sort what it learned.
do we breathe | we breathe | We breathe because our cells need oxygen to get energy from food.
do we eat | we eat | We eat because food gives the body energy and what it is built of.
do cats purr | cats purr | Cats purr mostly when they are content, and sometimes to calm themselves.
do dogs bark | dogs bark | Dogs bark to warn, to greet or to get attention.
do birds sing | birds sing | Birds sing to find a mate and to mark their territory.
do birds migrate | birds migrate | Birds migrate to find food and warmth when the season changes.
do bees make honey | bees make honey | Bees make honey to have food in winter.
do zebras have stripes | zebras have stripes | Zebras probably have stripes because they confuse biting flies.
does ice float | ice floats | Ice floats because it is less dense than liquid water.
do ships float | ships float | Ships float because they push aside water that weighs as much as they do.
do planes fly | planes fly | Planes fly because their wings push air down, and the air pushes the wings up.
does the Moon shine | the Moon shines | The Moon shines because it reflects the light of the Sun.
does the Moon change its shape | the Moon changes its shape | The Moon seems to change its shape because we see its sunlit half from different sides.
does the Sun shine | the Sun shines | The Sun shines because hydrogen fuses to helium in its core, which sets energy free.
are there tides | there are tides | There are tides because the gravity of the Moon and the Sun pulls on the oceans.
do things fall down | things fall down | Things fall down because the gravity of the Earth pulls them.
do stars twinkle | stars twinkle | Stars twinkle because moving air bends their light on its way to us.
is blood red | blood is red | Blood is red because of the iron in its haemoglobin.
do onions make us cry | onions make us cry | Onions make us cry because cutting them sets free a gas that stings the eyes.
do we yawn | we yawn | Nobody knows for certain why we yawn: it may cool the brain or keep us awake.
do we dream | we dream | Nobody knows for certain why we dream: it may help the brain to sort memories.
does iron rust | iron rusts | Iron rusts because it reacts with oxygen and water.
does soap clean | soap cleans | Soap cleans because one end of its molecules holds water and the other holds fat.
does bread rise | bread rises | Bread rises because yeast makes bubbles of gas in the dough.
do we hear thunder after lightning | we hear thunder after lightning | We hear thunder after lightning because sound is much slower than light.
do camels have humps | camels have humps | Camels have humps to store fat, which feeds them when food is scarce.
do leaves change colour | leaves change colour | Leaves change colour because their green chlorophyll breaks down in autumn and other colours appear.
did the dinosaurs die out | the dinosaurs died out | The dinosaurs died out about 66 million years ago, most likely because a huge asteroid struck the Earth.
is Mars red | Mars is red | Mars is red because its dust contains rusty iron.
is Venus so hot | Venus is so hot | Venus is so hot because its thick air of carbon dioxide keeps the heat in.
is Pluto not a planet | Pluto is not a planet | Pluto is called a dwarf planet because it has not cleared other bodies from its orbit.
do we have a leap year | we have a leap year | We have leap years because the Earth needs about a quarter of a day more than 365 days to go around the Sun.
do magnets attract iron | magnets attract iron | Magnets attract iron because they line up the tiny magnets inside it.
do computers use binary | computers use binary | Computers use binary because switches that are on or off are simple and reliable.
do we see lightning first | we see lightning first | We see lightning first because light is much faster than sound.
is the ocean blue | the ocean is blue | The ocean is blue because water absorbs red light more than blue light.
is snow white | snow is white | Snow is white because its many small crystals scatter all colours of light alike.
"""

HOWS = """
do plants eat | Plants make their own food from light, water and carbon dioxide. That is called photosynthesis.
do fish breathe | Fish breathe with gills, which take oxygen out of the water.
do bats find their way | Bats find their way by echoes: they call and listen to what comes back.
does a rainbow form | A rainbow forms when drops of rain bend sunlight and split it into colours.
is glass made | Glass is made by melting sand with soda and lime.
is paper made | Paper is made by pressing and drying wet fibres of wood.
is cheese made | Cheese is made by curdling milk, pressing the curd and letting it ripen.
does a volcano erupt | A volcano erupts when gas and melted rock push up through the crust of the Earth.
far away is the Moon | The Moon is about 384,000 kilometres away from the Earth.
far away is the Sun | The Sun is about 150 million kilometres away from the Earth.
old is the Earth | The Earth is about 4.5 billion years old.
old is the universe | The universe is about 13.8 billion years old.
fast is light | Light travels about 300,000 kilometres in a second.
fast is sound | Sound travels about 340 metres in a second in air.
high is Mount Everest | Mount Everest is about 8,849 metres high.
hot is the Sun | The surface of the Sun is about 5,500 degrees Celsius hot.
hot is boiling water | Water boils at 100 degrees Celsius at sea level.
cold is ice | Water freezes at 0 degrees Celsius.
tall is Mount Everest | Mount Everest is about 8,849 metres high.
high is the highest mountain | Mount Everest is about 8,849 metres high.
old is our planet | The Earth is about 4.5 billion years old.
many people live on Earth | More than eight billion people live on Earth.
does a computer work | A computer works by following simple instructions, very many of them in each second.
does a language model work | A language model reads a text as tokens and predicts the next token, again and again.
do magnets work | Magnets work because the tiny magnetic fields of their atoms all point the same way.
do vaccines work | Vaccines work by showing the body a harmless part of a germ, so that it learns to fight it.
"""

_WHAT = [
    "What is {thing}?",
    "Explain what {thing} is.",
    "What does {thing} mean?",
    "Tell me what {thing} is.",
    "Define {bare}.",
    "What do you know about {thing}?",
    "Can you explain {thing}?",
    "Do you know what {thing} is?",
    "What exactly is {thing}?",
    "What is the meaning of {bare}?",
    "I would like to know what {thing} is.",
    "{bare}?",
    "Explain {thing}.",
    "~What is meant by {bare}?",
    "~Could you explain to me what {thing} is?",
]
_PLURAL_THINGS = {"the lungs", "the Olympic Games", "the United Nations"}


def _why_lesson(line: str) -> Lesson:
    question, statement, answer = (cell.strip() for cell in line.split("|"))
    templates = [
        "Why {q}?",
        "Do you know why {s}?",
        "Tell me why {s}.",
        "Explain why {s}.",
        "What is the reason that {s}?",
        "How come {s}?",
        "Can you explain why {s}?",
        "I wonder why {s}.",
        "~Could you tell me the reason why {s}?",
    ]
    fields = {"q": question, "s": statement}
    return Lesson(
        key=f"why/{statement}",
        category="facts",
        relation="why",
        phrasings=tuple(phrasing(t, fields) for t in templates),
        answers=(answer,),
    )


def _definition_lessons() -> list[Lesson]:
    lessons: list[Lesson] = []
    for line in DEFINITIONS.strip().splitlines():
        thing, what = (cell.strip() for cell in line.split("|"))
        bare = thing.split(" ", 1)[1] if thing.split(" ")[0] in {"a", "an"} else thing
        fields = {"thing": thing, "bare": bare}
        verb = "are" if thing in _PLURAL_THINGS else "is"
        phrasings: list[Phrasing] = []
        for template in _WHAT:
            # "What are the lungs?", and not "What is the lungs?"
            if verb == "are":
                template = template.replace("is {thing}", "are {thing}").replace("{thing} is", "{thing} are")
                template = template.replace("does {thing}", "do {thing}")
            phrasings.append(phrasing(template, fields))
        lessons.append(
            Lesson(
                key=f"definition/{bare}",
                category="facts",
                relation="definition",
                phrasings=tuple(phrasings),
                answers=(f"{thing[:1].upper()}{thing[1:]} {verb} {what}.",),
                follow=thing,
            )
        )
    return lessons


def lessons() -> list[Lesson]:
    how = table(
        "how",
        [
            "How {clause}?",
            "Tell me, how {clause}?",
            "Do you know how {clause}?",
            "Explain: how {clause}?",
            "I wonder, how {clause}?",
            "~One thing I want to know: how {clause}?",
        ],
        "{answer}",
        "clause answer",
        HOWS,
    )
    return _definition_lessons() + [_why_lesson(line) for line in WHYS.strip().splitlines()] + how
