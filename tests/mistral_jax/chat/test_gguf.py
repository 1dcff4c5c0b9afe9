"""The chat format of a GGUF file: its template, the name of a format, or what its vocabulary and name tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from mistral_jax.chat import ChatTemplateError
from mistral_jax.chat.gguf import chat_formatter_from_gguf
from mistral_jax.tokenizer.gguf import tokenizer_from_gguf
from tests.cpu_time import cpu_seconds_at_most
from tests.mistral_jax.tokenizer.gguf_vocabularies import Metadata, converted_sentencepiece, small
from tests.mistral_jax.tokenizer.tokenizer_corpus import tokenizer

HI = [{"role": "user", "content": "Hi"}]
TEMPLATE = "tokenizer.chat_template"


def _rendered(metadata: Metadata, version: str, override: str | None = None) -> str | None:
    formatter = chat_formatter_from_gguf(converted_sentencepiece(version) | metadata, tokenizer(version), override)
    return None if formatter is None else formatter.render(HI)


def test_templates_of_the_file() -> None:
    templates = {
        TEMPLATE: "{{ bos_token }}a",
        f"{TEMPLATE}.tool_use": "{{ bos_token }}b",
        "tokenizer.chat_templates": ["tool_use"],
    }
    formatter = chat_formatter_from_gguf(converted_sentencepiece("v3") | templates, tokenizer("v3"))
    assert formatter is not None
    assert (formatter.render(HI), formatter.render(HI, tools=[{"function": {"name": "now"}}])) == ("<s>a", "<s>b")
    assert formatter.encode(HI)[0] == 1


def test_prompts_are_those_of_the_original_tokenizer() -> None:
    template = {TEMPLATE: "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }}[/INST]{% endfor %}"}
    metadata = converted_sentencepiece("v3") | template
    ours = chat_formatter_from_gguf(metadata, tokenizer_from_gguf(metadata))
    reference = chat_formatter_from_gguf(metadata, tokenizer("v3"))
    assert ours is not None
    assert reference is not None
    messages = [{"role": "user", "content": " a [INST] </s>\n é"}]
    assert ours.encode(messages) == reference.encode(messages)
    assert ours.encode(messages)[:2] == [1, 3]


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        ("mistral-v1", "v1", "<s>[INST] Hi [/INST]"),
        ("mistral-v3", "v3", "<s>[INST]Hi[/INST]"),
        ("mistral-v7\n", "v7", "<s>[INST]Hi[/INST]"),
        ("mistral-v3-tekken", "240718", "<s>[INST]Hi[/INST]"),
    ],
)
def test_names_of_formats_in_the_place_of_a_template(name: str, version: str, expected: str) -> None:
    formatter = chat_formatter_from_gguf({TEMPLATE: name}, tokenizer(version))
    assert formatter is not None
    assert formatter.render(HI) == expected


def test_other_names_are_refused() -> None:
    with pytest.raises(ChatTemplateError, match=r"names the chat format 'chatml'.*mistral-v1, .*--chat-template"):
        _rendered({TEMPLATE: "chatml"}, "v3")
    with pytest.raises(ChatTemplateError, match="is a list"):
        _rendered({TEMPLATE: ["{{ a }}"]}, "v3")


def test_control_tokens_tell_the_format() -> None:
    assert _rendered({}, "v3") == "<s>[INST]Hi[/INST]"


@pytest.mark.parametrize(
    ("key", "name", "known"),
    [
        ("general.name", "mistralai_mistral-7b-instruct-v0.1", True),
        ("general.name", "Mixtral 8x7B Instruct v0.1", True),
        ("general.basename", "Mistral-7B-Instruct", True),
        ("general.name", "mistralai_mistral-7b-v0.1", False),
        ("general.name", "HuggingFaceH4_zephyr-7b-beta", False),
        ("general.name", "CodeLlama-7b-Instruct", False),
    ],
)
def test_the_name_of_mistrals_first_instruct_models_tells_their_format(key: str, name: str, known: bool) -> None:
    plain = tokenizer_from_gguf(converted_sentencepiece("v1"))
    formatter = chat_formatter_from_gguf(converted_sentencepiece("v1") | {key: name}, plain)
    assert (formatter is not None) == known
    if formatter is not None:
        assert formatter.render(HI) == "<s>[INST] Hi [/INST]"
    # A vocabulary that was extended belongs to a fine-tuned model with a format of its own.
    assert chat_formatter_from_gguf(small() | {key: name}, tokenizer_from_gguf(small())) is None


def test_a_name_of_any_length_is_looked_through_once() -> None:
    metadata = converted_sentencepiece("v1") | {"general.name": "mistral" * 300_000}
    plain = tokenizer_from_gguf(converted_sentencepiece("v1"))
    with cpu_seconds_at_most(10.0):
        assert chat_formatter_from_gguf(metadata, plain) is None


def test_an_override_wins(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}!")
    assert _rendered({TEMPLATE: "{{ a }}"}, "v3", str(tmp_path / "t.jinja")) == "Hi!"
    assert _rendered({}, "v1", "{{ messages[0].content }}") == "Hi"
