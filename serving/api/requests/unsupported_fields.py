"""Fields that are known and not implemented: refused, unless their values ask for nothing."""

from __future__ import annotations

from typing import Any

import msgspec

from serving.api.endpoint import Body, Endpoint
from serving.api.errors import InvalidRequestError


def refuse_unsupported(endpoint: Endpoint[Any], body: Body) -> None:
    """Refuse a body that asks for something that is known and not implemented.

    Raises:
      InvalidRequestError: it names the field and says what is possible.
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
