"""The times of a call in its JSON: of the whole, of a choice in each chunk of a stream, and the progress of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from serving.api.schemas import PromptProgress, Timings
from serving.api.service.asked import TimesInStream
from serving.engine.messages import Event, Times

_DECIMALS = 3


@dataclass(slots=True)
class _Choice:
    prompt_tokens: int
    processed: int = 0
    """Prompt tokens whose running has been told."""
    cached_tokens: int = 0
    completion_tokens: int = 0
    times: Times | None = None
    finished: bool = False


class TimingsReport:
    """The times of a call so far.

    Args:
      prompt_tokens: of each choice.
      wanted: what its stream tells.
    """

    def __init__(self, prompt_tokens: Sequence[int], wanted: TimesInStream) -> None:
        self._choices = [_Choice(count) for count in prompt_tokens]
        self._wanted = wanted

    def take(self, index: int, event: Event) -> None:
        """Keep the times of an event."""
        choice = self._choices[index]
        choice.times = event.times or choice.times
        choice.cached_tokens = event.cached_tokens or choice.cached_tokens
        choice.completion_tokens = max(choice.completion_tokens, event.completion_tokens)
        choice.finished |= event.finish_reason is not None

    def whole(self) -> Timings | UnsetType:
        """The times of the whole call."""
        return _timings(self._choices)

    def of_choice(self, index: int) -> Timings | UnsetType:
        """The times of one choice."""
        return _timings([self._choices[index]])

    def of_chunk(self, index: int) -> Timings | UnsetType:
        """The times in a chunk of a choice, if every chunk has them."""
        return self.of_choice(index) if self._wanted.in_each_chunk else UNSET

    @property
    def finished(self) -> bool:
        """Whether every choice has ended."""
        return all(choice.finished for choice in self._choices)

    def progress(self, index: int, event: Event) -> PromptProgress | None:
        """The progress that a stream tells at an event, which was taken before. The last is that of the whole prompt,
        whose last token is run with the first step of decoding."""
        choice = self._choices[index]
        if not self._wanted.progress or choice.processed == choice.prompt_tokens or event.times is None:
            return None
        choice.processed = event.prompt_processed or choice.prompt_tokens
        elapsed = event.times.now - event.times.admitted
        return PromptProgress(
            total=choice.prompt_tokens,
            cache=choice.cached_tokens,
            processed=choice.processed,
            time_ms=_ms(elapsed),
        )


def _timings(choices: Sequence[_Choice]) -> Timings | UnsetType:
    times = [choice.times for choice in choices if choice.times is not None]
    if not times:
        return UNSET
    begun = min(each.admitted for each in times)
    prompt = max(each.first_token or each.now for each in times) - begun
    firsts = [each.first_token for each in times if each.first_token is not None]
    predicted = max(each.now for each in times) - min(firsts) if firsts else 0.0
    cache_n = sum(choice.cached_tokens for choice in choices)
    prompt_n = sum(choice.prompt_tokens for choice in choices) - cache_n
    predicted_n = sum(choice.completion_tokens for choice in choices)
    return Timings(
        cache_n=cache_n,
        queue_ms=_ms(begun - min(each.queued for each in times)),
        prompt_n=prompt_n,
        prompt_ms=_ms(prompt),
        prompt_per_token_ms=_ms(prompt / prompt_n),
        prompt_per_second=_rate(prompt_n, prompt),
        predicted_n=predicted_n,
        predicted_ms=_ms(predicted),
        predicted_per_token_ms=_ms(predicted / max(predicted_n, 1)),
        predicted_per_second=_rate(predicted_n, predicted),
    )


def _ms(seconds: float) -> float:
    return round(1000 * seconds, _DECIMALS)


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, _DECIMALS) if seconds > 0 else 0.0
