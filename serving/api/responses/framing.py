"""Completions in OpenAI's JSON, built event by event: as chunks of a stream, and whole.

A framing keeps what it has seen, so the same code builds unstreamed responses and the whole response of a stream (for
the log).
"""

from __future__ import annotations

import codecs
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import msgspec
from msgspec import UNSET, UnsetType

from serving.api.errors import ApiError
from serving.api.responses.echo import Echo
from serving.api.responses.legacy_logprobs import LegacyLogprobs
from serving.api.responses.timings import TimingsReport
from serving.api.responses.wire import CHUNKS, Wire
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
from serving.api.service.asked import Prompt, ReportedScalings, TimesInStream, UsageInStream
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
    finish_reason: FinishReason | None = None
    scalings: ScalingsReport | None = None
    """Set if the call asks for adapter weights."""

    def take(self, event: Event) -> None:
        if event.scalings and self.scalings is not None:
            self.scalings.take(event.scalings)
        if event.text:
            self.text.append(event.text)
            self.length += len(event.text)
        self.completion_tokens = max(self.completion_tokens, event.completion_tokens)
        if event.finish_reason is not None:
            self.finish_reason = cast("FinishReason", event.finish_reason)

    def xlora_of(self, event: Event) -> XLoRAScalings | UnsetType:
        """The adapter weights in the chunk of an event, which must have been taken before."""
        return UNSET if self.scalings is None or not event.scalings else self.scalings.chunk(event.scalings)

    def xlora_at_end(self) -> XLoRAScalings | UnsetType:
        """The adapter weights in a stream's last chunk."""
        return UNSET if self.scalings is None else self.scalings.last_chunk() or UNSET

    def xlora(self) -> XLoRAScalings | UnsetType:
        """The adapter weights of the whole completion."""
        return UNSET if self.scalings is None else self.scalings.whole()


def token_offsets(tokens: Sequence[TokenLogprob], *, start: int, end: int) -> list[int]:
    """Offsets of tokens whose text is the characters from `start` to `end`.

    A token that begins inside a character has the offset of that character.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    offsets: list[int] = []
    position = start
    for token in tokens:
        offsets.append(min(position, end))
        position += len(decoder.decode(token.raw))
    return offsets


class Framing(Protocol):
    """Builds the JSON of one call's completions for one endpoint: whole, and as chunks of a stream."""

    call_id: str
    """Id of the response."""
    wire: Wire
    """How the stream is written."""

    def opening(self) -> list[msgspec.Struct]:
        """Chunks that a stream begins with."""
        ...

    def chunks(self, choice_event: ChoiceEvent) -> list[msgspec.Struct]:
        """Chunks for an event, which is also kept."""
        ...

    def closing(self) -> list[msgspec.Struct]:
        """Chunks that a stream ends with."""
        ...

    def failed(self, error: ApiError) -> list[msgspec.Struct]:
        """Chunks that a stream ends with after an error."""
        ...

    def take(self, choice_event: ChoiceEvent) -> None:
        """Keep an event without building chunks."""
        ...

    def usage(self) -> Usage:
        """Tokens so far."""
        ...

    def whole(self) -> msgspec.Struct:
        """The unstreamed response; if unfinished, as far as it is."""
        ...


class _Common[ChoiceT: msgspec.Struct, ChunkT: (ChatCompletionChunk, Completion)]:
    """Base of both framings."""

    wire = CHUNKS

    def __init__(self, facts: CallFacts) -> None:
        self.call_id = facts.call_id
        self.model_id = facts.model_id
        self.created = int(time.time())
        self.card = facts.card
        self._prompt_lengths = [len(prompt.tokens) for prompt in facts.prompts]
        self.prompt_tokens = sum(self._prompt_lengths)
        self._n = facts.n
        reported = facts.reported
        self.choices = [
            Choice(scalings=None if reported is None else ScalingsReport(reported))
            for _ in range(len(facts.prompts) * facts.n)
        ]
        self._in_stream = facts.usage
        self.timings = TimingsReport([count for count in self._prompt_lengths for _ in range(facts.n)], facts.times)

    def take(self, choice_event: ChoiceEvent) -> None:
        self.timings.take(choice_event.index, choice_event.event)
        self.choices[choice_event.index].take(choice_event.event)

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
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=self.prompt_tokens + completion_tokens,
        )

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
        prompt, completion = self._prompt_lengths[index // self._n], self.choices[index].completion_tokens
        return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)

    def _chunk(self, *choices: ChoiceT) -> ChunkT:
        """A chunk of the stream with these choices."""
        raise NotImplementedError


class ChatFraming(_Common[ChatChunkChoice, ChatCompletionChunk]):
    """Frames /v1/chat/completions."""

    def __init__(self, facts: CallFacts) -> None:
        super().__init__(facts)
        self._top = facts.logprobs
        self._token_logprobs: list[list[TokenLogprob]] = [[] for _ in self.choices]

    def take(self, choice_event: ChoiceEvent) -> None:
        super().take(choice_event)
        self._token_logprobs[choice_event.index] += choice_event.event.logprobs

    def opening(self) -> list[msgspec.Struct]:
        return [
            self._chunk(ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=None)))
            for index in range(len(self.choices))
        ]

    def _nothing(self, index: int) -> ChatChunkChoice:
        return ChatChunkChoice(index=index, delta=ChatDelta())

    def _chunks(self, choice_event: ChoiceEvent) -> list[ChatCompletionChunk]:
        self.take(choice_event)
        index, event = choice_event.index, choice_event.event
        chunks: list[ChatCompletionChunk] = []
        choice = self.choices[index]
        if event.text or event.logprobs or event.scalings:
            logprobs = self._logprobs(event.logprobs) if event.logprobs else None
            delta, xlora = ChatDelta(content=event.text), choice.xlora_of(event)
            chunks.append(self._chunk(ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, xlora=xlora)))
        if (reason := choice.finish_reason) is not None:
            xlora = choice.xlora_at_end()
            chunks.append(
                self._chunk(ChatChunkChoice(index=index, delta=ChatDelta(), finish_reason=reason, xlora=xlora))
            )
        return chunks

    def whole(self) -> ChatCompletion:
        return ChatCompletion(
            id=self.call_id,
            created=self.created,
            model=self.model_id,
            choices=[
                ChatChoice(
                    index=index,
                    message=AssistantMessage(content="".join(choice.text)),
                    logprobs=None if self._top is None else self._logprobs(self._token_logprobs[index]),
                    finish_reason=choice.finish_reason,
                    xlora=choice.xlora(),
                )
                for index, choice in enumerate(self.choices)
            ],
            usage=self.usage(),
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


class CompletionFraming(_Common[CompletionChoice, Completion]):
    """Frames /v1/completions."""

    def __init__(self, facts: CallFacts, *, echoes: Sequence[Echo] = ()) -> None:
        """Args:
        echoes: the echo of each prompt.
        """
        super().__init__(facts)
        top = facts.logprobs
        self._echoes = [echo for echo in echoes or [Echo() for _ in facts.prompts] for _ in range(facts.n)]
        self._legacy = [None if top is None else LegacyLogprobs(echo, top) for echo in self._echoes]
        for choice, echo in zip(self.choices, self._echoes, strict=True):
            choice.length = len(echo.text)

    def opening(self) -> list[msgspec.Struct]:
        chunks: list[msgspec.Struct] = []
        for index, (echo, legacy) in enumerate(zip(self._echoes, self._legacy, strict=True)):
            text, logprobs = (echo.text, None) if legacy is None or legacy.opening is None else legacy.opening
            if text or logprobs is not None:
                chunks.append(self._chunk(CompletionChoice(index=index, text=text, logprobs=logprobs)))
        return chunks

    def take(self, choice_event: ChoiceEvent) -> None:
        self._take(choice_event)

    def _take(self, choice_event: ChoiceEvent) -> list[CompletionChoice]:
        """Keep an event. Returns what it adds to its choice."""
        index, event = choice_event.index, choice_event.event
        self.timings.take(index, event)
        choice, legacy = self.choices[index], self._legacy[index]
        added: list[CompletionChoice] = []
        if event.prompt_logprobs and legacy is not None:
            text, logprobs = legacy.prompt(event.prompt_logprobs)
            added.append(CompletionChoice(index=index, text=text, logprobs=logprobs))
        start = choice.length
        choice.take(event)
        if event.text or event.logprobs or event.scalings:
            logprobs = None
            if event.logprobs and legacy is not None:
                offsets = token_offsets(event.logprobs, start=start, end=choice.length)
                logprobs = legacy.completion(event.logprobs, offsets)
            xlora = choice.xlora_of(event)
            added.append(CompletionChoice(index=index, text=event.text, logprobs=logprobs, xlora=xlora))
        return added

    def _nothing(self, index: int) -> CompletionChoice:
        return CompletionChoice(index=index, text="")

    def _chunks(self, choice_event: ChoiceEvent) -> list[Completion]:
        chunks = [self._chunk(added) for added in self._take(choice_event)]
        choice = self.choices[choice_event.index]
        if (reason := choice.finish_reason) is not None:
            xlora = choice.xlora_at_end()
            end = CompletionChoice(index=choice_event.index, text="", finish_reason=reason, xlora=xlora)
            chunks.append(self._chunk(end))
        return chunks

    def whole(self) -> Completion:
        whole = self._chunk(
            *(
                CompletionChoice(
                    index=index,
                    text=self._echoes[index].text + "".join(choice.text),
                    logprobs=None if legacy is None else legacy.whole(),
                    finish_reason=choice.finish_reason,
                    xlora=choice.xlora(),
                )
                for index, (choice, legacy) in enumerate(zip(self.choices, self._legacy, strict=True))
            )
        )
        whole.usage = self.usage()
        whole.timings = self.timings.whole()
        return whole

    def _chunk(self, *choices: CompletionChoice) -> Completion:
        return Completion(
            id=self.call_id,
            created=self.created,
            model=self.model_id,
            choices=list(choices),
            usage=self._usage_of(choices),
            system_fingerprint=self.card.fingerprint or None,
        )
