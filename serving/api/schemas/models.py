"""/v1/models."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Struct

from serving.api.schemas.documented import documented as _doc


class Model(Struct, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    max_model_len: Annotated[int, _doc("most tokens of prompt and completion together")]
    aliases: Annotated[list[str], _doc("other names that requests may use")]
    owned_by: str = "mistral-jax"
    root: Annotated[str | None, _doc("what it was loaded from")] = None
    parent: Annotated[str | None, _doc("the base model of an adapter or a mixture")] = None


class ModelList(Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Model]
