"""The JSON of the API: requests, responses and stream chunks, one module for each family of endpoints.

In a request, null means absent. `serving.api.requests.unsupported_fields` refuses fields that are not implemented,
and `serving.api.requests.unknown_fields` reports unknown ones. Missing fields of a response are `UNSET`.
"""

from __future__ import annotations

from serving.api.schemas.errors import (
    ErrorBody,
    ErrorResponse,
)
from serving.api.schemas.generation import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChatTokenLogprob,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    ContentPart,
    FinishReason,
    SamplingFields,
    StreamOptions,
    TokenWeights,
    TopLogprob,
    Usage,
    XLoRAOptions,
    XLoRAScalings,
)
from serving.api.schemas.lora import (
    LoadLoraRequest,
    LoraAdapter,
    LoraAdapterList,
    UnloadedLora,
    UnloadLoraRequest,
)
from serving.api.schemas.models import (
    Model,
    ModelList,
)
from serving.api.schemas.server import (
    Health,
    Index,
)

__all__ = [
    "AssistantMessage",
    "ChatChoice",
    "ChatChunkChoice",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatCompletionRequest",
    "ChatDelta",
    "ChatLogprobs",
    "ChatMessage",
    "ChatTokenLogprob",
    "Completion",
    "CompletionChoice",
    "CompletionLogprobs",
    "CompletionRequest",
    "ContentPart",
    "ErrorBody",
    "ErrorResponse",
    "FinishReason",
    "Health",
    "Index",
    "LoadLoraRequest",
    "LoraAdapter",
    "LoraAdapterList",
    "Model",
    "ModelList",
    "SamplingFields",
    "StreamOptions",
    "TokenWeights",
    "TopLogprob",
    "UnloadLoraRequest",
    "UnloadedLora",
    "Usage",
    "XLoRAOptions",
    "XLoRAScalings",
]
