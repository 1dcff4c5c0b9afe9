"""Conversations as templates want them: plain JSON values, contents as the template reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from mistral_jax.chat.errors import ConversationError

type Message = dict[str, Any]

# Variables that a caller may not set: the conversation itself, the template's internal names, and names that
# transformers' function of the same purpose takes as its own arguments (CVE-2025-62426).
_OWNED = frozenset(
    {
        *("messages", "tools", "add_generation_prompt", "documents", "conversation", "chat_template", "tokenize"),
        *("continue_final_message", "padding", "truncation", "max_length", "tokenizer_kwargs", "template_kwargs"),
        *("bos_token", "eos_token", "unk_token", "pad_token", "self", "loop", "super", "caller", "varargs", "kwargs"),
        *("raise_exception", "strftime_now", "range", "dict", "namespace", "lipsum", "cycler", "joiner", "context"),
    }
)


def check_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The caller's template variables, as plain values.

    Raises:
      ConversationError: one of them would replace a reserved variable, or is not a JSON value.
    """
    for name in variables:
        if name in _OWNED or name.startswith(("_", "return_")) or not name.isidentifier():
            raise ConversationError(f"{name!r} is not a template variable that a request may set.")
    return cast("dict[str, Any]", plain(variables, "the template's variables"))


def plain(value: Any, where: str) -> Any:
    """A deep copy in plain dicts, lists, strings, numbers, booleans and None, so that a template sees nothing else.

    Raises:
      ConversationError: the value contains something else.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, where) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [plain(item, where) for item in cast("Sequence[Any]", value)]
    raise ConversationError(f"{where}: found a {type(value).__name__} where a JSON value was expected.")


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Copies of the messages in plain values, with a role each.

    Raises:
      ConversationError: there is no message, or one is not an object with a role.
    """
    if not messages:
        raise ConversationError("The conversation has no messages.")
    copies = [plain(message, f"messages[{i}]") for i, message in enumerate(messages)]
    for i, message in enumerate(copies):
        if not isinstance(message, dict) or not isinstance(cast("Message", message).get("role"), str):
            raise ConversationError(f"messages[{i}] has no role; expected an object with a role and a content.")
    return cast("list[Message]", copies)


def mark_end(messages: Sequence[Message], mark: str) -> None:
    """Writes a mark after the last message's text, in place.

    Raises:
      ConversationError: it has no text.
    """
    content = messages[-1].get("content")
    if isinstance(content, str) and content:
        messages[-1]["content"] = content + mark
        return
    for part in reversed(cast("list[Any]", content) if isinstance(content, list) else []):
        if isinstance(part, dict) and isinstance(cast("Message", part).get("text"), str):
            part["text"] += mark
            return
    raise ConversationError("The last message has no text that could be continued.")


def text_before(rendered: str, mark: str) -> str:
    """A rendered conversation up to the end of the message that `mark_end` marked with `mark` and a space.

    A template that trims contents has dropped that space; then the spaces before it are dropped, too.

    Raises:
      ConversationError: the mark is not there.
    """
    end = rendered.rfind(mark)
    if end < 0:
        raise ConversationError("The chat template does not write the last message's text, so it cannot be continued.")
    # A template may write the message more than once.
    text = rendered[:end].replace(f"{mark} ", "").replace(mark, "")
    return text if rendered.startswith(" ", end + len(mark)) else text.rstrip()


def text_parts(content: Any, where: str) -> list[str]:
    """The texts of a message's content: a string, a list of text parts, or nothing.

    Raises:
      ConversationError: a part is not text.
    """
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    texts: list[str] = []
    for part in cast("list[Any]", content if isinstance(content, list) else [content]):
        text = cast("Message", part).get("text") if isinstance(part, dict) else part
        if not isinstance(text, str) or (isinstance(part, dict) and cast("Message", part).get("type") != "text"):
            raise ConversationError(f"{where}: only text is read; expected parts like {{type: text, text: ...}}.")
        texts.append(text)
    return texts


def for_template(messages: list[Message], *, reads_parts: bool, reads_strings: bool) -> list[Message]:
    """Converts contents to the form that the template reads, in place."""
    for i, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list) and not reads_parts:
            message["content"] = "\n".join(text_parts(cast("list[Any]", content), f"messages[{i}].content"))
        elif isinstance(content, str) and not reads_strings:
            message["content"] = [{"type": "text", "text": content}]
    return messages
