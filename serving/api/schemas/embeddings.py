"""/v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Struct

from serving.api.schemas.documented import documented as _doc
from serving.api.schemas.lora import LoraScale


class EmbeddingRequest(Struct, kw_only=True):
    """Body of POST /v1/embeddings."""

    input: Annotated[
        str | list[str | int | list[int]],
        _doc("a text, a list of texts, a list of token ids, or a list of lists of token ids"),
    ]
    model: Annotated[str | None, _doc("a served model or adapter (GET /v1/models); absent: `default`")] = None
    encoding_format: Annotated[
        Literal["float", "base64"] | None, _doc("base64: the vector's float32 values, little-endian; absent: float")
    ] = None
    dimensions: Annotated[
        int | None, _doc("keep this many of the first dimensions, scaled to length 1 again; absent: all")
    ] = None
    pooling: Annotated[
        Literal["mean", "last"] | None,
        _doc("the mean of all tokens' hidden states, or the last token's (an extension); absent: the server's"),
    ] = None
    adapter: Annotated[str | None, _doc("a LoRA adapter over the base model, or `base` for none (an extension)")] = None
    adapters: Annotated[
        dict[str, float] | None, _doc("a mixture with fixed weights: adapter names and their weights (an extension)")
    ] = None
    lora: Annotated[list[LoraScale] | None, _doc("the same, by number (an extension)")] = None


class Embedding(Struct, kw_only=True):
    """The vector of one input, of length 1."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Struct, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Struct, kw_only=True):
    """Response of POST /v1/embeddings, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
