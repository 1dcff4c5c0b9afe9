"""From a request's fields about adapters to the `AdapterChoice` of its sequences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from mistral_jax.adapters.choice import BASE_NAME, AdapterChoice
from serving.api.errors import InvalidRequestError, NotFoundError
from serving.api.schemas import LoraScale, SamplingFields, XLoRAOptions
from serving.api.service.asked import AdapterUse, ReportedScalings
from serving.api.service.served_models import ServedModel, ServedModels, weights_by_hand
from serving.engine.adapter_registry import AdapterInfo
from serving.engine.messages import ModelCard, WantedScalings

MAX_WEIGHT = 100.0
"""Largest absolute weight of an adapter. Useful weights are about 1."""
_SHOWN = 20
"""Most names listed in an error message."""


def find_model(models: ServedModels, name: str | None) -> ServedModel:
    """The model, adapter or mixture with this name; the default if `name` is None.

    Raises:
      NotFoundError: there is none; the message lists the served ones.
    """
    found = models.find(name)
    if found is not None:
        return found
    names = [
        model.id + (f" (also known as {', '.join(model.aliases)})" if model.aliases else "") for model in models.models
    ]
    raise NotFoundError(
        f"the model {str(name)[:200]!r} is not served here; this server serves {_listed(names)}",
        param="model",
        code="model_not_found",
    )


def adapter_use(request: SamplingFields, models: ServedModels, card: ModelCard) -> AdapterUse:
    """The adapters that a request uses, and the weights that its response reports.

    Raises:
      NotFoundError: its model is not served.
      InvalidRequestError: names, weights or options are invalid or contradict each other.
    """
    model = find_model(models, request.model)
    if request.adapter is not None and request.adapters is not None:
        raise InvalidRequestError("adapter and adapters: expected one of the two", param="adapters")
    if request.lora:
        if request.adapter is not None or request.adapters is not None:
            raise InvalidRequestError("lora: not together with adapter or adapters", param="lora")
        use = _by_number(request.lora, model, models)
    elif request.adapters is not None:
        use = _by_hand(request.adapters, model, models)
    elif request.adapter is not None:
        use = _one(request.adapter, model, models)
    else:
        use = _of_model(model)
    options = request.xlora
    return use if options is None else _with_options(use, options, models, card)


def _of_model(model: ServedModel) -> AdapterUse:
    use = AdapterUse(model_id=model.id, choice=model.choice)
    if model.adapter is not None:
        return replace(use, keys=(model.adapter.key,), label=model.adapter.name)
    return replace(use, label="mixture") if model.kind == "mixture" else use


def _one(name: str, model: ServedModel, models: ServedModels) -> AdapterUse:
    is_base = name == BASE_NAME or name in models.base.names
    chosen = models.base if is_base else models.model_of(_adapter(name, models, "adapter"))
    if model.kind == "adapter" and chosen is not model:
        raise InvalidRequestError(
            f"adapter: {name[:200]!r}, and model names another adapter, {model.id!r}; expected one of the two",
            param="adapter",
        )
    return _of_model(chosen)


def _by_hand(weights: Mapping[str, float], model: ServedModel, models: ServedModels) -> AdapterUse:
    if not weights:
        raise InvalidRequestError(
            f"adapters: expected the weight of at least one adapter; for none, write model: {BASE_NAME}",
            param="adapters",
        )
    if len(weights) > len(models.adapters):
        raise InvalidRequestError(
            f"adapters: {len(weights)} weights; this server has {_count(len(models.adapters))}", param="adapters"
        )
    named = ((_adapter(name, models, "adapters"), weight) for name, weight in weights.items())
    return _weighted(named, model, "adapters")


def _by_number(scales: Sequence[LoraScale], model: ServedModel, models: ServedModels) -> AdapterUse:
    """As llama.cpp: adapters that are not in the list, or have scale 0, are not used."""
    by_number = {adapter.number: adapter for adapter in models.adapters}
    unknown = [scale.id for scale in scales if scale.id not in by_number]
    if unknown:
        there = ", ".join(map(str, sorted(by_number))) or "none: this server has no adapters"
        raise InvalidRequestError(
            f"lora: there is no adapter {unknown[0]}; GET /lora-adapters lists {there}",
            param="lora",
            code="adapter_not_found",
        )
    numbered = ((by_number[scale.id], scale.scale) for scale in scales)
    return _weighted(numbered, model, "lora", keeps_zeros=False)


def _weighted(
    weights: Iterable[tuple[AdapterInfo, float]], model: ServedModel, param: str, *, keeps_zeros: bool = True
) -> AdapterUse:
    """A mixture with fixed weights."""
    chosen: dict[AdapterInfo, float] = {}
    for adapter, weight in weights:
        if adapter in chosen:
            raise InvalidRequestError(f"{param}: {adapter.name!r} is given twice", param=param)
        if not math.isfinite(weight) or abs(weight) > MAX_WEIGHT:
            raise InvalidRequestError(
                f"{param}: the weight of {adapter.name!r} is {weight:g}; expected a number from -{MAX_WEIGHT:g} to "
                f"{MAX_WEIGHT:g}",
                param=param,
            )
        chosen[adapter] = weight
    if not keeps_zeros:
        chosen = {adapter: weight for adapter, weight in chosen.items() if weight}
    if model.kind == "adapter" and chosen != {model.adapter: 1.0}:
        raise InvalidRequestError(
            f"{param}: model names an adapter already, {model.id!r}; leave out one of the two, or name the base model",
            param=param,
        )
    return AdapterUse(
        model_id=model.id,
        choice=weights_by_hand(chosen),
        keys=tuple(adapter.key for adapter in chosen),
        label="weights",
    )


def _adapter(name: str, models: ServedModels, param: str) -> AdapterInfo:
    found = models.find_adapter(name)
    if found is not None:
        return found
    names = [adapter.name for adapter in models.adapters]
    there = f"expected one of {_listed(names)}" if names else "this server has no adapters"
    raise InvalidRequestError(
        f"{param}: there is no adapter {name[:200]!r}; {there}", param=param, code="adapter_not_found"
    )


def _with_options(use: AdapterUse, options: XLoRAOptions, models: ServedModels, card: ModelCard) -> AdapterUse:
    if options.non_granular_index is not None:
        use = replace(use, choice=_frozen(use.choice, options.non_granular_index, models, card))
    if options.scalings is None:
        return use
    if not models.has_mixture:
        raise InvalidRequestError(
            "xlora.scalings: this server has no X-LoRA mixture, so it has no weights to return", param="xlora.scalings"
        )
    by_number = {adapter.number: adapter for adapter in models.adapters}
    used = [by_number[number] for number, _ in use.choice.weights if number in by_number]
    reported = list(dict.fromkeys([*models.experts, *used]))
    wanted = WantedScalings(detail=options.scalings, adapters=tuple(adapter.number for adapter in reported))
    names = tuple(adapter.name for adapter in reported)
    return replace(
        use, scalings=wanted, reported=ReportedScalings(detail=options.scalings, adapters=names, modules=models.modules)
    )


def _frozen(choice: AdapterChoice, index: int, models: ServedModels, card: ModelCard) -> AdapterChoice:
    param = "xlora.non_granular_index"
    if not choice.xlora:
        raise InvalidRequestError(
            f"{param}: the weights of this request are fixed already: no X-LoRA mixture is asked for", param=param
        )
    if not models.can_freeze:
        raise InvalidRequestError(
            f"{param}: this server recomputes every token (--no-xlora-kv-cache), and cannot freeze weights",
            param=param,
        )
    if not 1 <= index <= card.max_model_len:
        raise InvalidRequestError(
            f"{param} is {index}; expected a token of the completion, from 1 to {card.max_model_len}", param=param
        )
    return AdapterChoice(xlora=True, freeze_after=index)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _count(adapters: int) -> str:
    return "no adapters" if not adapters else "one adapter" if adapters == 1 else f"{adapters} adapters"
