"""Tools, calls and results, brought to one form."""

from __future__ import annotations

from typing import Any

import pytest

from mistral_jax.chat import ChatFormatter, ConversationError
from mistral_jax.chat.output.formats import TOOL_FORMATS, tool_format
from mistral_jax.chat.tool_messages import normal_calls, plain_tools
from tests.mistral_jax.tokenizer.tokenizer_corpus import tokenizer

HI = {"role": "user", "content": "Hi"}
NOW = {"type": "function", "function": {"name": "now"}}


def call(arguments: Any, call_id: str = "a", name: str = "get") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(call_id: str, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": "x", **more}


def assistant(*calls: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


def test_tools_as_templates_expect_them() -> None:
    """In the order of the request, as transformers passes them."""
    given = {
        "type": "function",
        "function": {"strict": True, "parameters": {"type": "object"}, "name": "f", "description": None, "x": 1},
    }
    first, second = plain_tools([given, NOW])
    assert first == {"type": "function", "function": {"parameters": {"type": "object"}, "name": "f", "x": 1}}
    assert list(first["function"]) == ["parameters", "name", "x"]
    assert second["function"] == {"name": "now", "parameters": {"type": "object", "properties": {}}}
    for wrong in ({}, {"function": {}}, {"function": {"name": 1}}, "f", {"type": "custom", "custom": {"name": "x"}}):
        with pytest.raises(ConversationError, match=r"tools\[1\]: expected an object with a function"):
            plain_tools([NOW, wrong])


def test_arguments_are_objects() -> None:
    for given, expected in (
        ('{"b": 1, "a": [{}]}', {"b": 1, "a": [{}]}),
        ({"x": 1}, {"x": 1}),
        ("", {}),
        (None, {}),
        (" {} ", {}),
    ):
        (message,) = normal_calls([assistant(call(given))], None)
        assert message["tool_calls"][0]["function"]["arguments"] == expected


@pytest.mark.parametrize("wrong", ["{", "[1]", "1", '"x"', '{"a": NaN}', "{'a': 1}", [1], 1, "[" * 100_000, '{"a": 1'])
def test_arguments_that_are_no_json_object_are_refused(wrong: Any) -> None:
    with pytest.raises(
        ConversationError, match=r"messages\[1\]\.tool_calls\[1\]\.function\.arguments: expected the JSON"
    ):
        normal_calls([dict(HI), assistant(call("{}"), call(wrong))], None)


def test_calls_of_other_forms_are_refused() -> None:
    for calls in ("x", {"a": 1}):
        with pytest.raises(ConversationError, match="expected a list of calls"):
            normal_calls([{"role": "assistant", "tool_calls": calls}], None)
    for wrong in ("x", {}, {"function": {"arguments": "{}"}}, {"function": "get"}):
        with pytest.raises(ConversationError, match=r"tool_calls\[0\]: expected an object with a function"):
            normal_calls([assistant(wrong)], None)


def test_results_get_the_names_of_their_tools() -> None:
    messages = [
        assistant(call("{}", "a", "get"), call("{}", "b", "now")),
        result("b"),
        result("a", name="mine"),
        result("c"),
    ]
    assert [m.get("name") for m in normal_calls(messages, None)[1:]] == ["now", "mine", None]


def test_results_are_in_the_order_of_the_calls_where_that_tells_them_apart() -> None:
    def messages() -> list[dict[str, Any]]:
        ids = ("aaaaaaaaa", "bbbbbbbbb", "ccccccccc")
        first = [assistant(*(call("{}", i) for i in ids)), result(ids[2]), result(ids[0]), result(ids[1])]
        return [*first, dict(HI), assistant(call("{}", "ddddddddd")), result("ddddddddd")]

    given = [m.get("tool_call_id") for m in messages()]
    for name in TOOL_FORMATS:
        found = [m.get("tool_call_id") for m in normal_calls(messages(), tool_format(name, {}))]
        in_order = [given[0], given[2], given[3], given[1], *given[4:]]
        assert found == (in_order if name in ("mistral-v11", "mistral-v13") else given), name


TEMPLATE = (
    "{{ tools | tojson }}{% for m in messages %}{{ m.tool_calls | tojson if m.tool_calls }}{{ m.content }}{% endfor %}"
)


def test_templates_that_know_tools_and_others() -> None:
    v3 = tokenizer("v3")
    knows = ChatFormatter(TEMPLATE, v3)
    assert knows.knows_tools
    assert knows.render([HI], tools=[NOW]).startswith('[{"type": "function", "function": {"name": "now"')
    others = ("{{ messages[0].content }}", "{% set tools = 1 %}{{ messages[0].content }}")
    for template in others:
        knows_not = ChatFormatter(template, v3)
        assert not knows_not.knows_tools
        with pytest.raises(ConversationError, match="knows no tools"):
            knows_not.encode([HI], tools=[NOW])
        with pytest.raises(ConversationError, match="knows no tool calls"):
            knows_not.encode([HI, assistant(call("{}"))])
        assert knows_not.render([HI], tools=[]) == "Hi"
    assert not ChatFormatter.for_tokenizer_version(tokenizer("v1"), "v1").knows_tools
    assert ChatFormatter.for_tokenizer_version(v3, "v3").knows_tools


def test_the_names_that_a_template_reads() -> None:
    source = "{% for m in messages %}{{ m['role'] ~ m.content ~ m.get('name', '') }}{% endfor %}{{ enable_thinking }}"
    names = ChatFormatter(source, tokenizer("v3")).variables
    assert {"messages", "role", "content", "name", "enable_thinking"} <= names
    many = "".join(f"{{{{ x{i} }}}}" for i in range(5000)) + "{{ " + "y" * 1000 + " }}"
    assert len(ChatFormatter(many, tokenizer("v3")).variables) == 1000


def test_formats_of_completions() -> None:
    v3 = tokenizer("v3")
    for formatter, tools, reasons in (
        (ChatFormatter("{{ '[TOOL_CALLS]' }}", v3), "mistral-v3", False),
        (ChatFormatter("<tool_call></think>", v3), "hermes", True),
        (ChatFormatter({"default": "x", "tool_use": "<tool_call>"}, v3), "hermes", False),
        (ChatFormatter({"rag": "x"}, v3), None, False),
        (ChatFormatter.for_tokenizer_version(v3, "v3"), "mistral-v3", False),
        (ChatFormatter.for_tokenizer_version(tokenizer("v1"), "v1"), None, False),
    ):
        assert (formatter.output.tools and formatter.output.tools.name) == tools
        assert (formatter.output.reasoning is not None) == reasons
    mistral = ChatFormatter("{{ '[TOOL_CALLS]' }}", v3)
    assert mistral.output.tools is not None
    assert mistral.output.tools.opening is not None
    assert mistral.output.tools.opening.id == v3.control_id("[TOOL_CALLS]")
    other = mistral.with_tool_format("llama3")
    assert other.output.tools is not None
    assert other.output.tools.name == "llama3"
    assert mistral.with_tool_format(None).output.tools is None
    assert mistral.output.tools.name == "mistral-v3"


def test_prompts_that_begin_the_reasoning() -> None:
    v3 = tokenizer("v3")

    def begins(template: str, content: str = "Hi") -> bool:
        return ChatFormatter(template, v3).encode_pieces([{"role": "user", "content": content}]).in_reasoning

    assert begins("{{ messages[0].content }}[/INST]<think>\n")
    assert begins("{{ messages[0].content }}[/INST]\n<think>[INST]") is False
    assert not begins("{{ messages[0].content }}[/INST]<think></think>")
    assert not begins("{{ '</think>' if x }}[INST]{{ messages[0].content }}[/INST]", "<think>")
    assert not begins("{{ messages[0].content }}[/INST]")
