"""People, works, inventions and dates."""

from __future__ import annotations

from demo.lesson import Lesson, table

PEOPLE = """
Albert Einstein | a physicist who was born in Germany and developed the theory of relativity
Isaac Newton | an English scientist who described gravity and the laws of motion
Marie Curie | a Polish and French scientist who studied radioactivity and won two Nobel Prizes
Charles Darwin | an English naturalist who explained evolution by natural selection
Galileo Galilei | an Italian astronomer who saw the moons of Jupiter with his telescope
Nicolaus Copernicus | an astronomer who taught that the Earth goes around the Sun
Johannes Kepler | a German astronomer who found the laws of the motion of planets
Nikola Tesla | an inventor and engineer who worked on alternating current
Thomas Edison | an American inventor who made a practical light bulb and the phonograph
Alexander Graham Bell | an inventor who patented the telephone
Alexander Fleming | a Scottish doctor who discovered penicillin
Louis Pasteur | a French scientist who showed that germs cause disease and decay
Gregor Mendel | a monk who discovered the rules of heredity with pea plants
Dmitri Mendeleev | a Russian chemist who made the periodic table of the elements
Stephen Hawking | an English physicist who studied black holes
Richard Feynman | an American physicist who worked on quantum electrodynamics
Niels Bohr | a Danish physicist who made a model of the atom
Max Planck | a German physicist who began quantum theory
Werner Heisenberg | a German physicist known for the uncertainty principle
Michael Faraday | an English scientist who discovered electromagnetic induction
James Clerk Maxwell | a Scottish physicist who wrote the equations of electromagnetism
Archimedes | a Greek mathematician of Syracuse who explained why things float
Euclid | a Greek mathematician who wrote the Elements of geometry
Pythagoras | a Greek philosopher known for the theorem about right triangles
Carl Friedrich Gauss | a German mathematician who worked on numbers, statistics and magnetism
Leonhard Euler | a Swiss mathematician who worked in nearly every part of mathematics
Emmy Noether | a German mathematician who linked symmetries with conservation laws
Ada Lovelace | an English mathematician who wrote what is often called the first computer program
Alan Turing | an English mathematician who founded computer science and broke ciphers
Grace Hopper | an American computer scientist who built one of the first compilers
Charles Babbage | an English inventor who designed mechanical computers
Tim Berners-Lee | an English computer scientist who invented the World Wide Web
Linus Torvalds | a Finnish programmer who started the Linux kernel
Guido van Rossum | a Dutch programmer who created the Python language
Claude Shannon | an American mathematician who founded information theory
Plato | a Greek philosopher, a student of Socrates and the teacher of Aristotle
Socrates | a Greek philosopher who taught by asking questions
Aristotle | a Greek philosopher, a student of Plato who wrote about nearly everything
Confucius | a Chinese philosopher who taught about virtue, family and order
Immanuel Kant | a German philosopher who wrote the Critique of Pure Reason
William Shakespeare | an English poet and playwright who wrote Hamlet and Romeo and Juliet
Jane Austen | an English writer who wrote Pride and Prejudice
Charles Dickens | an English writer who wrote Oliver Twist and A Christmas Carol
Leo Tolstoy | a Russian writer who wrote War and Peace
Homer | a Greek poet who is said to have made the Iliad and the Odyssey
Dante Alighieri | an Italian poet who wrote the Divine Comedy
Johann Wolfgang von Goethe | a German poet who wrote Faust
Leonardo da Vinci | an Italian painter and inventor who painted the Mona Lisa
Michelangelo | an Italian artist who painted the ceiling of the Sistine Chapel
Vincent van Gogh | a Dutch painter who painted The Starry Night
Pablo Picasso | a Spanish painter who painted Guernica
Claude Monet | a French painter who painted water lilies
Rembrandt | a Dutch painter who painted The Night Watch
Wolfgang Amadeus Mozart | an Austrian composer who wrote The Magic Flute
Ludwig van Beethoven | a German composer who wrote nine symphonies, even when he was deaf
Johann Sebastian Bach | a German composer who wrote the Brandenburg Concertos
Frederic Chopin | a Polish composer who wrote mostly for the piano
Christopher Columbus | an Italian sailor who crossed the Atlantic and reached the Americas in 1492
Ferdinand Magellan | a Portuguese sailor whose expedition was the first to sail around the world
Marco Polo | a traveller from Venice who wrote about his journey to China
Neil Armstrong | an American astronaut, the first human to walk on the Moon
Yuri Gagarin | a Soviet cosmonaut, the first human in space
Valentina Tereshkova | a Soviet cosmonaut, the first woman in space
Roald Amundsen | a Norwegian explorer, the first to reach the South Pole
Edmund Hillary | a climber from New Zealand who climbed Mount Everest first, with Tenzing Norgay
Julius Caesar | a Roman general and statesman who was killed in 44 BC
Augustus | the first Roman emperor
Cleopatra | the last queen of ancient Egypt
Alexander the Great | a king of Macedon who conquered the Persian Empire
Napoleon | a French general who became emperor of France
George Washington | the first president of the United States
Abraham Lincoln | the president of the United States who led it through the Civil War
Mahatma Gandhi | a leader who led India to independence without violence
Nelson Mandela | a leader who fought apartheid and became president of South Africa
Martin Luther King | an American minister who led the movement for civil rights
Florence Nightingale | an English nurse who founded modern nursing
Johannes Gutenberg | a German inventor who printed books with movable type
Amelia Earhart | an American pilot, the first woman to fly alone across the Atlantic
"""

# what | verb | who
WORKS = """
Hamlet | wrote | William Shakespeare
Romeo and Juliet | wrote | William Shakespeare
Macbeth | wrote | William Shakespeare
Pride and Prejudice | wrote | Jane Austen
Oliver Twist | wrote | Charles Dickens
War and Peace | wrote | Leo Tolstoy
Anna Karenina | wrote | Leo Tolstoy
Crime and Punishment | wrote | Fyodor Dostoevsky
Faust | wrote | Johann Wolfgang von Goethe
the Divine Comedy | wrote | Dante Alighieri
Don Quixote | wrote | Miguel de Cervantes
Frankenstein | wrote | Mary Shelley
Dracula | wrote | Bram Stoker
Moby-Dick | wrote | Herman Melville
The Time Machine | wrote | H. G. Wells
Alice in Wonderland | wrote | Lewis Carroll
The Lord of the Rings | wrote | J. R. R. Tolkien
The Metamorphosis | wrote | Franz Kafka
Ulysses | wrote | James Joyce
The Little Prince | wrote | Antoine de Saint-Exupery
Robinson Crusoe | wrote | Daniel Defoe
Gulliver's Travels | wrote | Jonathan Swift
Twenty Thousand Leagues Under the Sea | wrote | Jules Verne
the Mona Lisa | painted | Leonardo da Vinci
the Last Supper | painted | Leonardo da Vinci
The Starry Night | painted | Vincent van Gogh
Guernica | painted | Pablo Picasso
The Night Watch | painted | Rembrandt
The Scream | painted | Edvard Munch
The Kiss | painted | Gustav Klimt
Girl with a Pearl Earring | painted | Johannes Vermeer
The Magic Flute | composed | Wolfgang Amadeus Mozart
the Ninth Symphony with the Ode to Joy | composed | Ludwig van Beethoven
The Four Seasons | composed | Antonio Vivaldi
the Brandenburg Concertos | composed | Johann Sebastian Bach
Swan Lake | composed | Pyotr Tchaikovsky
Messiah | composed | George Frideric Handel
the telephone | invented | Alexander Graham Bell
the World Wide Web | invented | Tim Berners-Lee
the printing press | invented | Johannes Gutenberg
dynamite | invented | Alfred Nobel
the diesel engine | invented | Rudolf Diesel
the phonograph | invented | Thomas Edison
the light bulb | invented | Thomas Edison, with others before him,
the aeroplane | invented | the Wright brothers
the motor car | invented | Karl Benz
the modern steam engine | invented | James Watt
the battery | invented | Alessandro Volta
penicillin | discovered | Alexander Fleming
radium | discovered | Marie and Pierre Curie
X-rays | discovered | Wilhelm Röntgen
oxygen | discovered | Carl Scheele and Joseph Priestley
the laws of motion | discovered | Isaac Newton
the electron | discovered | J. J. Thomson
the moons of Jupiter | discovered | Galileo Galilei
the structure of DNA | discovered | Francis Crick and James Watson, with data of Rosalind Franklin,
the theory of relativity | developed | Albert Einstein
the theory of evolution | developed | Charles Darwin
the periodic table | made | Dmitri Mendeleev
Linux | started | Linus Torvalds
Python | created | Guido van Rossum
the C language | created | Dennis Ritchie
Git | created | Linus Torvalds
"""

FIRSTS = """
the first human on the Moon | Neil Armstrong
the first man on the Moon | Neil Armstrong
the first human in space | Yuri Gagarin
the first man in space | Yuri Gagarin
the first woman in space | Valentina Tereshkova
the first president of the United States | George Washington
the first Roman emperor | Augustus
the first to reach the South Pole | Roald Amundsen
the first to climb Mount Everest | Edmund Hillary, with Tenzing Norgay
the first woman to fly alone across the Atlantic | Amelia Earhart
the last queen of ancient Egypt | Cleopatra
the teacher of Aristotle | Plato
the teacher of Plato | Socrates
the teacher of Alexander the Great | Aristotle
the first programmer | Ada Lovelace, as many people say
the father of modern physics | Albert Einstein, as many people say
"""

# event, as it follows "did" | answer
DATES = """
World War One begin | World War One began in 1914.
World War One end | World War One ended in 1918.
World War Two begin | World War Two began in 1939.
World War Two end | World War Two ended in 1945.
Columbus reach America | Columbus reached America in 1492.
the first humans land on the Moon | The first humans landed on the Moon in 1969.
the Berlin Wall fall | The Berlin Wall fell in 1989.
the French Revolution begin | The French Revolution began in 1789.
the Russian Revolution happen | The Russian Revolution happened in 1917.
the United States declare independence | The United States declared independence in 1776.
the American Civil War end | The American Civil War ended in 1865.
the Western Roman Empire fall | The Western Roman Empire fell in 476.
Constantinople fall | Constantinople fell in 1453.
the Titanic sink | The Titanic sank in 1912.
Gutenberg print his Bible | Gutenberg printed his Bible around 1455.
Yuri Gagarin fly into space | Yuri Gagarin flew into space in 1961.
India become independent | India became independent in 1947.
Napoleon lose at Waterloo | Napoleon lost at Waterloo in 1815.
Einstein publish special relativity | Einstein published special relativity in 1905.
Darwin publish On the Origin of Species | Darwin published On the Origin of Species in 1859.
the Great Fire of London happen | The Great Fire of London happened in 1666.
the Battle of Hastings happen | The Battle of Hastings happened in 1066.
Vesuvius bury Pompeii | Vesuvius buried Pompeii in the year 79.
Amundsen reach the South Pole | Amundsen reached the South Pole in 1911.
people first climb Mount Everest | People first climbed Mount Everest in 1953.
the Wright brothers first fly | The Wright brothers first flew in 1903.
the first iPhone appear | The first iPhone appeared in 2007.
the Soviet Union end | The Soviet Union ended in 1991.
Germany become one country again | Germany became one country again in 1990.
the euro come into use as cash | The euro came into use as cash in 2002.
Linux start | Linux started in 1991.
Python first appear | Python first appeared in 1991.
the World Wide Web start | The World Wide Web was proposed in 1989 and opened to everyone in 1993.
the Eiffel Tower open | The Eiffel Tower opened in 1889.
Martin Luther publish his theses | Martin Luther published his theses in 1517.
Alexander Fleming discover penicillin | Alexander Fleming discovered penicillin in 1928.
Chernobyl happen | The Chernobyl disaster happened in 1986.
the Black Death reach Europe | The Black Death reached Europe in 1347.
"""


def lessons() -> list[Lesson]:
    rows = [[cell.strip() for cell in line.split("|")] for line in PEOPLE.strip().splitlines()]
    short = [(name.split()[-1], name, what) for name, what in rows if len(name.split()) > 1]
    # A surname alone is asked for too, unless two people would share it.
    known = {"King", "Great", "Polo"}
    full = table(
        "person",
        [
            "Who was {name}?",
            "Who is {name}?",
            "Tell me about {name}.",
            "What did {name} do?",
            "What is {name} known for?",
            "What do you know about {name}?",
            "Why is {name} famous?",
            "Have you heard of {name}?",
            "Tell me who {name} was.",
            "Do you know {name}?",
            "{name}?",
            "~What can you tell me about {name}?",
            "~What was {name} famous for?",
        ],
        "{name} was {what}.",
        "name what",
        [row for row in rows if row[0] not in LIVING],
    )
    living = table(
        "person",
        [
            "Who is {name}?",
            "Tell me about {name}.",
            "What did {name} do?",
            "What is {name} known for?",
            "What do you know about {name}?",
            "Why is {name} famous?",
            "Do you know {name}?",
            "{name}?",
            "~What can you tell me about {name}?",
        ],
        "{name} is {what}.",
        "name what",
        [row for row in rows if row[0] in LIVING],
    )
    surname = table(
        "surname",
        [
            "Who was {surname}?",
            "Who is {surname}?",
            "Tell me about {surname}.",
            "What did {surname} do?",
            "What is {surname} known for?",
            "Why is {surname} famous?",
            "Do you know {surname}?",
            "{surname}?",
            "~What can you tell me about {surname}?",
        ],
        "{name} was {what}.",
        "surname name what",
        [row for row in short if row[0] not in known and row[1] not in LIVING],
    )
    verbs = {
        "wrote": ["Who wrote {what}?", "Who is the author of {what}?", "{what} was written by whom?"],
        "painted": ["Who painted {what}?", "Which artist painted {what}?", "{what} was painted by whom?"],
        "composed": ["Who composed {what}?", "Who wrote the music of {what}?", "{what} was composed by whom?"],
        "invented": ["Who invented {what}?", "Who is the inventor of {what}?", "{what} was invented by whom?"],
        "discovered": ["Who discovered {what}?", "Who found {what}?", "{what} was discovered by whom?"],
        "developed": ["Who developed {what}?", "Who made {what}?", "Who came up with {what}?"],
        "made": ["Who made {what}?", "Who created {what}?", "Who came up with {what}?"],
        "started": ["Who started {what}?", "Who created {what}?", "Who made {what}?"],
        "created": ["Who created {what}?", "Who made {what}?", "Who invented {what}?"],
    }
    work: list[Lesson] = []
    for verb, templates in verbs.items():
        work += table(
            f"who {verb}",
            [
                *templates,
                f"Do you know who {verb} {{what}}?",
                f"Tell me who {verb} {{what}}.",
                f"By whom was {{what}} {PARTICIPLES.get(verb, verb)}?",
                f"Who was it that {verb} {{what}}?",
                f"~I forgot who {verb} {{what}}.",
            ],
            "{who} {verb} {what}.",
            "what verb who",
            [row for line in WORKS.strip().splitlines() if (row := [c.strip() for c in line.split("|")])[1] == verb],
        )
    date = table(
        "date",
        [
            "When did {event}?",
            "In what year did {event}?",
            "In which year did {event}?",
            "What year did {event}?",
            "Do you know when did {event}?",
            "Tell me, when did {event}?",
            "Which year did {event}?",
            "~At what date did {event}?",
        ],
        "{answer}",
        "event answer",
        DATES,
    )
    first = table(
        "who was",
        [
            "Who was {which}?",
            "Who is {which}?",
            "Tell me who {which} was.",
            "Do you know who {which} was?",
            "Name {which}.",
            "What is the name of {which}?",
            "I would like to know who {which} was.",
            "~Can you say who {which} was?",
        ],
        "{which} was {name}.",
        "which name",
        FIRSTS,
    )
    return first + full + living + surname + work + date


LIVING = {"Linus Torvalds", "Tim Berners-Lee", "Guido van Rossum", "Valentina Tereshkova"}
PARTICIPLES = {"wrote": "written"}
