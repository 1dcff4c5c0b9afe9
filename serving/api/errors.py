"""All errors that a client can see: in OpenAI's format, `{"error": {"message", "type", "param", "code"}}`, unless the
endpoint has another.

Controllers raise `ApiError`s. `api_error` converts other exceptions to one, and `serving.api.responses.errors` sends
it. Messages are short, without tracebacks or paths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
from litestar.exceptions import HTTPException

from serving.api.schemas import ErrorBody, ErrorResponse
from serving.engine.messages import AdapterGoneError, EngineState, EngineUnavailableError, QueueFullError

MAX_MESSAGE = 2000
"""Longest error message in characters: an error may quote the client's input."""

CLIENT_GONE = 499
"""Status of a request that its client ended: sent if it was cancelled by another request; only logged if the client
disconnected."""

_PATH = re.compile(r"(?<![\w.:/])(?:~|[A-Za-z]:)?(?:[/\\][\w.@+\-]+){2,}")


class ApiError(Exception):
    """An error response. Subclasses define status, type and code."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        **details: int,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = headers or {}
        self.details = details
        if code is not None:
            self.code = code

    def body(self) -> ErrorResponse:
        """The JSON body, limited in length."""
        message = self.message if len(self.message) <= MAX_MESSAGE else self.message[:MAX_MESSAGE] + " ..."
        param = self.param[:200] if self.param else None
        error = ErrorBody(message=message, type=self.type, param=param, code=self.code, **self.details)
        return ErrorResponse(error=error)


class InvalidRequestError(ApiError):
    status = 400
    type = "invalid_request_error"


class ContextLengthError(InvalidRequestError):
    """A prompt leaves no room for a completion. Clients recognise this error by OpenAI's wording, and shorten their
    prompts."""

    code = "context_length_exceeded"

    def __init__(self, *, param: str, prompt_tokens: int, context: int, at_least: bool = False) -> None:
        """Args:
        param: the field that holds the prompt.
        prompt_tokens: its length; with `at_least`, a lower bound of it.
        context: most tokens of prompt and completion together.
        """
        about = "at least " if at_least else ""
        super().__init__(
            f"This model's maximum context length is {context} tokens. However, you requested "
            f"{about}{prompt_tokens + 1} tokens ({about}{prompt_tokens} in the {param}, "
            f"at least 1 in the completion). Please reduce the length of the {param}, "
            "or start the server with --truncate-sequence to have it cut from the left.",
            param=param,
            n_prompt_tokens=prompt_tokens,
            n_ctx=context,
        )


class UnauthorizedError(ApiError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class ForbiddenError(ApiError):
    status = 403
    type = "permission_error"


class NotFoundError(ApiError):
    status = 404
    type = "invalid_request_error"


class NoRoomError(ApiError):
    """There is no room for another adapter."""

    status = 507
    type = "unavailable_error"
    code = "no_room"


class BodyTimeoutError(ApiError):
    status = 408
    type = "timeout_error"
    code = "body_timeout"


class HeadersTooLargeError(ApiError):
    """Too many headers, or too long ones."""

    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


class UnsupportedMediaTypeError(ApiError):
    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class ClientGoneError(ApiError):
    """The client closed its connection."""

    status = CLIENT_GONE
    type = "client_closed_request"


class RequestCancelledError(ApiError):
    """The request was cancelled by its id."""

    status = CLIENT_GONE
    type = "request_cancelled"
    code = "request_cancelled"


class NotEnabledError(ApiError):
    """The endpoint is turned off by the server's settings."""

    status = 501
    type = "not_supported_error"
    code = "not_enabled"


class GenerationError(ApiError):
    """The engine could not finish the completion."""

    code = "generation_failed"


class UnavailableError(ApiError):
    """The server cannot take the request now: it is loading, draining or failed, or the queue is full."""

    status = 503
    type = "unavailable_error"


class DeadlineError(ApiError):
    """The request's deadline (`--request-timeout`) has passed. Retrying would only repeat the work."""

    status = 504
    type = "timeout_error"
    code = "request_timeout"

    def __init__(self, seconds: float) -> None:
        # Rounded: a few milliseconds of the limit were used before generation began.
        super().__init__(
            "the completion was not finished within this server's limit of "
            f"{round(seconds, 1 if seconds > 1 else 2):g} seconds",
            headers={"x-should-retry": "false"},
        )


@dataclass(frozen=True, slots=True)
class ErrorShape:
    """The JSON of an endpoint's errors."""

    schema: type[msgspec.Struct]
    body: Callable[[ApiError], msgspec.Struct]


OPENAI_ERRORS = ErrorShape(ErrorResponse, ApiError.body)

ErrorShapes = Mapping[str, ErrorShape]
"""By path; other paths have OpenAI's."""


def shape_of(path: str, shapes: ErrorShapes) -> ErrorShape:
    """The shape of errors at a path, in any of its spellings."""
    return shapes.get("/" + "/".join(part for part in path.split("/") if part), OPENAI_ERRORS)


def without_paths(text: str) -> str:
    """The text with every file path shortened to its last part."""
    return _PATH.sub(lambda match: re.split(r"[/\\]", match.group())[-1], text)


def api_error(exception: Exception) -> ApiError:
    """The `ApiError` to send for an exception."""
    match exception:
        case ApiError():
            return exception
        case QueueFullError():
            headers = {"Retry-After": str(exception.retry_after)}
            return UnavailableError(without_paths(str(exception)), code="queue_full", headers=headers)
        case AdapterGoneError():
            return NotFoundError("an adapter of this request was unloaded meanwhile", code="adapter_unloaded")
        case EngineUnavailableError():
            headers = {} if exception.retry_after is None else {"Retry-After": str(exception.retry_after)}
            failed = exception.state is EngineState.FAILED
            message = "the engine failed; the server's log says why" if failed else without_paths(str(exception))
            return UnavailableError(message, code=exception.state.name.lower(), headers=headers)
        case HTTPException():
            return _from_litestar(exception)
        case _:
            return ApiError(
                "an internal error; the server's log has the details under this request's id", code="internal_error"
            )


def _from_litestar(exception: HTTPException) -> ApiError:
    error = ApiError("an internal error", headers=dict(exception.headers or {}))
    error.status = exception.status_code
    if error.status < 500:
        error.type = "invalid_request_error"
        error.message = exception.detail
    match error.status:
        case 404:
            error.message, error.code = "there is nothing at this address; GET / lists what there is", "route_not_found"
        case 405:
            error.message, error.code = "this address does not take this method", "method_not_allowed"
        case 413:
            error.message, error.code = "the body is larger than this server reads (--max-body-bytes)", "body_too_large"
        case _:
            pass
    return error
