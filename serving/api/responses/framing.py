"""Completions in OpenAI's JSON, built event by event: as chunks of a stream, and whole.

A framing keeps what it has seen, so the same code builds unstreamed responses and the whole response of a stream (for
the log).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import msgspec
from msgspec import UNSET, UnsetType

from serving.api.errors import ApiError
from serving.api.responses.scores.prompt_scores import PromptScores
from serving.api.responses.scores.token_names import named_by_id
from serving.api.responses.timings import TimingsReport
from serving.api.responses.wire import CHUNKS, Payload, Wire
from serving.api.responses.xlora_scalings import ScalingsReport
from serving.api.schemas import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    ChatTokenLogprob,
    Completion,
    CompletionChoice,
    FinishReason,
    TopLogprob,
    Usage,
    XLoRAScalings,
)
from serving.api.service.asked import TEXT_ONLY, Prompt, Reported, ReportedScalings, TimesInStream, UsageInStream
from serving.api.service.generation import ChoiceEvent
from serving.engine.messages import Event, ModelCard, TokenLogprob


@dataclass(frozen=True, kw_only=True, slots=True)
class CallFacts:
    """The contents of one call's response besides the completions."""

    call_id: str
    """Id of the response, such as `chatcmpl-...`."""
    card: ModelCard
    model_id: str
    """`model` in the response."""
    prompts: Sequence[Prompt]
    n: int
    """Completions of each prompt."""
    usage: UsageInStream
    logprobs: int | None
    """Number of most likely tokens to return with each token; None: no log-probabilities."""
    tokens: Reported = TEXT_ONLY
    reported: ReportedScalings | None = None
    times: TimesInStream = field(default_factory=TimesInStream)


def new_id(prefix: str) -> str:
    """A new id for a response, or for something in it."""
    return f"{prefix}{uuid.uuid4().hex}"


@dataclass(slots=True)
class Choice:
    """One choice so far."""

    text: list[str] = field(default_factory=list[str])
    length: int = 0
    """Characters so far, an echoed prompt included."""
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Of its prompt."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    """A list if the call asks for ids."""
    scalings: ScalingsReport | None = None
    """Set if the call asks for adapter weights."""

    def take(self, event: Event) -> None:
        if event.scalings and self.scalings is not None:
            self.scalings.take(event.scalings)
        if event.text:
            self.text.append(event.text)
            self.length += len(event.text)
        self.completion_tokens = max(self.completion_tokens, event.completion_tokens)
        self.cached_tokens = event.cached_tokens or self.cached_tokens
        if self.token_ids is not UNSET:
            self.token_ids += event.token_ids
        if event.finish_reason is not None:
            self.finish_reason = cast("FinishReason", event.finish_reason)
        if event.stop_reason is not None:
            self.stop_reason = event.stop_reason

    def ids_of(self, event: Event) -> list[int] | UnsetType:
        """The token ids in the chunk of an event."""
        return UNSET if self.token_ids is UNSET else list(event.token_ids)

    def xlora_of(self, event: Event) -> XLoRAScalings | UnsetType:
        """The adapter weights in the chunk of an event, which must have been taken before."""
        return UNSET if self.scalings is None or not event.scalings else self.scalings.chunk(event.scalings)

    def xlora_at_end(self) -> XLoRAScalings | UnsetType:
        """The adapter weights in a stream's last chunk."""
        return UNSET if self.scalings is None else self.scalings.last_chunk() or UNSET

    def xlora(self) -> XLoRAScalings | UnsetType:
        """The adapter weights of the whole completion."""
        return UNSET if self.scalings is None else self.scalings.whole()


class Framing(Protocol):
    """Builds the JSON of one call's completions for one endpoint: whole, and as chunks of a stream."""

    call_id: str
    """Id of the response."""
    wire: Wire
    """How the stream is written."""

    def opening(self) -> Sequence[Payload]:
        """Chunks that a stream begins with."""
        ...

    def chunks(self, choice_event: ChoiceEvent) -> Sequence[Payload]:
        """Chunks for an event, which is also kept."""
        ...

    def closing(self) -> Sequence[Payload]:
        """Chunks that a stream ends with."""
        ...

    def failed(self, error: ApiError) -> Sequence[Payload]:
        """Chunks that a stream ends with after an error."""
        ...

    def take(self, choice_event: ChoiceEvent) -> None:
        """Keep an event without building chunks."""
        ...

    def usage(self) -> Usage:
        """Tokens so far."""
        ...

    def whole(self) -> Payload:
        """The unstreamed response; if unfinished, as far as it is."""
        ...


class Framed[ChoiceT: msgspec.Struct, ChunkT: (ChatCompletionChunk, Completion)]:
    """What all framings have in common."""

    wire = CHUNKS

    def __init__(self, facts: CallFacts) -> None:
        self.call_id = facts.call_id
        self.model_id = facts.model_id
        self.created = int(time.time())
        self.card = facts.card
        self._prompt_lengths = [len(prompt.tokens) for prompt in facts.prompts]
        self.prompt_tokens = sum(self._prompt_lengths)
        self._n = facts.n
        reported, self._tokens = facts.reported, facts.tokens
        self.choices = [
            Choice(
                scalings=None if reported is None else ScalingsReport(reported),
                token_ids=[] if facts.tokens.token_ids else UNSET,
            )
            for _ in range(len(facts.prompts) * facts.n)
        ]
        self._in_stream = facts.usage
        self._prompt_ids: list[list[int] | UnsetType] = [
            list(prompt.tokens) if facts.tokens.token_ids else UNSET for prompt in facts.prompts
        ]
        wanted = facts.tokens.own_prompt_logprobs
        self._prompt_scores = [None if wanted is None else PromptScores(wanted) for _ in facts.prompts]
        self.timings = TimingsReport([count for count in self._prompt_lengths for _ in range(facts.n)], facts.times)

    def take(self, choice_event: ChoiceEvent) -> None:
        self.timings.take(choice_event.index, choice_event.event)
        self.choices[choice_event.index].take(choice_event.event)
        prompt, candidate = divmod(choice_event.index, self._n)
        if candidate == 0 and (scores := self._prompt_scores[prompt]) is not None:
            scores.take(choice_event.event.prompt_logprobs)

    def _named(self, tokens: Sequence[TokenLogprob]) -> Sequence[TokenLogprob]:
        """Log-probabilities as the call wants their tokens named."""
        return named_by_id(tokens) if self._tokens.tokens_by_id else tokens

    def _prompt_logprobs(self, prompt: int) -> Any:
        scores = self._prompt_scores[prompt]
        return UNSET if scores is None else scores.whole()

    def chunks(self, choice_event: ChoiceEvent) -> list[msgspec.Struct]:
        """See `Framing.chunks`. Adds progress and times to the endpoint's own chunks."""
        index, event = choice_event.index, choice_event.event
        own = self._chunks(choice_event)
        for chunk in own:
            chunk.timings = self.timings.of_chunk(index)
        if own and self.timings.finished and not self._in_stream.at_end:
            own[-1].timings = self.timings.whole()
        if (progress := self.timings.progress(index, event)) is not None:
            told = self._chunk(self._nothing(index))
            told.prompt_progress = progress
            own.insert(0, told)
        return [*own]

    def _chunks(self, choice_event: ChoiceEvent) -> list[ChunkT]:
        """The chunks of an event, which is also kept."""
        raise NotImplementedError

    def _nothing(self, index: int) -> ChoiceT:
        """A choice of a chunk that adds nothing to it."""
        raise NotImplementedError

    def failed(self, error: ApiError) -> list[msgspec.Struct]:
        return [error.body()]

    def usage(self) -> Usage:
        completion_tokens = sum(choice.completion_tokens for choice in self.choices)
        # A prompt counts once: as for the choice that ran the most of it.
        cached = [choice.cached_tokens for choice in self.choices]
        by_prompt = [min(cached[first : first + self._n]) for first in range(0, len(cached), self._n)]
        return Usage.of(self.prompt_tokens, completion_tokens, cached=sum(by_prompt))

    def closing(self) -> list[msgspec.Struct]:
        if not self._in_stream.at_end:
            return []
        chunk = self._chunk()
        chunk.usage = self.usage()
        chunk.timings = self.timings.whole()
        return [chunk]

    def _usage_of(self, choices: Sequence[ChatChunkChoice | CompletionChoice]) -> Usage | UnsetType | None:
        """`usage` of a chunk with these choices."""
        if not self._in_stream.in_each_chunk or len(choices) != 1:
            return None if self._in_stream.at_end else UNSET
        index = choices[0].index
        choice, prompt = self.choices[index], self._prompt_lengths[index // self._n]
        return Usage.of(prompt, choice.completion_tokens, cached=choice.cached_tokens)

    def _chunk(self, *choices: ChoiceT) -> ChunkT:
        """A chunk of the stream with these choices."""
        raise NotImplementedError


class ChatFraming(Framed[ChatChunkChoice, ChatCompletionChunk]):
    """Frames /v1/chat/completions."""

    def __init__(self, facts: CallFacts) -> None:
        super().__init__(facts)
        self._top = facts.logprobs
        self._token_logprobs: list[list[TokenLogprob]] = [[] for _ in self.choices]

    def take(self, choice_event: ChoiceEvent) -> None:
        super().take(choice_event)
        self._token_logprobs[choice_event.index] += self._named(choice_event.event.logprobs)

    def opening(self) -> list[msgspec.Struct]:
        chunks = [
            self._chunk(ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=None)))
            for index in range(len(self.choices))
        ]
        for chunk in chunks:
            chunk.prompt_token_ids = self._prompt_ids[0]
        return list(chunks)

    def _nothing(self, index: int) -> ChatChunkChoice:
        return ChatChunkChoice(index=index, delta=ChatDelta())

    def _chunks(self, choice_event: ChoiceEvent) -> list[ChatCompletionChunk]:
        self.take(choice_event)
        index, event = choice_event.index, choice_event.event
        chunks: list[ChatCompletionChunk] = []
        choice = self.choices[index]
        if event.text or event.logprobs or event.scalings or event.token_ids:
            logprobs = self._logprobs(self._named(event.logprobs)) if event.logprobs else None
            added = ChatChunkChoice(index=index, delta=ChatDelta(content=event.text), logprobs=logprobs)
            added.token_ids, added.xlora = choice.ids_of(event), choice.xlora_of(event)
            chunks.append(self._chunk(added))
        if choice.finish_reason is not None:
            end = ChatChunkChoice(index=index, delta=ChatDelta(), finish_reason=choice.finish_reason)
            end.stop_reason, end.xlora = choice.stop_reason, choice.xlora_at_end()
            chunks.append(self._chunk(end))
        return chunks

    def _choice(self, index: int) -> ChatChoice:
        """A choice of the whole response."""
        choice = self.choices[index]
        return ChatChoice(
            index=index,
            message=AssistantMessage(content="".join(choice.text)),
            logprobs=None if self._top is None else self._logprobs(self._token_logprobs[index]),
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            token_ids=choice.token_ids,
            xlora=choice.xlora(),
        )

    def whole(self) -> ChatCompletion:
        return ChatCompletion(
            id=self.call_id,
            created=self.created,
            model=self.model_id,
            choices=[self._choice(index) for index in range(len(self.choices))],
            usage=self.usage(),
            prompt_token_ids=self._prompt_ids[0],
            prompt_logprobs=self._prompt_logprobs(0),
            system_fingerprint=self.card.fingerprint or None,
            timings=self.timings.whole(),
        )

    def _chunk(self, *choices: ChatChunkChoice) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self.call_id,
            created=self.created,
            model=self.model_id,
            choices=list(choices),
            usage=self._usage_of(choices),
            system_fingerprint=self.card.fingerprint or None,
        )

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> ChatLogprobs:
        return ChatLogprobs(content=chat_logprobs(tokens, self._top or 0))


def chat_logprobs(tokens: Sequence[TokenLogprob], top: int) -> list[ChatTokenLogprob]:
    """Log-probabilities of tokens, with those of the `top` most likely ones."""
    return [
        ChatTokenLogprob(
            token=token.text,
            logprob=token.logprob,
            bytes=list(token.raw),
            top_logprobs=[
                TopLogprob(token=each.text, logprob=each.logprob, bytes=list(each.raw)) for each in token.top[:top]
            ],
        )
        for token in tokens
    ]
