"""/tokenize, /detokenize, /apply-template and /tokenizer_info, in the shapes of llama.cpp and of vLLM."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Struct

from serving.api.schemas.documented import documented as _doc
from serving.api.schemas.generation import ChatMessage
from serving.api.schemas.tools import Tool


class TemplateFields(Struct, kw_only=True):
    """What a request asks of the chat template, as on /v1/chat/completions."""

    tools: Annotated[list[Tool] | None, _doc("functions that the model may call")] = None
    add_generation_prompt: Annotated[
        bool | None, _doc("end where the assistant's turn begins; absent: yes, unless continue_final_message is true")
    ] = None
    continue_final_message: Annotated[bool | None, _doc("leave the last message open")] = None
    chat_template_kwargs: Annotated[dict[str, Any] | None, _doc("variables for the template")] = None
    documents: Annotated[list[dict[str, Any]] | None, _doc("documents for the template")] = None
    reasoning_effort: Annotated[str | None, _doc("where the chat format knows it")] = None


class TokenizeRequest(TemplateFields, kw_only=True):
    """Body of POST /tokenize. With `content` it is llama.cpp's, with `prompt` or `messages` vLLM's."""

    content: Annotated[str | None, _doc("llama.cpp: the text")] = None
    add_special: Annotated[bool | None, _doc("llama.cpp: begin with BOS; absent: no")] = None
    parse_special: Annotated[
        bool | None, _doc("read the control tokens that the text spells; absent: yes. No: they are text")
    ] = None
    with_pieces: Annotated[bool | None, _doc("llama.cpp: return the text of each token, too")] = None
    model: Annotated[str | None, _doc("a served model; all have the same tokenizer")] = None
    prompt: Annotated[str | None, _doc("vLLM: the text")] = None
    messages: Annotated[list[ChatMessage] | None, _doc("vLLM: a chat, rendered with the chat template")] = None
    add_special_tokens: Annotated[
        bool | None, _doc("vLLM: begin with BOS; absent: yes for `prompt`, no for `messages`, whose template writes it")
    ] = None
    return_token_strs: Annotated[bool | None, _doc("vLLM: return the spelling of each token, too")] = None


class TokenPiece(Struct, kw_only=True):
    id: int
    piece: Annotated[str | list[int], _doc("its text, or its bytes if they are not UTF-8 by themselves")]


class TokenizedContent(Struct, kw_only=True):
    """llama.cpp's response of POST /tokenize."""

    tokens: list[int | TokenPiece]


class TokenizedPrompt(Struct, kw_only=True):
    """vLLM's response of POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: Annotated[list[str] | None, _doc("as the vocabulary spells them")]


class DetokenizeRequest(Struct, kw_only=True):
    """Body of POST /detokenize."""

    tokens: list[int]
    model: Annotated[str | None, _doc("a served model; with it the response has `prompt` only, as vLLM's")] = None


class DetokenizedContent(Struct, kw_only=True):
    """Response of POST /detokenize without `model`: the text under both names."""

    content: str
    prompt: str


class DetokenizedPrompt(Struct, kw_only=True):
    """Response of POST /detokenize with `model`."""

    prompt: str


class ApplyTemplateRequest(TemplateFields, kw_only=True):
    """Body of POST /apply-template."""

    messages: list[ChatMessage]
    model: Annotated[str | None, _doc("a served model; all have the same template")] = None


class AppliedTemplate(Struct, kw_only=True):
    """Response of POST /apply-template."""

    prompt: Annotated[str, _doc("control tokens by name, as /completion reads them")]


class TokenizerInfo(Struct, kw_only=True):
    """Response of GET /tokenizer_info."""

    tokenizer_class: str
    vocab_size: int
    model_max_length: Annotated[int, _doc("most tokens of prompt and completion together")]
    add_bos_token: bool
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
    chat_template: Annotated[str | None, _doc("Jinja source; null: the format is not a template, or there is none")]
