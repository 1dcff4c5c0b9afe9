"""From the fields of a request to sampling parameters, and to one engine request for each choice."""

from __future__ import annotations

import hashlib
import itertools
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread

from mistral_jax.runtime.sampling.params import (
    MAX_TOP_LOGPROBS,
    SamplingParams,
    SamplingParamsError,
    completion_limit,
)
from mistral_jax.text.token_rules import with_token_rules
from mistral_jax.tokenizer.base import Tokenizer
from serving.api.errors import InvalidRequestError
from serving.api.requests.samplers import check_samplers
from serving.api.schemas import CompletionRequest, SamplingFields
from serving.api.service.asked import TEXT_ONLY, AdapterUse, Prompt, Reported, TimesInStream, UsageInStream
from serving.engine.messages import ModelCard, Request, StartConstraint, Work

_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,11}")
"""Only one spelling of each number, so that no id can be given twice."""

_LONGEST_SALT = 256
_AS_THEY_ARE = (
    *("min_tokens", "include_stop_str_in_output", "skip_special_tokens"),
    *("typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold"),
    *("dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n"),
)
"""Fields whose names and values are those of the parameters."""

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
        "stop_token_ids": _token_ids("stop_token_ids", request.stop_token_ids, card),
        "allowed_token_ids": _token_ids("allowed_token_ids", request.allowed_token_ids, card),
        "bad_words": None if request.bad_words is None else tuple(request.bad_words),
        "dry_sequence_breakers": None
        if request.dry_sequence_breakers is None
        else tuple(request.dry_sequence_breakers),
    } | {name: getattr(request, name) for name in _AS_THEY_ARE}
    values: dict[str, Any] = card.sampling_defaults
    values |= {name: value for name, value in given.items() if value is not None}
    limit_name, limit = own.token_limit(request)
    if limit == 0 and not own.may_be_empty:
        raise InvalidRequestError(
            f"{limit_name} is 0; expected at least 1 (only /v1/completions makes completions without tokens)",
            param=limit_name,
        )
    try:
        params = SamplingParams(
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
    check_samplers(request.samplers, params)
    return params


async def with_rules(
    params: SamplingParams, tokenizer: Tokenizer, card: ModelCard, limiter: anyio.CapacityLimiter
) -> SamplingParams:
    """The parameters with what their texts mean in tokens, computed off the event loop.

    Raises:
      InvalidRequestError: a text has no tokens, or too many, or there would be no token to choose.
    """
    if not params.needs_rules:
        return params
    try:
        return await anyio.to_thread.run_sync(with_token_rules, params, tokenizer, card.eos_ids, limiter=limiter)
    except SamplingParamsError as error:
        raise InvalidRequestError(str(error), param=error.param) from error


def candidates_of(request: CompletionRequest, n: int, most: int) -> int:
    """The number of completions to generate for each prompt, of which the best `n` are returned.

    Raises:
      InvalidRequestError: `best_of` is below `n`, above `most`, or not possible in a stream.
    """
    best_of = n if request.best_of is None else request.best_of
    if not n <= best_of <= most:
        raise InvalidRequestError(
            f"best_of is {best_of}; expected a number from n, {n}, to {most}, the completions this server makes at a "
            "time",
            param="best_of",
        )
    if best_of > n and request.stream:
        raise InvalidRequestError(
            "best_of: the best completions are not known while they are streamed", param="best_of"
        )
    return best_of


def reported(request: SamplingFields, params: SamplingParams, *, echoes_logprobs: bool) -> Reported:
    """What the response tells about tokens.

    Args:
      echoes_logprobs: whether each choice begins with its prompt, and has its log-probabilities if there are any.

    Raises:
      InvalidRequestError: see `_prompt_logprobs`.
    """
    counts = [count for count in (_prompt_logprobs(request),) if count is not None]
    if echoes_logprobs and params.logprobs is not None:
        counts.append(params.logprobs)
    return Reported(
        prompt_logprobs=max(counts, default=None),
        own_prompt_logprobs=request.prompt_logprobs,
        echoes_logprobs=echoes_logprobs and params.logprobs is not None,
        token_ids=bool(request.return_token_ids),
        tokens_by_id=bool(request.return_tokens_as_token_ids),
    )


def _prompt_logprobs(request: SamplingFields) -> int | None:
    """The number of most likely tokens in `prompt_logprobs`; None: it is not wanted.

    Raises:
      InvalidRequestError: it is out of range, or asked for in a stream.
    """
    count = request.prompt_logprobs
    if count is None:
        return None
    if not 0 <= count <= MAX_TOP_LOGPROBS:
        raise InvalidRequestError(
            f"prompt_logprobs is {count}; expected a number from 0 to {MAX_TOP_LOGPROBS}", param="prompt_logprobs"
        )
    if request.stream:
        raise InvalidRequestError("prompt_logprobs: not available in a stream", param="prompt_logprobs")
    return count


def priority_of(request: SamplingFields) -> int:
    """The request's place among those that wait.

    Raises:
      InvalidRequestError: it is not a 32-bit number.
    """
    priority = request.priority or 0
    if not -(2**31) <= priority < 2**31:
        raise InvalidRequestError(f"priority is {priority}; expected a 32-bit integer", param="priority")
    return priority


def cache_salt_of(request: SamplingFields) -> str:
    """What requests must have in common to share the cache.

    Raises:
      InvalidRequestError: it is too long.
    """
    salt = request.cache_salt or ""
    if len(salt) > _LONGEST_SALT:
        raise InvalidRequestError(
            f"cache_salt has {len(salt)} characters; expected at most {_LONGEST_SALT}", param="cache_salt"
        )
    return salt


def _top_k(top_k: int | None, card: ModelCard) -> int | None:
    """0, which keeps all tokens, for -1 and for values of at least the vocabulary size."""
    if top_k is None:
        return None
    return 0 if top_k == -1 or top_k >= card.vocab_size else top_k


def _stop(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _token_ids(param: str, given: Sequence[int] | None, card: ModelCard) -> tuple[int, ...] | None:
    """The ids, each once."""
    if given is None:
        return None
    if len(given) > card.vocab_size:
        raise InvalidRequestError(f"{param}: {len(given)} token ids; the vocabulary has {card.vocab_size}", param=param)
    wrong = list(itertools.islice((token for token in given if not 0 <= token < card.vocab_size), 10))
    if wrong:
        raise InvalidRequestError(
            f"{param}: token ids {wrong} are outside the vocabulary of {card.vocab_size}", param=param
        )
    return tuple(sorted(set(given)))


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
    reported: Reported = TEXT_ONLY,
    constraint: StartConstraint | None = None,
    priority: int = 0,
    progress: bool = False,
    reported_tokens: frozenset[int] = frozenset(),
    uses_cache: bool = True,
    cache_salt: str = "",
) -> list[Request]:
    """One engine request for each choice, prompt by prompt: choice i of prompt p has the index p * n + i.

    Without a seed, each choice gets a random one;
    with a seed, choice 0 of each prompt gets the seed itself and the others get seeds derived from it.

    Args:
      reported_tokens, uses_cache, cache_salt: see `serving.engine.messages.Request`.
    """
    requests: list[Request] = []
    for prompt in prompts:
        max_tokens = completion_limit(params.max_tokens, prompt_tokens=len(prompt.tokens), length=max_model_len)
        for index in range(n):
            seed = secrets.randbits(63) if params.seed is None else derived_seed(params.seed, index)
            own = params.for_sequence(max_tokens=max_tokens, seed=seed)
            request_id = f"{call_id}-{len(requests)}"
            # Where they are not part of each choice, one pass over the prompt is enough.
            scores = reported.prompt_logprobs is not None and (reported.echoes_logprobs or index == 0)
            requests.append(
                Request(
                    request_id=request_id,
                    prompt=prompt.tokens,
                    params=own,
                    at_start=prompt.at_start,
                    choice=use.choice,
                    adapters=use.keys,
                    scalings=use.scalings,
                    constraint=constraint,
                    work=Work.SCORE if scores else Work.GENERATE,
                    prompt_logprobs=reported.prompt_logprobs or 0,
                    logprob_of_end=reported.echoes_logprobs,
                    token_ids=reported.token_ids,
                    priority=priority,
                    progress=progress,
                    reported_tokens=reported_tokens,
                    uses_cache=uses_cache,
                    cache_salt=cache_salt,
                )
            )
    return requests


def derived_seed(seed: int, index: int) -> int:
    """The seed of choice `index`: the seed itself for choice 0."""
    if index == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/{index}".encode("ascii"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
