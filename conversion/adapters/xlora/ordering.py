"""Ordering files: which adapter is which column of an X-LoRA classifier, and which adapted module has which scalings.

    {"order": ["adapter_1", "adapter_2"],
     "layers": {"model.layers.0.self_attn.q_proj": 0, "model.layers.0.self_attn.v_proj": 1},
     "base_model_id": "HuggingFaceH4/zephyr-7b-beta"}

The format is that of mistral.rs, with its later fields `base_model_id` and `preload_adapters`. All fields may be
missing here: both orders follow from the adapters themselves, which `derive_ordering` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from conversion.adapters.errors import AdapterError
from conversion.adapters.json_object import JSONObject, json_file
from conversion.adapters.lora.files import LoRAFiles
from conversion.adapters.modules import MODULE_PATTERN, PARTS, ModuleKey, torch_order
from conversion.files.json_fields import shown
from conversion.files.output_files import new_file
from conversion.files.regular_file import plain
from conversion.hub_id import is_hub_id

ORDERING_NAME = "ordering.json"
"""Name of the file beside a mixture that we write."""

_PATHS = re.compile(rf"model\.layers\.(?P<layer>\d{{1,5}})\.(?P<module>{MODULE_PATTERN})", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class PreloadAdapter:
    """A LoRA adapter that is to be loaded beside the mixture."""

    name: str
    """The name that requests use."""
    adapter_model_id: str
    """Hub id or folder."""


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """What an ordering file says."""

    order: tuple[str, ...] = ()
    """Names of the adapters, one for each column of the classifier; empty: the file does not say. In older files,
    positions from "1" on."""
    layers: Mapping[ModuleKey, int] | None = None
    """Index of the scalings of each adapted module, from 0 on without a gap; None: all have index 0."""
    base_model_id: str | None = None
    preload_adapters: tuple[PreloadAdapter, ...] = ()


def read_ordering(path: Path | str) -> Ordering:
    """Read an ordering file.

    Raises:
      AdapterError: it is missing or broken, has a name or an index twice, or names modules that a Mistral model lacks.
    """
    fields = JSONObject.read(Path(path))
    order = fields.texts("order") or ()
    if (twice := _first_twice(order)) is not None:
        raise AdapterError(f"{fields.path}: order names {plain(twice)} twice; expected each adapter once")
    return Ordering(
        order=order,
        layers=_layers(fields),
        base_model_id=fields.text("base_model_id"),
        preload_adapters=_preload_adapters(fields),
    )


def write_ordering(path: Path | str, ordering: Ordering, *, overwrite: bool = False) -> None:
    """Write an ordering file. mistral.rs reads it too, if it names its base model.

    Raises:
      OutputError: the file exists, or there is no room for it.
    """
    values: dict[str, Any] = {"order": list(ordering.order)}
    if ordering.layers is not None:
        values["layers"] = {key.path: index for key, index in sorted(ordering.layers.items(), key=lambda item: item[1])}
    if ordering.base_model_id is not None:
        values["base_model_id"] = ordering.base_model_id
    if ordering.preload_adapters:
        values["preload_adapters"] = [
            {"name": adapter.name, "adapter_model_id": adapter.adapter_model_id}
            for adapter in ordering.preload_adapters
        ]
    content = json_file(values)
    with new_file(Path(path), size=len(content), overwrite=overwrite) as file:
        file.write(content)


def derive_layers(modules: Iterable[ModuleKey]) -> dict[ModuleKey, int]:
    """The index of each module's scalings, as the reference implementation numbers them: in the order of
    registration."""
    return {key: index for index, key in enumerate(sorted(set(modules), key=torch_order))}


def derive_ordering(adapters: Sequence[LoRAFiles], *, base_model_id: str | None = None) -> Ordering:
    """The ordering of adapters without an ordering file, given in the order of the classifier's columns.

    Adapters may change different modules; every module that one of them changes counts.
    """
    layers = derive_layers(key for adapter in adapters for key in adapter.modules)
    return Ordering(order=tuple(adapter.name for adapter in adapters), layers=layers, base_model_id=base_model_id)


def check_ordering(ordering: Ordering, adapters: Sequence[LoRAFiles], *, layerwise: bool) -> None:
    """Check that an ordering fits these adapters.

    Args:
      adapters: in the order of the classifier's columns.
      layerwise: whether each adapted module has scalings of its own.
    Raises:
      AdapterError: names the first adapter or module that does not fit.
    """
    names = [adapter.name for adapter in adapters]
    for name in ordering.order:
        if name not in names:
            raise AdapterError(
                f"the ordering names adapter {plain(name)}; expected one of {', '.join(map(plain, names))}"
            )
    if ordering.order and len(ordering.order) != len(names):
        missing = next(name for name in names if name not in ordering.order)
        raise AdapterError(
            f"the ordering names {len(ordering.order)} of {len(names)} adapters; {plain(missing)} is missing"
        )
    owners = {key: adapter.name for adapter in reversed(adapters) for key in adapter.modules}
    if ordering.layers is None:
        if layerwise and len(owners) > 1:
            raise AdapterError(
                "the ordering has no layers, so that all modules would share one set of scalings, "
                f"but the classifier has scalings for each of the {len(owners)} adapted modules (layerwise_scalings); "
                "add layers, or leave the ordering out"
            )
        return
    for key in sorted(owners, key=torch_order):
        if key not in ordering.layers:
            raise AdapterError(
                f"the ordering has no index for {key.path}, which adapter {owners[key]} changes: "
                "it was made for other adapters or another model"
            )


def check_base_model(ids: Mapping[str, str | None]) -> None:
    """Check that all files that name a base model name the same one. Only Hub ids are compared: folders may be
    anywhere.

    Args:
      ids: the base model by the file that names it, such as "the ordering file".
    Raises:
      AdapterError: names the first two that differ.
    """
    known = [(who, name) for who, name in ids.items() if name is not None and is_hub_id(name)]
    for who, name in known[1:]:
        first_who, first = known[0]
        if name.casefold() != first.casefold():
            raise AdapterError(f"{first_who} is for {first}, and {who} for {name}: they do not belong together")


def _layers(fields: JSONObject) -> Mapping[ModuleKey, int] | None:
    found = fields.object("layers")
    if found is None:
        return None
    layers: dict[ModuleKey, int] = {}
    names: dict[int, str] = {}
    for name, index in found.items():
        key = _module(name)
        if key is None:
            raise AdapterError(
                f"{fields.path}: layers has {plain(name)}, which is none of the linear layers of a Mistral model "
                f"(model.layers.0.self_attn.q_proj and so on, with {', '.join(PARTS)}): it was made for another model"
            )
        if type(index) is not int or not 0 <= index < len(found):
            raise AdapterError(
                f"{fields.path}: {name} has index {shown(index)}; expected a whole number from 0 to {len(found) - 1}, "
                "as there are so many modules"
            )
        if index in names:
            raise AdapterError(f"{fields.path}: both {names[index]} and {name} have index {index}")
        names[index] = name
        layers[key] = index
    return layers


def _module(name: str) -> ModuleKey | None:
    match = _PATHS.fullmatch(name)
    if match is None:
        return None
    key = ModuleKey(int(match["layer"]), match["module"].rpartition(".")[2])
    return key if key.path == name else None


def _preload_adapters(fields: JSONObject) -> tuple[PreloadAdapter, ...]:
    entries = fields.values.get("preload_adapters")
    if entries is None:
        return ()
    expected = 'a list of objects with the texts "name" and "adapter_model_id"'
    if not isinstance(entries, list):
        raise fields.wrong("preload_adapters", expected)
    found: list[PreloadAdapter] = []
    for entry in cast("list[Any]", entries):
        values = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
        name, source = values.get("name"), values.get("adapter_model_id")
        if not isinstance(name, str) or not isinstance(source, str):
            raise fields.wrong("preload_adapters", expected)
        found.append(PreloadAdapter(name=name, adapter_model_id=source))
    if (twice := _first_twice([adapter.name for adapter in found])) is not None:
        raise AdapterError(f"{fields.path}: preload_adapters names {plain(twice)} twice; expected each adapter once")
    return tuple(found)


def _first_twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
