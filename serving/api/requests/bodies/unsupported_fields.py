"""Fields that are known but not implemented: refused, unless their values have no effect."""

from __future__ import annotations

from typing import Any

import msgspec

from serving.api.endpoint import Body, Endpoint, Field
from serving.api.errors import InvalidRequestError


def refuse_unsupported(endpoint: Endpoint[Any], body: Body) -> None:
    """Refuse a body that uses a field that is not implemented.

    Raises:
      InvalidRequestError: the message names the field and what is possible.
    """
    for field in endpoint.refused:
        if field.name in body and not (field.unless is not None and field.unless(body)):
            refuse(field, body[field.name], field.name)


def refuse(field: Field, value: msgspec.Raw, path: str) -> None:
    """Refuse a field that is not implemented, unless its value has no effect.

    Args:
      path: of the field, for the error.

    Raises:
      InvalidRequestError: the message names the field and what is possible.
    """
    given = msgspec.json.decode(value)
    if given is not None and given not in field.neutral:
        raise InvalidRequestError(
            f"{path}: not supported by this server ({field.note}); leave it out",
            param=path,
            code="unsupported_parameter",
        )
