"""Errors in Anthropic's shape."""

from __future__ import annotations

from serving.api.errors import ApiError, ContextLengthError, ErrorShape
from serving.api.messages_api.response import ErrorType, MessageError, MessageErrorBody

_TYPES: dict[int, ErrorType] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def message_error(error: ApiError) -> MessageError:
    """The error as clients of Anthropic's API expect it. They recognise a prompt that is too long by its wording."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 499 else "api_error")
    message = error.body().error.message
    if isinstance(error, ContextLengthError):
        tokens, most = error.details["n_prompt_tokens"], error.details["n_ctx"]
        message = f"prompt is too long: {tokens} tokens > {most} maximum. {message}"
    return MessageError(error=MessageErrorBody(type=kind, message=message))


MESSAGE_ERRORS = ErrorShape(MessageError, message_error)
