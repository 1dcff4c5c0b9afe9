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
| v15 | ″ | ″, then `[MODEL_SETTINGS]` with the reasoning effort | ″ | ″ |

Calls and results come in the form of `tool_messages.normal_calls`. Reasoning in the history is written from v13 on.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from conversion.tokenizer.tekken_file import ReasoningEfforts
from mistral_jax.chat.errors import ChatTemplateError, ConversationError
from mistral_jax.chat.messages import Message, text_parts
from mistral_jax.chat.trusted import ControlToken

type Segments = list[str | ControlToken]

_VERSIONS = (1, 2, 3, 7, 11, 13, 15)
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
    15: ("[MODEL_SETTINGS]", "[/MODEL_SETTINGS]"),
}


@dataclass(frozen=True, slots=True)
class _Thinking:
    text: str
    closed: bool


class MistralInstruct:
    """Writes conversations in the format of one version."""

    def __init__(
        self, control_tokens: Mapping[str, int], version: str, *, efforts: ReasoningEfforts | None = None
    ) -> None:
        """Prepares the format of a version, such as "v3".

        Args:
          control_tokens: Of the vocabulary, by their text.
          version: The version.
          efforts: For v15: the reasoning efforts that the model knows; None: it has no such setting.

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
        self._efforts = efforts if self._version >= 15 else None
        self._thinks = self._version >= 13 and {"[THINK]", "[/THINK]"} <= self._ids.keys()
        for since, texts in _NEEDED.items():
            missing = [text for text in texts if text not in self._ids]
            if self._version >= since and missing:
                raise ChatTemplateError(
                    f"The tokenizer has no control token {missing[0]!r}, which Mistral's instruct format {version} "
                    "needs. Was this version meant for another tokenizer?"
                )

    @property
    def knows_tools(self) -> bool:
        """Whether the format can tell the model of tools."""
        return self._version > 1

    @property
    def variables(self) -> frozenset[str]:
        """The variables that a caller may set."""
        return frozenset({"reasoning_effort"}) if self._efforts is not None else frozenset()

    def segments(
        self,
        messages: Sequence[Message],
        tools: list[Message] | None,
        max_text: int,
        variables: Mapping[str, Any] | None = None,
    ) -> Segments:
        """The conversation as control tokens and texts, each text to be encoded by itself.

        Args:
          messages: The messages, with calls and results as `normal_calls` gives them.
          tools: As `plain_tools` gives them.
          max_text: Most characters.
          variables: Values for some of `variables`.

        Raises:
          ConversationError: the format has no place for something in the conversation.
        """
        settings = self._settings(dict(variables or {}))
        system, turns = self._turns(messages)
        users = [i for i, turn in enumerate(turns) if turn["role"] == "user"]
        first, last = (users[0], users[-1]) if users else (-1, -1)
        tools_at = first if self._version >= 13 else last
        out: Segments = [self._control("<s>")]
        for i, turn in enumerate(turns):
            if turn["role"] == "user":
                prompt = system if i == (first if self._version == 1 else last) else ""
                if tools and i == tools_at:
                    out += self._between("[AVAILABLE_TOOLS]", [_dump(_described(tools))], "[/AVAILABLE_TOOLS]")
                if i == tools_at:
                    out += settings
                out += self._user(turn, prompt)
            elif turn["role"] == "system":
                out += self._between("[SYSTEM_PROMPT]", turn["content"], "[/SYSTEM_PROMPT]")
            elif turn["role"] == "assistant":
                out += self._assistant(turn, in_past=i < last, is_last=i == len(turns) - 1)
            else:
                if self._version == 2 and i > last and turns[i - 1]["role"] == "tool":
                    raise ConversationError("In this model's chat format (Mistral v2) calls have one result only.")
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
                prompts += [text for m in same if (text := _only_text(m, _JOIN))]
            elif role == "system":
                turns += [
                    {"role": role, "content": _parts([m.get("content")], thinks=True, join=self._part_join)}
                    for m in same
                ]
            else:
                calls = [call for m in same for call in m.get("tool_calls") or []]
                thinks = role == "assistant" and self._version >= 13
                content = _parts([self._content(m) for m in same], thinks=thinks, join=self._part_join)
                prefix = any(m.get("prefix") is True for m in same)
                turns.append({"role": role, "content": content, "tool_calls": calls, "prefix": prefix})
        if not turns or (self._version < 7 and turns[0]["role"] != "user"):
            turns.insert(0, {"role": "user", "content": [""]})
        return _JOIN.join(prompts), turns

    @property
    def _part_join(self) -> str:
        """What is written between the texts of one message."""
        return "" if self._version >= 15 else _JOIN

    def _content(self, message: Message) -> Any:
        """A message's content, after its reasoning where the format has a place for it."""
        content, reasoning = message.get("content"), message.get("reasoning_content")
        if message["role"] != "assistant" or not reasoning or not self._thinks:
            return content
        parts = cast("list[Any]", content) if isinstance(content, list) else [content]
        return [{"type": "thinking", "thinking": reasoning}, *parts]

    def _results(self, messages: list[Message], calls: list[Any]) -> list[Message]:
        """A turn for each tool's result."""
        if self._version == 1:
            raise ConversationError("This model's chat format (Mistral v1) knows no tools.")
        results = [{**m, "content": _only_text(m, self._part_join)} for m in messages]
        if self._version >= 11:
            order = {call.get("id"): i for i, call in enumerate(calls) if isinstance(call, dict)}
            results.sort(key=lambda m: order.get(m.get("tool_call_id"), len(order)))
        return results

    # Turns as segments.

    def _user(self, turn: Message, system: str) -> Segments:
        text = "".join(turn["content"])
        text = f"{system}{_JOIN}{text}" if system else text
        return [f"[INST] {text} [/INST]"] if self._version == 1 else self._between("[INST]", [text], "[/INST]")

    def _settings(self, variables: dict[str, Any]) -> Segments:
        """The model's settings, for v15."""
        unknown = variables.keys() - self.variables
        if unknown:
            raise ConversationError(f"This model's chat format is not a template: it has no variable {min(unknown)!r}.")
        if self._efforts is None:
            return []
        effort = variables.get("reasoning_effort")
        if effort is None:
            effort = self._efforts.default
        if effort not in self._efforts.values:
            known = ", ".join(self._efforts.values)
            raise ConversationError(f"This model knows no reasoning_effort {str(effort)[:50]!r}; it knows {known}.")
        return self._between("[MODEL_SETTINGS]", [_dump({"reasoning_effort": effort})], "[/MODEL_SETTINGS]")

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
            out += self._calls(cast("list[Message]", calls))
        return out if turn["prefix"] and is_last else [*out, self._control("</s>")]

    def _thinking(self, part: _Thinking) -> Segments:
        closing = [self._control("[/THINK]")] if part.closed else []
        return [self._control("[THINK]"), part.text, *closing]

    def _calls(self, calls: list[Message]) -> Segments:
        if self._version < 11:
            functions = [call["function"] for call in calls]
            listed = [
                {"name": function["name"], "arguments": function["arguments"]} | self._written_id(call)
                for function, call in zip(functions, calls, strict=True)
            ]
            return [self._control("[TOOL_CALLS]"), _dump(listed)]
        out: Segments = []
        for call in calls:
            out += [self._control("[TOOL_CALLS]"), call["function"]["name"]]
            if self._version == 11 and (written := self._written_id(call)):
                out += [self._control("[CALL_ID]"), written["id"]]
            out += [self._control("[ARGS]"), _dump(call["function"]["arguments"])]
        return out

    def _written_id(self, call: Message) -> dict[str, str]:
        call_id = call.get("id")
        if self._version <= 2 or not isinstance(call_id, str) or call_id in ("", "null"):
            return {}
        return {"id": call_id}

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


def _only_text(message: Message, join: str) -> str:
    return join.join(t for t in text_parts(message.get("content"), f"a {message['role']} message") if t)


def _parts(contents: list[Any], *, thinks: bool, join: str) -> list[str | _Thinking]:
    """Contents of one turn's messages: adjacent texts joined, by an empty line if they are of different messages,
    thoughts kept separate."""
    parts: list[str | _Thinking] = []
    for content in contents:
        between = _JOIN
        for piece in cast("list[Any]", content) if isinstance(content, list) else [content]:
            if thinks and isinstance(piece, dict) and cast("Message", piece).get("type") == "thinking":
                thought = cast("Message", piece)
                parts.append(_Thinking(str(thought.get("thinking", "")), thought.get("closed") is not False))
                continue
            for text in text_parts(piece, "a message's content"):
                if text and parts and isinstance(parts[-1], str):
                    parts[-1] += between + text
                elif text:
                    parts.append(text)
                between = join if text else between
    return parts


def _described(tools: list[Message]) -> list[Message]:
    """Tools as mistral-common describes them: always with a description, and nothing else but name and parameters."""
    functions = [tool["function"] for tool in tools]
    return [
        {
            "type": "function",
            "function": {
                "name": function["name"],
                "description": function.get("description", ""),
                "parameters": function["parameters"],
            },
        }
        for function in functions
    ]


def _load(text: str) -> Any:
    """JSON text as its value, an empty text as {}, any other text as itself."""
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
