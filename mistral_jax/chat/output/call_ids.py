"""Ids of tool calls.

OpenAI's are any text; Mistral's models know ids of nine letters and digits. New ids have the form that the model knows.
An id of another form, from a client that began the conversation with another model, is replaced in the prompt by nine
characters that depend on it alone: a call and its result still have the same one, in every request.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string

SHORT = 9
"""Characters of an id that Mistral's models know."""

_LETTERS = string.ascii_letters + string.digits
_SHORT = re.compile(f"[a-zA-Z0-9]{{{SHORT}}}")


def new_call_id(*, short: bool) -> str:
    """A random id: nine characters, or one such as OpenAI's."""
    if short:
        return "".join(secrets.choice(_LETTERS) for _ in range(SHORT))
    return f"call_{secrets.token_hex(12)}"


def is_short_id(call_id: str) -> bool:
    """Whether an id has the form that Mistral's models know."""
    return _SHORT.fullmatch(call_id) is not None


def short_call_id(call_id: str) -> str:
    """The id that stands for this one in a prompt of Mistral's: itself if it has the form, else a digest of it."""
    if is_short_id(call_id):
        return call_id
    number = int.from_bytes(hashlib.blake2b(call_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
    letters: list[str] = []
    for _ in range(SHORT):
        number, digit = divmod(number, len(_LETTERS))
        letters.append(_LETTERS[digit])
    return "".join(letters)
