"""An endpoint is one record. Its route, the checks of its body, its part of the OpenAPI document and of the
compatibility page, and whether it needs a key are derived from it. `serving.api.endpoints` has the table of all."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import msgspec
from litestar import Request, Response

from serving.api.errors import OPENAI_ERRORS, ErrorShape
from serving.api.service.lifecycle import ServiceHost

Decision = Literal["honoured", "accepted", "refused"]
VERSION = "/v1"
"""What the paths of OpenAI's API begin with."""
Body = Mapping[str, msgspec.Raw]
"""The fields of a body, not yet decoded."""


@dataclass(frozen=True, slots=True)
class Field:
    """How one field is handled. "accepted": allowed and ignored, because it does not change the completion."""

    name: str
    decision: Decision
    note: str
    endpoints: tuple[str, ...] = ()
    """The endpoints that have this field, if several share a table of fields."""
    neutral: tuple[Any, ...] = ()
    """For a refused field: values besides null that are allowed because they have no effect."""
    unless: Callable[[Body], bool] | None = None
    """For a refused field: whether its value has no effect, given the rest of the body."""


@dataclass(frozen=True, slots=True)
class Text:
    """A response without a schema."""

    description: str
    media_type: str = "text/plain"


@dataclass(frozen=True, slots=True)
class OneOf:
    """A response that has one of several shapes: Structs, or lists of them."""

    description: str
    shapes: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Call[BodyT]:
    """One request to an endpoint, as passed to its handler."""

    request: Request[Any, Any, Any]
    host: ServiceHost
    body: BodyT
    """Decoded into the endpoint's schema; None if it has none."""
    endpoints: tuple[Endpoint[Any], ...]
    """All endpoints of this server."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Endpoint[BodyT]:
    """One operation of the API."""

    path: str
    """In the router's syntax: `{name}` is a path segment, `{name:path}` the rest of the path. See also `paths`."""
    method: Literal["GET", "POST", "DELETE"]
    operation_id: str
    summary: str
    """A few words, for the OpenAPI document."""
    handler: Callable[[Call[BodyT]], Awaitable[msgspec.Struct | Response[Any]]]
    request: type[BodyT] | None = None
    """Schema of the body; None: it takes no body."""
    response: type[msgspec.Struct] | OneOf | Text | None
    """None: it only has errors."""
    chunk: type[msgspec.Struct] | OneOf | None = None
    """Schema of each stream event; None: it cannot stream."""
    fields: tuple[Field, ...] | None = None
    """All known fields of the body; None: the schema itself refuses all others."""
    objects: Mapping[str, tuple[Field, ...]] = field(default_factory=dict[str, tuple[Field, ...]])
    """The objects in the body whose fields are checked, by path: `name`, or `name[]` for each item of a list."""
    example: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """An example body, for the OpenAPI document."""
    errors: tuple[int, ...] = ()
    """Statuses of its error responses besides those of all endpoints, see `statuses`; all in `error_shape`."""
    error_shape: ErrorShape = OPENAI_ERRORS
    other_responses: Mapping[int, tuple[str, type[msgspec.Struct]]] = field(
        default_factory=dict[int, tuple[str, type[msgspec.Struct]]]
    )
    """Description and schema of further responses, by status."""
    public: bool = False
    """Whether it needs no key."""
    takes_head: bool = False
    """Whether HEAD is allowed in addition to GET."""
    quiet: bool = False
    """Polled every few seconds by monitoring: logged at debug level only, and not in the file of `--log`."""
    link: str | None = None
    """Its name in the response of GET /; None: not listed there."""

    @cached_property
    def decoder(self) -> msgspec.json.Decoder[BodyT]:
        assert self.request is not None
        return msgspec.json.Decoder(self.request)

    @cached_property
    def refused(self) -> tuple[Field, ...]:
        """The fields that are refused unless their values have no effect."""
        return tuple(field for field in self.fields or () if field.decision == "refused")

    @cached_property
    def refused_inside(self) -> dict[str, dict[str, Field]]:
        """For the body ("", which is `refused`'s) and each object in it, the fields that are refused, by name."""
        inside = {
            where: {field.name: field for field in fields if field.decision == "refused"}
            for where, fields in self.objects.items()
        }
        return {"": {}, **inside}

    @cached_property
    def known(self) -> dict[str, frozenset[str]]:
        """Names of the known fields of the body (""), and of each object in it."""
        by_object = {"": self.fields or (), **self.objects}
        return {where: frozenset(field.name for field in fields) for where, fields in by_object.items()}

    @cached_property
    def nested(self) -> dict[str, tuple[tuple[str, str, bool], ...]]:
        """For the body ("") and each object in it, the objects that it contains: path, name of the field, and whether
        it is a list."""
        found: dict[str, list[tuple[str, str, bool]]] = {where: [] for where in self.known}
        for where in self.objects:
            outer, _, last = where.rpartition(".")
            found[outer].append((where, last.removesuffix("[]"), last.endswith("[]")))
        return {where: tuple(inner) for where, inner in found.items()}

    @property
    def statuses(self) -> tuple[int, ...]:
        """Statuses of all its error responses."""
        found = {403, 431, 500, *self.errors}
        if not self.public:
            found.add(401)
        if self.request is not None:
            found |= {400, 408, 413, 415, 503}
        return tuple(sorted(found))

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of the path parameters."""
        return tuple(re.findall(r"\{(\w+)[:}]", self.path))

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that it is served at: `path`, and without `/v1` if it begins so, because clients are given base
        URLs with and without it."""
        return (self.path, self.path.removeprefix(VERSION)) if self.path.startswith(f"{VERSION}/") else (self.path,)

    @property
    def template(self) -> str:
        """The path in OpenAPI's syntax."""
        return re.sub(r":\w+\}", "}", self.path)
