"""GET /v1/models and GET /v1/models/{id}."""

from __future__ import annotations

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromPath

from serving.api.requests.adapter_request import find_model
from serving.api.schemas import Model, ModelList
from serving.api.service.lifecycle import ServiceHost
from serving.api.service.served_models import ServedModel
from serving.engine.messages import ModelCard


class ModelsController(Controller):
    path = "/v1/models"

    @get(operation_id="listModels")
    async def list_models(self, host: NamedDependency[ServiceHost]) -> ModelList:
        """The served models: that which answers by default first, then the others of base model, adapters and X-LoRA
        mixture."""
        service = host.loaded_service
        return ModelList(data=[_model(model, service.card) for model in service.models.listed])

    @get("/{model_id:path}", operation_id="retrieveModel")
    async def retrieve(self, model_id: FromPath[str], host: NamedDependency[ServiceHost]) -> Model:
        """One served model; ids may contain slashes."""
        service = host.loaded_service
        return _model(find_model(service.models, model_id.removeprefix("/")), service.card)


def _model(model: ServedModel, card: ModelCard) -> Model:
    return Model(
        id=model.id,
        created=model.created,
        max_model_len=card.max_model_len,
        aliases=list(model.aliases),
        root=model.root,
        parent=model.parent,
    )
