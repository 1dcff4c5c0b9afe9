"""Turns exceptions into error responses."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.types import ExceptionHandlersMap

from serving.api.errors import ApiError, ErrorShapes, api_error, shape_of
from serving.api.log.exchange import exchange_of
from serving.api.log.request_id import request_id_of
from serving.engine.messages import EngineUnavailableError, QueueFullError

logger = logging.getLogger("mistral_jax.server")


def exception_handlers(shapes: ErrorShapes) -> ExceptionHandlersMap:
    """The application's only exception handlers.

    Args:
      shapes: of errors, by path.
    """

    def handle(request: Request[Any, Any, Any], exception: Exception) -> Response[msgspec.Struct]:
        error = api_error(exception)
        if error.status >= 500 and not isinstance(exception, ApiError | QueueFullError | EngineUnavailableError):
            logger.error("request %s failed", request_id_of(request.scope), exc_info=exception)
        if error.status >= 500:
            exchange_of(request.scope).error = error.message
        body = shape_of(request.scope["path"], shapes).body(error)
        return Response(body, status_code=error.status, headers=error.headers, media_type="application/json")

    return {ApiError: handle, HTTPException: handle, Exception: handle}
