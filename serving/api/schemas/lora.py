"""LoRA adapters: listing, loading and unloading."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Struct

from serving.api.schemas.documented import documented as _doc


class LoraAdapter(Struct, kw_only=True):
    id: Annotated[str, _doc("its name in `model`")]
    object: Literal["lora_adapter"] = "lora_adapter"
    name: Annotated[str, _doc("its name in `adapter` and `adapters`")]
    rank: int
    target_modules: Annotated[list[str], _doc("the kinds of linear layers that it changes")]
    root: Annotated[str | None, _doc("what it was loaded from")]
    parent: Annotated[str, _doc("the base model")]
    created: int
    expert: Annotated[bool, _doc("part of the X-LoRA mixture")]
    removable: Annotated[bool, _doc("loaded by a request, and can be unloaded")]


class LoraAdapterList(Struct, kw_only=True):
    """The adapters that requests may use now."""

    object: Literal["list"] = "list"
    data: list[LoraAdapter]


class LoadedLora(LoraAdapter, kw_only=True):
    """The adapter can be used now."""

    message: Annotated[str, _doc("in the words of vLLM")]


class LoadLoraRequest(Struct, kw_only=True):
    """Body of POST /v1/load_lora_adapter."""

    lora_name: Annotated[str, _doc("its name in the API")]
    lora_path: Annotated[
        str | None, _doc("its folder, below the server's --lora-folder: relative to it, or absolute; absent: the name")
    ] = None
    load_inplace: Annotated[
        bool | None, _doc("replace the adapter of this name, if there is one; its requests finish with the old one")
    ] = None


class UnloadLoraRequest(Struct, kw_only=True):
    """Body of POST /v1/unload_lora_adapter."""

    lora_name: str


class UnloadedLora(Struct, kw_only=True):
    """New requests can no longer use the adapter."""

    name: str
    status: Annotated[
        Literal["unloaded", "draining"], _doc("draining: its room is freed when the last request that uses it ends")
    ]
    requests: Annotated[int, _doc("number of requests that still use it")]
    message: Annotated[str, _doc("in the words of vLLM")]


class NumberedLora(Struct, kw_only=True):
    """An adapter as llama.cpp lists it."""

    id: Annotated[int, _doc("its number in `lora`")]
    name: Annotated[str, _doc("its name in `adapter` and `adapters`")]
    path: Annotated[str, _doc("what it was loaded from: Hub id, or name of its folder")]
    scale: Annotated[
        float, _doc("its weight in requests that name no adapter; 0 in a mixture, whose weights change with each token")
    ]


class LoraScale(Struct, kw_only=True):
    """The weight of an adapter."""

    id: Annotated[int, _doc("its number, see GET /lora-adapters")]
    scale: Annotated[float, _doc("from -100 to 100")]
