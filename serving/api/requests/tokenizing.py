"""Texts to token ids and back, for callers who want the ids themselves: in time slices, and as JSON that is encoded
while the ids arrive, because a text may have millions."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import msgspec

from mistral_jax.chat.encoding import PromptPieces
from mistral_jax.text.detokenizer import IncrementalDetokenizer
from mistral_jax.tokenizer.base import Tokenizer
from serving.api.errors import InvalidRequestError

MAX_TOKENS = 2**21
"""Most tokens of one response: with their texts about a hundred megabytes of JSON."""
_TURN = 4096
"""Tokens decoded between two yields."""

Column = Callable[[list[int]], list[Any]]
"""What a response has for each of some tokens."""


def columns_of(
    pieces: PromptPieces, *columns: Column, param: str
) -> Generator[None, None, tuple[int, list[msgspec.Raw]]]:
    """Encode a text. Returns the number of its tokens, and each column as a JSON list. Yields between pieces.

    Args:
      param: the field that errors name.

    Raises:
      InvalidRequestError: the text cannot be encoded, or has more than `MAX_TOKENS` tokens.
    """
    parts: list[list[bytes]] = [[] for _ in columns]
    count = 0
    try:
        for piece in pieces.pieces:
            count += len(piece)
            if max(count, pieces.least) > MAX_TOKENS:
                raise InvalidRequestError(
                    f"{param}: more than {MAX_TOKENS} tokens, the most that one request may ask for; send it in parts",
                    param=param,
                )
            if piece:
                for part, column in zip(parts, columns, strict=True):
                    part.append(msgspec.json.encode(column(piece))[1:-1])
            yield
    except ValueError as error:
        raise InvalidRequestError(f"{param}: {error}", param=param, code="invalid_prompt") from error
    return count, [msgspec.Raw(b"[" + b",".join(part) + b"]") for part in parts]


def decoded(tokenizer: Tokenizer, tokens: Sequence[int]) -> Generator[None, None, str]:
    """The text of tokens, control tokens by name. Yields between some thousands.

    Raises:
      InvalidRequestError: an id is outside the vocabulary.
    """
    names = {token: name for name, token in tokenizer.control_tokens.items()}
    detokenizer = IncrementalDetokenizer(tokenizer)
    texts: list[str] = []
    for start in range(0, len(tokens), _TURN):
        part = tokens[start : start + _TURN]
        wrong = [token for token in part if not 0 <= token < tokenizer.vocab_size][:10]
        if wrong:
            raise InvalidRequestError(
                f"tokens: ids {wrong} are outside the vocabulary of {tokenizer.vocab_size}", param="tokens"
            )
        for token in part:
            if token in names:
                texts.append(detokenizer.flush() + names[token])
            else:
                texts.append(detokenizer.push(token))
        yield
    texts.append(detokenizer.flush())
    return "".join(texts)


def token_piece(tokenizer: Tokenizer, token: int) -> str | list[int]:
    """The text that a token adds, control tokens by name; its bytes if they are not UTF-8 by themselves."""
    raw = tokenizer.token_bytes(token)
    if not raw:
        return tokenizer.token_text(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)
