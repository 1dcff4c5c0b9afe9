"""From `tools` and `tool_choice` of a request, or the older `functions` and `function_call`, to the tools that the
model sees and those that it may call; and from `reasoning_effort` to variables of the chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from mistral_jax.chat.output.grammar import TOOL_NAME, ToolSpec
from serving.api.errors import InvalidRequestError
from serving.api.schemas import ChatCompletionRequest
from serving.api.schemas.tools import FunctionDefinition, FunctionName, ToolChoice, ToolName
from serving.api.service.asked import ToolUse
from serving.api.service.service import ChatEncoder

MAX_TOOLS = 128
MAX_BYTES = 262_144
"""Most bytes of all tools together, as JSON."""
MAX_DEPTH = 64
"""Levels of nesting in the parameters of a tool."""

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""Values of `reasoning_effort`. Which of them a model knows is up to its chat format."""


def tool_use(body: ChatCompletionRequest, chat: ChatEncoder) -> ToolUse:
    """The request's tools.

    With `tool_choice: none` the model does not see them.

    Raises:
      InvalidRequestError: a tool or the choice is invalid, or the model's chat format does not know tools.
    """
    legacy, param = body.functions is not None, "tools" if body.functions is None else "functions"
    if legacy and body.tools:
        raise InvalidRequestError("functions: the request has tools, too; send one of them", param="functions")
    functions = _legacy_functions(body) if legacy else _functions(body)
    tools = _checked(functions, param)
    mode, names = _choice(body, [tool.name for tool in tools], legacy=legacy)
    if mode == "none" or not tools:
        return ToolUse(output=chat.output, legacy=legacy)
    if not chat.knows_tools:
        raise InvalidRequestError(
            f"{param}: this model's chat format knows no tools; give another with --chat-template",
            param=param,
            code="unsupported_parameter",
        )
    if chat.output.tools is None:
        raise InvalidRequestError(
            f"{param}: it is not known how this model writes calls of tools; start the server with --tool-format",
            param=param,
            code="unsupported_parameter",
        )
    required = mode == "required"
    return ToolUse(
        output=chat.output,
        shown=tuple({"type": "function", "function": _shown(function)} for function in functions),
        callable=tuple(tool for tool in tools if tool.name in names),
        strict=frozenset(f.name for f in functions if f.name in names and (required or f.strict)),
        choice="required" if required else "auto",
        parallel=not legacy and body.parallel_tool_calls is not False,
        legacy=legacy,
    )


def reasoning_variables(body: ChatCompletionRequest, chat: ChatEncoder) -> dict[str, Any]:
    """The variables of the chat template by which the request sets how much the model reasons.

    Raises:
      InvalidRequestError: the model's chat format knows no such setting.
    """
    effort = body.reasoning_effort
    if effort is None:
        return {}
    if effort not in EFFORTS:
        raise InvalidRequestError(
            f"reasoning_effort: {effort[:50]!r} is not known; expected one of {', '.join(EFFORTS)}",
            param="reasoning_effort",
        )
    if "reasoning_effort" in chat.variables:
        return {"reasoning_effort": effort}
    if "enable_thinking" in chat.variables:
        return {"enable_thinking": effort != "none"}
    if effort == "none" and chat.output.reasoning is None:
        return {}
    raise InvalidRequestError(
        "reasoning_effort: this model's chat format has no such setting; leave it out",
        param="reasoning_effort",
        code="unsupported_parameter",
    )


def _functions(body: ChatCompletionRequest) -> list[FunctionDefinition]:
    functions: list[FunctionDefinition] = []
    for i, tool in enumerate(body.tools or []):
        if tool.type != "function":
            raise InvalidRequestError(
                f"tools[{i}].type: {tool.type[:50]!r} is not supported; expected `function`", param=f"tools[{i}].type"
            )
        if tool.function is None:
            raise InvalidRequestError(f"tools[{i}].function: expected a function", param=f"tools[{i}].function")
        functions.append(tool.function)
    return functions


def _legacy_functions(body: ChatCompletionRequest) -> list[FunctionDefinition]:
    if body.tool_choice is not None:
        raise InvalidRequestError("tool_choice: needs tools; functions have function_call", param="tool_choice")
    return body.functions or []


def _checked(functions: Sequence[FunctionDefinition], param: str) -> list[ToolSpec]:
    """The functions as tools that may be called, within the limits."""
    if len(functions) > MAX_TOOLS:
        raise InvalidRequestError(f"{param}: {len(functions)} tools; expected at most {MAX_TOOLS}", param=param)
    tools: list[ToolSpec] = []
    seen: set[str] = set()
    size = 0
    for i, function in enumerate(functions):
        where = f"{param}[{i}].function" if param == "tools" else f"{param}[{i}]"
        if TOOL_NAME.fullmatch(function.name) is None:
            raise InvalidRequestError(
                f"{where}.name: {function.name[:80]!r} is not valid; expected 1 to 64 letters, digits, underscores "
                "and dashes",
                param=f"{where}.name",
            )
        if function.name in seen:
            raise InvalidRequestError(
                f"{where}.name: there are two functions of the name {function.name!r}", param=f"{where}.name"
            )
        seen.add(function.name)
        parameters = function.parameters
        if parameters is not None:
            if parameters.get("type", "object") != "object":
                raise InvalidRequestError(
                    f"{where}.parameters: expected the JSON schema of an object, with type `object`",
                    param=f"{where}.parameters",
                )
            if _depth(parameters) > MAX_DEPTH:
                raise InvalidRequestError(
                    f"{where}.parameters: nested more than {MAX_DEPTH} levels deep", param=f"{where}.parameters"
                )
        size += len(msgspec.json.encode(function))
        tools.append(ToolSpec(function.name, parameters))
    if size > MAX_BYTES:
        raise InvalidRequestError(
            f"{param}: {size} bytes of JSON; expected at most {MAX_BYTES} for all tools together", param=param
        )
    return tools


def _depth(value: Any) -> int:
    """Levels of nested objects and lists; stops counting beyond the limit."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
        depth += any(isinstance(item, (dict, list)) for item in level)
        level = below
    return depth


def _choice(
    body: ChatCompletionRequest, names: list[str], *, legacy: bool
) -> tuple[Literal["none", "auto", "required"], frozenset[str]]:
    """The mode, and the names of the tools that may be called."""
    every = frozenset(names)
    if legacy:
        return _legacy_choice(body.function_call, every)
    if body.function_call not in (None, "none", "auto"):
        raise InvalidRequestError("function_call: needs functions; tools have tool_choice", param="function_call")
    choice = body.tool_choice
    if choice is None:
        return "auto", every
    if isinstance(choice, ToolChoice):
        mode, chosen, param = _chosen(choice)
    elif choice in ("none", "auto", "required"):
        mode, chosen, param = choice, every, "tool_choice"
    else:
        raise InvalidRequestError(
            f"tool_choice: {choice[:50]!r} is not known; expected none, auto, required, or an object",
            param="tool_choice",
        )
    if not every and (mode == "required" or chosen):
        raise InvalidRequestError("tool_choice: needs tools", param="tool_choice")
    _check_known(chosen, every, param)
    return mode, chosen


def _chosen(choice: ToolChoice) -> tuple[Literal["auto", "required"], frozenset[str], str]:
    """Mode, names and field of a choice that names tools."""
    if choice.type == "function":
        if choice.function is None:
            raise InvalidRequestError(
                "tool_choice.function: expected an object with the name of a tool", param="tool_choice.function"
            )
        return "required", frozenset({choice.function.name}), "tool_choice.function.name"
    if choice.type != "allowed_tools":
        raise InvalidRequestError(
            f"tool_choice.type: {choice.type[:50]!r} is not supported; expected `function` or `allowed_tools`",
            param="tool_choice.type",
        )
    where = "tool_choice.allowed_tools"
    allowed = choice.allowed_tools
    if allowed is None or not allowed.tools:
        raise InvalidRequestError(f"{where}: expected an object with a mode and a list of tools", param=where)
    if allowed.mode not in ("auto", "required"):
        raise InvalidRequestError(
            f"{where}.mode: {allowed.mode[:50]!r} is not known; expected `auto` or `required`", param=f"{where}.mode"
        )
    names = frozenset(_allowed_name(tool, f"{where}.tools[{i}]") for i, tool in enumerate(allowed.tools))
    return allowed.mode, names, f"{where}.tools"


def _allowed_name(tool: ToolName, where: str) -> str:
    if tool.type != "function" or tool.function is None:
        raise InvalidRequestError(f"{where}: expected a function by its name", param=where)
    return tool.function.name


def _legacy_choice(
    choice: str | FunctionName | None, every: frozenset[str]
) -> tuple[Literal["none", "auto", "required"], frozenset[str]]:
    if isinstance(choice, FunctionName):
        _check_known(frozenset({choice.name}), every, "function_call.name")
        return "required", frozenset({choice.name})
    if choice in (None, "auto"):
        return "auto", every
    if choice == "none":
        return "none", every
    raise InvalidRequestError(
        f"function_call: {choice[:50]!r} is not known; expected none, auto, or {{name: ...}}", param="function_call"
    )


def _check_known(names: frozenset[str], known: frozenset[str], param: str) -> None:
    if unknown := names - known:
        raise InvalidRequestError(f"{param}: there is no tool of the name {min(unknown)[:64]!r}", param=param)


def _shown(function: FunctionDefinition) -> Mapping[str, Any]:
    return {"name": function.name, "description": function.description, "parameters": function.parameters}
