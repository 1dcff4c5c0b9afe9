"""One request's sampled tokens as events for the HTTP side."""

from __future__ import annotations

import math
from collections.abc import Collection

from mistral_jax.answer import AnswerStream
from mistral_jax.sampling import LOWEST_LOGPROB, Sampled
from mistral_jax.tokenizer.base import Tokenizer
from serving.request import Event, Request, TokenLogprob

_NOT_NUMBERS = "the model produced values that are not numbers for this request; its weights may be damaged"


class OutputProcessor:
    """Turns the tokens of one request into events."""

    def __init__(self, request: Request, tokenizer: Tokenizer, *, eos_ids: Collection[int], max_tokens: int) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._answer = AnswerStream(
            tokenizer, request.params, eos_ids=eos_ids, max_tokens=max_tokens, at_start=request.at_start
        )

    def push(self, sampled: Sampled) -> Event:
        """Take the next token. The event is the last one if it has a `finish_reason`."""
        piece = self._answer.push(sampled)
        wanted = self._request.params.logprobs is not None
        return Event(
            request_id=self._request.request_id,
            text=piece.text,
            logprobs=tuple(self._logprob(token) for token in piece.tokens) if wanted else (),
            completion_tokens=self._answer.count,
            finish_reason=piece.finish_reason,
            stop_string=piece.stop_string,
            error=_NOT_NUMBERS if piece.finish_reason == "error" else None,
        )

    def _logprob(self, sampled: Sampled) -> TokenLogprob:
        top = tuple(self._entry(token, logprob) for token, logprob in sampled.top)
        return self._entry(sampled.token, sampled.logprob, top)

    def _entry(self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        # Padding rows of the embedding beyond the vocabulary have no text.
        known = token < self._tokenizer.vocab_size
        raw = self._tokenizer.token_bytes(token) if known else b""
        text = raw.decode("utf-8", "replace") if raw or not known else self._tokenizer.token_text(token)
        finite = logprob if math.isfinite(logprob) else LOWEST_LOGPROB
        return TokenLogprob(token=token, text=text, raw=raw, logprob=finite, top=top)
