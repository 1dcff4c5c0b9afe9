"""Runs the texts of a request for embeddings, and builds its response."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from litestar import Request

from mistral_jax.runtime.pooling import normalized
from serving.api.log.request_id import request_id_of
from serving.api.responses.respond import time_left
from serving.api.schemas import Embedding, EmbeddingList, EmbeddingUsage
from serving.api.service.generation import GenerationCall
from serving.api.service.lifecycle import ServiceHost
from serving.api.service.service import Service
from serving.engine.messages import QueueFullError
from serving.engine.messages import Request as EngineRequest

TEXTS_FOR_EACH_SLOT = 4
"""Texts of one request that are queued at a time, for each slot: more than there are slots, so that none is idle, and
few, so that others find room."""
_RETRY = 0.05
"""Seconds until texts are offered again to a queue that is full."""


async def run_texts(
    request: Request[Any, Any, Any],
    host: ServiceHost,
    service: Service,
    texts: Sequence[EngineRequest],
    *,
    call_id: str,
) -> list[np.ndarray]:
    """The vectors of texts, float32 [D] each, not normalised. A request may have more texts than the queue has room
    for: they are queued one group after another.

    Args:
      call_id: by which the request can be cancelled, besides its own id.

    Raises:
      QueueFullError: the queue has no room for the first group.
      ApiError: a text failed, took too long, or the request was cancelled.
    """
    vectors: list[np.ndarray] = []
    size = max(1, min(TEXTS_FOR_EACH_SLOT * host.settings.max_seqs, host.settings.max_queue))
    ids = (call_id, request_id_of(request.scope))
    for group in itertools.batched(texts, size):
        call = GenerationCall(service.engine, host.router, group)
        while True:
            try:
                call.submit()
                break
            except QueueFullError:
                left = time_left(request, host)
                if not vectors or left == 0:
                    raise
                await asyncio.sleep(_RETRY)
        host.live_calls.add(call, *ids)
        try:
            vectors += await _group(call, time_left(request, host))
        finally:
            host.live_calls.remove(call, *ids)
    return vectors


async def _group(call: GenerationCall, limit: float | None) -> list[np.ndarray]:
    found: dict[int, np.ndarray] = {}
    async with contextlib.aclosing(call.events(limit=limit)) as events:
        async for choice_event in events:
            if choice_event is not None and choice_event.event.embedding is not None:
                found[choice_event.index] = choice_event.event.embedding
    return [found[index] for index in range(len(call.requests))]


def embedding_list(
    vectors: Sequence[np.ndarray],
    *,
    model: str,
    prompt_tokens: int,
    dimensions: int | None,
    encoding: Literal["float", "base64"],
) -> bytes:
    """The response as JSON; takes a while for many texts."""
    data: list[Any] = []
    for index, vector in enumerate(vectors):
        values = normalized(vector, dimensions)
        if encoding == "base64":
            data.append(Embedding(index=index, embedding=base64.b64encode(values.astype("<f4").tobytes()).decode()))
        else:
            # Encoded one by one: as objects, the numbers of all vectors would take several times the memory.
            encoded = msgspec.Raw(msgspec.json.encode(values.tolist()))
            data.append({"object": "embedding", "index": index, "embedding": encoded})
    usage = EmbeddingUsage(prompt_tokens=prompt_tokens, total_tokens=prompt_tokens)
    return msgspec.json.encode(EmbeddingList(data=data, model=model, usage=usage))
