"""What OpenAI does with stored responses: refused, with what to do instead, because nothing is stored here."""

from __future__ import annotations

from typing import Any, Literal, NoReturn

from serving.api.endpoint import Call, Endpoint
from serving.api.errors import NotFoundError


async def _not_stored(call: Call[None]) -> NoReturn:
    id = call.request.path_params["id"]
    raise NotFoundError(
        f"there is no response {id[:128]!r}: this server stores none. Keep the items of a response, and send them in "
        "`input`; to end one that is being made, POST /v1/requests/{id}/cancel",
        param="id",
        code="response_not_found",
    )


def _endpoint(method: Literal["GET", "POST", "DELETE"], rest: str, operation_id: str, summary: str) -> Endpoint[Any]:
    return Endpoint(
        path=f"/v1/responses/{{id:str}}{rest}",
        method=method,
        operation_id=operation_id,
        summary=f"{summary}: always a 404, because this server stores none",
        response=None,
        errors=(404,),
        handler=_not_stored,
    )


STORED_RESPONSES = (
    _endpoint("GET", "", "getResponse", "Get a stored response"),
    _endpoint("DELETE", "", "deleteResponse", "Delete a stored response"),
    _endpoint("GET", "/input_items", "listInputItems", "List the input items of a stored response"),
    _endpoint("POST", "/cancel", "cancelResponse", "Cancel a response that is made in the background"),
)
