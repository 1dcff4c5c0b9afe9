"""From the messages of Anthropic's API to those of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from serving.api.errors import InvalidRequestError
from serving.api.messages_api.request import ContentBlockParam, MessageParam, TextBlockParam
from serving.api.schemas import ChatMessage
from serving.api.schemas.tools import MessageFunction, MessageToolCall

_ROLES = ("user", "assistant", "system")


def messages_of(messages: Sequence[MessageParam], system: str | Sequence[TextBlockParam] | None) -> list[ChatMessage]:
    """The chat: the system prompt, then the messages. Messages of one role after each other are one, as with Anthropic.

    Raises:
      InvalidRequestError: a message or a block is invalid, or of a kind that is not supported; the error names it.
    """
    if not messages:
        raise InvalidRequestError("messages: expected at least one message", param="messages")
    chat: list[ChatMessage] = []
    if system:
        chat.append(ChatMessage(role="system", content=_texts(system, "system")))
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.role not in _ROLES:
            _refuse(f"{where}.role", f"{message.role[:50]!r} is not known; expected one of {', '.join(_ROLES)}")
        if isinstance(message.content, str):
            _add_text(chat, message.role, message.content)
            continue
        if not message.content:
            _refuse(f"{where}.content", "expected at least one block")
        for place, block in enumerate(message.content):
            _add_block(chat, message.role, block, f"{where}.content[{place}]")
    return chat


def _add_block(chat: list[ChatMessage], role: str, block: ContentBlockParam, where: str) -> None:
    match block.type:
        case "text":
            _add_text(chat, role, _required(block.text, f"{where}.text"))
        case "thinking" if role == "assistant":
            turn = _turn(chat, role)
            turn.reasoning_content = _joined(turn.reasoning_content, _required(block.thinking, f"{where}.thinking"))
        case "tool_use" if role == "assistant":
            function = MessageFunction(
                name=_required(block.name, f"{where}.name"), arguments=_required(block.input, f"{where}.input")
            )
            call = MessageToolCall(id=_required(block.id, f"{where}.id"), type="function", function=function)
            turn = _turn(chat, role)
            turn.tool_calls = [*(turn.tool_calls or []), call]
        case "tool_result" if role == "user":
            use_id = _required(block.tool_use_id, f"{where}.tool_use_id")
            if not any(call.id == use_id for message in chat for call in message.tool_calls or ()):
                _refuse(f"{where}.tool_use_id", f"no tool_use before it has the id {use_id[:80]!r}")
            content = _texts(block.content or "", f"{where}.content")
            chat.append(ChatMessage(role="tool", tool_call_id=use_id, content=content))
        case "thinking" | "tool_use" | "tool_result":
            there = "user" if block.type == "tool_result" else "assistant"
            _refuse(f"{where}.type", f"only messages of the role {there} have blocks of the type {block.type}")
        case other:
            _refuse(
                f"{where}.type",
                f"{other[:50]!r} is not supported by this server; expected text, tool_use, tool_result or thinking",
            )


def _add_text(chat: list[ChatMessage], role: str, text: str) -> None:
    turn = _turn(chat, role)
    turn.content = _joined(turn.content if isinstance(turn.content, str) else None, text)


def _turn(chat: list[ChatMessage], role: str) -> ChatMessage:
    """The message that is being put together."""
    if not chat or chat[-1].role != role:
        chat.append(ChatMessage(role=role))
    return chat[-1]


def _joined(before: str | None, text: str) -> str:
    return text if before is None else f"{before}\n{text}"


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
