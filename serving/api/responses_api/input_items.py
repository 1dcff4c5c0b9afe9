"""From the input of a response to the messages of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import msgspec

from serving.api.errors import InvalidRequestError
from serving.api.responses_api.request import InputItem, InputPart
from serving.api.schemas import ChatMessage
from serving.api.schemas.tools import MessageFunction, MessageToolCall

_ROLES = ("user", "assistant", "system", "developer")
_SYSTEM = ("system", "developer")
_TEXTS = ("input_text", "output_text", "text")
_ITEMS = ("message", "function_call", "function_call_output", "reasoning")


def messages_of(given: str | Sequence[InputItem], instructions: str | None) -> list[ChatMessage]:
    """The messages: instructions first, then the input.

    What the model wrote in one turn (reasoning, a text, calls) is one message. Instructions and the system messages at
    the beginning of the input are one message, because many chat templates know only one.

    Raises:
      InvalidRequestError: an item is invalid, or of a kind that is not supported; the error names it.
    """
    messages: list[ChatMessage] = []
    if instructions:
        messages.append(ChatMessage(role="system", content=instructions))
    if isinstance(given, str):
        return [*messages, ChatMessage(role="user", content=given)]
    if not given:
        raise InvalidRequestError("input: expected at least one item", param="input")
    for index, item in enumerate(given):
        _add(messages, item, f"input[{index}]")
    return messages


def _add(messages: list[ChatMessage], item: InputItem, where: str) -> None:
    match item.type:
        case None | "message" if item.role is not None:
            _add_message(messages, item, where)
        case None if item.call_id is None:
            _refuse(f"{where}.role", f"expected one of {', '.join(_ROLES)}; references to stored items are not known")
        case "message" | None:
            _refuse(f"{where}.role", f"expected one of {', '.join(_ROLES)}")
        case "function_call":
            call = MessageToolCall(
                id=_required(item.call_id, f"{where}.call_id"),
                type="function",
                function=MessageFunction(
                    name=_required(item.name, f"{where}.name"),
                    arguments=_arguments(_required(item.arguments, f"{where}.arguments"), f"{where}.arguments"),
                ),
            )
            turn = _turn(messages)
            turn.tool_calls = [*(turn.tool_calls or []), call]
        case "function_call_output":
            call_id = _required(item.call_id, f"{where}.call_id")
            if not any(call.id == call_id for message in messages for call in message.tool_calls or ()):
                _refuse(f"{where}.call_id", f"no function_call before it has the call_id {call_id[:80]!r}")
            output = ChatMessage(
                role="tool",
                tool_call_id=call_id,
                content=_text(_required(item.output, f"{where}.output"), f"{where}.output"),
            )
            messages.append(output)
        case "reasoning":
            text = _reasoning(item, where)
            turn = _turn(messages, new=True)
            turn.reasoning_content = text
        case "item_reference":
            _refuse(f"{where}.type", "this server stores no items; send the item itself")
        case other:
            _refuse(f"{where}.type", f"{other[:50]!r} is not supported by this server; expected {', '.join(_ITEMS)}")


def _add_message(messages: list[ChatMessage], item: InputItem, where: str) -> None:
    role, content = item.role or "", _text(_required(item.content, f"{where}.content"), f"{where}.content")
    if role not in _ROLES:
        _refuse(f"{where}.role", f"{role[:50]!r} is not known; expected one of {', '.join(_ROLES)}")
    if role == "assistant":
        turn = _turn(messages, new=any(_is_said(message) for message in messages[-1:]))
        turn.content = content
    elif role in _SYSTEM and len(messages) == 1 and messages[0].role in _SYSTEM:
        messages[0].content = f"{messages[0].content}\n\n{content}"
    else:
        messages.append(ChatMessage(role=role, content=content))


def _turn(messages: list[ChatMessage], *, new: bool = False) -> ChatMessage:
    """The message of the model that is being put together.

    Args:
      new: begin another one.
    """
    if new or not messages or messages[-1].role != "assistant":
        messages.append(ChatMessage(role="assistant"))
    return messages[-1]


def _is_said(message: ChatMessage) -> bool:
    """Whether it is a message of the model that has a text or calls already."""
    return message.role == "assistant" and (message.content is not None or message.tool_calls is not None)


def _arguments(text: str, where: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        _refuse(where, "expected the JSON text of an object")


def _reasoning(item: InputItem, where: str) -> str:
    if isinstance(item.content, str):
        return item.content
    if not item.content:
        if item.encrypted_content:
            _refuse(f"{where}.encrypted_content", "this server cannot read it; send the reasoning item's content")
        return ""
    for index, part in enumerate(item.content):
        if part.type not in ("reasoning_text", "text") or part.text is None:
            _refuse(f"{where}.content[{index}]", "expected the form {type: reasoning_text, text: ...}")
    return "\n".join(part.text or "" for part in item.content)


def _text(content: str | Sequence[InputPart], where: str) -> str:
    if isinstance(content, str):
        return content
    for index, part in enumerate(content):
        if part.type not in _TEXTS or part.text is None:
            _refuse(
                f"{where}[{index}]",
                f"{part.type[:50]!r} is not supported by this server, which reads only text; expected the form "
                "{type: input_text, text: ...}",
            )
    return "\n".join(part.text or "" for part in content)


def _required[T](value: T | None, where: str) -> T:
    if value is None:
        _refuse(where, "expected a value")
    return value


def _refuse(where: str, reason: str) -> NoReturn:
    raise InvalidRequestError(f"{where}: {reason}", param=where)
