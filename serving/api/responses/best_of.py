"""`best_of`: of several completions of each prompt, those with the largest mean log-probability."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from serving.api.errors import ApiError
from serving.api.responses.completion_framing import CompletionFraming
from serving.api.responses.wire import Payload
from serving.api.schemas import CompletionChoice, Usage
from serving.api.service.generation import ChoiceEvent


class BestOf:
    """A framing that returns some of the choices of another one. Not for streams.

    Args:
      framing: of all completions.
      candidates: completions of each prompt.
      n: completions of each prompt to return; better ones come first, and of equal ones the first.
    """

    def __init__(self, framing: CompletionFraming, *, candidates: int, n: int) -> None:
        self.call_id, self.wire = framing.call_id, framing.wire
        self._framing = framing
        self._candidates, self._n = candidates, n
        self._scores: dict[int, float] = {}
        """Mean log-probabilities of the choices that have ended."""

    def opening(self) -> Sequence[Payload]:
        raise TypeError("the best completions are not known while they are streamed")

    def chunks(self, choice_event: ChoiceEvent) -> Sequence[Payload]:
        raise TypeError("the best completions are not known while they are streamed")

    def closing(self) -> Sequence[Payload]:
        raise TypeError("the best completions are not known while they are streamed")

    def failed(self, error: ApiError) -> list[Payload]:
        raise TypeError("the best completions are not known while they are streamed")

    def take(self, choice_event: ChoiceEvent) -> None:
        self._framing.take(choice_event)
        if (score := choice_event.event.mean_logprob) is not None:
            self._scores[choice_event.index] = score

    def usage(self) -> Usage:
        """All tokens, also of completions that are not returned."""
        return self._framing.usage()

    def whole(self) -> Payload:
        whole = self._framing.whole()
        chosen: list[CompletionChoice] = []
        for start in range(0, len(whole.choices), self._candidates):
            of_prompt = range(start, start + self._candidates)
            best = sorted(of_prompt, key=lambda index: -self._scores.get(index, -math.inf))[: self._n]
            chosen += [whole.choices[index] for index in best]
        for index, choice in enumerate(chosen):
            choice.index = index
        return msgspec.structs.replace(whole, choices=chosen)
