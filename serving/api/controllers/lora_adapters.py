"""LoRA adapters: listing, and loading and unloading while the server runs, if `--lora-folder` allows it."""

from __future__ import annotations

import logging
import re

import anyio.to_thread
import msgspec

from serving.api.endpoint import Call, Endpoint, Field
from serving.api.errors import ForbiddenError, InvalidRequestError, NotFoundError
from serving.api.schemas import (
    LoadedLora,
    LoadLoraRequest,
    LoraAdapter,
    LoraAdapterList,
    UnloadedLora,
    UnloadLoraRequest,
)
from serving.api.service.served_models import NameTakenError, ServedModel, ServedModels
from serving.api.service.service import AdapterLoader, Service
from serving.engine.adapter_registry import AdapterInfo
from serving.settings.model import MODEL_NAME, MODEL_NAME_EXPECTS

logger = logging.getLogger("mistral_jax.server")


async def _list(call: Call[None]) -> LoraAdapterList:
    models = call.host.loaded_service.models
    return LoraAdapterList(data=[_described(model) for model in models.models if model.adapter is not None])


async def _load(call: Call[LoadLoraRequest]) -> LoadedLora:
    """The adapter can be used once this returns."""
    body, service = call.body, call.host.service
    loader, models = _loader(service), service.models
    if not re.fullmatch(MODEL_NAME, body.lora_name):
        raise InvalidRequestError(
            f"lora_name: {body.lora_name[:300]!r} is not valid; expected {MODEL_NAME_EXPECTS}", param="lora_name"
        )
    path = body.lora_name if body.lora_path is None else body.lora_path
    async with call.host.changing_adapters:
        replaced = _replaced(models, body.lora_name) if body.load_inplace else None
        if replaced is None:
            _check_free(models, body.lora_name)
        adapter = await anyio.to_thread.run_sync(loader.load, body.lora_name, path, replaced)
        if replaced is not None:
            models.remove(replaced)
            loader.unload(replaced)
        model = models.add(adapter)
    logger.info("loaded the adapter %s (rank %d)", adapter.name, adapter.rank)
    message = f"Success: LoRA adapter {adapter.name!r} added successfully."
    return LoadedLora(**msgspec.structs.asdict(_described(model)), message=message)


async def _unload(call: Call[UnloadLoraRequest]) -> UnloadedLora:
    """Requests that use the adapter finish; new ones are refused."""
    service = call.host.service
    loader = _loader(service)
    async with call.host.changing_adapters:
        adapter = _removable(service.models, call.body.lora_name)
        service.models.remove(adapter)
        users = loader.unload(adapter)
    logger.info("unloaded the adapter %s (%d requests still use it)", adapter.name, users)
    return UnloadedLora(
        name=adapter.name,
        status="draining" if users else "unloaded",
        requests=users,
        message=f"Success: LoRA adapter {adapter.name!r} removed successfully.",
    )


def _loader(service: Service) -> AdapterLoader:
    if service.loader is None:
        raise ForbiddenError(
            "the adapters of this server are fixed; start it with --lora-folder FOLDER to load some from there",
            code="adapters_fixed",
        )
    return service.loader


def _check_free(models: ServedModels, name: str) -> None:
    try:
        models.check_free(name)
    except NameTakenError as error:
        raise InvalidRequestError(
            f"lora_name: {error}; choose another, unload it first, or replace it with load_inplace: true",
            param="lora_name",
            code="name_taken",
        ) from error


def _replaced(models: ServedModels, name: str) -> AdapterInfo | None:
    """The adapter of this name, which another is to replace; None if there is none."""
    return None if models.find_adapter(name) is None else _removable(models, name)


def _removable(models: ServedModels, name: str) -> AdapterInfo:
    adapter = models.find_adapter(name)
    if adapter is None:
        there = ", ".join(other.name for other in models.adapters if other.removable) or "none"
        raise NotFoundError(
            f"lora_name: there is no adapter {name[:200]!r}; those that can be unloaded: {there}",
            param="lora_name",
            code="adapter_not_found",
        )
    if not adapter.removable:
        raise InvalidRequestError(
            f"lora_name: {adapter.name!r} was loaded when the server started, and stays", param="lora_name"
        )
    return adapter


def _described(model: ServedModel) -> LoraAdapter:
    adapter = model.adapter
    assert adapter is not None
    return LoraAdapter(
        id=model.id,
        name=adapter.name,
        rank=adapter.rank,
        target_modules=list(adapter.parts),
        root=adapter.source,
        parent=model.parent or "",
        created=adapter.created,
        expert=adapter.expert,
        removable=adapter.removable,
    )


LORA_ADAPTERS = Endpoint(
    path="/v1/lora_adapters",
    method="GET",
    operation_id="listLoraAdapters",
    summary="List the adapters",
    response=LoraAdapterList,
    errors=(503,),
    link="adapters",
    handler=_list,
)
LOAD_LORA_ADAPTER = Endpoint(
    path="/v1/load_lora_adapter",
    method="POST",
    operation_id="loadLoraAdapter",
    summary="Load an adapter from the server's --lora-folder",
    request=LoadLoraRequest,
    response=LoadedLora,
    fields=(
        Field("lora_name", "honoured", "its name in the API"),
        Field("lora_path", "honoured", "below the server's --lora-folder, relative or absolute; absent: the name"),
        Field("load_inplace", "honoured", "replace the adapter of this name; its requests finish with the old one"),
        Field("base_model_name", "accepted", "there is one base model"),
        Field("is_3d_lora_weight", "refused", "no adapters of experts", neutral=(False,)),
    ),
    example={"lora_name": "poet", "lora_path": "poet"},
    errors=(404, 507),
    handler=_load,
)
UNLOAD_LORA_ADAPTER = Endpoint(
    path="/v1/unload_lora_adapter",
    method="POST",
    operation_id="unloadLoraAdapter",
    summary="Unload an adapter",
    request=UnloadLoraRequest,
    fields=(
        Field("lora_name", "honoured", "its name in the API"),
        Field("lora_int_id", "accepted", "adapters are named by `lora_name`"),
    ),
    response=UnloadedLora,
    example={"lora_name": "poet"},
    errors=(404,),
    handler=_unload,
)
