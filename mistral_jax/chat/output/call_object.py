"""One call as a JSON object, read character by character, and what becomes of the calls that are found."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import cast

from mistral_jax.chat.output.call_ids import is_short_id
from mistral_jax.chat.output.deltas import CallArguments, CallBegin, Delta
from mistral_jax.chat.output.formats import ToolFormat
from mistral_jax.chat.output.scanning import WHITESPACE, ObjectScanner

MOST = 512
"""Most characters of a name, key or id: a longer one is no call."""


class CallSink:
    """Takes the calls that readers find: numbers them, and gives them ids."""

    def __init__(
        self, emit: Callable[[Delta], None], tools: Collection[str], tool_format: ToolFormat, new_id: Callable[[], str]
    ) -> None:
        self._emit = emit
        self._tools = frozenset(tools)
        self._new_id = new_id
        self._ids: set[str] = set()
        self.arguments_keys = ("arguments", "parameters")
        self.pending: list[str] = []
        """The text since the last call began, without the arguments: what to give back if no further call follows."""
        self.count = 0
        """Calls so far."""
        self._short = tool_format.short_ids

    def knows(self, name: str) -> bool:
        """Whether there is a tool of this name."""
        return name in self._tools

    def begin(self, name: str, call_id: str | None = None) -> None:
        """A call begins. An id of the model's own is used if it has the right form and is new."""
        if call_id is None or call_id in self._ids or not (self._short and is_short_id(call_id)):
            call_id = self._new_id()
        self._ids.add(call_id)
        self.pending.clear()
        self._emit(CallBegin(self.count, call_id, name))
        self.count += 1

    def arguments(self, text: str) -> None:
        """More of the arguments of the call that began last."""
        if text:
            self._emit(CallArguments(self.count - 1, text))


class CallObject:
    """Reads `{"name": …, "arguments": {…}}`, with the keys in any order, and perhaps an id and a type."""

    def __init__(self, sink: CallSink) -> None:
        self._sink = sink
        self._state = "start"
        self._string: list[str] | None = None
        self._escaped = False
        self._key = ""
        self._keys: set[str] = set()
        self._name: str | None = None
        self._scanner: ObjectScanner | None = None
        self._early: list[str] = []
        """Arguments that came before the name."""
        self.begun = self.ended = self.broken = False
        self.spills = False
        """Whether the arguments of a call that has begun have no end: they take all that follows."""

    def text(self, text: str) -> str:
        """Takes the next text; returns what is left of it when the object has ended, or has turned out to be none."""
        position = 0
        while position < len(text) and not (self.ended or self.broken or self.spills):
            if self._scanner is None:
                self._sink.pending.append(text[position])
                self._character(text[position])
                position += 1
                continue
            end = self._scanner.push(text, position)
            self._take_arguments(text[position:end])
            position = end
            if self._scanner.broken:
                self.spills = self.begun
                self.broken = not self.begun
            elif self._scanner.ended:
                self._scanner, self._state = None, "after"
        return text[position:]

    def finish(self) -> None:
        """The text is over. What a call that has begun still lacks is nothing that could be given back."""
        if self.begun:
            self._sink.pending.clear()

    def _take_arguments(self, text: str) -> None:
        if self.begun:
            self._sink.arguments(text)
        else:
            self._early.append(text)
            self._sink.pending.append(text)

    def _character(self, character: str) -> None:
        if self._string is not None:
            self._in_string(character)
        elif character in WHITESPACE:
            pass
        elif self._state == "start" and character == "{":
            self._state = "first key"
        elif self._state in ("first key", "key") and character == '"':
            self._string = [character]
        elif self._state == "colon" and character == ":":
            self._state = "value"
        elif self._state == "value" and self._key in self._sink.arguments_keys and character == "{":
            self._sink.pending.pop()  # taken again as part of the arguments
            self._scanner = ObjectScanner()
            if self._name is not None:
                self._begin()
            self._scanner.push(character)
            self._take_arguments(character)
        elif self._state == "value" and self._key not in self._sink.arguments_keys and character == '"':
            self._string = [character]
        elif self._state == "after" and character == ",":
            self._state = "key"
        elif self._state == "after" and character == "}" and self._name is not None:
            if not self.begun:
                self._begin()
                self._sink.arguments("{}")
            self._sink.pending.clear()
            self.ended = True
        else:
            self.broken = True

    def _in_string(self, character: str) -> None:
        assert self._string is not None
        self._string.append(character)
        if len(self._string) > MOST:
            self.broken = True
        elif self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            try:
                value = cast("str", json.loads("".join(self._string)))
            except ValueError:
                self.broken = True
                return
            self._string = None
            self._whole_string(value)

    def _whole_string(self, value: str) -> None:
        if self._state in ("first key", "key"):
            kind = "arguments" if value in self._sink.arguments_keys else value
            if kind not in ("name", "arguments", "id", "type") or kind in self._keys:
                self.broken = True
                return
            self._key, self._state = value, "colon"
            self._keys.add(kind)
            return
        self._state = "after"
        if self._key == "name":
            self._name = value
            if not self._sink.knows(value):
                self.broken = True
            elif self._early:
                self._begin()
                self._sink.arguments("".join(self._early))

    def _begin(self) -> None:
        assert self._name is not None
        self.begun = True
        self._sink.begin(self._name)
