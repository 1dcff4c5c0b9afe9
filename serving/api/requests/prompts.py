"""From chat messages or prompts to prompt token ids, truncated or refused if they do not fit the model's context."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import anyio
import anyio.to_thread

from mistral_jax.chat.encoding import PromptPieces
from mistral_jax.text.detokenizer import begins_text
from mistral_jax.tokenizer.base import Tokenizer
from serving.api.errors import ContextLengthError, InvalidRequestError
from serving.api.requests.chat_messages import chat_messages
from serving.api.requests.encoding import gather, in_turns
from serving.api.schemas import ChatMessage
from serving.api.service.asked import Prompt
from serving.api.service.service import ChatEncoder, Service
from serving.engine.messages import ModelCard

RESERVED_FOR_COMPLETION = 10
"""Tokens that truncation leaves for a completion without `max_tokens`."""


async def encode_chat(
    service: Service,
    messages: Sequence[ChatMessage],
    *,
    tools: Sequence[dict[str, Any]] = (),
    variables: Mapping[str, Any] | None = None,
    limiter: anyio.CapacityLimiter,
    rendering: anyio.CapacityLimiter,
    truncate: bool = False,
) -> Prompt:
    """Render chat messages with the model's chat template and encode them, off the event loop.

    Args:
      tools: the tools that the model sees, in OpenAI's form.
      variables: variables of the chat template.
      limiter: bounds how many prompts are encoded at a time; released and taken again every few milliseconds.
      rendering: bounds how many are rendered at a time, in separate processes.
      truncate: whether to encode prompts that are too long.

    Raises:
      InvalidRequestError: a message is invalid, the template refuses the messages, or the model has no template.
      ContextLengthError: it is certainly longer than the context; the exact length is not computed.
    """
    chat = chat_encoder(service)
    try:
        pieces = await anyio.to_thread.run_sync(_render, chat, messages, tools, variables or {}, limiter=rendering)
        most = None if truncate else service.card.max_model_len
        tokens = await in_turns(gather(pieces, most=most, param="messages"), limiter)
    except ValueError as error:
        # The template itself says which values of a variable it knows.
        param = next((name for name in variables or {} if name in str(error)), "messages")
        raise InvalidRequestError(f"{param}: {error}", param=param, code="invalid_messages") from error
    return Prompt(tuple(tokens), in_reasoning=pieces.in_reasoning)


def chat_encoder(service: Service) -> ChatEncoder:
    """The model's chat format.

    Raises:
      InvalidRequestError: it has none.
    """
    if service.chat is None:
        raise InvalidRequestError(
            "this model has no chat template; start the server with --chat-template, or use /v1/completions",
            code="no_chat_template",
        )
    return service.chat


def _render(
    chat: ChatEncoder,
    messages: Sequence[ChatMessage],
    tools: Sequence[dict[str, Any]],
    variables: Mapping[str, Any],
) -> PromptPieces:
    return chat.encode_pieces(chat_messages(messages), tools=tools or None, **variables)


async def encode_prompts(
    service: Service,
    prompt: str | Sequence[str | int | Sequence[int]],
    *,
    most: int,
    limiter: anyio.CapacityLimiter,
    echo: bool = False,
    truncate: bool = False,
) -> list[Prompt]:
    """Encode the prompts of a completion request, off the event loop.

    Args:
      most: most prompts that it may have.
      limiter, truncate: see `encode_chat`.

    Raises:
      InvalidRequestError: the list is empty, too long or mixed, a token id is outside the vocabulary, or a text cannot
        be encoded.
      ContextLengthError: one is certainly longer than the context; the exact length is not computed.
    """
    return await in_turns(_encode_prompts(service, prompt, most, echo, truncate), limiter)


def _prompt_forms(prompt: str | Sequence[str | int | Sequence[int]]) -> list[str | Sequence[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequestError("prompt: expected a text or token ids, got an empty list", param="prompt")
    if all(isinstance(item, int) for item in prompt):
        return [[item for item in prompt if isinstance(item, int)]]
    if all(isinstance(item, str) for item in prompt) or all(not isinstance(item, str | int) for item in prompt):
        return [item for item in prompt if not isinstance(item, int)]
    raise InvalidRequestError("prompt: texts, token ids and lists of token ids cannot be mixed", param="prompt")


def _encode_prompts(
    service: Service, prompt: str | Sequence[str | int | Sequence[int]], most: int, echo: bool, truncate: bool
) -> Generator[None, None, list[Prompt]]:
    forms = _prompt_forms(prompt)
    if len(forms) > most:
        raise InvalidRequestError(
            f"prompt: {len(forms)} prompts are more than the {most} that one request may have", param="prompt"
        )
    prompts: list[Prompt] = []
    for form in forms:
        if isinstance(form, str):
            prompts.append((yield from _encode_text(service, form, truncate)))
        else:
            prompts.append(_check_tokens(service.tokenizer, service.card, form, echo))
            yield
    return prompts


def _encode_text(service: Service, text: str, truncate: bool) -> Generator[None, None, Prompt]:
    tokenizer = service.tokenizer
    bos = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    least = len(bos) + tokenizer.least_tokens(text)
    pieces = PromptPieces(least=least, pieces=itertools.chain([bos], tokenizer.encode_pieces(text)))
    try:
        most = None if truncate else service.card.max_model_len
        tokens = tuple((yield from gather(pieces, most=most, param="prompt")))
    except ValueError as error:
        raise InvalidRequestError(f"prompt: {error}", param="prompt", code="invalid_prompt") from error
    if not tokens:
        raise InvalidRequestError(
            "prompt: an empty text is not valid for this model, whose prompts have no BOS token", param="prompt"
        )
    return Prompt(tokens, text, begins_text(tokenizer, tokens))


def _check_tokens(tokenizer: Tokenizer, card: ModelCard, tokens: Sequence[int], echo: bool) -> Prompt:
    if not tokens:
        raise InvalidRequestError("prompt: an empty list of token ids is not a valid prompt", param="prompt")
    limit = min(card.vocab_size, tokenizer.vocab_size) if echo else card.vocab_size
    wrong = list(itertools.islice((token for token in tokens if not 0 <= token < limit), 10))
    if wrong:
        raise InvalidRequestError(f"prompt: token ids {wrong} are outside the vocabulary of {limit}", param="prompt")
    return Prompt(tuple(tokens), tokenizer.decode(tokens) if echo else "", begins_text(tokenizer, tokens))


def fit(
    prompt: Prompt, card: ModelCard, *, max_tokens: int | None, truncate: bool, bos_id: int | None, param: str
) -> Prompt:
    """The prompt, truncated from the left if it is too long and `truncate` allows it. `param` is the field that errors
    name.

    Raises:
      ContextLengthError: it leaves no room for a completion, and `max_tokens` is not 0.
    """
    length, context = len(prompt.tokens), card.max_model_len
    if truncate:
        wanted = RESERVED_FOR_COMPLETION if max_tokens is None else max_tokens
        reserved = min(wanted, max(1, context // 2))
        keep = context - reserved
        if length <= keep:
            return prompt
        if prompt.tokens[0] == bos_id and keep > 1:
            return replace(prompt, tokens=(prompt.tokens[0], *prompt.tokens[length - keep + 1 :]), cut=True)
        return replace(prompt, tokens=prompt.tokens[length - keep :], cut=True)
    if length + (0 if max_tokens == 0 else 1) > context:
        raise ContextLengthError(param=param, prompt_tokens=length, context=context)
    return prompt
