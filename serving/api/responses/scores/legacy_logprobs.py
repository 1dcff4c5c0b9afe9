"""Log-probabilities in the format of /v1/completions: four parallel lists, which include the tokens of an echoed
prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import msgspec

from serving.api.responses.scores.echo import Echo
from serving.api.schemas import CompletionLogprobs
from serving.engine.messages import TokenLogprob

_COLUMNS = CompletionLogprobs.__struct_fields__


class LegacyLogprobs:
    """Log-probabilities of one choice, in the order of its tokens.

    They are encoded as they arrive: a prompt may have millions, and building the whole response must not block others.

    Args:
      echo: the echo at the start of the choice.
      alternatives: number of most likely tokens to return with each token.
    """

    def __init__(self, echo: Echo, alternatives: int) -> None:
        self._echo = echo
        self._alternatives = alternatives
        self._columns: dict[str, list[bytes]] = {name: [] for name in _COLUMNS}
        self._prompt_tokens = 0
        """Prompt tokens so far."""
        self.opening: tuple[str, CompletionLogprobs] | None = None
        """Text and entry of the prompt's first token, which has no log-probability; None unless the prompt is
        scored."""
        if echo.offsets:
            self.opening = self._next([echo.first], [None], [None])

    def prompt(self, tokens: Sequence[TokenLogprob]) -> tuple[str, CompletionLogprobs]:
        """Add the next prompt tokens. Returns their part of the text and their entries."""
        return self._next(
            [token.text for token in tokens],
            [token.logprob for token in tokens],
            [self._most_likely(token) for token in tokens],
        )

    def completion(self, tokens: Sequence[TokenLogprob], offsets: Sequence[int]) -> CompletionLogprobs:
        """Add the next generated tokens, with their offsets in the choice's text. Returns their entries."""
        return self._keep(
            CompletionLogprobs(
                tokens=[token.text for token in tokens],
                token_logprobs=[token.logprob for token in tokens],
                top_logprobs=[self._most_likely(token) for token in tokens],
                text_offset=list(offsets),
            )
        )

    def whole(self) -> CompletionLogprobs:
        """All entries so far; the lists are already encoded JSON."""
        columns = {name: msgspec.Raw(b"[" + b",".join(parts) + b"]") for name, parts in self._columns.items()}
        return CompletionLogprobs(**cast("dict[str, Any]", columns))

    def _next(
        self, tokens: list[str], logprobs: list[float | None], most_likely: list[dict[str, float] | None]
    ) -> tuple[str, CompletionLogprobs]:
        offsets = self._echo.offsets
        first, self._prompt_tokens = self._prompt_tokens, self._prompt_tokens + len(tokens)
        start = offsets[first]
        end = offsets[self._prompt_tokens] if self._prompt_tokens < len(offsets) else len(self._echo.text)
        part = CompletionLogprobs(
            tokens=tokens,
            token_logprobs=logprobs,
            top_logprobs=most_likely,
            text_offset=list(offsets[first : self._prompt_tokens]),
        )
        # The tokens of a truncated prompt begin inside its text; the text before comes with the first token.
        return self._echo.text[start if first else 0 : end], self._keep(part)

    def _keep(self, part: CompletionLogprobs) -> CompletionLogprobs:
        for name in _COLUMNS:
            self._columns[name].append(msgspec.json.encode(getattr(part, name))[1:-1])
        return part

    def _most_likely(self, token: TokenLogprob) -> dict[str, float]:
        """The most likely tokens and the chosen one; of tokens with the same text, the more likely one."""
        most_likely: dict[str, float] = {}
        for other in (*token.top[: self._alternatives], token):
            most_likely.setdefault(other.text, other.logprob)
        return most_likely
