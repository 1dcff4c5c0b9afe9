"""From chat messages or prompts to prompt token ids, truncated or refused if they do not fit the model's context."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import anyio
import anyio.to_thread

from mistral_jax.chat.encoding import PromptPieces
from mistral_jax.chat.errors import ConversationError
from mistral_jax.chat.infilling import infilling_pieces
from mistral_jax.text.detokenizer import begins_text
from mistral_jax.tokenizer.base import Tokenizer
from serving.api.errors import ContextLengthError, InvalidRequestError
from serving.api.requests.chat.messages import chat_messages
from serving.api.requests.chat.template_use import AS_USUAL, TemplateUse
from serving.api.requests.encoding import gather, in_turns
from serving.api.schemas import ChatMessage, SamplingFields
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
    limiter: anyio.CapacityLimiter,
    rendering: anyio.CapacityLimiter,
    truncate: bool = False,
    template: TemplateUse = AS_USUAL,
) -> Prompt:
    """Render chat messages with the model's chat template and encode them, off the event loop.

    Args:
      tools: the tools that the model sees, in OpenAI's form.
      limiter: bounds how many prompts are encoded at a time; released and taken again every few milliseconds.
      rendering: bounds how many are rendered at a time, in separate processes.
      truncate: whether to encode prompts that are too long.
      template: what the request asks of the template.

    Raises:
      InvalidRequestError: a message is invalid, the template refuses the messages, or the model has no template.
      ContextLengthError: it is certainly longer than the context; the exact length is not computed.
    """
    chat = chat_encoder(service)
    try:
        pieces = await anyio.to_thread.run_sync(_render, chat, messages, tools, template, limiter=rendering)
        most = None if truncate else service.card.max_model_len
        tokens = await in_turns(gather(pieces, most=most, param="messages"), limiter)
    except ValueError as error:
        # The template itself says which values of a variable it knows.
        param = next((name for name in template.variables if name in str(error)), "messages")
        raise InvalidRequestError(f"{param}: {error}", param=param, code="invalid_messages") from error
    # Without a generation prompt the completion may continue a text.
    at_start = template.add_generation_prompt or begins_text(service.tokenizer, tokens)
    return Prompt(tuple(tokens), at_start=at_start, in_reasoning=pieces.in_reasoning)


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
    template: TemplateUse,
) -> PromptPieces:
    return chat.encode_pieces(chat_messages(messages), tools=tools or None, **template.arguments())


async def encode_prompts(
    service: Service,
    prompt: str | Sequence[str | int | Sequence[int]],
    *,
    most: int,
    limiter: anyio.CapacityLimiter,
    suffix: str | None = None,
    echo: bool = False,
    truncate: bool = False,
) -> list[Prompt]:
    """Encode the prompts of a completion request, off the event loop.

    Args:
      most: most prompts that it may have.
      limiter, truncate: see `encode_chat`.
      suffix: the text after the completion; needs prompts that are texts, and a model that can fill in the middle.

    Raises:
      InvalidRequestError: the list is empty, too long or mixed, a token id is outside the vocabulary, a text cannot be
        encoded, or the suffix cannot be used.
      ContextLengthError: one is certainly longer than the context; the exact length is not computed.
    """
    if suffix and echo:
        raise InvalidRequestError("suffix: not together with echo", param="suffix")
    return await in_turns(_encode_prompts(service, prompt, most, suffix, echo, truncate), limiter)


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
    service: Service,
    prompt: str | Sequence[str | int | Sequence[int]],
    most: int,
    suffix: str | None,
    echo: bool,
    truncate: bool,
) -> Generator[None, None, list[Prompt]]:
    forms = _prompt_forms(prompt)
    if len(forms) > most:
        raise InvalidRequestError(
            f"prompt: {len(forms)} prompts are more than the {most} that one request may have", param="prompt"
        )
    prompts: list[Prompt] = []
    for form in forms:
        if isinstance(form, str):
            prompts.append((yield from _encode_text(service, form, suffix, truncate)))
        elif suffix:
            raise InvalidRequestError("suffix: needs a prompt that is a text, not token ids", param="suffix")
        else:
            prompts.append(_check_tokens(service.tokenizer, service.card, form, echo))
            yield
    return prompts


def _text_pieces(tokenizer: Tokenizer, text: str, suffix: str | None) -> PromptPieces:
    if suffix:
        try:
            return infilling_pieces(text, suffix, tokenizer)
        except ConversationError as error:
            raise InvalidRequestError(f"suffix: {error}", param="suffix") from error
    bos = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    least = len(bos) + tokenizer.least_tokens(text)
    return PromptPieces(least=least, pieces=itertools.chain([bos], tokenizer.encode_pieces(text)))


def _encode_text(service: Service, text: str, suffix: str | None, truncate: bool) -> Generator[None, None, Prompt]:
    tokenizer = service.tokenizer
    pieces = _text_pieces(tokenizer, text, suffix)
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
    prompt: Prompt,
    card: ModelCard,
    *,
    max_tokens: int | None,
    truncate: bool,
    bos_id: int | None,
    param: str,
    keep: int | None = None,
) -> Prompt:
    """The prompt, truncated from the left where that is asked for. A leading BOS token stays.

    Args:
      truncate: truncate a prompt that is too long, so that it leaves room for a completion.
      param: the field that errors name.
      keep: most tokens to keep, whatever there is room for.

    Raises:
      ContextLengthError: it leaves no room for a completion, and `max_tokens` is not 0.
    """
    context = card.max_model_len
    if truncate:
        wanted = RESERVED_FOR_COMPLETION if max_tokens is None else max_tokens
        room = context - min(wanted, max(1, context // 2))
        keep = room if keep is None else min(keep, room)
    if keep is not None:
        prompt = _last_tokens(prompt, keep, bos_id)
    length = len(prompt.tokens)
    if length + (0 if max_tokens == 0 else 1) > context:
        raise ContextLengthError(param=param, prompt_tokens=length, context=context)
    return prompt


def _last_tokens(prompt: Prompt, keep: int, bos_id: int | None) -> Prompt:
    length = len(prompt.tokens)
    if length <= keep:
        return prompt
    if prompt.tokens[0] == bos_id and keep > 1:
        return replace(prompt, tokens=(prompt.tokens[0], *prompt.tokens[length - keep + 1 :]), cut=True)
    return replace(prompt, tokens=prompt.tokens[length - keep :], cut=True)


def truncation_of(request: SamplingFields, card: ModelCard, *, truncate: bool) -> tuple[bool, int | None]:
    """The `truncate` and `keep` of `fit` for a request.

    Args:
      truncate: whether the server truncates all prompts.

    Raises:
      InvalidRequestError: `truncate_prompt_tokens` is neither -1 nor a number of tokens that fit.
    """
    keep = request.truncate_prompt_tokens
    if keep is None:
        return truncate, None
    if keep == -1:
        return True, None
    if not 1 <= keep <= card.max_model_len:
        raise InvalidRequestError(
            f"truncate_prompt_tokens is {keep}; expected -1 or a number from 1 to {card.max_model_len}",
            param="truncate_prompt_tokens",
        )
    return truncate, keep
