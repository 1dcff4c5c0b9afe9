"""GET /v1/models and GET /v1/models/{id}."""

from __future__ import annotations

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromPath

from serving.lifecycle import ServiceHost
from serving.request import ModelCard
from serving.sampling_request import check_model
from serving.schemas import Model, ModelList


class ModelsController(Controller):
    path = "/v1/models"

    @get(operation_id="listModels")
    async def list_models(self, host: NamedDependency[ServiceHost]) -> ModelList:
        """The served models."""
        return ModelList(data=[_model(host.loaded_service.card)])

    @get("/{model_id:path}", operation_id="retrieveModel")
    async def retrieve(self, model_id: FromPath[str], host: NamedDependency[ServiceHost]) -> Model:
        """One served model; ids may contain slashes."""
        card = host.loaded_service.card
        check_model(card, model_id.removeprefix("/"))
        return _model(card)


def _model(card: ModelCard) -> Model:
    return Model(id=card.model_id, created=card.created, max_model_len=card.max_model_len, aliases=list(card.aliases))
