"""How much JSON one body may hold. It is counted before it is decoded.

Decoding holds the interpreter from beginning to end, and with it the event loop, whatever thread it runs in. Its time
goes by the number of values and not by the number of bytes: two and a half million lists of one token take ten
megabytes and 1.5 seconds, one text of ten megabytes takes 10 milliseconds. So the numbers are bounded. What is counted
stands outside of strings: brackets and commas in a text are text.
"""

from __future__ import annotations

from serving.api.errors import InvalidRequestError

MAX_CONTAINERS = 65_536
"""Lists and objects: messages, their parts, prompts."""
MAX_NAMES = 131_072
"""Names of fields in all objects together, the keys of `logit_bias` among them."""
MAX_STRINGS = 262_144
"""Strings, names included."""
MAX_VALUES = 1_048_576
"""Values: numbers above all, which is to say token ids."""
MAX_FIELDS = 512
"""Fields of the body's own object."""

UNCOUNTED = 32_768
"""Bodies of at most so many bytes are not counted: they cannot hold much."""

_BLOCK = 1 << 18


def check_bounds(body: bytes) -> None:
    """Refuse a body that holds more than the limits. Takes about 3 ms for a megabyte, and lets other threads run in
    between.

    The body need not be valid JSON; of one that is not, the numbers mean little and stay below those of its brackets
    and commas.

    Raises:
      InvalidRequestError: it says what there is too much of.
    """
    if len(body) <= UNCOUNTED:
        return
    containers = names = quotes = values = 0
    in_string = False
    start = 0
    while start < len(body):
        block = body[start : start + _BLOCK]
        start += len(block)
        if (len(block) - len(block.rstrip(b"\\"))) % 2:  # the last backslash escapes the first byte of the next block
            block += body[start : start + 1]
            start += 1
        # Without pairs of backslashes and escaped quotes, every quote begins or ends a string.
        block = block.replace(b"\\\\", b"").replace(b'\\"', b"")
        found = block.count(b'"')
        quotes += found
        _check("strings", quotes // 2, MAX_STRINGS)
        outside = b"".join(block.split(b'"')[1 if in_string else 0 :: 2])
        in_string ^= bool(found % 2)
        containers += outside.count(b"[") + outside.count(b"{")
        names += outside.count(b":")
        values += outside.count(b",")
        _check("lists and objects", containers, MAX_CONTAINERS)
        _check("names of fields", names, MAX_NAMES)
        _check("values", values, MAX_VALUES)


def check_fields(number: int) -> None:
    """Refuse a body with so many fields of its own.

    Raises:
      InvalidRequestError: they are too many.
    """
    _check("fields", number, MAX_FIELDS)


def _check(what: str, number: int, limit: int) -> None:
    if number > limit:
        raise InvalidRequestError(
            f"the body has more than {limit} {what}, the most that one request may have; send several requests",
            code="body_too_complex",
        )
