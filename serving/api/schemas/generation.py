"""/v1/chat/completions and /v1/completions: requests, responses and stream chunks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Struct, UnsetType

from serving.api.schemas.documented import documented as _doc
from serving.api.schemas.extensions import ExtensionFields
from serving.api.schemas.lora import LoraScale
from serving.api.schemas.output_format import ResponseFormat
from serving.api.schemas.tools import (
    FunctionCall,
    FunctionCallDelta,
    FunctionDefinition,
    FunctionName,
    MessageFunction,
    MessageToolCall,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
)
from serving.api.schemas.usage import PromptProgress, Timings, Usage

FinishReason = Literal["stop", "length"]
ChatFinishReason = Literal["stop", "length", "tool_calls", "function_call"]


# --- requests ---


class ContentPart(Struct, kw_only=True):
    """A part of a message's content; only text is implemented."""

    type: str
    text: str | None = None


class ChatMessage(Struct, kw_only=True):
    """One chat message."""

    role: Annotated[str, _doc("system, developer (the same as system), user, assistant, tool or function")]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    function_call: Annotated[MessageFunction | None, _doc("the older form of tool_calls")] = None
    reasoning_content: Annotated[str | None, _doc("the reasoning of an earlier response (an extension)")] = None


class StreamOptions(Struct, kw_only=True):
    include_usage: Annotated[bool | None, _doc("send the token counts in an additional last chunk")] = None
    continuous_usage_stats: Annotated[
        bool | None, _doc("send the choice's token counts so far in every chunk (an extension)")
    ] = None


class XLoRAOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    """Options for the adapter weights of X-LoRA."""

    scalings: Annotated[
        Literal["summary", "tokens", "full"] | None,
        _doc("return the adapter weights: means over the completion, for each token, or for each token and module"),
    ] = None
    non_granular_index: Annotated[
        int | None,
        _doc("reuse the weights of this completion token (1 is the first) for all later ones: faster, approximate"),
    ] = None


class SharedFields(ExtensionFields, kw_only=True):
    """Fields of every endpoint that generates text. An absent field gets the model's default, or else OpenAI's."""

    model: Annotated[
        str | None,
        _doc("a served model or adapter (GET /v1/models), `base`, or `default`; absent: `default`"),
    ] = None
    adapter: Annotated[str | None, _doc("a LoRA adapter over the base model, or `base` for none (an extension)")] = None
    adapters: Annotated[
        dict[str, float] | None, _doc("a mixture with fixed weights: adapter names and their weights (an extension)")
    ] = None
    lora: Annotated[
        list[LoraScale] | None, _doc("the same, by number (GET /lora-adapters), as llama.cpp (an extension)")
    ] = None
    xlora: XLoRAOptions | None = None
    temperature: Annotated[float | None, _doc("0 (always the most likely token) to 2")] = None
    top_p: Annotated[
        float | None, _doc("keep the most likely tokens that together reach this probability; above 0, at most 1")
    ] = None
    top_k: Annotated[int | None, _doc("keep this many of the most likely tokens; 0 or -1: all (an extension)")] = None
    min_p: Annotated[
        float | None, _doc("keep tokens at least this fraction as likely as the most likely (an extension)")
    ] = None
    repetition_penalty: Annotated[float | None, _doc("1: none (an extension)")] = None
    presence_penalty: Annotated[float | None, _doc("-2 to 2")] = None
    frequency_penalty: Annotated[float | None, _doc("-2 to 2")] = None
    logit_bias: Annotated[dict[str, float] | None, _doc("-100 to 100 by token id")] = None
    seed: Annotated[int | None, _doc("the same seed gives the same completion; absent: a random one")] = None
    stream: Annotated[bool | None, _doc("send the completion as server-sent events while it is generated")] = None
    ignore_eos: Annotated[
        bool | None, _doc("do not end at an end-of-sequence token (an extension, for benchmarks)")
    ] = None


class SamplingFields(SharedFields, kw_only=True):
    """Fields of both chat and text completions."""

    max_tokens: Annotated[
        int | None,
        _doc("most tokens of the completion; absent: as many as fit in the context; 0: none (/v1/completions only)"),
    ] = None
    stop: Annotated[str | list[str] | None, _doc("strings that end the completion; they are not part of it")] = None
    n: Annotated[int | None, _doc("number of choices, up to the server's --max-seqs")] = None
    stream_options: StreamOptions | None = None
    timings_per_token: Annotated[
        bool | None, _doc("send `timings` in every chunk of a stream, instead of in the last (an extension)")
    ] = None
    return_progress: Annotated[
        bool | None, _doc("send `prompt_progress` in a stream while the prompt is run (an extension)")
    ] = None
    response_format: ResponseFormat | None = None
    prompt_logprobs: Annotated[
        int | None,
        _doc("return the prompt's log-probabilities, with this many of the most likely tokens, 0 to 20 (an extension)"),
    ] = None
    return_token_ids: Annotated[
        bool | None, _doc("return the ids of the prompt's and the completion's tokens (an extension)")
    ] = None
    return_tokens_as_token_ids: Annotated[
        bool | None, _doc("in log-probabilities, name tokens by id: `token_id:123` (an extension)")
    ] = None
    truncate_prompt_tokens: Annotated[
        int | None,
        _doc("keep the prompt's last tokens, this many; -1: as many as the context has room for (an extension)"),
    ] = None


class ChatCompletionRequest(SamplingFields, kw_only=True):
    """Body of POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: Annotated[int | None, _doc("the same as max_tokens, and takes precedence")] = None
    logprobs: Annotated[bool | None, _doc("return the log-probability of each token")] = None
    top_logprobs: Annotated[int | None, _doc("and of this many of the most likely tokens, 0 to 20")] = None
    tools: Annotated[list[Tool] | None, _doc("functions that the model may call")] = None
    tool_choice: Annotated[
        str | ToolChoice | None,
        _doc("none, auto (the default: the model decides), required, a tool to call, or the tools that are allowed"),
    ] = None
    parallel_tool_calls: Annotated[bool | None, _doc("false: at most one call; absent: true")] = None
    functions: Annotated[list[FunctionDefinition] | None, _doc("the older form of tools")] = None
    function_call: Annotated[str | FunctionName | None, _doc("the older form of tool_choice")] = None
    reasoning_effort: Annotated[
        str | None, _doc("none, minimal, low, medium, high, xhigh or max, as far as the model knows them")
    ] = None
    add_generation_prompt: Annotated[
        bool | None, _doc("false: the prompt does not begin the assistant's next message (an extension)")
    ] = None
    continue_final_message: Annotated[
        bool | None, _doc("continue the last message's text instead of beginning a new message (an extension)")
    ] = None
    chat_template_kwargs: Annotated[dict[str, Any] | None, _doc("variables for the template (an extension)")] = None
    documents: Annotated[list[dict[str, Any]] | None, _doc("documents for the template (an extension)")] = None


class CompletionRequest(SamplingFields, kw_only=True):
    """Body of POST /v1/completions."""

    prompt: Annotated[
        str | list[str | int | list[int]],
        _doc("a string, a list of strings, a list of token ids, or a list of lists of token ids"),
    ]
    echo: Annotated[
        bool | None, _doc("begin the text with the prompt; with logprobs, also return those of its tokens")
    ] = None
    logprobs: Annotated[
        int | None, _doc("return log-probabilities, with this many of the most likely tokens, 0 to 20")
    ] = None
    best_of: Annotated[
        int | None, _doc("generate this many completions, and return the n with the largest mean log-probability")
    ] = None
    suffix: Annotated[str | None, _doc("the text after the completion, for models that can fill in the middle")] = None


# --- responses ---


class TopLogprob(Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]


class PromptLogprob(Struct, kw_only=True):
    """The log-probability of a token at a place in the prompt (vLLM)."""

    logprob: float
    rank: Annotated[int, _doc("1 for the most likely token")]
    decoded_token: str


PromptLogprobs = Annotated[
    list[dict[str, PromptLogprob] | None] | UnsetType,
    _doc("for each token of the prompt, by token id; null for the first, which nothing predicts (vLLM)"),
]
StopReason = Annotated[
    int | str | UnsetType, _doc("the stop string, or the id of `stop_token_ids`, that ended the completion (vLLM)")
]
TokenIds = Annotated[list[int] | UnsetType, _doc("ids of the generated tokens (vLLM)")]
PromptTokenIds = Annotated[list[int] | UnsetType, _doc("ids of the prompt's tokens (vLLM)")]


class ChatTokenLogprob(Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, kw_only=True):
    content: list[ChatTokenLogprob]
    refusal: None = None


class TokenWeights(Struct, kw_only=True):
    token: str
    weights: Annotated[
        list[float | list[float]], _doc("for each adapter; for `full`, for each module a list for each adapter")
    ]


class XLoRAScalings(Struct, kw_only=True):
    """Adapter weights, rounded to six decimals."""

    adapters: Annotated[list[str], _doc("names, in the order of the weights")]
    scalings: Annotated[
        list[float | TokenWeights] | None,
        _doc(
            "`summary`: the mean weight of each adapter over the completion's tokens (in a stream: over those so far), "
            "null before the first; `tokens` and `full`: an entry for each token (in a stream: of the chunk)"
        ),
    ]
    modules: Annotated[
        list[str] | UnsetType,
        _doc("for `full`: names of the modules, or `*` for all; in a stream, in a choice's first chunk"),
    ] = UNSET


class AssistantMessage(Struct, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: Annotated[str | None, _doc("null if there are calls and no text")]
    refusal: None = None
    reasoning_content: Annotated[str | UnsetType, _doc("the reasoning, if the model marks it (an extension)")] = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET
    function_call: Annotated[FunctionCall | UnsetType, _doc("the call, if the request has `functions`")] = UNSET


class ChatChoice(Struct, kw_only=True):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Annotated[ChatFinishReason | None, _doc("null only in the log, for an unfinished completion")]
    stop_reason: StopReason = UNSET
    token_ids: TokenIds = UNSET
    xlora: XLoRAScalings | UnsetType = UNSET


class ChatCompletion(Struct, kw_only=True):
    """Response of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: PromptTokenIds = UNSET
    prompt_logprobs: PromptLogprobs = UNSET
    system_fingerprint: str | None = None
    timings: Timings | UnsetType = UNSET


class ChatDelta(Struct, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    function_call: FunctionCallDelta | UnsetType = UNSET


class ChatChunkChoice(Struct, kw_only=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None = None
    stop_reason: StopReason = UNSET
    token_ids: TokenIds = UNSET
    xlora: XLoRAScalings | UnsetType = UNSET


class ChatCompletionChunk(Struct, kw_only=True):
    """One event of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: PromptTokenIds = UNSET
    system_fingerprint: str | None = None
    timings: Annotated[
        Timings | UnsetType, _doc("in a stream: in the last chunk, or with `timings_per_token` in each, of its choice")
    ] = UNSET
    prompt_progress: PromptProgress | UnsetType = UNSET


class CompletionLogprobs(Struct, kw_only=True):
    """Parallel lists with one entry for each token: those of an echoed prompt, then those of the completion."""

    tokens: list[str]
    token_logprobs: Annotated[list[float | None], _doc("null for the first token of a prompt, which nothing predicts")]
    top_logprobs: Annotated[list[dict[str, float] | None], _doc("null for the first token of a prompt")]
    text_offset: Annotated[list[int], _doc("where each token begins in `text`, in characters")]


class CompletionChoice(Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: StopReason = UNSET
    token_ids: TokenIds = UNSET
    prompt_token_ids: PromptTokenIds = UNSET
    prompt_logprobs: PromptLogprobs = UNSET
    xlora: XLoRAScalings | UnsetType = UNSET


class Completion(Struct, kw_only=True):
    """Response of POST /v1/completions, and one event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str | None = None
    timings: Annotated[
        Timings | UnsetType, _doc("in a stream: in the last chunk, or with `timings_per_token` in each, of its choice")
    ] = UNSET
    prompt_progress: PromptProgress | UnsetType = UNSET
