"""From the messages of Anthropic's API to those of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from serving.api.errors import InvalidRequestError
from serving.api.messages_api.request import ContentBlockParam, MessageParam, TextBlockParam
from serving.api.requests.chat.turns import Turns
from serving.api.schemas import ChatMessage

_ROLES = ("user", "assistant", "system")


def messages_of(messages: Sequence[MessageParam], system: str | Sequence[TextBlockParam] | None) -> list[ChatMessage]:
    """The chat: the system prompt, then the messages. Messages of one role after each other are one, as with Anthropic.

    Raises:
      InvalidRequestError: a message or a block is invalid, or of a kind that is not supported; the error names it.
    """
    if not messages:
        raise InvalidRequestError("messages: expected at least one message", param="messages")
    turns = Turns()
    if system:
        turns.turn("system").texts.append(_texts(system, "system"))
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.role not in _ROLES:
            _refuse(f"{where}.role", f"{message.role[:50]!r} is not known; expected one of {', '.join(_ROLES)}")
        if isinstance(message.content, str):
            turns.turn(message.role).texts.append(message.content)
            continue
        if not message.content:
            _refuse(f"{where}.content", "expected at least one block")
        for place, block in enumerate(message.content):
            _add_block(turns, message.role, block, f"{where}.content[{place}]")
    return turns.messages()


def _add_block(turns: Turns, role: str, block: ContentBlockParam, where: str) -> None:
    match block.type:
        case "text":
            turns.turn(role).texts.append(_required(block.text, f"{where}.text"))
        case "thinking" if role == "assistant":
            turns.turn(role).reasoning.append(_required(block.thinking, f"{where}.thinking"))
        case "tool_use" if role == "assistant":
            name, arguments = _required(block.name, f"{where}.name"), _required(block.input, f"{where}.input")
            turns.call(_required(block.id, f"{where}.id"), name, arguments)
        case "tool_result" if role == "user":
            use_id = _required(block.tool_use_id, f"{where}.tool_use_id")
            if not turns.has_call(use_id):
                _refuse(f"{where}.tool_use_id", f"no tool_use before it has the id {use_id[:80]!r}")
            turns.result(use_id, _texts(block.content or "", f"{where}.content"))
        case "thinking" | "tool_use" | "tool_result":
            there = "user" if block.type == "tool_result" else "assistant"
            _refuse(f"{where}.type", f"only messages of the role {there} have blocks of the type {block.type}")
        case other:
            _refuse(
                f"{where}.type",
                f"{other[:50]!r} is not supported by this server; expected text, tool_use, tool_result or thinking",
            )


def _texts(content: str | Sequence[TextBlockParam], where: str) -> str:
    if isinstance(content, str):
        return content
    for index, block in enumerate(content):
        if block.type != "text" or block.text is None:
            _refuse(
                f"{where}[{index}].type",
                f"{block.type[:50]!r} is not supported by this server, which reads only text; expected the form "
                "{type: text, text: ...}",
            )
    return "\n".join(block.text or "" for block in content)


def _required[T](value: T | None, where: str) -> T:
    if value is None:
        _refuse(where, "expected a value")
    return value


def _refuse(where: str, reason: str) -> NoReturn:
    raise InvalidRequestError(f"{where}: {reason}", param=where)
