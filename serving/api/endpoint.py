"""What an endpoint is: one record. Its route, the checks of its body, its part of the OpenAPI document and of the
compatibility page, and whether it needs a key all follow from it. `serving.api.endpoints` has the table of them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import msgspec
from litestar import Request, Response

from serving.api.service.lifecycle import ServiceHost

Decision = Literal["honoured", "accepted", "refused"]
Body = Mapping[str, msgspec.Raw]
"""A body's fields, not decoded yet."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field's fate. "accepted": it changes nothing in the completion, so it is taken and not used."""

    name: str
    decision: Decision
    note: str
    endpoints: tuple[str, ...] = ()
    """Where several endpoints share a table of fields: those that have this one."""
    neutral: tuple[Any, ...] = ()
    """Of a refused field: values that ask for nothing and are let through, beside null."""
    unless: Callable[[Body], bool] | None = None
    """Of a refused field: whether what else the body says makes its value ask for nothing."""


@dataclass(frozen=True, slots=True)
class Text:
    """A response that is not described by a schema."""

    description: str
    media_type: str = "text/plain"


@dataclass(frozen=True, kw_only=True, slots=True)
class Call[BodyT]:
    """One request to an endpoint, as its handler gets it."""

    request: Request[Any, Any, Any]
    host: ServiceHost
    body: BodyT
    """In the endpoint's schema; None where it has none."""
    endpoints: tuple[Endpoint[Any], ...]
    """All of this server."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Endpoint[BodyT]:
    """One operation of the API."""

    path: str
    """As the router takes it: `{name}` is a part of the path, `{name:path}` all that is left of it."""
    method: Literal["GET", "POST"]
    operation_id: str
    summary: str
    """In a few words, for the OpenAPI document."""
    handler: Callable[[Call[BodyT]], Awaitable[msgspec.Struct | Response[Any]]]
    request: type[BodyT] | None = None
    """Schema of the body, for those that have one."""
    response: type[msgspec.Struct] | Text
    chunk: type[msgspec.Struct] | None = None
    """Schema of each event, for those that can stream."""
    fields: tuple[Field, ...] | None = None
    """Every field of the body that is known; None: the schema itself refuses all others."""
    objects: Mapping[str, tuple[Field, ...]] = field(default_factory=dict[str, tuple[Field, ...]])
    """The objects in the body whose fields are looked at, by where they are: `name`, or `name[]` for each of a list."""
    example: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """A body to try it with."""
    errors: tuple[int, ...] = ()
    """Statuses of its refusals, all with the same schema."""
    other_responses: Mapping[int, tuple[str, type[msgspec.Struct]]] = field(
        default_factory=dict[int, tuple[str, type[msgspec.Struct]]]
    )
    """Description and schema of responses that are neither."""
    public: bool = False
    """Whether it answers without a key."""
    takes_head: bool = False
    """Whether HEAD is taken beside GET."""
    quiet: bool = False
    """Asked every few seconds by whoever watches a server: logged at debug level only, and not in the file."""
    link: str | None = None
    """What GET / calls it; None: it is not told there."""
    documented: bool = True
    """Whether it is in the OpenAPI document."""

    @cached_property
    def decoder(self) -> msgspec.json.Decoder[BodyT]:
        assert self.request is not None
        return msgspec.json.Decoder(self.request)

    @cached_property
    def refused(self) -> tuple[Field, ...]:
        """The fields that are refused unless they ask for nothing."""
        return tuple(field for field in self.fields or () if field.decision == "refused")

    @cached_property
    def known(self) -> dict[str, frozenset[str]]:
        """Names of the known fields of the body (""), and of each object in it."""
        by_object = {"": self.fields or (), **self.objects}
        return {where: frozenset(field.name for field in fields) for where, fields in by_object.items()}

    @cached_property
    def nested(self) -> dict[str, tuple[tuple[str, str, bool], ...]]:
        """Of the body (""), and of each object in it, the objects in it: where they are, the field that has them, and
        whether that is a list."""
        found: dict[str, list[tuple[str, str, bool]]] = {where: [] for where in self.known}
        for where in self.objects:
            outer, _, last = where.rpartition(".")
            found[outer].append((where, last.removesuffix("[]"), last.endswith("[]")))
        return {where: tuple(inner) for where, inner in found.items()}

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parts of the path that vary."""
        return tuple(re.findall(r"\{(\w+)[:}]", self.path))

    @property
    def template(self) -> str:
        """The path as OpenAPI writes it."""
        return re.sub(r":\w+\}", "}", self.path)
