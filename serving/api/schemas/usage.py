"""What a completion cost: tokens and times."""

from __future__ import annotations

from typing import Annotated

from msgspec import Struct, field

from serving.api.schemas.documented import documented as _doc


class PromptTokensDetails(Struct, kw_only=True):
    cached_tokens: Annotated[
        int, _doc("prompt tokens that were in the cache, and not run again; of several choices, by the first")
    ] = 0


class CompletionTokensDetails(Struct, kw_only=True):
    reasoning_tokens: Annotated[
        int, _doc("tokens of the reasoning, its markers included; 0 for models that do not mark it")
    ] = 0


class Usage(Struct, kw_only=True):
    """Token counts; a prompt counts once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = field(default_factory=PromptTokensDetails)
    completion_tokens_details: CompletionTokensDetails = field(default_factory=CompletionTokensDetails)

    @classmethod
    def of(cls, prompt: int, completion: int, *, cached: int) -> Usage:
        """Args:
        cached: tokens of the prompt that were in the cache.
        """
        details = PromptTokensDetails(cached_tokens=cached)
        return cls(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=details,
        )


class Timings(Struct, kw_only=True):
    """Times of a completion as the engine measured them, in llama.cpp's names. Of several choices: counts are sums, and
    each phase lasts from its beginning for the first of them to its end for the last."""

    cache_n: Annotated[int, _doc("prompt tokens that were in the cache, summed over choices")] = 0
    queue_ms: Annotated[float, _doc("from the queue to a slot (an extension)")]
    prompt_n: Annotated[int, _doc("prompt tokens that were run, once for each choice")]
    prompt_ms: Annotated[float, _doc("from the slot to the first token")]
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: Annotated[int, _doc("tokens of the completion")]
    predicted_ms: Annotated[float, _doc("from the first token to the last")]
    predicted_per_token_ms: float
    predicted_per_second: Annotated[float, _doc("0 if there is only one token")]


class PromptProgress(Struct, kw_only=True):
    """How much of a prompt has been run (`return_progress`)."""

    total: Annotated[int, _doc("tokens of the prompt")]
    cache: Annotated[int, _doc("of these, tokens that need not be run")] = 0
    processed: Annotated[int, _doc("tokens run so far, those of the cache included")]
    time_ms: Annotated[float, _doc("since the prompt got a slot")]
