"""From the fields of a request to the tools that may be called and what a completion is held to."""

from __future__ import annotations

import pickle
from typing import Any

import msgspec
import pytest

from mistral_jax.chat.output.formats import OutputFormat, reasoning_format, tool_format
from serving.api.errors import InvalidRequestError
from serving.api.requests.tool_request import MAX_BYTES, MAX_DEPTH, MAX_TOOLS, tool_use
from serving.api.schemas import ChatCompletionRequest
from serving.api.service.asked import ToolUse
from tests.mistral_jax.chat.output.completions import MISTRAL
from tests.serving.fakes import FakeChat

HERMES = OutputFormat(tools=tool_format("hermes", {}))


def function(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


TOOLS = [function("a"), function("b", strict=True), function("c", parameters={"type": "object"})]


def used(output: OutputFormat = HERMES, **body: Any) -> ToolUse:
    raw = msgspec.json.encode({"messages": [], **body})
    return tool_use(msgspec.json.decode(raw, type=ChatCompletionRequest), FakeChat(output))


def refused(**body: Any) -> tuple[str | None, str]:
    with pytest.raises(InvalidRequestError) as caught:
        used(**body)
    return caught.value.param, caught.value.message


def allowed(mode: str, *names: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [function(name) for name in names]}}


@pytest.mark.parametrize(
    ("body", "names", "choice", "strict"),
    [
        ({}, "abc", "auto", "b"),
        ({"tool_choice": "auto"}, "abc", "auto", "b"),
        ({"tool_choice": "required"}, "abc", "required", "abc"),
        ({"tool_choice": "none"}, "", "auto", ""),
        ({"tool_choice": function("c")}, "c", "required", "c"),
        ({"tool_choice": allowed("auto", "a", "b")}, "ab", "auto", "b"),
        ({"tool_choice": allowed("required", "a")}, "a", "required", "a"),
    ],
)
def test_choices(body: dict[str, Any], names: str, choice: str, strict: str) -> None:
    found = used(tools=TOOLS, **body)
    assert (found.names or frozenset()) == set(names)
    assert (found.choice, found.strict) == (choice, set(strict))
    assert len(found.shown) == (3 if names else 0)
    assert found.parallel


def test_the_older_form() -> None:
    functions = [tool["function"] for tool in TOOLS]
    for call, names, choice in (
        (None, "abc", "auto"),
        ("auto", "abc", "auto"),
        ("none", "", "auto"),
        ({"name": "b"}, "b", "required"),
    ):
        found = used(functions=functions, function_call=call)
        assert ((found.names or set()), found.choice, found.legacy) == (set(names), choice, True)
        assert not (found.parallel and found.callable)


def test_parallel_calls() -> None:
    for given, expected in ((None, True), (True, True), (False, False)):
        assert used(tools=TOOLS, parallel_tool_calls=given).parallel is expected


def test_no_tools() -> None:
    for body in ({}, {"tools": []}, {"tools": None, "tool_choice": "auto"}, {"functions": []}, {"tool_choice": "none"}):
        found = used(**body)
        assert (found.names, found.shown, found.constraint(in_reasoning=False, leading_space=False)) == (None, (), None)


def test_what_a_completion_is_held_to() -> None:
    v13 = OutputFormat(
        tools=tool_format("mistral-v13", MISTRAL), reasoning=reasoning_format("[THINK]", "[/THINK]", MISTRAL)
    )
    auto = used(v13, tools=TOOLS).constraint(in_reasoning=False, leading_space=False)
    assert auto is not None
    assert auto.trigger is not None
    assert auto.trigger.token_ids == (9,)
    assert auto.grammar.startswith("start: call (<[9]> call)*\n")
    named = used(v13, tools=TOOLS, tool_choice=function("c")).constraint(in_reasoning=True, leading_space=False)
    assert named is not None
    assert named.trigger is None
    assert '"c"' in named.grammar
    assert '"a"' not in named.grammar
    assert named.grammar.startswith("start: TEXT <[23]>")
    single = used(v13, tools=TOOLS, parallel_tool_calls=False).constraint(in_reasoning=False, leading_space=False)
    assert single is not None
    assert single.grammar.startswith("start: call\n")
    assert pickle.loads(pickle.dumps(used(v13, tools=TOOLS))) == used(v13, tools=TOOLS)


DEEP: dict[str, Any] = {"type": "object"}
for _ in range(MAX_DEPTH):
    DEEP = {"type": "object", "a": DEEP}


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({"tools": [function("")]}, "tools[0].function.name", "1 to 64 letters"),
        ({"tools": [function("a b")]}, "tools[0].function.name", "'a b'"),
        ({"tools": [function("x" * 65)]}, "tools[0].function.name", "1 to 64"),
        ({"tools": [function("a\n")]}, "tools[0].function.name", "1 to 64"),
        ({"tools": [function("a"), function("a")]}, "tools[1].function.name", "two functions of the name 'a'"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type", "expected `function`"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "expected a function"),
        ({"tools": [function("a", parameters={"type": "array"})]}, "tools[0].function.parameters", "of an object"),
        ({"tools": [function("a", parameters=DEEP)]}, "tools[0].function.parameters", "64 levels"),
        ({"tools": [function(f"f{i}") for i in range(MAX_TOOLS + 1)]}, "tools", "129 tools; expected at most 128"),
        ({"tools": [function("a", description="x" * MAX_BYTES)]}, "tools", "bytes of JSON"),
        ({"functions": [{"name": "é"}]}, "functions[0].name", "1 to 64"),
        ({"functions": [{"name": "a"}], "tools": TOOLS}, "functions", "tools, too"),
        ({"functions": [{"name": "a"}], "tool_choice": "auto"}, "tool_choice", "needs tools"),
        ({"functions": [{"name": "a"}], "function_call": {"name": "b"}}, "function_call.name", "no tool of the name"),
        ({"functions": [{"name": "a"}], "function_call": "b"}, "function_call", "expected none, auto"),
        ({"tools": TOOLS, "function_call": {"name": "a"}}, "function_call", "needs functions"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", "expected none, auto, required"),
        ({"tools": TOOLS, "tool_choice": function("d")}, "tool_choice.function.name", "no tool of the name 'd'"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function", "the name of a tool"),
        ({"tools": TOOLS, "tool_choice": {"type": "custom"}}, "tool_choice.type", "`allowed_tools`"),
        ({"tools": TOOLS, "tool_choice": allowed("auto", "d")}, "tool_choice.allowed_tools.tools", "'d'"),
        ({"tools": TOOLS, "tool_choice": allowed("none", "a")}, "tool_choice.allowed_tools.mode", "`required`"),
        ({"tools": TOOLS, "tool_choice": allowed("auto")}, "tool_choice.allowed_tools", "a list of tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools", "a list of tools"),
        (
            {
                "tools": TOOLS,
                "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "x"}]}},
            },
            "tool_choice.allowed_tools.tools[0]",
            "by its name",
        ),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tool_choice": function("a"), "tools": []}, "tool_choice", "needs tools"),
        ({"function_call": {"name": "a"}}, "function_call", "needs functions"),
    ],
)
def test_what_is_refused(body: dict[str, Any], param: str, told: str) -> None:
    found, message = refused(**body)
    assert found == param
    assert told in message
    assert len(message) < 300


def test_limits_are_inclusive() -> None:
    deepest = DEEP["a"]
    assert used(tools=[function(f"f{i}") for i in range(MAX_TOOLS)]).names is not None
    assert used(tools=[function("a" * 64, parameters=deepest)]).names is not None
