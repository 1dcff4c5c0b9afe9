"""`prompt_logprobs`: the log-probabilities of a prompt in vLLM's shape, and how many one request may ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import msgspec

from serving.api.errors import InvalidRequestError
from serving.api.schemas import PromptLogprob
from serving.api.service.asked import Prompt, Reported
from serving.engine.messages import TokenLogprob

MAX_SCORES = 2**21
"""Most log-probabilities of prompts in one request, alternatives included: about fifty megabytes of JSON, which take a
tenth of a second to build."""

_SIZE = 3
"""Bytes of an entry of `prompt_logprobs` relative to one of the lists of an echo."""


def check_scores(prompts: Sequence[Prompt], *, copies: int, reported: Reported) -> None:
    """Refuse to return too many log-probabilities of prompts.

    Args:
      copies: completions of each prompt.

    Raises:
      InvalidRequestError: there would be too many.
    """
    alternatives = reported.prompt_logprobs
    if alternatives is None:
        return
    is_own = reported.own_prompt_logprobs is not None
    most = MAX_SCORES // _SIZE if is_own else MAX_SCORES
    tokens = sum(len(prompt.tokens) for prompt in prompts)
    if (scores := tokens * copies * (1 + alternatives)) > most:
        param = "prompt_logprobs" if is_own else "logprobs"
        raise InvalidRequestError(
            f"{param}: {tokens} tokens of prompts with {copies} completions each and {alternatives} alternatives make "
            f"{scores} log-probabilities; one request may ask for {most}. "
            "Send fewer prompts at a time, or ask for fewer alternatives",
            param=param,
        )


class PromptScores:
    """`prompt_logprobs` of one prompt.

    Entries are encoded as they arrive: a prompt may have many, and building the whole response must not block others.

    Args:
      alternatives: number of most likely tokens to return with each token.
    """

    def __init__(self, alternatives: int) -> None:
        self._alternatives = alternatives
        # Nothing predicts the first token.
        self._parts = [b"null"]

    def take(self, tokens: Sequence[TokenLogprob]) -> None:
        """Add the next tokens of the prompt."""
        if not tokens:
            return
        self._parts.append(msgspec.json.encode([self._entry(token) for token in tokens])[1:-1])

    def whole(self) -> Any:
        """All entries so far; they are already encoded JSON."""
        return cast("Any", msgspec.Raw(b"[" + b",".join(self._parts) + b"]"))

    def _entry(self, token: TokenLogprob) -> dict[str, PromptLogprob]:
        entry = {str(token.token): _score(token, token.rank)}
        for rank, other in enumerate(token.top[: self._alternatives], start=1):
            entry.setdefault(str(other.token), _score(other, rank))
        return entry


def _score(token: TokenLogprob, rank: int) -> PromptLogprob:
    return PromptLogprob(logprob=token.logprob, rank=rank, decoded_token=token.text)
