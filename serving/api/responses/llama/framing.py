"""Completions in llama.cpp's own JSON, for POST /completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from serving.api.errors import ApiError
from serving.api.responses.framing import CallFacts, Choice
from serving.api.responses.timings import TimingsReport
from serving.api.responses.wire import LLAMA_CHUNKS, Payload
from serving.api.schemas import (
    CompletionProbability,
    GenerationSettings,
    LlamaCompletion,
    LlamaCompletionChunk,
    TokenProbability,
    Usage,
)
from serving.api.service.generation import ChoiceEvent
from serving.engine.messages import TokenLogprob


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaOptions:
    """What a request says of its response."""

    settings: GenerationSettings
    streamed: bool
    probabilities: int
    """Number of most likely tokens to return with each token; 0: no log-probabilities."""
    fields: Sequence[str] | None
    """The fields of the response to return; None: all."""


@dataclass(slots=True)
class _LlamaChoice(Choice):
    ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    stopping_word: str = ""


class LlamaFraming:
    """Implements `serving.api.responses.framing.Framing`."""

    wire = LLAMA_CHUNKS

    def __init__(self, facts: CallFacts, options: LlamaOptions) -> None:
        self.call_id = facts.call_id
        self._facts = facts
        self._options = options
        self._prompts = [prompt for prompt in facts.prompts for _ in range(facts.n)]
        self._choices = [_LlamaChoice() for _ in self._prompts]
        self._timings = TimingsReport([len(prompt.tokens) for prompt in self._prompts], facts.times)

    def opening(self) -> list[Payload]:
        return []

    def closing(self) -> list[Payload]:
        return []

    def take(self, choice_event: ChoiceEvent) -> None:
        index, event = choice_event.index, choice_event.event
        self._timings.take(index, event)
        choice = self._choices[index]
        choice.take(event)
        choice.ids += event.token_ids
        choice.logprobs += event.logprobs
        if isinstance(event.stop_reason, str):
            choice.stopping_word = event.stop_reason

    def chunks(self, choice_event: ChoiceEvent) -> list[Payload]:
        index, event = choice_event.index, choice_event.event
        self.take(choice_event)
        chunks: list[Payload] = []
        if (progress := self._timings.progress(index, event)) is not None:
            chunk = self._chunk(index)
            chunk.prompt_progress = progress
            chunks.append(chunk)
        if event.text or event.logprobs or event.token_ids:
            chunks.append(self._chunk(index, event.text, event.token_ids, event.logprobs))
        if self._choices[index].finish_reason is not None:
            chunks.append(self._picked(self._end(index)))
        return chunks

    def failed(self, error: ApiError) -> list[Payload]:
        return [error.body()]

    def usage(self) -> Usage:
        prompt = sum(len(prompt.tokens) for prompt in self._facts.prompts)
        completion = sum(choice.completion_tokens for choice in self._choices)
        cached = sum(choice.cached_tokens for choice in self._choices)
        return Usage.of(prompt, completion, cached=cached)

    def whole(self) -> Payload:
        ends = [self._picked(self._end(index)) for index in range(len(self._choices))]
        return ends[0] if len(ends) == 1 else ends

    def _chunk(
        self, index: int, text: str = "", ids: Sequence[int] = (), logprobs: Sequence[TokenLogprob] = ()
    ) -> LlamaCompletionChunk:
        return LlamaCompletionChunk(
            index=index,
            content=text,
            tokens=list(ids),
            tokens_predicted=self._choices[index].completion_tokens,
            tokens_evaluated=len(self._prompts[index].tokens),
            completion_probabilities=self._probabilities(logprobs),
            timings=self._timings.of_chunk(index),
        )

    def _end(self, index: int) -> LlamaCompletion:
        """The whole completion of a choice; of a stream without what its chunks have."""
        choice, prompt, options = self._choices[index], self._prompts[index], self._options
        text = "".join(choice.text)
        cached = len(prompt.tokens) + max(choice.completion_tokens - 1, 0)
        return LlamaCompletion(
            index=index,
            content="" if options.streamed else text,
            tokens=[] if options.streamed else choice.ids,
            model=self._facts.model_id,
            tokens_predicted=choice.completion_tokens,
            tokens_evaluated=len(prompt.tokens),
            generation_settings=options.settings,
            prompt=prompt.text,
            has_new_line="\n" in text,
            truncated=prompt.cut,
            stop_type=_stop_type(choice),
            stopping_word=choice.stopping_word,
            tokens_cached=cached,
            completion_probabilities=UNSET if options.streamed else self._probabilities(choice.logprobs),
            timings=self._timings.of_choice(index),
        )

    def _probabilities(self, tokens: Sequence[TokenLogprob]) -> list[CompletionProbability] | UnsetType:
        count = self._options.probabilities
        if not count or not tokens:
            return UNSET
        return [
            CompletionProbability(**_probability(token), top_logprobs=[_top(top) for top in token.top[:count]])
            for token in tokens
        ]

    def _picked(self, completion: LlamaCompletion) -> Payload:
        """The requested fields of a response. Those that it does not have are left out."""
        if self._options.fields is None:
            return completion
        whole = msgspec.to_builtins(completion)
        picked: dict[str, Any] = {}
        for path in self._options.fields:
            value: Any = whole
            for name in path.split("/"):
                value = value.get(name, UNSET) if isinstance(value, dict) else UNSET
            if value is not UNSET:
                picked[path] = value
        return picked


def _stop_type(choice: _LlamaChoice) -> Literal["none", "eos", "limit", "word"]:
    match choice.finish_reason:
        case None:
            return "none"
        case "length":
            return "limit"
        case _:
            return "word" if choice.stopping_word else "eos"


def _probability(token: TokenLogprob) -> dict[str, Any]:
    return {"id": token.token, "token": token.text, "bytes": list(token.raw), "logprob": token.logprob}


def _top(token: TokenLogprob) -> TokenProbability:
    return TokenProbability(**_probability(token))
