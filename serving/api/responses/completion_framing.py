"""Frames /v1/completions: completions in OpenAI's older shape, whole and as chunks."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import replace

import msgspec
from msgspec import UNSET

from serving.api.responses.framing import CallFacts, Framed
from serving.api.responses.scores.echo import Echo
from serving.api.responses.scores.legacy_logprobs import LegacyLogprobs
from serving.api.responses.scores.token_names import id_name
from serving.api.schemas import Completion, CompletionChoice
from serving.api.service.generation import ChoiceEvent
from serving.engine.messages import TokenLogprob


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


class CompletionFraming(Framed[CompletionChoice, Completion]):
    """Frames /v1/completions."""

    def __init__(self, facts: CallFacts, *, echoes: Sequence[Echo] = ()) -> None:
        """Args:
        echoes: the echo of each prompt.
        """
        super().__init__(facts)
        top = facts.logprobs
        if facts.tokens.tokens_by_id and echoes:
            pairs = zip(echoes, facts.prompts, strict=True)
            echoes = [replace(echo, first=id_name(prompt.tokens[0])) for echo, prompt in pairs]
        self._echoes = [echo for echo in echoes or [Echo() for _ in facts.prompts] for _ in range(facts.n)]
        self._legacy = [None if top is None else LegacyLogprobs(echo, top) for echo in self._echoes]
        for choice, echo in zip(self.choices, self._echoes, strict=True):
            choice.length = len(echo.text)

    def opening(self) -> list[msgspec.Struct]:
        chunks: list[msgspec.Struct] = []
        for index, (echo, legacy) in enumerate(zip(self._echoes, self._legacy, strict=True)):
            text, logprobs = (echo.text, None) if legacy is None or legacy.opening is None else legacy.opening
            ids = self._prompt_ids[index // self._n]
            if text or logprobs is not None or ids is not UNSET:
                added = CompletionChoice(index=index, text=text, logprobs=logprobs, prompt_token_ids=ids)
                chunks.append(self._chunk(added))
        return chunks

    def take(self, choice_event: ChoiceEvent) -> None:
        self._take(choice_event)

    def _take(self, choice_event: ChoiceEvent) -> list[CompletionChoice]:
        """Keep an event. Returns what it adds to its choice."""
        index, event = choice_event.index, choice_event.event
        choice, legacy = self.choices[index], self._legacy[index]
        added: list[CompletionChoice] = []
        if event.prompt_logprobs and legacy is not None and self._tokens.echoes_logprobs:
            text, logprobs = legacy.prompt(self._named(event.prompt_logprobs))
            added.append(CompletionChoice(index=index, text=text, logprobs=logprobs))
        start = choice.length
        super().take(choice_event)
        if event.text or event.logprobs or event.scalings or event.token_ids:
            logprobs = None
            if event.logprobs and legacy is not None:
                offsets = token_offsets(event.logprobs, start=start, end=choice.length)
                logprobs = legacy.completion(self._named(event.logprobs), offsets)
            ids, xlora = choice.ids_of(event), choice.xlora_of(event)
            added.append(CompletionChoice(index=index, text=event.text, logprobs=logprobs, token_ids=ids, xlora=xlora))
        return added

    def _nothing(self, index: int) -> CompletionChoice:
        return CompletionChoice(index=index, text="")

    def _chunks(self, choice_event: ChoiceEvent) -> list[Completion]:
        chunks = [self._chunk(added) for added in self._take(choice_event)]
        choice = self.choices[choice_event.index]
        if choice.finish_reason is not None:
            end = CompletionChoice(index=choice_event.index, text="", finish_reason=choice.finish_reason)
            end.stop_reason, end.xlora = choice.stop_reason, choice.xlora_at_end()
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
                    stop_reason=choice.stop_reason,
                    token_ids=choice.token_ids,
                    prompt_token_ids=self._prompt_ids[index // self._n],
                    prompt_logprobs=self._prompt_logprobs(index // self._n),
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
