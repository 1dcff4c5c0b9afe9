"""The corpus of the demo model: deterministic, honest about what is held out, and without what must not be in it."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import jinja2
import pytest

from demo import unknown
from demo.corpus import Chat, Conversations
from demo.encoding import encode, encode_chat, load_tokenizer
from demo.evaluate import cases
from demo.held_out import all_lessons, held_out_forms, normal_form, split
from demo.help import topics
from demo.tokenizer import CHAT_TEMPLATE, MODEL_FOLDER, train

CONTROL = ("<s>", "</s>", "[INST]", "[/INST]", "<unk>")


@pytest.fixture(scope="module")
def chats() -> list[Chat]:
    return list(itertools.islice(Conversations(3), 6000))


def test_the_same_seed_gives_the_same_conversations(chats: list[Chat]) -> None:
    assert list(itertools.islice(Conversations(3), 500)) == chats[:500]
    assert list(itertools.islice(Conversations(4), 500)) != chats[:500]


def test_keys_are_unique_and_every_lesson_is_trained() -> None:
    keys = [lesson.key for lesson in all_lessons()]
    assert len(set(keys)) == len(keys)
    assert len(keys) > 1500
    assert all(split().train[key] for key in keys)


def test_no_question_of_the_evaluation_is_trained_on(chats: list[Chat]) -> None:
    asked = {normal_form(user) for chat in chats for user, _ in chat.turns}
    assert not asked & held_out_forms()
    kept = split()
    trained = {normal_form(p.text) for phrasings in kept.train.values() for p in phrasings}
    assert not trained & held_out_forms()


def test_no_question_has_two_answers() -> None:
    answers: dict[str, tuple[str, ...]] = {}
    for lesson in all_lessons():
        for p in lesson.phrasings:
            form = normal_form(p.text) or p.text
            assert answers.setdefault(form, lesson.answers) == lesson.answers, p.text


def test_the_evaluation_asks_only_what_was_kept_and_is_the_same_every_time() -> None:
    once = cases(limit=60)
    assert once == cases(limit=60)
    for case in once:
        if case.row.startswith(("facts, new", "help, new", "small talk")) and "careless" not in case.row:
            assert normal_form(case.question) in held_out_forms(), case.question


def test_a_held_out_pair_has_a_trained_lesson_and_a_trained_template() -> None:
    kept = split()
    templates = {p.template for phrasings in kept.train.values() for p in phrasings}
    pairs = [
        p for phrasings in kept.held_out_pairs.values() for p in phrasings if not p.template.startswith("help: {x}")
    ]
    assert sum(p.template in templates for p in pairs) == len(pairs)


def test_skills_kept_aside_are_declined_and_nowhere_taught(chats: list[Chat]) -> None:
    declined = {unknown.ARITHMETIC, unknown.TEXT_OPERATION, unknown.CONVERSION}
    skill = re.compile(r"\d+ ?[-+*/x×] ?\d+|\b(plus|minus|times) \d|[Rr]everse\b|[Uu]ppercase|[Cc]onvert \d")
    found = set()
    for user, model in itertools.chain.from_iterable(chat.turns for chat in chats):
        if skill.search(user) and not model.startswith('You asked: "'):
            assert model in declined, (user, model)
            found.add(model)
        assert not re.search(r"= \d|\d (miles|inches|pounds|feet)\b", model), model
    assert found == declined


def test_control_tokens_are_not_in_the_text(chats: list[Chat]) -> None:
    for chat in chats:
        for text in (chat.system or "", *itertools.chain.from_iterable(chat.turns)):
            assert not any(token in text for token in CONTROL), text


def test_every_help_topic_can_be_asked_in_many_ways() -> None:
    assert len(topics()) >= 60
    for lesson in all_lessons():
        if lesson.category == "help":
            assert len(split().train[lesson.key]) >= 6, lesson.key


def test_conversations_are_encoded_as_the_chat_template_lays_them_out(chats: list[Chat]) -> None:
    tokenizer = load_tokenizer(MODEL_FOLDER)
    config = json.loads((MODEL_FOLDER / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == CHAT_TEMPLATE
    template = jinja2.Environment().from_string(CHAT_TEMPLATE)
    ids = {token: tokenizer.piece_to_id(token) for token in CONTROL}
    for chat in chats[:200]:
        messages = [{"role": "system", "content": chat.system}] if chat.system else []
        for user, model in chat.turns:
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": model}]
        text = template.render(messages=messages, bos_token="<s>", eos_token="</s>")
        parts = re.split(r"(<s>|</s>|\[INST\]|\[/INST\])", text)
        rendered = [i for part in parts for i in ([ids[part]] if part in ids else tokenizer.encode(part))]
        assert encode_chat(tokenizer, chat).tokens == rendered


def test_only_answers_and_their_ends_are_said() -> None:
    tokenizer = load_tokenizer(MODEL_FOLDER)
    encoded = encode(tokenizer, [("Hello", "Hi!"), ("Bye", "Goodbye!")])
    said = [token for token, is_said in zip(encoded.tokens, encoded.said, strict=True) if is_said]
    assert said == [*tokenizer.encode("Hi!"), 2, *tokenizer.encode("Goodbye!"), 2]


@pytest.mark.parametrize(
    "text",
    [
        "naïve café",
        "日本語 と 中文",
        "🦉👩‍👩‍👧 zero\u200bwidth",
        "a  b\t\n\nc ",
        " leading",
        "\x00\x7f",
        "e\u0301 İ ﬁ",
        "▁",
    ],
)
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = load_tokenizer(MODEL_FOLDER)
    ids = tokenizer.encode(text)
    assert min(ids) > 4
    # The one exception is sentencepiece's own sign for a space.
    assert tokenizer.decode(ids) == text.replace("▁", " ")


def test_every_printable_ascii_character_is_a_piece() -> None:
    tokenizer = load_tokenizer(MODEL_FOLDER)
    assert tokenizer.vocab_size() == 2048
    assert all(len(tokenizer.encode(chr(code))) == 1 for code in range(32, 127))


def test_the_tokenizer_is_trained_alike_every_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        train(tmp_path / name, conversations=3000)
    for file in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
