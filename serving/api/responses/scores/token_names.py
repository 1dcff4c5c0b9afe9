"""`return_tokens_as_token_ids`: tokens in log-probabilities named by their ids, so that different ones have different
names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from serving.engine.messages import TokenLogprob


def id_name(token: int) -> str:
    """The name of a token."""
    return f"token_id:{token}"


def named_by_id(tokens: Sequence[TokenLogprob]) -> tuple[TokenLogprob, ...]:
    """The same with names for texts; `raw` stays."""
    return tuple(replace(token, text=id_name(token.token), top=named_by_id(token.top)) for token in tokens)
