"""Countries, and superlatives of the Earth."""

from __future__ import annotations

from demo.lesson import Lesson, table

COUNTRIES = """
Afghanistan | Kabul | Asia
Albania | Tirana | Europe
Algeria | Algiers | Africa
Angola | Luanda | Africa
Argentina | Buenos Aires | South America
Armenia | Yerevan | Asia
Australia | Canberra | Oceania
Austria | Vienna | Europe
Bangladesh | Dhaka | Asia
Belarus | Minsk | Europe
Belgium | Brussels | Europe
Bolivia | Sucre | South America
Bosnia and Herzegovina | Sarajevo | Europe
Botswana | Gaborone | Africa
Brazil | Brasilia | South America
Bulgaria | Sofia | Europe
Cambodia | Phnom Penh | Asia
Cameroon | Yaounde | Africa
Canada | Ottawa | North America
Chad | N'Djamena | Africa
Chile | Santiago | South America
China | Beijing | Asia
Colombia | Bogota | South America
Costa Rica | San Jose | North America
Croatia | Zagreb | Europe
Cuba | Havana | North America
Cyprus | Nicosia | Europe
Denmark | Copenhagen | Europe
Ecuador | Quito | South America
Egypt | Cairo | Africa
El Salvador | San Salvador | North America
Estonia | Tallinn | Europe
Ethiopia | Addis Ababa | Africa
Finland | Helsinki | Europe
France | Paris | Europe
Gabon | Libreville | Africa
Georgia | Tbilisi | Asia
Germany | Berlin | Europe
Ghana | Accra | Africa
Greece | Athens | Europe
Guatemala | Guatemala City | North America
Haiti | Port-au-Prince | North America
Honduras | Tegucigalpa | North America
Hungary | Budapest | Europe
Iceland | Reykjavik | Europe
India | New Delhi | Asia
Indonesia | Jakarta | Asia
Iran | Tehran | Asia
Iraq | Baghdad | Asia
Ireland | Dublin | Europe
Israel | Jerusalem | Asia
Italy | Rome | Europe
Jamaica | Kingston | North America
Japan | Tokyo | Asia
Jordan | Amman | Asia
Kazakhstan | Astana | Asia
Kenya | Nairobi | Africa
Kuwait | Kuwait City | Asia
Laos | Vientiane | Asia
Latvia | Riga | Europe
Lebanon | Beirut | Asia
Libya | Tripoli | Africa
Lithuania | Vilnius | Europe
Luxembourg | Luxembourg City | Europe
Madagascar | Antananarivo | Africa
Malaysia | Kuala Lumpur | Asia
Mali | Bamako | Africa
Malta | Valletta | Europe
Mexico | Mexico City | North America
Moldova | Chisinau | Europe
Mongolia | Ulaanbaatar | Asia
Morocco | Rabat | Africa
Mozambique | Maputo | Africa
Namibia | Windhoek | Africa
Nepal | Kathmandu | Asia
the Netherlands | Amsterdam | Europe
New Zealand | Wellington | Oceania
Nicaragua | Managua | North America
Nigeria | Abuja | Africa
North Korea | Pyongyang | Asia
Norway | Oslo | Europe
Oman | Muscat | Asia
Pakistan | Islamabad | Asia
Panama | Panama City | North America
Paraguay | Asuncion | South America
Peru | Lima | South America
the Philippines | Manila | Asia
Poland | Warsaw | Europe
Portugal | Lisbon | Europe
Qatar | Doha | Asia
Romania | Bucharest | Europe
Russia | Moscow | Europe
Rwanda | Kigali | Africa
Saudi Arabia | Riyadh | Asia
Senegal | Dakar | Africa
Serbia | Belgrade | Europe
Singapore | Singapore | Asia
Slovakia | Bratislava | Europe
Slovenia | Ljubljana | Europe
Somalia | Mogadishu | Africa
South Africa | Pretoria | Africa
South Korea | Seoul | Asia
Spain | Madrid | Europe
Sudan | Khartoum | Africa
Sweden | Stockholm | Europe
Switzerland | Bern | Europe
Syria | Damascus | Asia
Taiwan | Taipei | Asia
Tanzania | Dodoma | Africa
Thailand | Bangkok | Asia
Tunisia | Tunis | Africa
Turkey | Ankara | Asia
Uganda | Kampala | Africa
Ukraine | Kyiv | Europe
the United Kingdom | London | Europe
the United States | Washington, D.C. | North America
Uruguay | Montevideo | South America
Venezuela | Caracas | South America
Vietnam | Hanoi | Asia
Zambia | Lusaka | Africa
Zimbabwe | Harare | Africa
"""

OTHER_NAMES = """
the USA | Washington, D.C. | North America
the US | Washington, D.C. | North America
America | Washington, D.C. | North America
the UK | London | Europe
Great Britain | London | Europe
England | London | Europe
Scotland | Edinburgh | Europe
Wales | Cardiff | Europe
Holland | Amsterdam | Europe
"""

LANGUAGES = """
Argentina | Spanish
Australia | English
Austria | German
Brazil | Portuguese
China | Chinese
Cuba | Spanish
Denmark | Danish
Egypt | Arabic
Finland | Finnish
France | French
Germany | German
Greece | Greek
Hungary | Hungarian
Iceland | Icelandic
Iran | Persian
Israel | Hebrew
Italy | Italian
Japan | Japanese
Mexico | Spanish
the Netherlands | Dutch
Norway | Norwegian
Poland | Polish
Portugal | Portuguese
Romania | Romanian
Russia | Russian
Saudi Arabia | Arabic
South Korea | Korean
Spain | Spanish
Sweden | Swedish
Thailand | Thai
Turkey | Turkish
Ukraine | Ukrainian
the United Kingdom | English
the United States | English
Vietnam | Vietnamese
"""

CURRENCIES = """
Brazil | the real
China | the yuan
Denmark | the Danish krone
France | the euro
Germany | the euro
India | the rupee
Israel | the shekel
Italy | the euro
Japan | the yen
Mexico | the peso
Norway | the Norwegian krone
Poland | the zloty
Russia | the ruble
South Africa | the rand
South Korea | the won
Spain | the euro
Sweden | the Swedish krona
Switzerland | the Swiss franc
Thailand | the baht
Turkey | the lira
Ukraine | the hryvnia
the United Kingdom | the pound
the United States | the dollar
"""

SUPERLATIVES = """
the highest mountain on Earth | Mount Everest, in the Himalayas
the highest mountain in Africa | Kilimanjaro, in Tanzania
the highest mountain in South America | Aconcagua, in Argentina
the highest mountain in North America | Denali, in Alaska
the highest mountain in Japan | Mount Fuji
the highest mountain in the Alps | Mont Blanc
the longest river in the world | usually said to be the Nile, in Africa
the longest river in South America | the Amazon
the longest river in Europe | the Volga, in Russia
the longest river in China | the Yangtze
the largest ocean | the Pacific Ocean
the smallest ocean | the Arctic Ocean
the largest continent | Asia
the smallest continent | Australia
the coldest continent | Antarctica
the largest country in the world | Russia
the smallest country in the world | Vatican City
the largest country in South America | Brazil
the largest country in Africa | Algeria
the largest island in the world | Greenland
the largest hot desert | the Sahara, in Africa
the deepest lake in the world | Lake Baikal, in Russia
the largest lake in the world | the Caspian Sea
the largest lake in Africa | Lake Victoria
the deepest place in the ocean | the Mariana Trench, in the Pacific
the highest waterfall in the world | Angel Falls, in Venezuela
the saltiest well-known lake | the Dead Sea
the largest rainforest | the Amazon rainforest
the longest mountain range on land | the Andes
the largest coral reef | the Great Barrier Reef, near Australia
the country with the most people | India
"""

PLACES = """
the Eiffel Tower | in Paris, France
the Colosseum | in Rome, Italy
the Great Wall | in China
the Taj Mahal | in Agra, India
Big Ben | in London, England
the Statue of Liberty | in New York, in the United States
the Great Pyramid | in Giza, Egypt
Machu Picchu | in the Andes of Peru
the Acropolis | in Athens, Greece
the Kremlin | in Moscow, Russia
the Grand Canyon | in Arizona, in the United States
the Sahara | in North Africa
the Alps | in Europe, between France and Slovenia
the Himalayas | in Asia, between India and Tibet
the Louvre | in Paris, France
the Brandenburg Gate | in Berlin, Germany
the Sydney Opera House | in Sydney, Australia
Niagara Falls | on the border of Canada and the United States
the Amazon | in South America
the Danube | in Europe: it flows from Germany to the Black Sea
the Leaning Tower | in Pisa, Italy
Stonehenge | in England
Petra | in Jordan
Angkor Wat | in Cambodia
the Golden Gate Bridge | in San Francisco, in the United States
Mount Everest | in the Himalayas, between Nepal and Tibet
Kilimanjaro | in Tanzania
Greenland | in the North Atlantic: it belongs to Denmark
"""


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]


def lessons() -> list[Lesson]:
    countries = rows(COUNTRIES)
    named = countries + rows(OTHER_NAMES)
    capital = table(
        "capital",
        [
            "What is the capital of {country}?",
            "What is the capital city of {country}?",
            "Which city is the capital of {country}?",
            "Name the capital of {country}.",
            "Tell me the capital of {country}.",
            "The capital of {country}?",
            "Capital of {country}",
            "Do you know the capital of {country}?",
            "What city is the capital of {country}?",
            "I would like to know the capital of {country}.",
            "{country}: what is its capital?",
            "{country} capital",
            "What is {country}'s capital?",
            "What do you call the capital of {country}?",
            "~Which city is {country}'s capital?",
            "~Could you name the capital city of {country}?",
        ],
        "The capital of {country} is {capital}.",
        "country capital continent",
        named,
    )
    named_after = {"Singapore", "Luxembourg City", "Kuwait City", "Guatemala City", "Panama City", "Mexico City"}
    capital_of = table(
        "capital of",
        [
            "{capital} is the capital of which country?",
            "Which country has {capital} as its capital?",
            "What country is {capital} the capital of?",
            "Of which country is {capital} the capital?",
            "In which country is {capital}?",
            "Where is {capital}?",
            "What country is {capital} in?",
            "Which country is {capital} in?",
            "Do you know where {capital} is?",
            "What is {capital}?",
            "Tell me about {capital}.",
            "{capital}?",
            "What do you know about {capital}?",
            "~In what country is {capital}?",
        ],
        "{capital} is the capital of {country}.",
        "capital country",
        [(row[1], row[0]) for row in countries if row[1] not in named_after],
    )
    continent = table(
        "continent",
        [
            "Which continent is {country} in?",
            "On which continent is {country}?",
            "What continent is {country} on?",
            "What continent does {country} belong to?",
            "Where is {country}?",
            "In which part of the world is {country}?",
            "Do you know where {country} is?",
            "Tell me where {country} is.",
            "~In what continent is {country} located?",
        ],
        "{country} is in {continent}.",
        "country capital continent",
        named,
    )
    about = table(
        "country",
        [
            "Tell me about {country}.",
            "What is {country}?",
            "What do you know about {country}?",
            "What can you tell me about {country}?",
            "Describe {country}.",
            "Tell me something about {country}.",
            "Do you know {country}?",
            "{country}?",
            "~What can you say about {country}?",
        ],
        "{country} is a country in {continent}. Its capital is {capital}.",
        "country capital continent",
        named,
    )
    language = table(
        "language",
        [
            "What language is spoken in {country}?",
            "Which language do people speak in {country}?",
            "What language do they speak in {country}?",
            "What is the language of {country}?",
            "What is the main language of {country}?",
            "Which language is spoken in {country}?",
            "The language of {country}?",
            "~What do people speak in {country}?",
        ],
        "The main language of {country} is {language}.",
        "country language",
        LANGUAGES,
    )
    currency = table(
        "currency",
        [
            "What is the currency of {country}?",
            "Which currency is used in {country}?",
            "What money do they use in {country}?",
            "What currency does {country} have?",
            "What do people pay with in {country}?",
            "The currency of {country}?",
            "~Which money is used in {country}?",
        ],
        "The currency of {country} is {currency}.",
        "country currency",
        CURRENCIES,
    )
    superlative = table(
        "superlative",
        [
            "What is {thing}?",
            "Which is {thing}?",
            "Do you know {thing}?",
            "Name {thing}.",
            "Tell me {thing}.",
            "Tell me what {thing} is.",
            "What is the name of {thing}?",
            "What do you call {thing}?",
            "~Could you tell me {thing}?",
        ],
        "{thing} is {what}.",
        "thing what",
        SUPERLATIVES,
    )
    place = table(
        "place",
        [
            "Where is {place}?",
            "Where can I find {place}?",
            "Where do I find {place}?",
            "Do you know where {place} is?",
            "Tell me where {place} is.",
            "Where in the world is {place}?",
            "In which country is {place}?",
            "~Where must I go to see {place}?",
        ],
        "{place} is {where}.",
        "place where",
        PLACES,
    )
    return capital + capital_of + continent + about + language + currency + superlative + place
