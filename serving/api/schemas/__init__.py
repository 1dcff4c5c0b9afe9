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
from serving.api.schemas.llama_cpp import (
    GenerationSettings,
    LoraScale,
    Modalities,
    NextToken,
    Props,
    Slot,
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
    Alive,
    CancelledRequest,
    Health,
    Index,
    Version,
)

__all__ = [
    "Alive",
    "AssistantMessage",
    "CancelledRequest",
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
    "GenerationSettings",
    "Health",
    "Index",
    "LoadLoraRequest",
    "LoraAdapter",
    "LoraAdapterList",
    "LoraScale",
    "Modalities",
    "Model",
    "ModelList",
    "NextToken",
    "Props",
    "SamplingFields",
    "Slot",
    "StreamOptions",
    "TokenWeights",
    "TopLogprob",
    "UnloadLoraRequest",
    "UnloadedLora",
    "Usage",
    "Version",
    "XLoRAOptions",
    "XLoRAScalings",
]
