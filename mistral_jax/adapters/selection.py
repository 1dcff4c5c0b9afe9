"""From adapter names, as a caller gives them, to an `AdapterChoice`."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mistral_jax.adapters.bank import AdapterEntry, AdapterSet
from mistral_jax.adapters.choice import BASE, BASE_NAME, AdapterChoice


class AdapterSelectionError(ValueError):
    """The requested adapters do not exist, or the request contradicts itself."""


def numbered(available: AdapterSet) -> list[AdapterEntry]:
    """The adapters in the order of their numbers; the experts of an X-LoRA mixture come first."""
    return sorted(available.entries.values(), key=lambda entry: entry.number)


def select(
    available: AdapterSet | None,
    *,
    xlora: bool,
    adapter: str | None = None,
    adapters: Mapping[str, float] | None = None,
    freeze_after: int | None = None,
) -> AdapterChoice:
    """Choose the adapters of a sequence.

    Args:
      available: the model's adapters.
      xlora: whether the model has an X-LoRA classifier.
      adapter: the name of one adapter, or `BASE_NAME`.
      adapters: a mixture by hand: adapter weights by name; all others are 0.
      freeze_after: see `AdapterChoice.freeze_after`.
    Returns: the choice; without `adapter` and `adapters` the X-LoRA mixture if there is one, else the base model.
    Raises:
      AdapterSelectionError: a name is unknown, a weight is not finite, or both `adapter` and `adapters` are given.
    """
    if adapter is not None and adapters is not None:
        raise AdapterSelectionError(f"adapter={adapter!r} and adapters={dict(adapters)}: expected one of the two")
    chosen = _choice(available, xlora, adapter, adapters)
    if freeze_after is None:
        return chosen
    if not chosen.xlora:
        raise AdapterSelectionError("freeze_after keeps what the X-LoRA classifier said, and is not used here")
    if freeze_after < 1:
        raise AdapterSelectionError(
            f"freeze_after is {freeze_after}; expected the number of an answer token, from 1 on"
        )
    return AdapterChoice(xlora=True, freeze_after=freeze_after)


def _choice(
    available: AdapterSet | None, xlora: bool, adapter: str | None, adapters: Mapping[str, float] | None
) -> AdapterChoice:
    if adapters is not None:
        if not adapters:
            raise AdapterSelectionError(
                f"adapters is empty; for the model without adapters write adapter={BASE_NAME!r}"
            )
        return AdapterChoice(
            weights=tuple((_number(available, name), _weight(name, w)) for name, w in adapters.items())
        )
    if adapter is None:
        return AdapterChoice(xlora=True) if xlora else BASE
    if adapter == BASE_NAME:
        return BASE
    return AdapterChoice(weights=((_number(available, adapter), 1.0),))


def _number(available: AdapterSet | None, name: str) -> int:
    if available is not None and name in available.entries:
        return available.entries[name].number
    if available is None or not available.entries:
        raise AdapterSelectionError(f"there is no adapter {name!r}: the model was loaded without adapters")
    names = ", ".join(entry.name for entry in numbered(available))
    if name == BASE_NAME:
        raise AdapterSelectionError(f"{BASE_NAME!r} is the model itself and takes no weight; its adapters are {names}")
    raise AdapterSelectionError(f"there is no adapter {name!r}; expected one of {names}, or {BASE_NAME!r} for none")


def _weight(name: str, weight: float) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise AdapterSelectionError(f"the weight of adapter {name!r} is {weight!r}; expected a finite number")
    return float(weight)
