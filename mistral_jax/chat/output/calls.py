"""Reading the calls of a completion, one class for each shape of format.

A call *begins* when its name and the first character of its arguments are known; from then on its arguments are passed
on as the model wrote them. What is read before that is kept: if it turns out to be no call, it is text.
"""

from __future__ import annotations

import re
from typing import Protocol, cast

from mistral_jax.chat.output.call_object import MOST, CallObject, CallSink
from mistral_jax.chat.output.formats import CallShape, Marker, ToolFormat
from mistral_jax.chat.output.scanning import WHITESPACE, MarkerScanner, ObjectScanner

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


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


class ArrayReader:
    """`[{…}, {…}]`."""

    def __init__(self, tool_format: ToolFormat, sink: CallSink) -> None:
        del tool_format
        self._sink = sink
        self._state = "start"
        self._object: CallObject | None = None
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
                self._object = CallObject(self._sink)
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
        self._object = CallObject(sink)
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
        self._object: CallObject | None = CallObject(sink)
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
                self._object = CallObject(self._sink)
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
            return len(text) < MOST and (not word or _NAME.fullmatch(word) is not None)
        return len(text) < MOST

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
