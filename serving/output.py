"""One request's sampled tokens as events for the HTTP side."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from mistral_jax.answer import AnswerStream
from mistral_jax.sampling import LOWEST_LOGPROB, Sampled
from mistral_jax.tokenizer.base import Tokenizer
from serving.request import Event, Request, TokenLogprob, TokenScalings
from serving.scalings import ScalingsTrack

_NOT_NUMBERS = "the model produced values that are not numbers for this request; its weights may be damaged"


class OutputProcessor:
    """Turns the tokens of one request into events."""

    def __init__(
        self,
        request: Request,
        tokenizer: Tokenizer,
        *,
        eos_ids: Collection[int],
        max_tokens: int,
        scalings: ScalingsTrack | None = None,
    ) -> None:
        """Args:
        scalings: where the request wants to know the weights of the adapters.
        """
        self._request = request
        self._tokenizer = tokenizer
        self._scalings = scalings
        self._answer = AnswerStream(
            tokenizer, request.params, eos_ids=eos_ids, max_tokens=max_tokens, at_start=request.at_start
        )

    def push(self, sampled: Sampled, weights: np.ndarray | None = None) -> Event:
        """Take the next token. The event is the last one if it has a `finish_reason`.

        Args:
          weights: see `ScalingsTrack.push`.
        """
        if self._scalings is not None:
            self._scalings.push(weights)
        piece = self._answer.push(sampled)
        wanted = self._request.params.logprobs is not None
        return Event(
            request_id=self._request.request_id,
            text=piece.text,
            logprobs=tuple(self._logprob(token) for token in piece.tokens) if wanted else (),
            scalings=self._taken(piece.tokens),
            completion_tokens=self._answer.count,
            finish_reason=piece.finish_reason,
            stop_string=piece.stop_string,
            error=_NOT_NUMBERS if piece.finish_reason == "error" else None,
        )

    def _taken(self, tokens: tuple[Sampled, ...]) -> tuple[TokenScalings, ...]:
        """The weights of tokens that are let go of, which is in the order in which they came."""
        track = self._scalings
        if track is None:
            return ()
        return tuple(TokenScalings(text=self._text(s.token)[1], weights=track.take()) for s in tokens)

    def _logprob(self, sampled: Sampled) -> TokenLogprob:
        top = tuple(self._entry(token, logprob) for token, logprob in sampled.top)
        return self._entry(sampled.token, sampled.logprob, top)

    def _entry(self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        raw, text = self._text(token)
        finite = logprob if math.isfinite(logprob) else LOWEST_LOGPROB
        return TokenLogprob(token=token, text=text, raw=raw, logprob=finite, top=top)

    def _text(self, token: int) -> tuple[bytes, str]:
        """A token's bytes, and what they are as text."""
        # Padding rows of the embedding beyond the vocabulary have no text.
        known = token < self._tokenizer.vocab_size
        raw = self._tokenizer.token_bytes(token) if known else b""
        return raw, raw.decode("utf-8", "replace") if raw or not known else self._tokenizer.token_text(token)
