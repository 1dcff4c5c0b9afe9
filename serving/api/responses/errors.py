"""Turns exceptions into error responses."""

from __future__ import annotations

import logging
from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.types import ExceptionHandlersMap

from serving.api.errors import ApiError, api_error
from serving.api.log.exchange import exchange_of
from serving.api.log.request_id import request_id_of
from serving.api.schemas import ErrorResponse
from serving.engine.messages import EngineUnavailableError, QueueFullError

logger = logging.getLogger("mistral_jax.server")


def _handle(request: Request[Any, Any, Any], exception: Exception) -> Response[ErrorResponse]:
    error = api_error(exception)
    if error.status >= 500 and not isinstance(exception, ApiError | QueueFullError | EngineUnavailableError):
        logger.error("request %s failed", request_id_of(request.scope), exc_info=exception)
    if error.status >= 500:
        exchange_of(request.scope).error = error.message
    return Response(error.body(), status_code=error.status, headers=error.headers, media_type="application/json")


EXCEPTION_HANDLERS: ExceptionHandlersMap = {ApiError: _handle, HTTPException: _handle, Exception: _handle}
"""The application's only exception handlers."""
