"""The data of the experts: the same from the same seed, right, encodable, and apart from what the evaluation asks."""

from __future__ import annotations

import itertools
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from demo import unknown
from demo.corpus import Chat
from demo.encoding import encode, encode_chat, load_tokenizer
from demo.skills import arithmetic, conversion, text_operations, translation
from demo.skills.corpus import GENERAL, MIXTURE, SKILLS, chats, messages
from demo.skills.evaluate import cases, markdown
from demo.skills.held_out import SHARE, is_held_out
from demo.tokenizer import MODEL_FOLDER

DECLINES = {module.TOO_HARD for module in (arithmetic, text_operations, conversion)} | {unknown.TRANSLATION}
ALL = (*SKILLS, GENERAL, MIXTURE)


def some(skill: str, count: int = 1500, seed: int = 3) -> list[Chat]:
    return list(itertools.islice(chats(skill, seed), count))


def asked(skill: str, *, held_out: bool, new_template: bool = False, count: int = 3000) -> list[tuple[str, str]]:
    rng = random.Random(8)
    return [SKILLS[skill].question(rng, held_out=held_out, new_template=new_template) for _ in range(count)]


@pytest.mark.parametrize("skill", ALL)
def test_the_same_seed_gives_the_same_conversations(skill: str) -> None:
    assert some(skill, 60) == some(skill, 60)
    assert some(skill, 60, seed=4) != some(skill, 60)


def _by_heart(answer: str) -> bool:
    """Whether this cannot be worked out from anything else: of such answers the evaluation keeps questions only."""
    words = r": [A-Z]{2,}\.| backwards\."
    units = r"^\d+ (hour|minute|second|week|day|year|month|f[eo][eo]t|inch)"
    return re.search(f"{words}|{units}", answer) is not None


@pytest.mark.parametrize("skill", SKILLS)
def test_no_answer_of_the_evaluation_is_trained_on(skill: str) -> None:
    """Answers name the values, so disjoint answers mean disjoint values."""
    kept = {answer for new in (False, True) for _, answer in asked(skill, held_out=True, new_template=new)}
    kept = {answer for answer in kept if not _by_heart(answer)}
    trained = {answer for _, answer in asked(skill, held_out=False, count=20_000)}
    assert len(kept) > 30
    assert not kept & trained
    said = {model for name in (skill, MIXTURE) for chat in some(name, 3000) for _, model in chat.turns}
    assert not kept & said


@pytest.mark.parametrize("skill", SKILLS)
def test_no_question_of_the_evaluation_is_trained_on(skill: str) -> None:
    kept = {question for new in (False, True) for question, _ in asked(skill, held_out=True, new_template=new)}
    trained = {question for question, _ in asked(skill, held_out=False, count=20_000)}
    typed = {user.lower().strip(" .?!") for chat in some(skill, 3000) for user, _ in chat.turns}
    assert not kept & trained
    assert not {question.lower().strip(" .?!") for question in kept} & typed


def test_about_the_announced_share_is_held_out() -> None:
    share = sum(is_held_out("x", i) for i in range(20_000)) / 20_000
    assert abs(share - SHARE) < 0.01


def test_sums_differences_and_products_are_right() -> None:
    for question, answer in asked("arithmetic", held_out=True) + asked("arithmetic", held_out=False):
        work, _, final = answer.rpartition(": ")
        a, op, b, result = re.fullmatch(r"(\d+)([-+x])(\d+)=(\d+)\.", final).groups()  # type: ignore[union-attr]
        assert int(result) == {"+": int(a) + int(b), "-": int(a) - int(b), "x": int(a) * int(b)}[op]
        assert sorted(re.findall(r"\d+", question)) == sorted([a, b])
        for step in work.split(", ") if work else ():
            left, right = step.split("=")
            assert sum(int(term) for term in re.findall(r"[-+]?\d+", left)) == int(right)
        if work:
            ones, tens = (int(step.split("=")[1]) for step in work.split(", "))
            assert 10 * tens + ones % 10 == int(result)


def test_every_product_can_be_known_in_the_other_order() -> None:
    trained = {answer for _, answer in asked("arithmetic", held_out=False, count=40_000)}
    for _, answer in asked("arithmetic", held_out=True):
        if "x" in answer:
            a, b, result = re.findall(r"\d+", answer)
            assert f"{b}x{a}={result}." in trained


def test_text_operations_are_right() -> None:
    for question, answer in asked("text", held_out=False) + asked("text", held_out=True):
        if times := re.fullmatch(r"(Twice|Three times): (\w+)((?: \w+)+)\.", answer):
            word, copies = times[2], times[3].split()
            assert copies == [word] * {"Twice": 1, "Three times": 2}[times[1]]
        else:
            letters, _, said = answer.removesuffix(".").partition(": ")
            word = letters.replace("-", "").lower()
            assert letters == "-".join(word.upper())
            expected = {
                "": "",
                "letters": f"{len(word)} letters",
                "first": f"the first letter is {word[0].upper()}",
                "last": f"the last letter is {word[-1].upper()}",
                "backwards": f"{'-'.join(reversed(word.upper()))} backwards",
                word.upper(): word.upper(),
            }
            assert said == next(expected[key] for key in reversed(expected) if key in said)
        assert word in text_operations.WORDS
        assert re.search(rf"\b{word}\b", question)


METRES = {
    "kilometre": 1000.0,
    "metre": 1.0,
    "centimetre": 0.01,
    "millimetre": 0.001,
    "foot": 0.3048,
    "feet": 0.3048,
    "inch": 0.0254,
}


def test_conversions_are_right() -> None:
    """Both sides of an answer, in one unit that all of its kind share."""
    size = {
        **METRES,
        **{"ton": 1e6, "kilogram": 1000.0, "gram": 1.0, "litre": 1000.0, "millilitre": 1.0, "euro": 100.0, "cent": 1.0},
        **{"week": 604800.0, "day": 86400.0, "hour": 3600.0, "minute": 60.0, "second": 1.0, "year": 12.0, "month": 1.0},
    }

    def of(number: str, unit: str) -> float:
        name = unit.removesuffix("es") if unit == "inches" else unit.removesuffix("s")
        return int(number) * size[name]

    for _, answer in asked("conversion", held_out=False) + asked("conversion", held_out=True):
        a, start, b, end = re.fullmatch(r"(\d+) (\w+) (?:is|are) (\d+) (\w+)\.", answer).groups()  # type: ignore[union-attr]
        assert of(a, start) == pytest.approx(of(b, end))
        assert (a == "1") == (f"{start} is" in answer)
    with pytest.raises(ValueError, match="cannot be converted to whole"):
        conversion.answer(7, "metres", "kilometres")


def test_translations_agree_in_gender() -> None:
    nouns = {noun.english: noun for noun in translation.NOUNS}
    for question, answer in asked("translation", held_out=True):
        language = next(name for name in translation.LANGUAGES if name in question)
        english = re.search(
            r"[Tt]he (\w+) is (\w+)",
            question.replace("the German for ", "").replace("the French for ", "").replace("the Spanish for ", ""),
        )
        assert english is not None
        noun = nouns[english[1]]
        adjective = next(a for a in translation.ADJECTIVES if a.english == english[2])
        expected = {
            "German": f"{noun.german} ist {adjective.german}.",
            "French": f"{noun.french} est {adjective.french[1 if noun.french[:2] == 'la' else 0]}.",
            "Spanish": f"{noun.spanish} es {adjective.spanish[1 if noun.spanish[:2] == 'la' else 0]}.",
        }[language]
        assert answer.lower() == expected.lower()


@pytest.mark.parametrize("skill", SKILLS)
def test_what_a_skill_does_not_cover_is_declined(skill: str) -> None:
    module = SKILLS[skill]
    rng = random.Random(2)
    for _ in range(300):
        _, answer = module.out_of_reach(rng)
        assert answer in DECLINES | {module.CAN}


def test_general_conversations_decline_no_skill() -> None:
    declined = {unknown.ARITHMETIC, unknown.TEXT_OPERATION, unknown.CONVERSION, unknown.TRANSLATION}
    assert not {model for chat in some(GENERAL) for _, model in chat.turns} & declined


def test_the_mixture_has_every_skill_and_conversations_of_several() -> None:
    kinds = [
        {next((name for name in SKILLS if _is_of(name, model)), GENERAL) for _, model in chat.turns}
        for chat in some(MIXTURE)
    ]
    assert {kind for found in kinds for kind in found} == {*SKILLS, GENERAL}
    assert sum(len(found) > 1 for found in kinds) > len(kinds) / 4


def _is_of(skill: str, answer: str) -> bool:
    forms = {
        "arithmetic": r"(.*: )?\d+[-+x]\d+=\d+\.",
        "text": r"([A-Z](-[A-Z])+|Twice|Three times)(\.|: .*)",
        "conversion": r"\d+ \w+ (is|are) \d+ \w+\.",
        "translation": r"\w+ \w+ (ist|est|es) \w+\.",
    }
    return re.fullmatch(forms[skill], answer) is not None


@pytest.mark.parametrize("skill", ALL)
def test_everything_is_encoded_without_loss(skill: str) -> None:
    tokenizer = load_tokenizer(MODEL_FOLDER)
    for chat in some(skill, 400):
        tokens = encode_chat(tokenizer, chat).tokens
        assert tokenizer.unk_id() not in tokens
        for text in itertools.chain.from_iterable(chat.turns):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_messages_are_those_of_the_chat_api() -> None:
    chat = Chat(turns=(("Hi", "Hello."), ("1+1", "1 + 1 = 2.")), system="Be brief.")
    assert [m["role"] for m in messages(chat)] == ["system", "user", "assistant", "user", "assistant"]
    assert messages(chat)[-1]["content"] == "1 + 1 = 2."
    assert messages(Chat(turns=(("Hi", "Hello."),))) == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
    ]


def test_the_command_writes_one_conversation_a_line(tmp_path: Path) -> None:
    out = tmp_path / "data.jsonl"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "demo.skills.corpus",
            "--skill",
            "text",
            "--count",
            "30",
            "--seed",
            "5",
            "--out",
            str(out),
        ],
        check=True,
    )
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert lines == [{"messages": messages(chat)} for chat in itertools.islice(chats("text", 5), 30)]


def test_the_evaluation_is_the_same_every_time_and_asks_about_everything() -> None:
    once = cases(limit=20)
    assert once == cases(limit=20)
    rows = [case.row for case in once]
    assert {rows.count(row) for row in rows} == {20}
    assert "general" in rows
    for skill in SKILLS:
        assert all(case.before for case in once if case.row == f"{skill}, after other skills")
    tokenizer = load_tokenizer(MODEL_FOLDER)
    for case in once:
        assert len(encode(tokenizer, [*case.before, (case.question, case.answers[0])]).tokens) < 2048


def test_the_table_has_a_line_for_each_row() -> None:
    table = markdown({"sums": {"base": 0.0, "X-LoRA": 0.985}, "general": {"base": 0.8, "X-LoRA": 0.75}})
    assert table.splitlines() == [
        "| exact answers, % | base | X-LoRA |",
        "|---|---|---|",
        "| sums | 0.0 | 98.5 |",
        "| general | 80.0 | 75.0 |",
    ]
