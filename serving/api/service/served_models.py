"""The names of the served models and adapters in the API, and what each refers to.

    a plain model      id, default                            the model
    LoRA adapters      id, default, base                      the base model
                       each adapter's name                    that adapter
    X-LoRA             id, default                            the mixture
                       the base model's name, base            the base model
                       each adapter's name                    that adapter
    the demo           demo, base; demo-<skill>; demo-xlora, default
    --alias NAME       NAME                                   the default
    --alias '*'        every name that nothing else has       the default

Used only on the event loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from mistral_jax.adapters.choice import BASE, BASE_NAME, AdapterChoice
from serving.engine.adapter_registry import AdapterInfo, AdapterRegistry

ServedKind = Literal["base", "adapter", "mixture"]
DEFAULT_NAME = "default"
ANY_NAME = "*"
"""The alias for every name that nothing else has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """What one `model` of the API refers to."""

    id: str
    kind: ServedKind
    choice: AdapterChoice = BASE
    aliases: tuple[str, ...] = ()
    adapter: AdapterInfo | None = None
    """For kind "adapter"."""
    root: str | None = None
    """What it was loaded from."""
    parent: str | None = None
    """The id of the base model."""
    created: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        return (self.id, *self.aliases)


class NameTakenError(ValueError):
    """A name is already in use."""


@dataclass(kw_only=True)
class ServedModels:
    """All names. Those of adapters come from the registry of adapters."""

    base: ServedModel
    mixture: ServedModel | None = None
    registry: AdapterRegistry = field(default_factory=AdapterRegistry)
    modules: tuple[str, ...] = ("*",)
    """Names of the linear layers that X-LoRA's M sets of weights apply to; "*" for all layers."""
    adapter_prefix: str = ""
    """Prefix of an adapter's name in the id of its model."""
    can_freeze: bool = True
    """Whether X-LoRA's weights can be frozen from one token on."""
    _of_adapters: dict[str, ServedModel] = field(default_factory=dict[str, ServedModel], init=False, repr=False)
    """The models that are one adapter, by the adapter's key."""

    def __post_init__(self) -> None:
        fixed = [self.base] if self.mixture is None else [self.base, self.mixture]
        self._fixed = {name: model for model in fixed for name in model.names}

    @property
    def models(self) -> list[ServedModel]:
        """All models: those loaded at start, then later adapters in loading order."""
        adapters = self.adapters
        mixture = [] if self.mixture is None else [self.mixture]
        at_start = [self.model_of(adapter) for adapter in adapters if not adapter.removable]
        later = [self.model_of(adapter) for adapter in adapters if adapter.removable]
        return [self.base, *at_start, *mixture, *later]

    @property
    def adapters(self) -> list[AdapterInfo]:
        """The adapters that requests may use now."""
        return self.registry.named

    @property
    def experts(self) -> list[AdapterInfo]:
        """The adapters of the X-LoRA mixture, in the order of the classifier."""
        return [adapter for adapter in self.adapters if adapter.expert]

    @property
    def has_mixture(self) -> bool:
        return self.mixture is not None

    @property
    def default(self) -> ServedModel:
        """The model of requests that name none."""
        return self._fixed[DEFAULT_NAME]

    @property
    def listed(self) -> list[ServedModel]:
        """All models, the default first: many clients use the first of the list."""
        return sorted(self.models, key=lambda model: model is not self.default)

    def find(self, name: str | None) -> ServedModel | None:
        """The model with this name, or None; the default if `name` is None."""
        return self._named(DEFAULT_NAME if name is None else name) or self._fixed.get(ANY_NAME)

    def _named(self, name: str) -> ServedModel | None:
        if name in self._fixed:
            return self._fixed[name]
        adapter = self.find_adapter(name)
        return None if adapter is None else self.model_of(adapter)

    def find_adapter(self, name: str) -> AdapterInfo | None:
        """The adapter with this name or model id, or None."""
        found = self.registry.find(name)
        if found is None and self.adapter_prefix and name.startswith(self.adapter_prefix):
            found = self.registry.find(name.removeprefix(self.adapter_prefix))
        return found

    def model_of(self, adapter: AdapterInfo) -> ServedModel:
        """The model that is this adapter alone; always the same object."""
        if adapter.key not in self._of_adapters:
            model = adapter_model(adapter, prefix=self.adapter_prefix, parent=self.base.id)
            self._of_adapters[adapter.key] = model
        return self._of_adapters[adapter.key]

    def add(self, adapter: AdapterInfo) -> ServedModel:
        """Let requests use an adapter that was loaded.

        Raises:
          NameTakenError: its name is in use.
        """
        self.check_free(adapter.name)
        self.registry.ready(adapter)
        return self.model_of(adapter)

    def remove(self, adapter: AdapterInfo) -> None:
        """Let no new request use an adapter."""
        self.registry.close(adapter.key)
        self._of_adapters.pop(adapter.key, None)

    def check_free(self, name: str) -> None:
        """Check that an adapter may have this name.

        Raises:
          NameTakenError: it is in use.
        """
        for taken in _adapter_names(name, self.adapter_prefix):
            if (found := self._named(taken)) is not None or taken in (BASE_NAME, DEFAULT_NAME):
                raise NameTakenError(f"{taken!r} is the name of {_described(found)}")


def plain_models(model_id: str, *, aliases: Sequence[str] = (DEFAULT_NAME,), created: int = 0) -> ServedModels:
    """The names of a model without adapters."""
    return ServedModels(
        base=ServedModel(id=model_id, kind="base", aliases=tuple(aliases), root=model_id, created=created)
    )


def adapted_models(
    *,
    base_id: str,
    base_root: str,
    adapters: Iterable[AdapterInfo],
    created: int,
    mixture_id: str | None = None,
    mixture_root: str | None = None,
    freeze_after: int | None = None,
    adapter_prefix: str = "",
    modules: Sequence[str] = ("*",),
    can_freeze: bool = True,
) -> ServedModels:
    """The names of a model with adapters.

    Args:
      mixture_id: id of the X-LoRA mixture, which is then the default.
      freeze_after: default of `AdapterChoice.freeze_after` for requests that do not set it.

    Raises:
      NameTakenError: two have the same name.
    """
    own = (BASE_NAME,) if base_id != BASE_NAME else ()
    base_names = own if mixture_id is not None else (DEFAULT_NAME, *own)
    base = ServedModel(id=base_id, kind="base", aliases=base_names, root=base_root, created=created)
    adapters = list(adapters)
    models = [base, *(adapter_model(adapter, prefix=adapter_prefix, parent=base_id) for adapter in adapters)]
    mixture = None
    if mixture_id is not None:
        mixture = ServedModel(
            id=mixture_id,
            kind="mixture",
            choice=AdapterChoice(xlora=True, freeze_after=freeze_after),
            aliases=(DEFAULT_NAME,),
            root=mixture_root,
            parent=base_id,
            created=created,
        )
        models.append(mixture)
    _check_distinct(models)
    return ServedModels(
        base=base,
        mixture=mixture,
        registry=AdapterRegistry(adapters),
        modules=tuple(modules),
        adapter_prefix=adapter_prefix,
        can_freeze=can_freeze,
    )


def with_aliases(served: ServedModels, aliases: Iterable[str]) -> ServedModels:
    """The same, with further names of the default model; `ANY_NAME` stands for every name that nothing else has.

    Raises:
      NameTakenError: one of them is in use.
    """
    aliases = tuple(dict.fromkeys(aliases))
    for name in aliases:
        if name != ANY_NAME and (found := served.find(name)) is not None:
            raise NameTakenError(
                f"--alias {name}: {name!r} is the name of {_described(found)} already; choose another, or leave it out"
            )
    default = replace(served.default, aliases=(*served.default.aliases, *aliases))
    return replace(served, mixture=default) if default.kind == "mixture" else replace(served, base=default)


def _check_distinct(models: Iterable[ServedModel]) -> None:
    by_name: dict[str, ServedModel] = {}
    for model in models:
        for name in model.names:
            if name in by_name:
                raise NameTakenError(
                    f"{name!r} would be the name of {_described(by_name[name])} and of {_described(model)}; "
                    "give one of them another name (--served-name, --lora NAME=PATH)"
                )
        by_name |= dict.fromkeys(model.names, model)


def adapter_model(adapter: AdapterInfo, *, prefix: str, parent: str) -> ServedModel:
    """The model of an adapter's name: the adapter alone, with weight 1."""
    model_id, *aliases = _adapter_names(adapter.name, prefix)
    return ServedModel(
        id=model_id,
        kind="adapter",
        choice=AdapterChoice(weights=((adapter.number, 1.0),)),
        aliases=tuple(aliases),
        adapter=adapter,
        root=adapter.source,
        parent=parent,
        created=adapter.created,
    )


def weights_by_hand(weights: Mapping[AdapterInfo, float]) -> AdapterChoice:
    """Adapters with fixed weights, in the order of their numbers."""
    return AdapterChoice(weights=tuple(sorted((adapter.number, weight) for adapter, weight in weights.items())))


def _adapter_names(name: str, prefix: str) -> tuple[str, ...]:
    return (prefix + name, name) if prefix else (name,)


def _described(model: ServedModel | None) -> str:
    if model is None:
        return "the default or the base model"
    return {"base": "the base model", "mixture": "the X-LoRA mixture"}.get(model.kind, f"the adapter {model.id!r}")
