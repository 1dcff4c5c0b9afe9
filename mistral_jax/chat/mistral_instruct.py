"""Mistral's own instruct formats, for models whose folder has a tokenizer but no chat template.

mistral-common defines them on token ids: control tokens between texts that are encoded one by one. What a version
changes:

| version | system prompt | tools | tool calls | tool results |
|---|---|---|---|---|
| v1 | in the first user message | - | - | - |
| v2 | in the last user message | before the last user message | JSON, since the last user message | JSON, likewise |
| v3 | ″ | ″ | JSON with ids | JSON with ids |
| v7 | a message of its own | ″ | ″ | id `[TOOL_CONTENT]` text |
| v11 | ″ | ″ | name `[CALL_ID]` id `[ARGS]` JSON | ″, in the order of the calls |
| v13 | ″ | before the first user message | name `[ARGS]` JSON | text, in the order of the calls |
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from mistral_jax.chat.errors import ChatTemplateError, ConversationError
from mistral_jax.chat.messages import Message, text_parts
from mistral_jax.chat.trusted import ControlToken

type Segments = list[str | ControlToken]

_VERSIONS = (1, 2, 3, 7, 11, 13)
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_JOIN = "\n\n"
_NEEDED = {
    1: ("<s>", "</s>"),
    2: (
        "[INST]",
        "[/INST]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_CALLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
    ),
    7: ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    11: ("[ARGS]",),
}


@dataclass(frozen=True, slots=True)
class _Thinking:
    text: str
    closed: bool


class MistralInstruct:
    """Writes conversations in the format of one version."""

    def __init__(self, control_tokens: Mapping[str, int], version: str) -> None:
        """Prepares the format of a version, such as "v3".

        Raises:
          ChatTemplateError: it is not implemented, or a control token that it needs is not in the vocabulary.
        """
        if version not in {f"v{v}" for v in _VERSIONS}:
            known = ", ".join(f"v{v}" for v in _VERSIONS)
            raise ChatTemplateError(
                f"Mistral's instruct format {version!r} is not built in; there are {known}. "
                "Give the model's own chat template."
            )
        self._version = int(version[1:])
        self._ids = dict(control_tokens)
        for since, texts in _NEEDED.items():
            missing = [text for text in texts if text not in self._ids]
            if self._version >= since and missing:
                raise ChatTemplateError(
                    f"The tokenizer has no control token {missing[0]!r}, which Mistral's instruct format {version} "
                    "needs. Was this version meant for another tokenizer?"
                )

    def segments(self, messages: Sequence[Message], tools: list[Any] | None, max_text: int) -> Segments:
        """The conversation as control tokens and texts, each text to be encoded by itself.

        Raises:
          ConversationError: the format has no place for something in the conversation.
        """
        system, turns = self._turns(messages)
        users = [i for i, turn in enumerate(turns) if turn["role"] == "user"]
        first, last = (users[0], users[-1]) if users else (-1, -1)
        tools_at = first if self._version >= 13 else last
        out: Segments = [self._control("<s>")]
        for i, turn in enumerate(turns):
            if turn["role"] == "user":
                prompt = system if i == (first if self._version == 1 else last) else ""
                if tools and i == tools_at:
                    out += self._tools(tools)
                out += self._user(turn, prompt)
            elif turn["role"] == "system":
                out += self._between("[SYSTEM_PROMPT]", turn["content"], "[/SYSTEM_PROMPT]")
            elif turn["role"] == "assistant":
                out += self._assistant(turn, in_past=i < last, is_last=i == len(turns) - 1)
            else:
                out += self._tool_result(turn, in_past=i < last)
        if sum(len(s) for s in out if isinstance(s, str)) > max_text:
            raise ConversationError(f"The conversation has more than {max_text:,} characters.")
        return out

    # Normal form: adjacent messages of one role are one turn.

    def _turns(self, messages: Sequence[Message]) -> tuple[str, list[Message]]:
        """The system prompt, for formats that have no message of their own for it, and the turns."""
        for i, message in enumerate(messages):
            if message["role"] not in _ROLES:
                raise ConversationError(f"messages[{i}].role is {message['role']!r}; expected {', '.join(_ROLES)}.")
        turns: list[Message] = []
        prompts: list[str] = []
        calls: list[Any] = []
        for role, group in itertools.groupby(messages, key=lambda message: _ROLES[message["role"]]):
            same = list(group)
            if role == "tool":
                turns += self._results(same, calls)
            elif role == "system" and self._version < 7:
                prompts += [text for m in same if (text := _only_text(m))]
            elif role == "system":
                turns += [{"role": role, "content": _parts([m.get("content")], thinks=True)} for m in same]
            else:
                calls = [call for m in same for call in m.get("tool_calls") or []]
                content = _parts([m.get("content") for m in same], thinks=role == "assistant" and self._version >= 13)
                prefix = any(m.get("prefix") is True for m in same)
                turns.append({"role": role, "content": content, "tool_calls": calls, "prefix": prefix})
        if not turns or (self._version < 7 and turns[0]["role"] != "user"):
            turns.insert(0, {"role": "user", "content": [""]})
        return _JOIN.join(prompts), turns

    def _results(self, messages: list[Message], calls: list[Any]) -> list[Message]:
        """A turn for each tool's result."""
        if self._version == 1:
            raise ConversationError("This model's chat format (Mistral v1) knows no tools.")
        results = [{**m, "content": _only_text(m)} for m in messages]
        if self._version >= 11:
            order = {call.get("id"): i for i, call in enumerate(calls) if isinstance(call, dict)}
            results.sort(key=lambda m: order.get(m.get("tool_call_id"), len(order)))
        return results

    # Turns as segments.

    def _user(self, turn: Message, system: str) -> Segments:
        text = "".join(turn["content"])
        text = f"{system}{_JOIN}{text}" if system else text
        return [f"[INST] {text} [/INST]"] if self._version == 1 else self._between("[INST]", [text], "[/INST]")

    def _tools(self, tools: list[Any]) -> Segments:
        if self._version == 1:
            raise ConversationError("This model's chat format (Mistral v1) knows no tools.")
        listed: list[dict[str, Any]] = []
        for i, tool in enumerate(tools):
            function = tool.get("function") if isinstance(tool, dict) else None
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                raise ConversationError(f"tools[{i}]: expected an object with a function that has a name.")
            described = {
                "name": function["name"],
                "description": function.get("description") or "",
                "parameters": function.get("parameters") or {},
            }
            listed.append({"type": "function", "function": described})
        return self._between("[AVAILABLE_TOOLS]", [_dump(listed)], "[/AVAILABLE_TOOLS]")

    def _assistant(self, turn: Message, *, in_past: bool, is_last: bool) -> Segments:
        content: list[str | _Thinking] = turn["content"]
        calls: list[Any] = turn["tool_calls"]
        if not content and not calls:
            raise ConversationError("An assistant's message has neither a content nor tool calls.")
        if content and calls and self._version < 7:
            raise ConversationError("In this model's chat format an assistant either speaks or calls tools, not both.")
        if calls and self._version == 1:
            raise ConversationError("This model's chat format (Mistral v1) knows no tools.")
        if calls and in_past and self._version == 2:
            return []  # v2 drops calls and results at the next user message
        out: Segments = []
        if len(content) == 1 and isinstance(content[0], str):
            out.append(content[0] if self._version == 1 else content[0].rstrip(" "))
        else:
            for part in content:
                out += [part] if isinstance(part, str) else self._thinking(part)
        if calls:
            out += self._calls([_call(call) for call in calls])
        return out if turn["prefix"] and is_last else [*out, self._control("</s>")]

    def _thinking(self, part: _Thinking) -> Segments:
        closing = [self._control("[/THINK]")] if part.closed else []
        return [self._control("[THINK]"), part.text, *closing]

    def _calls(self, calls: list[tuple[str, Any, str | None]]) -> Segments:
        if self._version < 11:
            listed = [
                {"name": name, "arguments": arguments} | ({"id": call_id} if call_id and self._version > 2 else {})
                for name, arguments, call_id in calls
            ]
            return [self._control("[TOOL_CALLS]"), _dump(listed)]
        out: Segments = []
        for name, arguments, call_id in calls:
            out += [self._control("[TOOL_CALLS]"), name]
            if call_id and self._version == 11:
                out += [self._control("[CALL_ID]"), call_id]
            out += [self._control("[ARGS]"), _dump(arguments)]
        return out

    def _tool_result(self, turn: Message, *, in_past: bool) -> Segments:
        content, call_id = cast("str", turn["content"]), turn.get("tool_call_id")
        if self._version == 2:
            if in_past:
                return []
            text = [_dump([{"name": turn.get("name"), "content": _load(content)}])]
        elif not isinstance(call_id, str):
            raise ConversationError("A tool's message has no tool_call_id.")
        elif self._version == 3:
            text = [_dump({"content": _load(content), "call_id": call_id})]
        else:
            text = [content] if self._version >= 13 else [call_id, self._control("[TOOL_CONTENT]"), content]
        return self._between("[TOOL_RESULTS]", text, "[/TOOL_RESULTS]")

    def _between(self, opening: str, parts: Sequence[str | ControlToken | _Thinking], closing: str) -> Segments:
        out: Segments = [self._control(opening)]
        for part in parts:
            out += self._thinking(part) if isinstance(part, _Thinking) else [part]
        return [*out, self._control(closing)]

    def _control(self, text: str) -> ControlToken:
        if text not in self._ids:
            raise ConversationError(f"The conversation needs the control token {text}, which this model does not have.")
        return ControlToken(text, self._ids[text])


def _only_text(message: Message) -> str:
    return _JOIN.join(t for t in text_parts(message.get("content"), f"a {message['role']} message") if t)


def _parts(contents: list[Any], *, thinks: bool) -> list[str | _Thinking]:
    """Contents of one turn's messages: adjacent texts joined by an empty line, thoughts kept separate."""
    parts: list[str | _Thinking] = []
    for content in contents:
        for piece in cast("list[Any]", content) if isinstance(content, list) else [content]:
            if thinks and isinstance(piece, dict) and cast("Message", piece).get("type") == "thinking":
                thought = cast("Message", piece)
                parts.append(_Thinking(str(thought.get("thinking", "")), thought.get("closed") is not False))
                continue
            for text in text_parts(piece, "a message's content"):
                if text and parts and isinstance(parts[-1], str):
                    parts[-1] += _JOIN + text
                elif text:
                    parts.append(text)
    return parts


def _call(call: Any) -> tuple[str, Any, str | None]:
    """Name, arguments and id of a tool call in OpenAI's form."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ConversationError("A tool call has no function with a name.")
    arguments = function.get("arguments")
    if isinstance(arguments, str) or arguments is None:
        arguments = _load(arguments or "")
    call_id = call.get("id")
    return function["name"], arguments, call_id if isinstance(call_id, str) and call_id != "null" else None


def _load(text: str) -> Any:
    """JSON text as its value, an empty text as {}, any other text as itself."""
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
