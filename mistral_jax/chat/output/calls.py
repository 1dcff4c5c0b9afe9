"""Reading the calls of a completion, one class for each shape of format.

A call *begins* when its name and the first character of its arguments are known; from then on its arguments are passed
on as the model wrote them. What is read before that is kept: if it turns out to be no call, it is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from typing import Protocol, cast

from mistral_jax.chat.output.call_ids import is_short_id
from mistral_jax.chat.output.deltas import CallArguments, CallBegin, Delta
from mistral_jax.chat.output.formats import CallShape, Marker, ToolFormat
from mistral_jax.chat.output.scanning import WHITESPACE, MarkerScanner, ObjectScanner

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_MOST = 512
"""Most characters of a name, key or id in JSON: a longer one is no call."""


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


class CallReader(Protocol):
    """Reads the calls after one opening."""

    ended: bool
    """Whether nothing more belongs to them. What is left in the sink's `pending` is text then."""

    def text(self, text: str) -> str:
        """Takes the next text; returns the rest that does not belong to the calls."""
        ...

    def marker(self, token: int) -> None:
        """Takes a control token, which may mean nothing here."""
        ...

    def finish(self) -> None:
        """The text is over, or other calls begin."""
        ...


def reader_of(tool_format: ToolFormat, sink: CallSink) -> CallReader:
    """The reader of a format."""
    kinds = {
        CallShape.ARRAY: ArrayReader,
        CallShape.NAMED: NamedReader,
        CallShape.TAGGED: TaggedReader,
        CallShape.BARE: BareReader,
    }
    return cast("CallReader", kinds[tool_format.shape](tool_format, sink))


class _CallObject:
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
        """After the end of the text, of a call that has begun nothing is missing that could be given back."""
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
        if len(self._string) > _MOST:
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


class ArrayReader:
    """`[{…}, {…}]`."""

    def __init__(self, tool_format: ToolFormat, sink: CallSink) -> None:
        del tool_format
        self._sink = sink
        self._state = "start"
        self._object: _CallObject | None = None
        self.ended = False

    def text(self, text: str) -> str:
        position = 0
        while position < len(text) and not self.ended:
            if self._object is not None:
                rest = self._object.text(text[position:])
                position = len(text) - len(rest)
                if self._object.spills:
                    self._sink.arguments(rest)
                    return ""
                if self._object.broken:
                    self.ended = True
                elif self._object.ended:
                    self._object, self._state = None, "separator"
                continue
            character = text[position]
            self._sink.pending.append(character)
            position += 1
            if character in WHITESPACE:
                continue
            if (self._state, character) in (("start", "["), ("separator", ",")):
                self._object = _CallObject(self._sink)
            else:
                if (self._state, character) == ("separator", "]"):
                    self._sink.pending.clear()
                self.ended = True
        return text[position:]

    def marker(self, token: int) -> None:
        del token

    def finish(self) -> None:
        self.ended = True
        if self._object is not None:
            self._object.finish()


class TaggedReader:
    """`{…}` and a closing."""

    def __init__(self, tool_format: ToolFormat, sink: CallSink) -> None:
        assert tool_format.closing is not None
        self._sink = sink
        self._closing: Marker = tool_format.closing
        self._scanner = MarkerScanner([self._closing.text] if self._closing.id is None else [])
        self._object = _CallObject(sink)
        self.ended = False

    def text(self, text: str) -> str:
        if not (self._object.ended or self._object.spills):
            text = self._object.text(text)
            self.ended = self._object.broken
            if self.ended or not text:
                return text
        if self._object.spills:
            before, closing, rest = self._scanner.push(text)
            self._sink.arguments(before)
            self.ended = closing is not None
            return rest
        return self._until_closing(text)

    def _until_closing(self, text: str) -> str:
        """Nothing but whitespace may come before the closing."""
        held = self._scanner.held
        if not held:
            begin = text.lstrip(WHITESPACE)
            self._sink.pending.append(text[: len(text) - len(begin)])
            text = begin
        before, closing, rest = self._scanner.push(text)
        if before:  # no closing: it belongs to what follows
            self._scanner.flush()
            self.ended = True
            return held + text
        if closing is not None:
            self._sink.pending.clear()
            self.ended = True
        return rest

    def marker(self, token: int) -> None:
        if token == self._closing.id:
            self.finish()

    def finish(self) -> None:
        self.ended = True
        held = self._scanner.flush()
        if self._object.spills:
            self._sink.arguments(held)
        self._object.finish()


class BareReader:
    """`{…}`, perhaps several, with semicolons between them."""

    def __init__(self, tool_format: ToolFormat, sink: CallSink) -> None:
        del tool_format
        self._sink = sink
        self._object: _CallObject | None = _CallObject(sink)
        self.ended = False

    def text(self, text: str) -> str:
        while text and not self.ended:
            if self._object is not None:
                text = self._object.text(text)
                if self._object.spills:
                    self._sink.arguments(text)
                    return ""
                self.ended = self._object.broken
                if self._object.ended:
                    self._object = None
                continue
            if text[0] in WHITESPACE or text[0] == ";":
                self._sink.pending.append(text[0])
                text = text[1:]
            elif text[0] == "{":
                self._object = _CallObject(self._sink)
            else:
                self.ended = True
        return text

    def marker(self, token: int) -> None:
        del token

    def finish(self) -> None:
        self.ended = True
        if self._object is not None:
            self._object.finish()
        elif not "".join(self._sink.pending).strip(WHITESPACE + ";"):
            self._sink.pending.clear()


class NamedReader:
    """Name, perhaps `[CALL_ID]` and an id, `[ARGS]`, `{…}`.

    Models of these formats that were trained on earlier ones may still write a list after the opening: that is read
    too.
    """

    def __init__(self, tool_format: ToolFormat, sink: CallSink) -> None:
        assert tool_format.before_arguments is not None
        assert tool_format.before_id is not None
        self._sink = sink
        self._format = tool_format
        self._before_arguments = tool_format.before_arguments
        self._before_id = tool_format.before_id
        markers = [m.text for m in (self._before_arguments, self._before_id) if m.id is None]
        self._scanner = MarkerScanner(markers)
        self._phase = "name"
        self._header = {"name": "", "id": ""}
        self._arguments = ObjectScanner()
        self._list: ArrayReader | None = None
        self.ended = False

    def text(self, text: str) -> str:
        while text and not self.ended:
            if self._list is not None:
                text = self._list.text(text)
                self.ended = self._list.ended
            elif self._phase in self._header:
                text = self._header_text(text)
            elif self._phase == "arguments":
                text = self._first_of_arguments(text)
            elif self._arguments.broken:
                self._sink.arguments(text)
                text = ""
            else:
                end = self._arguments.push(text)
                self._sink.arguments(text[:end])
                text = text[end:]
                self.ended = self._arguments.ended
        return text

    def _header_text(self, text: str) -> str:
        """Takes text before the arguments, up to a marker, or up to what cannot be part of a name or id."""
        if self._phase == "name" and not self._header["name"].strip(WHITESPACE) and not self._scanner.held:
            begin = text.lstrip(WHITESPACE)
            if begin.startswith("[") and self._before_arguments.id is not None:
                self._list = ArrayReader(self._format, self._sink)
                return text
        held = self._scanner.held
        before, marker, rest = self._scanner.push(text)
        for count, character in enumerate(before, 1):
            self._header[self._phase] += character
            if not self._may_be_header():
                self._scanner.flush()
                self._sink.pending += self._header[self._phase][len(self._header[self._phase]) - count :]
                self.ended = True
                return (held + text)[count:]
        self._sink.pending.append(before)
        if marker is not None:
            self._sink.pending.append(marker)
            self._next_phase(marker)
        return rest

    def _may_be_header(self) -> bool:
        """Whether the name or the id so far may be one."""
        text = self._header[self._phase].lstrip(WHITESPACE)
        word = text.rstrip(WHITESPACE)
        if self._phase == "name":
            return len(text) < _MOST and (not word or _NAME.fullmatch(word) is not None)
        return len(text) < _MOST

    def marker(self, token: int) -> None:
        if self._list is None and self._phase in self._header:
            for marker in (self._before_arguments, self._before_id):
                if marker.id == token:
                    # What the scanner holds back cannot become a marker across a control token.
                    self._header[self._phase] += (held := self._scanner.flush())
                    self._sink.pending.append(held)
                    self._next_phase(marker.text)

    def _next_phase(self, marker: str) -> None:
        known = self._sink.knows(self._header["name"].strip(WHITESPACE))
        if not known or (marker == self._before_id.text and self._phase == "id"):
            self.ended = True
        else:
            self._phase = "id" if marker == self._before_id.text else "arguments"

    def _first_of_arguments(self, text: str) -> str:
        begin = text.lstrip(WHITESPACE)
        self._sink.pending.append(text[: len(text) - len(begin)])
        if not begin:
            return ""
        if not begin.startswith("{"):
            self.ended = True
            return begin
        call_id = self._header["id"].strip(WHITESPACE)
        self._sink.begin(self._header["name"].strip(WHITESPACE), call_id or None)
        self._phase = "in arguments"
        return begin

    def finish(self) -> None:
        self.ended = True
        if self._list is not None:
            self._list.finish()
        else:
            self._sink.pending.append(self._scanner.flush())
