"""POST /tokenize and POST /detokenize: text to token ids and back, as llama.cpp or as vLLM, which the fields decide."""

from __future__ import annotations

from collections.abc import Generator

import msgspec

from mistral_jax.chat.encoding import PromptPieces
from mistral_jax.chat.parsed_text import raw_pieces
from serving.api.controllers.tokenizing.fields import DETOKENIZE_FIELDS, OBJECTS, TOKENIZE_FIELDS
from serving.api.endpoint import Call, Endpoint, OneOf
from serving.api.errors import InvalidRequestError
from serving.api.requests.adapter_request import find_model
from serving.api.requests.chat_rendering import rendered
from serving.api.requests.encoding import in_turns
from serving.api.requests.tokenizing import Column, columns_of, decoded, token_piece
from serving.api.schemas import (
    DetokenizedContent,
    DetokenizedPrompt,
    DetokenizeRequest,
    TemplateFields,
    TokenizedContent,
    TokenizedPrompt,
    TokenizeRequest,
    TokenPiece,
)
from serving.api.service.lifecycle import ServiceHost


async def _tokenize(call: Call[TokenizeRequest]) -> TokenizedContent | TokenizedPrompt:
    body, host = call.body, call.host
    service = host.loaded_service
    find_model(service.models, body.model)
    given = [name for name in ("content", "prompt", "messages") if getattr(body, name) is not None]
    if len(given) != 1:
        raise InvalidRequestError(
            "expected one of content (as llama.cpp), prompt and messages (as vLLM)"
            + (f", got {' and '.join(given)}" if given else ""),
            param=given[1] if given else None,
        )
    _refuse_mixture(body, given[0])
    tokenizer = service.tokenizer
    parse = True if body.parse_special is None else body.parse_special
    if body.content is not None:

        def with_pieces(ids: list[int]) -> list[TokenPiece]:
            return [TokenPiece(id=token, piece=token_piece(tokenizer, token)) for token in ids]

        column: Column = with_pieces if body.with_pieces else _ids
        pieces = raw_pieces(tokenizer, body.content, add_special=bool(body.add_special), parse_special=parse)
        _, (tokens,) = await in_turns(_columns(pieces, column, param="content"), host.encoding)
        return msgspec.structs.replace(TokenizedContent(tokens=[]), tokens=tokens)
    if body.prompt is not None:
        special = True if body.add_special_tokens is None else body.add_special_tokens
        pieces = raw_pieces(tokenizer, body.prompt, add_special=special, parse_special=parse)
    else:
        assert body.messages is not None
        prompt = await rendered(
            body,
            body.messages,
            host,
            call.request.scope,
            lambda chat, messages, arguments: chat.encode_pieces(messages, **arguments),
        )
        pieces = _with_bos(prompt, _bos(host, body))
    wanted: list[Column] = [_ids]
    if body.return_token_strs:
        wanted.append(lambda ids: [tokenizer.token_text(token) for token in ids])
    count, columns = await in_turns(_columns(pieces, *wanted, param=given[0]), host.encoding)
    response = TokenizedPrompt(count=count, max_model_len=service.card.max_model_len, tokens=[], token_strs=None)
    return msgspec.structs.replace(response, tokens=columns[0], token_strs=columns[1] if columns[1:] else None)


_OF_LLAMA_CPP = ("add_special", "with_pieces")
_OF_VLLM = ("add_special_tokens", "return_token_strs")


def _refuse_mixture(body: TokenizeRequest, given: str) -> None:
    """Refuse options that the field with the text does not have."""
    foreign: list[str] = [*(_OF_VLLM if given == "content" else _OF_LLAMA_CPP)]
    if given != "messages":
        foreign += TemplateFields.__struct_fields__
    for name in foreign:
        if getattr(body, name) is not None:
            raise InvalidRequestError(f"{name}: {given} has no such option", param=name)


def _ids(ids: list[int]) -> list[int]:
    return ids


def _columns(
    pieces: Generator[None, None, PromptPieces], *columns: Column, param: str
) -> Generator[None, None, tuple[int, list[msgspec.Raw]]]:
    return (yield from columns_of((yield from pieces), *columns, param=param))


def _bos(host: ServiceHost, body: TokenizeRequest) -> list[int]:
    """A BOS token besides the template's own."""
    tokenizer = host.loaded_service.tokenizer
    wanted = body.add_special_tokens and tokenizer.add_bos and tokenizer.bos_id is not None
    return [tokenizer.bos_id] if wanted and tokenizer.bos_id is not None else []


def _with_bos(prompt: PromptPieces, bos: list[int]) -> Generator[None, None, PromptPieces]:
    def pieces() -> Generator[list[int]]:
        yield bos
        yield from prompt.pieces

    yield
    return PromptPieces(least=prompt.least + len(bos), pieces=pieces())


async def _detokenize(call: Call[DetokenizeRequest]) -> DetokenizedContent | DetokenizedPrompt:
    body, service = call.body, call.host.loaded_service
    find_model(service.models, body.model)
    text = await in_turns(decoded(service.tokenizer, body.tokens), call.host.encoding)
    return DetokenizedContent(content=text, prompt=text) if body.model is None else DetokenizedPrompt(prompt=text)


TOKENIZE = Endpoint(
    path="/tokenize",
    method="POST",
    operation_id="tokenize",
    summary="Text or chat messages to token ids, as llama.cpp or vLLM",
    request=TokenizeRequest,
    response=OneOf(
        "the token ids; of a body with `content`, or with `prompt` or `messages`", (TokenizedContent, TokenizedPrompt)
    ),
    fields=TOKENIZE_FIELDS,
    objects=OBJECTS,
    example={"content": "Hello", "with_pieces": True},
    errors=(404,),
    link="tokenize",
    handler=_tokenize,
)
DETOKENIZE = Endpoint(
    path="/detokenize",
    method="POST",
    operation_id="detokenize",
    summary="Token ids to text, as llama.cpp or vLLM",
    request=DetokenizeRequest,
    response=OneOf("the text; of a body without `model`, or with it", (DetokenizedContent, DetokenizedPrompt)),
    fields=DETOKENIZE_FIELDS,
    example={"tokens": [1, 2]},
    errors=(404,),
    link="detokenize",
    handler=_detokenize,
)
