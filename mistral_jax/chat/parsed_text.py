"""Raw texts whose control tokens count as such, as llama.cpp and transformers read them.

For callers who write a prompt with its control tokens themselves. In chat messages and in prompts of OpenAI's endpoints
`[INST]` is always text; see `mistral_jax.chat.trusted`.
"""

from __future__ import annotations

import functools
from collections.abc import Generator
from typing import Any

import re2

from mistral_jax.chat.encoding import PromptPieces, Segments, by_template
from mistral_jax.chat.trusted import ControlToken
from mistral_jax.tokenizer.base import Tokenizer

_TURN = 4096
"""Control tokens found between two yields: about thirty milliseconds."""


def raw_pieces(
    tokenizer: Tokenizer, text: str, *, add_special: bool, parse_special: bool
) -> Generator[None, None, PromptPieces]:
    """The pieces of a raw text. A generator that yields wherever others may have a turn, and returns them.

    Args:
      add_special: begin with BOS, if the model's raw prompts do; not a second one where the text begins with it.
      parse_special: read the control tokens that the text spells.
    """
    segments: Segments = [text] if text else []
    if parse_special:
        segments = yield from _split(tokenizer, text)
    bos = tokenizer.bos_id
    if add_special and tokenizer.add_bos and bos is not None:
        first = segments[0] if segments else None
        if not (isinstance(first, ControlToken) and first.id == bos):
            segments.insert(0, ControlToken("", bos))
    return by_template(segments, tokenizer)


def _split(tokenizer: Tokenizer, text: str) -> Generator[None, None, Segments]:
    """The control tokens in a text and the texts between them, none of them empty; the longest token where several
    match."""
    tokens, pattern = _control_tokens(tokenizer)
    segments: Segments = []
    end = 0
    # One match at a time, so that other threads can run between two of them.
    for count, match in enumerate(pattern.finditer(text)):
        if between := text[end : match.start()]:
            segments.append(between)
        segments.append(tokens[match.group()])
        end = match.end()
        if count % _TURN == _TURN - 1:
            yield
    if rest := text[end:]:
        segments.append(rest)
    return segments


@functools.lru_cache(maxsize=4)
def _control_tokens(tokenizer: Tokenizer) -> tuple[dict[str, ControlToken], Any]:
    """The control tokens of a vocabulary by name, and a pattern that matches each, in time that does not depend on
    their number: Python's own engine would try them one after another at every `[`."""
    tokens = {name: ControlToken(name, id) for name, id in tokenizer.control_tokens.items() if name}
    options = re2.Options()
    options.max_mem = 2**24
    options.log_errors = False
    # What matches nothing, where there are no control tokens.
    longest_first = sorted(tokens, key=len, reverse=True)
    return tokens, re2.compile("|".join(map(re2.escape, longest_first)) or r"[^\x00-\x{10FFFF}]", options)
