"""Limits on the amount of JSON in a body, checked by counting before it is decoded.

Decoding holds the interpreter lock until it ends, and so blocks the event loop, in whatever thread it runs. Its time
depends on the number of values, not of bytes: two and a half million lists of one token take ten megabytes and 1.5
seconds, one string of ten megabytes takes 10 milliseconds. So the counts are limited. Brackets and commas inside
strings do not count.
"""

from __future__ import annotations

from serving.api.errors import InvalidRequestError

MAX_CONTAINERS = 65_536
"""Lists and objects: messages, their parts, prompts."""
MAX_NAMES = 131_072
"""Field names in all objects together, the keys of `logit_bias` included."""
MAX_STRINGS = 262_144
"""Strings, field names included."""
MAX_VALUES = 1_048_576
"""Values: mainly numbers, that is token ids."""
MAX_DEPTH = 128
"""Levels of lists and objects: what reads them goes through them recursively. Schemas may have 100 of their own."""
MAX_FIELDS = 512
"""Fields of the top-level object."""

UNCOUNTED = 32_768
"""Bodies of at most this many bytes cannot hold much: only the levels in them are counted, if there can be many."""

_BLOCK = 1 << 18
_ALIKE = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


def check_bounds(body: bytes) -> None:
    """Refuse a body that exceeds the limits. Takes about 3 ms per megabyte, and lets other threads run in between.

    The body need not be valid JSON; if it is not, the counts mean little, but never exceed the brackets and commas in
    it.

    Raises:
      InvalidRequestError: a limit is exceeded; the message names it.
    """
    if len(body) <= UNCOUNTED and body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    brackets = bytearray()
    containers = names = quotes = values = 0
    in_string = False
    start = 0
    while start < len(body):
        block = body[start : start + _BLOCK]
        start += len(block)
        if (len(block) - len(block.rstrip(b"\\"))) % 2:  # the last backslash escapes the first byte of the next block
            block += body[start : start + 1]
            start += 1
        # With escaped backslashes and quotes removed, every quote begins or ends a string.
        block = block.replace(b"\\\\", b"").replace(b'\\"', b"")
        found = block.count(b'"')
        quotes += found
        _check("strings", quotes // 2, MAX_STRINGS)
        outside = b"".join(block.split(b'"')[1 if in_string else 0 :: 2])
        in_string ^= bool(found % 2)
        found_here = outside.translate(_ALIKE, _NO_BRACKETS)
        containers += found_here.count(b"[")
        names += outside.count(b":")
        values += outside.count(b",")
        _check("lists and objects", containers, MAX_CONTAINERS)
        _check("names of fields", names, MAX_NAMES)
        _check("values", values, MAX_VALUES)
        if len(brackets) <= 2 * MAX_CONTAINERS:  # more cannot be JSON
            brackets += found_here
    _check("levels of lists and objects", _levels(bytes(brackets)), MAX_DEPTH)


def _levels(brackets: bytes) -> int:
    """How deep brackets stand in each other; stops counting beyond the limit."""
    levels = 0
    while levels <= MAX_DEPTH and b"[]" in brackets:
        brackets = brackets.replace(b"[]", b"")  # the innermost pairs
        levels += 1
    return levels


def check_fields(number: int) -> None:
    """Refuse a body with this many top-level fields, if they are too many.

    Raises:
      InvalidRequestError: they are.
    """
    _check("fields", number, MAX_FIELDS)


def _check(what: str, number: int, limit: int) -> None:
    if number > limit:
        raise InvalidRequestError(
            f"the body has more than {limit} {what}, the most that one request may have; send several requests",
            code="body_too_complex",
        )
