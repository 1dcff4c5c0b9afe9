"""Running our grammars with llguidance, over our tokenizers."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import llguidance
import numpy as np

from mistral_jax.tokenizer.byte_table import ByteTableTokenizer
from tests.mistral_jax.chat.output.completions import Items


class _Vocabulary:
    """What llguidance wants to know about a tokenizer."""

    def __init__(self, tokenizer: ByteTableTokenizer) -> None:
        control = set(tokenizer.control_tokens.values())
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = tokenizer.bos_id
        self.special_token_ids = sorted(control)
        self.tokens = [
            tokenizer.token_text(i).encode() if i in control else tokenizer.token_bytes(i)
            for i in range(tokenizer.vocab_size)
        ]

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode(text.decode() if isinstance(text, bytes) else text, at_start=False)


@cache
def compiled(tokenizer: ByteTableTokenizer) -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Vocabulary(tokenizer)), slices=[])


type Parts = tuple[tuple[str, str], ...]
"""Names that a grammar refers to, and the JSON schemas they stand for."""

_WRITTEN_AS_BY_PYTHON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def matcher(tokenizer: ByteTableTokenizer, grammar: str, parts: Parts = ()) -> llguidance.LLMatcher:
    grammars: list[dict[str, Any]] = [{"name": "start", "lark_grammar": grammar}]
    for name, schema in parts:
        grammars.append({"name": name, "json_schema": {**json.loads(schema), "x-guidance": _WRITTEN_AS_BY_PYTHON}})
    made = llguidance.LLMatcher(compiled(tokenizer), json.dumps({"grammars": grammars}), log_level=0)
    assert not made.is_error(), made.get_error()
    return made


def tokens_of(tokenizer: ByteTableTokenizer, items: Items) -> list[int]:
    ids: list[int] = []
    for item in items:
        ids += [item] if isinstance(item, int) else tokenizer.encode(item, at_start=False)
    return ids


def accepts(tokenizer: ByteTableTokenizer, grammar: str, items: Items, parts: Parts = ()) -> bool:
    """Whether a completion is one of the grammar's, whole."""
    tokens, match = tokens_of(tokenizer, items), matcher(tokenizer, grammar, parts)
    return match.try_consume_tokens(tokens) == len(tokens) and match.is_accepting()


def items_of(tokenizer: ByteTableTokenizer, tokens: Sequence[int]) -> Items:
    """Tokens as a parser gets them."""
    control = set(tokenizer.control_tokens.values())
    items: Items = []
    text: list[int] = []
    for token in [*tokens, None]:
        if token is None or token in control:
            if text:
                items.append(b"".join(map(tokenizer.token_bytes, text)).decode("utf-8", "replace"))
            text = []
            if token is not None:
                items.append(token)
        else:
            text.append(token)
    return items


def sampled(
    tokenizer: ByteTableTokenizer, grammar: str, parts: Parts, rng: random.Random, most: int = 500
) -> Items | None:
    """A completion of allowed tokens, chosen at random but with a preference for those that close something; None: it
    did not end."""
    match = matcher(tokenizer, grammar, parts)
    end = tokenizer.eos_id
    tokens: list[int] = []
    while len(tokens) < most:
        forced = match.compute_ff_tokens()
        if forced:
            tokens += forced
            assert match.consume_tokens(forced)
            continue
        bits = np.frombuffer(match.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist()
        if match.is_stopped() or (end in allowed and rng.random() < 0.3):
            return items_of(tokenizer, tokens)
        allowed = [token for token in allowed if token != end]
        if not allowed:
            return items_of(tokenizer, tokens)
        closing = [t for t in allowed if any(c in b'"}],:' for c in tokenizer.token_bytes(t))]
        token = rng.choice(closing if closing and rng.random() < 0.8 else allowed)
        tokens.append(token)
        assert match.consume_token(token)
    return None
