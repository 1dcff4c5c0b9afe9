"""Turns the sampled tokens of one request into events for the HTTP side."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from mistral_jax.runtime.sampling.sample import LOWEST_LOGPROB, NO_TOKEN, Sampled, unpack
from mistral_jax.text.completion import CompletionStream, Piece
from mistral_jax.text.detokenizer import shown_token
from mistral_jax.tokenizer.base import Tokenizer
from serving.engine.messages import Event, Request, TokenLogprob, TokenScalings
from serving.engine.scalings import ScalingsTrack

_NO_TOKEN = "no token is left to choose: allowed_token_ids, bad_words, min_tokens and the like exclude all of them"
NOT_NUMBERS = "the model produced values that are not numbers for this request; its weights may be damaged"


class CompletionOutput:
    """Output of `Work.GENERATE`: the text of the sampled tokens, their ids and log-probabilities."""

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
        scalings: set if the request asks for adapter weights.
        """
        self._request = request
        self._tokenizer = tokenizer
        self._scalings = scalings
        self._completion = CompletionStream(
            tokenizer,
            request.params,
            eos_ids=eos_ids,
            max_tokens=max_tokens,
            at_start=request.at_start,
            reported=request.reported_tokens,
        )
        self._sum_of_logprobs = 0.0

    def push(self, sampled: Sampled, weights: np.ndarray | None = None) -> Event:
        """Process the next token. The event is the last one if it has a `finish_reason`.

        Args:
          weights: see `ScalingsTrack.push`.
        """
        if self._scalings is not None:
            self._scalings.push(weights)
        piece = self._completion.push(sampled)
        wanted = self._request.params.logprobs is not None
        self._sum_of_logprobs += sampled.logprob
        ended_well = piece.finish_reason in ("stop", "length")
        nothing_left = sampled.token == NO_TOKEN
        return Event(
            request_id=self._request.request_id,
            text=piece.text,
            items=piece.items,
            logprobs=tuple(self._logprob(token) for token in self._with_logprobs(piece)) if wanted else (),
            scalings=self._taken(piece.tokens),
            token_ids=(sampled.token,) if self._request.token_ids and sampled.token >= 0 else (),
            completion_tokens=self._completion.count,
            finish_reason=piece.finish_reason,
            stop_reason=piece.stop_reason,
            mean_logprob=self._sum_of_logprobs / self._completion.count if wanted and ended_well else None,
            error=None if piece.finish_reason != "error" else _NO_TOKEN if nothing_left else NOT_NUMBERS,
            refused=nothing_left,
        )

    def push_prompt(self, results: np.ndarray) -> Event:
        """Its chunks are run without results."""
        raise TypeError("a completion has no results of its prompt")

    def end(self) -> Event:
        """End a completion with no tokens (`max_tokens` 0)."""
        return Event(request_id=self._request.request_id, finish_reason="length")

    def _with_logprobs(self, piece: Piece) -> tuple[Sampled, ...]:
        """The tokens of a piece that get an entry in `logprobs`."""
        # Evaluations need an entry for each token in `usage`: a missing one shifts all the others.
        if not self._request.logprob_of_end or piece.end is None or isinstance(piece.stop_reason, str):
            return piece.tokens
        return (*piece.tokens, piece.end)

    def _taken(self, tokens: tuple[Sampled, ...]) -> tuple[TokenScalings, ...]:
        """The adapter weights of the tokens whose text is released, which happens in sampling order."""
        track = self._scalings
        if track is None:
            return ()
        return tuple(TokenScalings(text=shown_token(self._tokenizer, s.token)[1], weights=track.take()) for s in tokens)

    def _logprob(self, sampled: Sampled) -> TokenLogprob:
        top = tuple(self._entry(token, logprob) for token, logprob in sampled.top)
        return self._entry(sampled.token, sampled.logprob, top, sampled.rank)

    def _entry(self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = (), rank: int = 0) -> TokenLogprob:
        raw, text = shown_token(self._tokenizer, token)
        finite = logprob if math.isfinite(logprob) else LOWEST_LOGPROB
        return TokenLogprob(token=token, text=text, raw=raw, logprob=finite, top=top, rank=rank)


class ScoreOutput(CompletionOutput):
    """Output of `Work.SCORE`: the log-probabilities of the prompt's tokens as well."""

    def push_prompt(self, results: np.ndarray) -> Event:
        """Process the log-probabilities of the next prompt tokens: int32 [T, PACKED_WIDTH], see
        `mistral_jax.runtime.sampling.sample.unpack`."""
        request = self._request
        tokens = [unpack(row, request.prompt_logprobs) for row in results]
        if any(sampled.token < 0 for sampled in tokens):
            return Event(request_id=request.request_id, finish_reason="error", error=NOT_NUMBERS)
        return Event(request_id=request.request_id, prompt_logprobs=tuple(self._logprob(s) for s in tokens))
