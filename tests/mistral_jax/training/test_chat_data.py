"""Chat data: which tokens count, in which template, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mistral_jax.chat import ChatFormatter
from mistral_jax.training.chat_data import ChatEncoder, DataError, Example, read_chat_data
from tests.mistral_jax.training.tiny_training import demo

USER = {"role": "user", "content": "What is a cache?"}
ANSWER = {"role": "assistant", "content": "A memory that is near."}
MORE = {"role": "user", "content": "And a buffer?"}
LAST = {"role": "assistant", "content": "A queue of bytes."}


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(demo().tokenizer, demo().chat, demo().eos_ids)


def with_template(template: str) -> ChatEncoder:
    return ChatEncoder(demo().tokenizer, ChatFormatter(template, demo().tokenizer), demo().eos_ids)


def said(example: Example) -> str:
    return demo().tokenizer.decode(example.tokens[example.counted].tolist(), skip_control=False)


def test_the_answer_and_its_end_count_and_the_tokens_are_those_of_serving(encoder: ChatEncoder) -> None:
    (example,) = encoder.encode({"messages": [USER, ANSWER]})
    assert demo().chat is not None
    prompt = demo().chat.encode([USER])  # type: ignore[union-attr]
    assert example.tokens.tolist() == [*prompt, *demo().tokenizer.encode(ANSWER["content"]), 2]
    assert example.counted.tolist() == [False] * len(prompt) + [True] * (len(example) - len(prompt))
    assert example.tokens.dtype == np.int32


def test_every_turn_of_the_assistant_counts_unless_its_weight_is_zero(encoder: ChatEncoder) -> None:
    (both,) = encoder.encode({"messages": [USER, ANSWER, MORE, LAST]})
    assert said(both) == "A memory that is near.</s>A queue of bytes.</s>"
    (second,) = encoder.encode({"messages": [USER, {**ANSWER, "weight": 0}, MORE, LAST]})
    assert said(second) == "A queue of bytes.</s>"
    assert second.tokens.tolist() == both.tokens.tolist()


def test_what_follows_the_last_answer_is_left_out(encoder: ChatEncoder) -> None:
    (example,) = encoder.encode({"messages": [USER, ANSWER, MORE]})
    assert said(example) == "A memory that is near.</s>"
    assert example.counted[-1]


def test_text_of_the_template_after_the_end_token_does_not_count() -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
        "{% else %}{{ m.content + eos_token }} and so on {% endif %}{% endfor %}"
    )
    (example,) = with_template(template).encode({"messages": [USER, ANSWER, MORE, LAST]})
    assert said(example) == "A memory that is near.</s>A queue of bytes.</s>"
    assert "and so on" in demo().tokenizer.decode(example.tokens.tolist())


def test_turns_that_a_template_writes_otherwise_later_become_examples_of_their_own() -> None:
    """As templates do that drop the reasoning of earlier turns, or put the system message before the last question."""
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ 'now: ' if loop.last or "
        "loop.index == messages|length - 1 }}{{ m.content }}[/INST]{% else %}{{ m.content + eos_token }}{% endif %}{% "
        "endfor %}"
    )
    first, second = with_template(template).encode({"messages": [USER, ANSWER, MORE, LAST]})
    assert said(first) == "A memory that is near.</s>"
    assert said(second) == "A queue of bytes.</s>"
    assert "now: What" in demo().tokenizer.decode(first.tokens.tolist())
    assert "now: What" not in demo().tokenizer.decode(second.tokens.tolist())


def test_raw_texts(encoder: ChatEncoder) -> None:
    tokenizer = demo().tokenizer
    (text,) = encoder.encode({"text": "one two three"})
    assert text.tokens.tolist() == [1, *tokenizer.encode("one two three"), 2]
    assert text.counted.tolist() == [False] + [True] * (len(text) - 1)
    (pair,) = encoder.encode({"prompt": "one two", "completion": " three"})
    assert pair.tokens.tolist() == text.tokens.tolist()
    assert said(pair).endswith("three</s>")
    assert pair.counted.sum() == len(pair) - 1 - len(tokenizer.encode("one two"))


def test_files_objects_and_examples_may_be_mixed(encoder: ChatEncoder, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"text": "one"}).encode() + b"\n\n" + b'{"text": "two"}')
    example = Example(np.array([1, 7], np.int32), np.array([False, True]))
    read = read_chat_data([path, {"text": "three"}, example], encoder)
    assert [demo().tokenizer.decode(e.tokens.tolist()) for e in read[:3]] == ["one", "two", "three"]
    assert read[3] is example
    assert len(read_chat_data(str(path), encoder)) == 2


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({}, 'found nothing; expected an object with "messages"'),
        ({"question": "?"}, "found 'question'; expected"),
        ({"prompt": "x"}, "expected an object with"),
        ({"text": "x", "messages": []}, "expected an object with"),
        ({"text": 3}, '"text" is 3; expected a text'),
        ({"text": ""}, "the text is empty"),
        ({"prompt": "th", "completion": "e"}, "become one token"),
        ({"messages": "hello"}, '"messages" is "hello"; expected a list'),
        ({"messages": [1]}, "expected a list of objects"),
        ({"messages": [USER]}, "no message of the assistant counts"),
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "weight of messages[1] is 0.5; expected 0 or 1"),
        ({"messages": [USER, USER, ANSWER]}, "the chat template refuses it: "),
    ],
)
def test_bad_objects_say_what_was_expected(encoder: ChatEncoder, record: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError) as error:
        encoder.encode(record)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"{", "it is no JSON"),
        (b"[1]", "it is [1]; expected an object"),
        (b"\xff", "it is no text in UTF-8"),
        (b'{"text": 3}', '"text" is 3'),
    ],
)
def test_bad_lines_are_named(encoder: ChatEncoder, tmp_path: Path, line: bytes, expected: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(DataError) as error:
        read_chat_data(path, encoder)
    assert f"{path}, line 3: " in str(error.value)
    assert expected in str(error.value)


def test_no_data_is_refused(encoder: ChatEncoder, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="there are no examples in"):
        read_chat_data(tmp_path / "empty.jsonl", encoder)
    with pytest.raises(DataError, match=r"data\[1\]: found"):
        read_chat_data([{"text": "x"}, {}], encoder)
    with pytest.raises(FileNotFoundError):
        read_chat_data(tmp_path / "missing.jsonl", encoder)


def test_templates_without_an_end_token_or_a_stable_prompt_are_refused() -> None:
    endless = "{{ bos_token }}{% for m in messages %}{{ m.content }}[INST]{% endfor %}"
    with pytest.raises(DataError, match="would not learn where to stop"):
        with_template(endless).encode({"messages": [USER, ANSWER]})
    counting = "{{ messages|length }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    with pytest.raises(DataError, match=r"does not write messages\[1\] after the prompt"):
        with_template(counting).encode({"messages": [USER, ANSWER]})
    with pytest.raises(DataError, match="has no chat template"):
        ChatEncoder(demo().tokenizer, None, {2}).encode({"messages": [USER, ANSWER]})
