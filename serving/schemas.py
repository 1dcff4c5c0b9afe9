"""The JSON of the OpenAI API: requests, responses, stream chunks, errors and models.

In a request null means absent, and unknown fields are ignored (`serving.compatibility` refuses those that we know but
do not implement). Fields of a response that may be missing are `UNSET`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

FinishReason = Literal["stop", "length"]


def _doc(text: str) -> Meta:
    return Meta(description=text)


# --- requests ---


class ContentPart(Struct, kw_only=True):
    """A part of a message's content; only text is implemented."""

    type: str
    text: str | None = None


class ChatMessage(Struct, kw_only=True):
    """One message of a conversation."""

    role: Annotated[str, _doc("system, developer (the same as system), user, assistant or tool")]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class StreamOptions(Struct, kw_only=True):
    include_usage: Annotated[bool | None, _doc("send the token counts in one more chunk at the end")] = None


class SamplingFields(Struct, kw_only=True):
    """What chat and text completions share. Where a field is absent, the model's own default holds, or OpenAI's."""

    model: Annotated[str | None, _doc("the served model's id, or `default`; absent is the same")] = None
    max_tokens: Annotated[
        int | None, _doc("most tokens of the answer; absent: as many as the context has room for")
    ] = None
    temperature: Annotated[float | None, _doc("0 (always the most likely token) to 2")] = None
    top_p: Annotated[
        float | None, _doc("keep the likeliest tokens that together reach this probability; above 0, up to 1")
    ] = None
    top_k: Annotated[int | None, _doc("keep this many of the likeliest tokens; 0 or -1 keeps all (an extension)")] = (
        None
    )
    min_p: Annotated[
        float | None, _doc("keep tokens at least this fraction as likely as the likeliest (an extension)")
    ] = None
    repetition_penalty: Annotated[float | None, _doc("1 is none (an extension)")] = None
    presence_penalty: Annotated[float | None, _doc("-2 to 2")] = None
    frequency_penalty: Annotated[float | None, _doc("-2 to 2")] = None
    logit_bias: Annotated[dict[str, float] | None, _doc("-100 to 100 by token id")] = None
    seed: Annotated[int | None, _doc("the same seed gives the same answer; absent: a new one for each request")] = None
    stop: Annotated[str | list[str] | None, _doc("texts that end the answer; they are not part of it")] = None
    n: Annotated[int | None, _doc("number of answers, up to the server's --max-seqs")] = None
    stream: Annotated[bool | None, _doc("send the answer as server-sent events while it is made")] = None
    stream_options: StreamOptions | None = None
    ignore_eos: Annotated[
        bool | None, _doc("do not end at an end-of-sequence token (an extension, for benchmarks)")
    ] = None


class ChatCompletionRequest(SamplingFields, kw_only=True):
    """Body of POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: Annotated[int | None, _doc("the same as max_tokens, and wins over it")] = None
    logprobs: Annotated[bool | None, _doc("tell each token's log-probability")] = None
    top_logprobs: Annotated[int | None, _doc("and those of this many of the likeliest tokens, 0 to 20")] = None


class CompletionRequest(SamplingFields, kw_only=True):
    """Body of POST /v1/completions."""

    prompt: Annotated[
        str | list[str | int | list[int]],
        _doc("a text, a list of texts, a list of token ids, or a list of lists of token ids"),
    ]
    echo: Annotated[bool | None, _doc("begin the answer with the prompt; not together with logprobs")] = None
    logprobs: Annotated[int | None, _doc("tell log-probabilities, with this many of the likeliest tokens, 0 to 20")] = (
        None
    )


# --- responses ---


class Usage(Struct, kw_only=True):
    """Token counts; a prompt counts once, however many answers were made for it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, kw_only=True):
    content: list[ChatTokenLogprob]
    refusal: None = None


class AssistantMessage(Struct, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Struct, kw_only=True):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Annotated[FinishReason | None, _doc("null only in the log, of an answer that was not finished")]


class ChatCompletion(Struct, kw_only=True):
    """Answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str | None = None


class ChatDelta(Struct, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET


class ChatChunkChoice(Struct, kw_only=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(Struct, kw_only=True):
    """One event of a streamed chat answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str | None = None


class CompletionLogprobs(Struct, kw_only=True):
    """Parallel lists, one entry for each token of the answer."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: Annotated[list[int], _doc("where each token begins in `text`, in characters")]


class CompletionChoice(Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class Completion(Struct, kw_only=True):
    """Answer of POST /v1/completions, and one event of it when it is streamed."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str | None = None


# --- models, errors, health ---


class Model(Struct, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    max_model_len: Annotated[int, _doc("most tokens of prompt and answer together")]
    aliases: Annotated[list[str], _doc("other names that requests may use")]
    owned_by: str = "mistral-jax"


class ModelList(Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Model]


class ErrorBody(Struct, kw_only=True):
    message: str
    type: str
    param: str | None
    code: str | None
    n_prompt_tokens: int | UnsetType = UNSET
    n_ctx: int | UnsetType = UNSET


class ErrorResponse(Struct, kw_only=True):
    """Body of every answer that is not a success."""

    error: ErrorBody


class Health(Struct, kw_only=True):
    """`ok` with status 200; anything else with status 503."""

    status: str
    detail: str | UnsetType = UNSET
    progress: Annotated[float | UnsetType, _doc("0 to 1 within the present state")] = UNSET
    running: int | UnsetType = UNSET
    waiting: int | UnsetType = UNSET
    error: ErrorBody | UnsetType = UNSET


class Index(Struct, kw_only=True):
    """Answer of GET /: what this is and where things are."""

    name: str
    version: str
    links: dict[str, str]
