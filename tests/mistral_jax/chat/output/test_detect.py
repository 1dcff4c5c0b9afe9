"""Formats inferred from templates and versions, and the ids of calls."""

from __future__ import annotations

import re

import pytest
from mistral_common.integrations.chat_templates.chat_templates import generate_chat_template
from mistral_common.tokens.tokenizers.base import TokenizerVersion

from mistral_jax.chat.output.call_ids import is_short_id, new_call_id, short_call_id
from mistral_jax.chat.output.detect import detect_reasoning, tool_format_of_template, tool_format_of_version
from mistral_jax.chat.output.formats import TOOL_FORMATS, CallShape, tool_format
from tests.mistral_jax.chat.output.completions import MISTRAL, TAGS

HERMES = "{{ '<tool_call>\n{\"name\": ' }}{{ call.name | tojson }}, {{ call.arguments | tojson }}}</tool_call>"
LLAMA = '{{ \'<|start_header_id|>ipython\' }}{"name": "{{ name }}", "parameters": {{ arguments | tojson }}}'


def mistral_template(version: str) -> str:
    return generate_chat_template(
        spm=False,
        tokenizer_version=TokenizerVersion(version),
        image_support=False,
        audio_support=False,
        thinking_support=version in ("v13", "v15"),
        default_system_prompt=None,
        plain_thinking_support=False,
        use_special_token_variables=False,
        model_settings_fields=frozenset({"reasoning_effort"}) if version == "v15" else None,
        reasoning_effort_values=("none", "high") if version == "v15" else None,
        reasoning_effort_default="none" if version == "v15" else None,
    )


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("v1", None),
        ("v2", "mistral-v3"),  # which differs from v2 in ids alone
        ("v3", "mistral-v3"),
        ("v7", "mistral-v7"),
        ("v11", "mistral-v11"),
        ("v13", "mistral-v13"),
        ("v15", "mistral-v13"),
    ],
)
def test_mistrals_templates_and_versions(version: str, name: str | None) -> None:
    assert tool_format_of_template(mistral_template(version)) == name
    assert tool_format_of_template(mistral_template(version), version) == ("mistral-v2" if version == "v2" else name)
    assert tool_format_of_version(version) == ("mistral-v2" if version == "v2" else name)


def test_other_templates() -> None:
    assert tool_format_of_template(HERMES) == "hermes"
    assert tool_format_of_template(LLAMA) == "llama3"
    assert tool_format_of_template("{{ '<|python_tag|>' }}") == "llama3"
    assert tool_format_of_template("{{ '<tool_call><function=' ~ name ~ '>' }}") is None
    assert tool_format_of_template("{{ bos_token }}{{ messages[0].content }}") is None


def test_reasoning() -> None:
    by_token = detect_reasoning(None, MISTRAL)
    assert by_token is not None
    assert (by_token.start.id, by_token.end.id) == (22, 23)
    assert detect_reasoning("{{ messages }}", MISTRAL) == by_token
    letters = detect_reasoning("{{ content.split('</think>')[-1] }}", {})
    assert letters is not None
    assert (letters.start.text, letters.start.id, letters.end.text) == ("<think>", None, "</think>")
    tags = detect_reasoning("<think>", TAGS)
    assert tags is not None
    assert tags.start.id == 33
    assert detect_reasoning("{{ messages }}", {"[INST]": 3}) is None
    assert detect_reasoning(None, {}) is None


def test_formats_by_name() -> None:
    assert {name: tool_format(name, {}).shape for name in TOOL_FORMATS}["hermes"] is CallShape.TAGGED
    assert [name for name in TOOL_FORMATS if tool_format(name, {}).short_ids] == [
        *("mistral-v3", "mistral-v7", "mistral-v11", "mistral-v13")
    ]
    with pytest.raises(KeyError):
        tool_format("xml", {})


def test_ids_of_calls() -> None:
    assert all(is_short_id(new_call_id(short=True)) for _ in range(100))
    assert re.fullmatch(r"call_[0-9a-f]{24}", new_call_id(short=False))
    assert len({new_call_id(short=True) for _ in range(1000)}) == 1000
    assert short_call_id("abcDEF123") == "abcDEF123"
    for other in ("", "abc", "call_0123456789abcdef", "abcdefgh-", "x" * 10_000, "é\ud800"):
        short = short_call_id(other)
        assert is_short_id(short)
        assert short_call_id(other) == short
    assert len({short_call_id(f"call_{i}") for i in range(10_000)}) == 10_000
