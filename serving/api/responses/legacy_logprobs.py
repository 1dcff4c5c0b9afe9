"""Log-probabilities in the shape of /v1/completions: four parallel lists, of the prompt's tokens, too, where it is
echoed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import msgspec

from serving.api.responses.echo import Echo
from serving.api.schemas import CompletionLogprobs
from serving.engine.messages import TokenLogprob

_COLUMNS = CompletionLogprobs.__struct_fields__


class LegacyLogprobs:
    """Those of one choice, in the order of its tokens.

    They are encoded as they come: a prompt's may be millions, and nothing else may wait while the whole answer is made.

    Args:
      echo: what the choice begins with.
      alternatives: the number of likely tokens that are told with each.
    """

    def __init__(self, echo: Echo, alternatives: int) -> None:
        self._echo = echo
        self._alternatives = alternatives
        self._columns: dict[str, list[bytes]] = {name: [] for name in _COLUMNS}
        self._told = 0
        """Tokens of the prompt."""
        self.opening: tuple[str, CompletionLogprobs] | None = None
        """Text and entry of the prompt's first token, which has no probability, where the prompt's are told."""
        if echo.offsets:
            self.opening = self._next([echo.first], [None], [None])

    def prompt(self, tokens: Sequence[TokenLogprob]) -> tuple[str, CompletionLogprobs]:
        """The next tokens of the prompt, and their part of its text."""
        return self._next(
            [token.text for token in tokens],
            [token.logprob for token in tokens],
            [self._likeliest(token) for token in tokens],
        )

    def answer(self, tokens: Sequence[TokenLogprob], offsets: Sequence[int]) -> CompletionLogprobs:
        """The next generated tokens, which begin at these characters of the choice's text."""
        return self._keep(
            CompletionLogprobs(
                tokens=[token.text for token in tokens],
                token_logprobs=[token.logprob for token in tokens],
                top_logprobs=[self._likeliest(token) for token in tokens],
                text_offset=list(offsets),
            )
        )

    def whole(self) -> CompletionLogprobs:
        """All so far; the lists are JSON already."""
        columns = {name: msgspec.Raw(b"[" + b",".join(parts) + b"]") for name, parts in self._columns.items()}
        return CompletionLogprobs(**cast("dict[str, Any]", columns))

    def _next(
        self, tokens: list[str], logprobs: list[float | None], likeliest: list[dict[str, float] | None]
    ) -> tuple[str, CompletionLogprobs]:
        offsets = self._echo.offsets
        first, self._told = self._told, self._told + len(tokens)
        start = offsets[first]
        end = offsets[self._told] if self._told < len(offsets) else len(self._echo.text)
        part = CompletionLogprobs(
            tokens=tokens,
            token_logprobs=logprobs,
            top_logprobs=likeliest,
            text_offset=list(offsets[first : self._told]),
        )
        # A prompt that was cut begins somewhere in its text; what is before it comes with the first token.
        return self._echo.text[start if first else 0 : end], self._keep(part)

    def _keep(self, part: CompletionLogprobs) -> CompletionLogprobs:
        for name in _COLUMNS:
            self._columns[name].append(msgspec.json.encode(getattr(part, name))[1:-1])
        return part

    def _likeliest(self, token: TokenLogprob) -> dict[str, float]:
        """The likeliest tokens and the chosen one; of tokens with the same text, the likelier."""
        likeliest: dict[str, float] = {}
        for other in (*token.top[: self._alternatives], token):
            likeliest.setdefault(other.text, other.logprob)
        return likeliest
