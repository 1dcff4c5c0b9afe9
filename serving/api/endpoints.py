"""The table of all endpoints, and their routes.

`python -m serving.api.endpoints` prints the page docs/openai-compatibility.md, which is generated from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from litestar import HttpMethod, Request, route
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler

from serving.api.controllers.cancelling import CANCEL_REQUEST
from serving.api.controllers.chat import CHAT_COMPLETIONS
from serving.api.controllers.completions import COMPLETIONS
from serving.api.controllers.embeddings import EMBEDDINGS
from serving.api.controllers.health import HEALTH, LIVEZ
from serving.api.controllers.index import DOCS, INDEX, OPENAPI, VERSION
from serving.api.controllers.llama_cpp.completion import LLAMA_COMPLETION
from serving.api.controllers.llama_cpp.lora_scales import LORA_SCALES, SET_LORA_SCALES
from serving.api.controllers.llama_cpp.state import PROPS, SLOTS
from serving.api.controllers.lora_adapters import LOAD_LORA_ADAPTER, LORA_ADAPTERS, UNLOAD_LORA_ADAPTER
from serving.api.controllers.metrics import METRICS
from serving.api.controllers.models import MODEL, MODELS
from serving.api.controllers.tokenizing.templates import APPLY_TEMPLATE, TOKENIZER_INFO
from serving.api.controllers.tokenizing.tokens import DETOKENIZE, TOKENIZE
from serving.api.description.compatibility import compatibility_page
from serving.api.endpoint import Call, Endpoint
from serving.api.messages_api.create import COUNT_TOKENS, MESSAGES
from serving.api.requests.bodies.request_body import read_request
from serving.api.responses_api.create import INPUT_TOKENS, RESPONSES
from serving.api.responses_api.stored import STORED_RESPONSES
from serving.api.service.lifecycle import ServiceHost

ENDPOINTS: tuple[Endpoint[Any], ...] = (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    RESPONSES,
    INPUT_TOKENS,
    *STORED_RESPONSES,
    MESSAGES,
    COUNT_TOKENS,
    EMBEDDINGS,
    MODELS,
    MODEL,
    LORA_ADAPTERS,
    LOAD_LORA_ADAPTER,
    UNLOAD_LORA_ADAPTER,
    CANCEL_REQUEST,
    TOKENIZE,
    DETOKENIZE,
    APPLY_TEMPLATE,
    TOKENIZER_INFO,
    LLAMA_COMPLETION,
    LORA_SCALES,
    SET_LORA_SCALES,
    PROPS,
    SLOTS,
    HEALTH,
    LIVEZ,
    METRICS,
    VERSION,
    INDEX,
    DOCS,
    OPENAPI,
)


def routes(endpoints: tuple[Endpoint[Any], ...]) -> Sequence[HTTPRouteHandler]:
    """Litestar route handlers of these endpoints. The application must provide `host`."""
    return [_route(endpoint, endpoints) for endpoint in endpoints]


def _route(endpoint: Endpoint[Any], endpoints: tuple[Endpoint[Any], ...]) -> HTTPRouteHandler:
    async def handle(request: Request[Any, Any, Any], host: NamedDependency[ServiceHost]) -> Any:
        body = None
        if endpoint.request is not None:
            body = await read_request(request, endpoint, host, strict=host.settings.strict_fields)
        return await endpoint.handler(Call(request=request, host=host, body=body, endpoints=endpoints))

    methods = [HttpMethod(endpoint.method)]
    if endpoint.takes_head:
        methods.append(HttpMethod.HEAD)
    return route(list(endpoint.paths), http_method=methods, status_code=200, operation_id=endpoint.operation_id)(handle)


if __name__ == "__main__":
    print(compatibility_page(ENDPOINTS), end="")
