"""GET /v1/models and GET /v1/models/{id}."""

from __future__ import annotations

from serving.api.endpoint import Call, Endpoint
from serving.api.requests.adapter_request import find_model
from serving.api.schemas import Model, ModelList
from serving.api.service.served_models import ServedModel
from serving.engine.messages import ModelCard


async def _list(call: Call[None]) -> ModelList:
    """The default model first, then the other ones of base model, adapters and X-LoRA mixture."""
    service = call.host.loaded_service
    return ModelList(data=[_model(model, service.card) for model in service.models.listed])


async def _retrieve(call: Call[None]) -> Model:
    """One model by id, which may contain slashes."""
    service = call.host.loaded_service
    name = call.request.path_params["model"].removeprefix("/")
    return _model(find_model(service.models, name), service.card)


def _model(model: ServedModel, card: ModelCard) -> Model:
    return Model(
        id=model.id,
        created=model.created,
        max_model_len=card.max_model_len,
        aliases=list(model.aliases),
        root=model.root,
        parent=model.parent,
    )


MODELS = Endpoint(
    path="/v1/models",
    method="GET",
    operation_id="listModels",
    summary="List the served models",
    response=ModelList,
    errors=(503,),
    link="models",
    handler=_list,
)
MODEL = Endpoint(
    path="/v1/models/{model:path}",
    method="GET",
    operation_id="retrieveModel",
    summary="Get one served model",
    response=Model,
    errors=(404, 503),
    handler=_retrieve,
)
