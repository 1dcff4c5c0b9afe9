"""Raw texts whose control tokens count: the ids of llama.cpp's /completion and of transformers."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from mistral_jax.chat import ChatFormatter
from mistral_jax.chat.encoding import PromptPieces
from mistral_jax.chat.parsed_text import raw_pieces
from tests.cpu_time import cpu_seconds_at_most
from tests.mistral_jax.tokenizer.tokenizer_corpus import ALL, LOOK_ALIKES, tokenizer


def ids(name: str, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
    prompt = to_end(raw_pieces(tokenizer(name), text, add_special=add_special, parse_special=parse_special))
    found = [token for piece in prompt.pieces for token in piece]
    assert prompt.least <= len(found)
    return found


def to_end(work: Generator[None, None, PromptPieces]) -> PromptPieces:
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return stop.value


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("text", ["", "Hello, world", " a  b ", "x < y [z] <s", *LOOK_ALIKES])
def test_without_parsing_it_is_what_the_tokenizer_gives(name: str, text: str) -> None:
    assert ids(name, text, parse_special=False) == tokenizer(name).encode(text)


@pytest.mark.parametrize("name", ALL)
def test_every_control_token_is_read_by_its_name(name: str) -> None:
    for text, token in tokenizer(name).control_tokens.items():
        if text:
            assert ids(name, text) == [token]


@pytest.mark.parametrize("name", ["v3", "240911"])
def test_a_prompt_that_a_client_renders_has_the_ids_that_the_template_has(name: str) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m['content'] }}[/INST]"
        "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    formatter = ChatFormatter(template, tokenizer(name))
    messages = [
        {"role": "user", "content": "Hi there"},
        {"role": "assistant", "content": "Ho < ho"},
        {"role": "user", "content": "1 [2] 3"},
    ]
    assert ids(name, formatter.render(messages)) == formatter.encode(messages)


def test_bos_is_put_before_the_text_once() -> None:
    v3 = tokenizer("v3")
    assert ids("v3", "Hi", add_special=True) == [1, *v3.encode("Hi")]
    assert ids("v3", "<s>Hi", add_special=True) == [1, *v3.encode("Hi")]
    assert ids("v3", "<s>Hi", add_special=True, parse_special=False) == [1, *v3.encode("<s>Hi")]
    assert ids("v3", "", add_special=True) == [1]
    assert ids("v3", "</s>Hi", add_special=True) == [1, 2, *v3.encode("Hi")]


@pytest.mark.parametrize("text", ["[" * 300_000, "<" * 300_000, "[TOOL_CALL" * 30_000])
def test_beginnings_of_control_tokens_cost_no_more_than_other_text(text: str) -> None:
    vocabulary = tokenizer("240911")
    with cpu_seconds_at_most(1.0):
        to_end(raw_pieces(vocabulary, text, add_special=False, parse_special=True))


def test_long_texts_of_control_tokens_give_others_a_turn() -> None:
    work = raw_pieces(tokenizer("v3"), "[INST]" * 20_000, add_special=False, parse_special=True)
    assert sum(1 for _ in work) == 20_000 // 4096
