"""Fields that are known but not implemented: refused, unless their values have no effect."""

from __future__ import annotations

from typing import Any

import msgspec

from serving.api.endpoint import Body, Endpoint
from serving.api.errors import InvalidRequestError


def refuse_unsupported(endpoint: Endpoint[Any], body: Body) -> None:
    """Refuse a body that uses a field that is not implemented.

    Raises:
      InvalidRequestError: the message names the field and what is possible.
    """
    for field in endpoint.refused:
        if field.name not in body:
            continue
        value = msgspec.json.decode(body[field.name])
        if value is None or value in field.neutral or (field.unless is not None and field.unless(body)):
            continue
        raise InvalidRequestError(
            f"{field.name}: not supported by this server ({field.note}); leave it out",
            param=field.name,
            code="unsupported_parameter",
        )
