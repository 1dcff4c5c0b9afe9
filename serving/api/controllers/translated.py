"""Endpoints of other APIs that generate text: their bodies become bodies of /v1/chat/completions, and framings of their
own make their responses of its completions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import anyio.to_thread
from litestar import Response

from serving.api.controllers.chat import GENERATE_CHAT, chat_tools, encode_chat_request
from serving.api.controllers.generation import Asked
from serving.api.endpoint import Call
from serving.api.errors import ApiError
from serving.api.requests.adapter_request import find_model
from serving.api.requests.bodies.renaming import Renames
from serving.api.responses.framing import CallFacts, Framing
from serving.api.schemas import ChatCompletionRequest, SharedFields
from serving.api.service.service import ChatEncoder


def shared_values(body: SharedFields) -> dict[str, Any]:
    """The fields that all endpoints that generate text have, and their values."""
    return {name: getattr(body, name) for name in SharedFields.__struct_fields__}


@dataclass(frozen=True, kw_only=True, slots=True)
class Translating[BodyT]:
    """The handler of such an endpoint."""

    id_prefix: str
    """Prefix of response ids."""
    translate: Callable[[BodyT, ChatEncoder | None], ChatCompletionRequest]
    """From a body, and the model's chat format, to a chat completion. Its errors have the body's own names."""
    renames: Callable[[BodyT], Renames]
    """How errors about the chat completion name the body's fields."""
    frame: Callable[[BodyT, Asked[ChatCompletionRequest], CallFacts], Framing]

    async def __call__(self, call: Call[BodyT]) -> Response[Any]:
        body = call.body

        async def frame(asked: Asked[ChatCompletionRequest], facts: CallFacts) -> Framing:
            return self.frame(body, asked, facts)

        chat = await off_the_loop(call, self.translate, body, call.host.service.chat)
        generating = replace(GENERATE_CHAT, id_prefix=self.id_prefix, frame=frame)
        translated = Call(request=call.request, host=call.host, body=chat, endpoints=call.endpoints)
        try:
            return await generating(translated)
        except ApiError as error:
            self.renames(body).apply(error)
            raise


async def off_the_loop[*Ts, T](call: Call[Any], translate: Callable[[*Ts], T], *arguments: *Ts) -> T:
    """Run a translation in a worker thread: bodies may be large."""
    return await anyio.to_thread.run_sync(translate, *arguments, limiter=call.host.rendering)


async def count_tokens(call: Call[Any], body: ChatCompletionRequest, renames: Renames) -> int:
    """The number of tokens of a chat's prompt, which may be longer than the context.

    Raises:
      ApiError: the model is not served, or the messages or tools are invalid.
    """
    service = call.host.loaded_service
    try:
        find_model(service.models, body.model)
        tools = chat_tools(body, service)
        prompt = await encode_chat_request(body, service, call.host, tools, call.request.scope, truncates=True)
    except ApiError as error:
        renames.apply(error)
        raise
    return len(prompt.tokens)
