"""The process that compiles and renders chat templates: reads requests on standard input, replies on standard output.

`render_process` starts it, and has the other half of this protocol:

    request    8 bytes of length, then a marshalled tuple
               ("compile", key, source, mark, control tokens, most characters, seconds)
               ("render", key, variables)
    answer     1 byte of kind, 8 bytes of length, then UTF-8: the prompt; for "compile" two digits (reads parts, reads
               strings) and the names that the template reads, with spaces between them

It imports only the sandbox, so that it starts fast and exposes little to a template that escapes. It may not open files
for writing, start processes, or exceed its memory limit. It ends when its standard input closes, that is, with its
parent.
"""

from __future__ import annotations

import contextlib
import marshal
import math
import os
from typing import Any, BinaryIO

from mistral_jax.chat.errors import ChatTemplateError, ConversationError
from mistral_jax.chat.template import ChatTemplate
from mistral_jax.chat.trusted import ControlMarks

try:
    import resource
except ImportError:  # Windows has no such limits; there only the parent's watch applies
    resource = None

DONE, REFUSED, FAILED, EXHAUSTED = b"d", b"r", b"f", b"x"
"""Kinds of replies: a text; the template refuses the conversation; it fails; it fails and this process ends."""

LONGEST_MESSAGE = 2000
"""Most characters of an error: a template may raise a text of any length."""

_MAX_DESCRIPTORS = 16


def main(memory: int) -> None:
    """Serves requests until standard input ends.

    Args:
      memory: bytes of address space that this process may take.
    """
    _renounce(memory)
    requests, answers = os.fdopen(0, "rb"), os.fdopen(1, "wb")
    templates: dict[int, tuple[ChatTemplate, float]] = {}
    while len(size := requests.read(8)) == 8:
        try:
            kind, text = _answer(requests.read(int.from_bytes(size, "little")), templates)
            data = text.encode("utf-8", "surrogatepass")
        except MemoryError:
            kind, data = EXHAUSTED, b"The chat template was stopped: MemoryError."
        try:
            _write(answers, kind, data)
        except BrokenPipeError:  # the parent no longer waits for it
            os._exit(0)
        if kind == EXHAUSTED:
            os._exit(0)


def _answer(request: bytes, templates: dict[int, tuple[ChatTemplate, float]]) -> tuple[bytes, str]:
    verb, key, *rest = marshal.loads(request)
    try:
        if verb == "compile":
            source, mark, control_tokens, max_text, seconds = rest
            _limit_time(seconds)
            marks = ControlMarks(dict.fromkeys(control_tokens, 0), mark=mark)
            template = ChatTemplate(source, marks, max_text=max_text, time_limit=seconds)
            templates[key] = template, seconds
            return DONE, f"{template.reads_parts:d}{template.reads_strings:d}{' '.join(template.names)}"
        template, seconds = templates[key]
        _limit_time(seconds)
        return DONE, template.render(rest[0])
    except ChatTemplateError as error:
        if isinstance(error.__cause__, MemoryError):
            return EXHAUSTED, one_line(error)
        return (REFUSED if isinstance(error, ConversationError) else FAILED), one_line(error)


def one_line(error: Exception) -> str:
    """An error's message without line breaks, and bounded."""
    text = str(error)
    shown = " ".join(text[: LONGEST_MESSAGE + 1].split())
    return shown if len(text) <= LONGEST_MESSAGE else f"{shown[:LONGEST_MESSAGE]} ..."


def _renounce(memory: int) -> None:
    """Drops, for good, privileges that rendering never needs."""
    if resource is None:
        return
    limits = {
        "RLIMIT_AS": memory,
        "RLIMIT_CORE": 0,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_NPROC": 0,
        "RLIMIT_NOFILE": _MAX_DESCRIPTORS,
    }
    for name, most in limits.items():
        # Not every system has or enforces each of them.
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (most, most))


def _limit_time(seconds: float) -> None:
    """Lets the system end this process if it computes for `seconds` and more, in case the parent is gone."""
    if resource is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        until = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CPU, (until, hard))


def _write(answers: BinaryIO, kind: bytes, data: bytes) -> None:
    answers.write(kind + len(data).to_bytes(8, "little"))
    answers.write(data)
    answers.flush()


def request_bytes(*parts: Any) -> bytes:
    """A request as it is sent.

    Raises:
      ValueError: it is nested too deeply.
    """
    data = marshal.dumps(parts)
    return len(data).to_bytes(8, "little") + data
