"""Bounds on the steps of a tokenizer.json: how many there are, and how much longer they may make a text.

A step may replace a character by several, and the next step each of those again: 30 steps that double a text make a
word of it fill any memory, and the library that runs them ends the process then. Byte-level steps double what is not
ASCII, so a file has at most one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from conversion.tokenizer.files import TokenizerError

MOST_STEPS = 64
"""Of the normaliser and the pre-tokenizer together; files of real models have up to ten."""
MOST_GROWTH = 1024
"""Most bytes that may become of one byte."""
_LISTS = ("normalizers", "pretokenizers")


def check_pipeline(data: Mapping[str, Any], source: str) -> None:
    """Whether the normaliser and the pre-tokenizer of a tokenizer.json are within bounds.

    Raises:
      TokenizerError: they are not; the message says in what.
    """
    steps = [step for key in ("normalizer", "pre_tokenizer") for step in _steps(data.get(key))]
    if len(steps) > MOST_STEPS:
        raise TokenizerError(f"{source} has {len(steps)} steps before its vocabulary; expected at most {MOST_STEPS}.")
    byte_level = sum(step.get("type") == "ByteLevel" for step in steps)
    if byte_level > 1:
        raise TokenizerError(f"{source} has {byte_level} ByteLevel steps, where one does all there is to do.")
    growth = 1
    for step in steps:
        growth *= _growth(step)
        if growth > MOST_GROWTH:
            raise TokenizerError(
                f"{source} has replacements that can make a text more than {MOST_GROWTH} times as long as it was."
            )


def _steps(step: Any) -> Iterator[Mapping[str, Any]]:
    """A step, or those of a sequence."""
    if not isinstance(step, dict):
        return
    found = cast("Mapping[str, Any]", step)
    inner = [part for key in _LISTS for part in (found[key] if isinstance(found.get(key), list) else ())]
    if not inner:
        yield found
    for part in inner:
        yield from _steps(part)


def _growth(step: Mapping[str, Any]) -> int:
    """The most bytes that a step can make of one byte."""
    content = step.get("content")
    if step.get("type") != "Replace" or not isinstance(content, str):
        return 1
    pattern = step.get("pattern")
    found: Any = cast("Mapping[str, Any]", pattern).get("String") if isinstance(pattern, dict) else None
    size = len(content.encode(errors="surrogatepass"))
    if isinstance(found, str) and found:
        return max(1, -(-size // len(found.encode(errors="surrogatepass"))))
    # An expression may match nothing at all, before each byte.
    return 1 + size
