"""From the body of llama.cpp's POST /completion to the fields that all completions have, and to prompts."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence

from mistral_jax.chat.parsed_text import raw_pieces
from serving.api.errors import ContextLengthError, InvalidRequestError
from serving.api.requests.bodies.renaming import Renames
from serving.api.requests.encoding import gather
from serving.api.requests.tokenizing import decoded
from serving.api.schemas import LlamaCompletionRequest, SamplingFields
from serving.api.service.asked import Prompt
from serving.api.service.service import Service

NEVER = -100.0
"""The bias for `false`."""
MAX_BIASED_TEXT = 4096
"""Most characters of all texts in `logit_bias`: they are encoded at once."""
_TOKEN_ID = re.compile(r"[0-9]{1,12}")
_RANDOM_SEEDS = (-1, 2**32 - 1)
_UNLIMITED = (-1, -2)
RENAMES = Renames(
    {
        "repetition_penalty": "repeat_penalty",
        "max_tokens": "n_predict",
        "n": "n_cmpl",
        "top_logprobs": "n_probs",
        "ebnf": "grammar",
    }
)
"""How errors name the fields of llama.cpp's body."""

LlamaPrompt = str | Sequence[int | str]


class TranslatedCompletion(SamplingFields, kw_only=True):
    """The body in the names of the other endpoints."""

    prompts: list[LlamaPrompt]
    parse_special: bool
    n_probs: int
    response_fields: list[str] | None


def translated(body: LlamaCompletionRequest, service: Service, *, repeat_last_n: int) -> TranslatedCompletion:
    """The body in the names of the other endpoints; values are checked later, by the code that all share.

    Args:
      repeat_last_n: number of last tokens that the server's repetition penalty counts.

    Raises:
      InvalidRequestError: a prompt or a bias has a wrong form, or the server cannot look back that far.
    """
    all_off = body.repeat_last_n == 0
    penalty = 1.0 if all_off else body.repeat_penalty
    if not all_off and body.repeat_last_n not in (None, repeat_last_n) and penalty not in (None, 1.0):
        raise InvalidRequestError(
            f"repeat_last_n is {body.repeat_last_n}; this server counts the last {repeat_last_n} tokens "
            "(--repeat-last-n). Leave it out, or send 0 for no penalties",
            param="repeat_last_n",
        )
    if body.n_probs is not None and body.n_probs < 0:
        raise InvalidRequestError(f"n_probs is {body.n_probs}; expected 0 to 20", param="n_probs")
    limit = body.n_predict
    stop = [body.stop] if isinstance(body.stop, str) else body.stop
    return TranslatedCompletion(
        model=body.model,
        lora=body.lora,
        cache_prompt=body.cache_prompt,
        max_tokens=service.card.max_model_len if limit in _UNLIMITED else limit,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=penalty,
        presence_penalty=0.0 if all_off else body.presence_penalty,
        frequency_penalty=0.0 if all_off else body.frequency_penalty,
        logit_bias=_biases(body, service),
        seed=None if body.seed in _RANDOM_SEEDS else body.seed,
        stop=None if stop is None else [text for text in stop if text],
        n=body.n_cmpl,
        stream=body.stream,
        ignore_eos=body.ignore_eos,
        typical_p=body.typical_p,
        top_n_sigma=None if body.top_n_sigma is None else max(body.top_n_sigma, 0.0),
        xtc_probability=body.xtc_probability,
        xtc_threshold=body.xtc_threshold,
        dry_multiplier=body.dry_multiplier,
        dry_base=body.dry_base,
        dry_allowed_length=body.dry_allowed_length,
        dry_penalty_last_n=body.dry_penalty_last_n,
        dry_sequence_breakers=body.dry_sequence_breakers,
        samplers=body.samplers,
        ebnf=body.grammar or None,
        json_schema=body.json_schema,
        timings_per_token=body.timings_per_token,
        return_progress=body.return_progress,
        return_token_ids=body.return_tokens or body.stream,
        prompts=_prompts(body.prompt),
        parse_special=body.parse_special is not False,
        n_probs=body.n_probs or 0,
        response_fields=body.response_fields,
    )


def _prompts(prompt: str | list[str | int | list[str | int]]) -> list[LlamaPrompt]:
    if isinstance(prompt, str):
        return [prompt]
    if any(isinstance(item, list) for item in prompt):
        if any(isinstance(item, int) for item in prompt):
            raise InvalidRequestError("prompt: token ids and lists of them cannot be mixed", param="prompt")
        return [item for item in prompt if not isinstance(item, int)]
    if any(isinstance(item, int) for item in prompt):
        return [[item for item in prompt if not isinstance(item, list)]]
    if not prompt:
        raise InvalidRequestError("prompt: expected a text or token ids, got an empty list", param="prompt")
    return [item for item in prompt if isinstance(item, str)]


def _biases(body: LlamaCompletionRequest, service: Service) -> dict[str, float] | None:
    given = body.logit_bias
    if not given:
        return None
    pairs = [(_token_or_text(key), bias) for key, bias in given.items()] if isinstance(given, dict) else given
    if sum(len(key) for key, _ in pairs if isinstance(key, str)) > MAX_BIASED_TEXT:
        raise InvalidRequestError(
            f"logit_bias: more than {MAX_BIASED_TEXT} characters of texts; send token ids", param="logit_bias"
        )
    biases: dict[str, float] = {}
    for key, bias in pairs:
        if bias is True:
            raise InvalidRequestError("logit_bias: true is not a bias; expected a number, or false", param="logit_bias")
        value = NEVER if bias is False else float(bias)
        for token in service.tokenizer.encode(key) if isinstance(key, str) else [key]:
            biases[str(token)] = biases.get(str(token), 0.0) + value
    return biases


def _token_or_text(key: str) -> int | str:
    """The key of an object: OpenAI's are token ids."""
    return int(key) if _TOKEN_ID.fullmatch(key) else key


def encode_llama_prompts(
    service: Service, body: TranslatedCompletion, *, most: int, truncate: bool
) -> Generator[None, None, list[Prompt]]:
    """Encode the prompts; a generator that yields wherever others may have a turn, and returns them.

    Args:
      most: most prompts that one request may have.
      truncate: whether to encode prompts that are too long.

    Raises:
      InvalidRequestError: a token id is outside the vocabulary, a text cannot be encoded, or a prompt is empty.
      ContextLengthError: a prompt is certainly longer than the context.
    """
    if len(body.prompts) > most:
        raise InvalidRequestError(
            f"prompt: {len(body.prompts)} prompts are more than the {most} that one request may have", param="prompt"
        )
    prompts: list[Prompt] = []
    for prompt in body.prompts:
        tokens: list[int] = []
        try:
            yield from _encode(service, prompt, tokens, parse_special=body.parse_special, truncate=truncate)
        except ValueError as error:
            raise InvalidRequestError(f"prompt: {error}", param="prompt", code="invalid_prompt") from error
        if not tokens:
            raise InvalidRequestError(
                "prompt: an empty prompt is not valid for this model, whose prompts have no BOS token", param="prompt"
            )
        told = body.response_fields is None or "prompt" in body.response_fields
        text = (yield from decoded(service.tokenizer, tokens)) if told else ""
        # What is generated is returned as it is, with the space that a text of its own would not begin with.
        prompts.append(Prompt(tuple(tokens), text, at_start=False))
    return prompts


def _encode(
    service: Service, prompt: LlamaPrompt, tokens: list[int], *, parse_special: bool, truncate: bool
) -> Generator[None]:
    """Append the tokens of one prompt, of texts and ids. BOS comes first if the prompt begins with a text."""
    tokenizer, card = service.tokenizer, service.card
    limit = min(card.vocab_size, tokenizer.vocab_size)
    for index, part in enumerate([prompt] if isinstance(prompt, str) else prompt):
        if isinstance(part, int):
            if not 0 <= part < limit:
                raise InvalidRequestError(
                    f"prompt: token id {part} is outside the vocabulary of {limit}", param="prompt"
                )
            tokens.append(part)
            continue
        pieces = yield from raw_pieces(tokenizer, part, add_special=index == 0, parse_special=parse_special)
        tokens += yield from gather(pieces, most=None if truncate else card.max_model_len, param="prompt")
        if not truncate and len(tokens) > card.max_model_len:
            raise ContextLengthError(
                param="prompt", prompt_tokens=len(tokens), context=card.max_model_len, at_least=True
            )
    yield
