"""From the input of a response to the messages of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import msgspec

from serving.api.errors import InvalidRequestError
from serving.api.requests.chat.turns import Turns
from serving.api.responses_api.request import InputItem, InputPart
from serving.api.schemas import ChatMessage

_ROLES = ("user", "assistant", "system", "developer")
_TEXTS = ("input_text", "output_text", "text")
_ITEMS = ("message", "function_call", "function_call_output", "reasoning")


def messages_of(given: str | Sequence[InputItem], instructions: str | None) -> list[ChatMessage]:
    """The messages: instructions first, then the input.

    What the model wrote in one turn (reasoning, a text, calls) is one message. Instructions and the system messages at
    the beginning of the input are one message, because many chat templates know only one.

    Raises:
      InvalidRequestError: an item is invalid, or of a kind that is not supported; the error names it.
    """
    turns = Turns()
    if instructions:
        turns.turn("system").texts.append(instructions)
    if isinstance(given, str):
        turns.turn("user").texts.append(given)
        return turns.messages()
    if not given:
        raise InvalidRequestError("input: expected at least one item", param="input")
    for index, item in enumerate(given):
        _add(turns, item, f"input[{index}]")
    return turns.messages()


def _add(turns: Turns, item: InputItem, where: str) -> None:
    match item.type:
        case None | "message" if item.role is not None:
            _add_message(turns, item, item.role, where)
        case None if item.call_id is None:
            _refuse(f"{where}.role", f"expected one of {', '.join(_ROLES)}; references to stored items are not known")
        case "message" | None:
            _refuse(f"{where}.role", f"expected one of {', '.join(_ROLES)}")
        case "function_call":
            call_id, name = _required(item.call_id, f"{where}.call_id"), _required(item.name, f"{where}.name")
            arguments = _required(item.arguments, f"{where}.arguments")
            turns.call(call_id, name, _arguments(arguments, f"{where}.arguments"))
        case "function_call_output":
            call_id = _required(item.call_id, f"{where}.call_id")
            if not turns.has_call(call_id):
                _refuse(f"{where}.call_id", f"no function_call before it has the call_id {call_id[:80]!r}")
            turns.result(call_id, _text(_required(item.output, f"{where}.output"), f"{where}.output"))
        case "reasoning":
            turns.turn("assistant", new=True).reasoning.append(_reasoning(item, where))
        case "item_reference":
            _refuse(f"{where}.type", "this server stores no items; send the item itself")
        case other:
            _refuse(f"{where}.type", f"{other[:50]!r} is not supported by this server; expected {', '.join(_ITEMS)}")


def _add_message(turns: Turns, item: InputItem, role: str, where: str) -> None:
    content = _text(_required(item.content, f"{where}.content"), f"{where}.content")
    if role not in _ROLES:
        _refuse(f"{where}.role", f"{role[:50]!r} is not known; expected one of {', '.join(_ROLES)}")
    if role == "assistant":
        turn = turns.turn(role, new=turns.last is not None and turns.last.is_said)
    elif role in ("system", "developer"):
        turn = turns.turn("system", new=len(turns) != 1)
    else:
        turn = turns.turn(role, new=True)
    turn.texts.append(content)


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
