"""From the fields of a request to sampling parameters, and to one engine request for each choice."""

from __future__ import annotations

import hashlib
import itertools
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mistral_jax.runtime.sampling_params import SamplingParams, SamplingParamsError, completion_limit
from serving.api.errors import InvalidRequestError
from serving.api.schemas import SamplingFields
from serving.api.service.asked import AdapterUse, Prompt, TimesInStream, UsageInStream
from serving.engine.messages import ModelCard, Request, Work

_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,11}")
"""Only one spelling of each number, so that no id can be given twice."""

MAX_BIASES = 16_384
"""Most token ids in `logit_bias`."""


def choices_of(request: SamplingFields, *, most: int) -> int:
    """The number of choices for each prompt.

    Raises:
      InvalidRequestError: it is below 1 or above `most`.
    """
    n = 1 if request.n is None else request.n
    if not 1 <= n <= most:
        raise InvalidRequestError(
            f"n is {n}; expected a number from 1 to {most}, the completions this server makes at a time", param="n"
        )
    return n


def usage_in_stream(request: SamplingFields) -> UsageInStream:
    """Which chunks of the stream have token counts.

    Raises:
      InvalidRequestError: `stream_options` without `stream`.
    """
    options = request.stream_options
    if options is None:
        return UsageInStream()
    if not request.stream:
        raise InvalidRequestError("stream_options: only allowed together with stream: true", param="stream_options")
    return UsageInStream(at_end=bool(options.include_usage), in_each_chunk=bool(options.continuous_usage_stats))


def times_in_stream(request: SamplingFields) -> TimesInStream:
    """What the stream says of times; nothing for a response that is not streamed."""
    if not request.stream:
        return TimesInStream()
    return TimesInStream(in_each_chunk=bool(request.timings_per_token), progress=bool(request.return_progress))


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnFields[BodyT: SamplingFields]:
    """Access to fields whose names differ between endpoints."""

    token_limit: Callable[[BodyT], tuple[str, int | None]]
    """Name and value of the field that limits the completion's tokens."""
    logprobs: Callable[[BodyT], int | None]
    """Number of most likely tokens to return with each token; None: no log-probabilities."""
    logprobs_count: str
    """Name of the field with that number."""
    may_be_empty: bool = False
    """Whether a completion may have no tokens."""


def sampling_params[BodyT: SamplingFields](
    request: BodyT, card: ModelCard, own: OwnFields[BodyT], *, default_max_tokens: int | None
) -> SamplingParams:
    """The request's sampling parameters; `max_tokens` and `seed` may still be None.

    Raises:
      InvalidRequestError: a value is out of its range; the message names the field.
    """
    given: dict[str, Any] = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": _top_k(request.top_k, card),
        "min_p": request.min_p,
        "repetition_penalty": request.repetition_penalty,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "ignore_eos": request.ignore_eos,
        "seed": request.seed,
    }
    values: dict[str, Any] = card.sampling_defaults
    values |= {name: value for name, value in given.items() if value is not None}
    limit_name, limit = own.token_limit(request)
    if limit == 0 and not own.may_be_empty:
        raise InvalidRequestError(
            f"{limit_name} is 0; expected at least 1 (only /v1/completions makes completions without tokens)",
            param=limit_name,
        )
    try:
        return SamplingParams(
            # A limit beyond the context is the same as the context.
            max_tokens=default_max_tokens if limit is None else min(limit, card.max_model_len),
            logit_bias=_logit_bias(request.logit_bias, card),
            stop=_stop(request.stop),
            logprobs=own.logprobs(request),
            **values,
        )
    except SamplingParamsError as error:
        names = {"max_tokens": limit_name, "top_logprobs": own.logprobs_count}
        param = names.get(error.param, error.param)
        raise InvalidRequestError(str(error).replace(error.param, param, 1), param=param) from error


def _top_k(top_k: int | None, card: ModelCard) -> int | None:
    """0, which keeps all tokens, for -1 and for values of at least the vocabulary size."""
    if top_k is None:
        return None
    return 0 if top_k == -1 or top_k >= card.vocab_size else top_k


def _stop(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _logit_bias(given: Mapping[str, float] | None, card: ModelCard) -> dict[int, float]:
    if not given:
        return {}
    if len(given) > MAX_BIASES:
        raise InvalidRequestError(
            f"logit_bias: {len(given)} token ids; expected at most {MAX_BIASES}", param="logit_bias"
        )
    wrong = [key for key in given if not (_TOKEN_ID.fullmatch(key) and int(key) < card.vocab_size)]
    if wrong:
        shown = ", ".join(repr(key[:20]) for key in itertools.islice(wrong, 10))
        raise InvalidRequestError(
            f"logit_bias: {shown} {'is not a token id' if len(wrong) == 1 else 'are not token ids'} from 0 to "
            f"{card.vocab_size - 1}",
            param="logit_bias",
        )
    return {int(key): bias for key, bias in given.items()}


def engine_requests(
    call_id: str,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    use: AdapterUse,
    *,
    n: int,
    max_model_len: int,
    work: Work = Work.GENERATE,
    progress: bool = False,
    reported_tokens: frozenset[int] = frozenset(),
) -> list[Request]:
    """One engine request for each choice, prompt by prompt: choice i of prompt p has the index p * n + i.

    Without a seed, each choice gets a random one;
    with a seed, choice 0 of each prompt gets the seed itself and the others get seeds derived from it.

    Args:
      reported_tokens: see `serving.engine.messages.Request`.
    """
    requests: list[Request] = []
    for prompt in prompts:
        max_tokens = completion_limit(params.max_tokens, prompt_tokens=len(prompt.tokens), length=max_model_len)
        for index in range(n):
            seed = secrets.randbits(63) if params.seed is None else derived_seed(params.seed, index)
            own = params.for_sequence(max_tokens=max_tokens, seed=seed)
            request_id = f"{call_id}-{len(requests)}"
            requests.append(
                Request(
                    request_id=request_id,
                    prompt=prompt.tokens,
                    params=own,
                    at_start=prompt.at_start,
                    choice=use.choice,
                    adapters=use.keys,
                    scalings=use.scalings,
                    work=work,
                    progress=progress,
                    reported_tokens=reported_tokens,
                )
            )
    return requests


def derived_seed(seed: int, index: int) -> int:
    """The seed of choice `index`: the seed itself for choice 0."""
    if index == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/{index}".encode("ascii"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
