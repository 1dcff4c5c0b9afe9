"""Where an X-LoRA folder keeps its configuration, its classifier and its adapters. There are three layouts:

hub                                older                                  PEFT
xlora_config.json                  X-LoRA/xlora_config.json               adapter_config.json ("peft_type": "XLORA")
xlora_classifier.safetensors       X-LoRA/xlora_classifier.safetensors    adapter_model.safetensors
adapter_1/  adapter_2/ …           X-LoRA_adapters/1/  2/ …               0/  1/ …, or the paths in "adapters"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from conversion.adapters.errors import AdapterError
from conversion.adapters.json_object import JSONObject
from conversion.adapters.lora.config import CONFIG_NAME
from conversion.adapters.lora.files import WEIGHTS_NAME
from conversion.adapters.natural_sort import natural_sort
from conversion.files.regular_file import is_file, is_folder, plain

XLORA_CONFIG_NAME = "xlora_config.json"
CLASSIFIER_NAME = "xlora_classifier.safetensors"
_OLDER, _OLDER_ADAPTERS = "X-LoRA", "X-LoRA_adapters"
_TRAINED = "adapters"
"""Where the original implementation puts adapters that were trained together with the classifier."""

Kind = Literal["hub", "older", "peft"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Files of an X-LoRA model, found by name; nothing has been read."""

    folder: Path
    kind: Kind
    config: Path
    classifier: Path
    adapters: Mapping[str, Path]
    """Folders of adapters by their names, in natural order."""


def is_xlora_folder(folder: Path) -> bool:
    """Whether this is an X-LoRA model in any layout."""
    return _kind(folder) is not None


def find_layout(folder: Path) -> Layout:
    """Find the files.

    Raises:
      AdapterError: this is not an X-LoRA folder, or it has no readable classifier.
    """
    if not is_folder(folder):
        raise AdapterError(f"there is no folder {folder}; expected an X-LoRA model with {XLORA_CONFIG_NAME}")
    kind = _kind(folder)
    if kind is None:
        raise AdapterError(
            f"{folder} is no X-LoRA model: expected {XLORA_CONFIG_NAME} in it, or in {_OLDER}, "
            f"or {CONFIG_NAME} with peft_type XLORA"
        )
    if kind == "peft":
        config, classifier = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    else:
        own = folder / _OLDER if kind == "older" else folder
        config, classifier = own / XLORA_CONFIG_NAME, own / CLASSIFIER_NAME
    if not is_file(classifier):
        pickled = classifier.with_suffix(".pt"), classifier.with_suffix(".bin")
        found = next((path.name for path in pickled if is_file(path)), None)
        advice = (
            f"; {found} can run code when it is opened and is not read: save the classifier as safetensors"
            if found
            else ""
        )
        raise AdapterError(f"{classifier} is missing, which holds the classifier of the X-LoRA model{advice}")
    return Layout(folder=folder, kind=kind, config=config, classifier=classifier, adapters=_adapters(folder, kind))


def choose_adapters(
    layout: Layout, *, order: Sequence[str], names: Sequence[str] | None, paths: Mapping[str, str]
) -> dict[str, Path]:
    """The folder of each adapter, in the order of the classifier's columns.

    Args:
      order: of an ordering file, which takes precedence; empty: not given.
      names: of the configuration, in order; None: not given.
      paths: of the configuration, for adapters without a folder here.
    Raises:
      AdapterError: names the first adapter that has no folder.
    """
    named: dict[str, Path] = {}
    for column, name in enumerate(names or ()):
        folder = _folder_of(layout, column, name, paths.get(name))
        if folder is not None:
            named[name] = folder
    known = {**layout.adapters, **named}
    in_order = list(named) if names and len(named) == len(names) else list(layout.adapters)
    wanted = list(order or names or in_order)
    if not wanted:
        raise AdapterError(f"{layout.folder} has no adapters: expected a folder with {CONFIG_NAME} for each")
    missing = next((name for name in wanted if name not in known), None)
    if missing is not None:
        numbers = [str(number) for number in range(1, len(in_order) + 1)]
        if order and sorted(order) == sorted(numbers):
            # Older orderings have positions instead of names.
            wanted = [in_order[int(position) - 1] for position in order]
        elif not order and not named and in_order == numbers and len(wanted) == len(numbers):
            # Of the names in an older configuration only the order is used: the folders are numbered.
            wanted = in_order
        else:
            who = "the ordering" if order else layout.config.name
            outside = f" (nor is there an adapter in {plain(paths[missing])})" if missing in paths else ""
            raise AdapterError(
                f"{who} names adapter {plain(missing)}, which has no folder in {layout.folder}{outside}; "
                f"adapters there: {', '.join(known) or 'none'}"
            )
    return {name: known[name] for name in wanted}


def _folder_of(layout: Layout, column: int, name: str, path: str | None) -> Path | None:
    """The folder of an adapter that the configuration names. PEFT numbers the folders, whatever the names."""
    numbered = layout.adapters.get(str(column)) if layout.kind == "peft" else None
    here = numbered or layout.adapters.get(name)
    if here is not None or path is None:
        return here
    return next((found for found in (layout.folder / path, Path(path)) if is_file(found / CONFIG_NAME)), None)


def _kind(folder: Path) -> Kind | None:
    if is_file(folder / XLORA_CONFIG_NAME):
        return "hub"
    if is_file(folder / _OLDER / XLORA_CONFIG_NAME):
        return "older"
    config = folder / CONFIG_NAME
    if is_file(config) and str(JSONObject.read(config).values.get("peft_type")).upper() == "XLORA":
        return "peft"
    return None


def _adapters(folder: Path, kind: Kind) -> dict[str, Path]:
    places = [folder / _OLDER_ADAPTERS, folder] if kind == "older" else [folder, folder / _TRAINED]
    found: dict[str, Path] = {}
    for place in places:
        if is_folder(place) and not found:
            found = {path.name: path for path in place.iterdir() if is_file(path / CONFIG_NAME)}
    return {name: found[name] for name in natural_sort(found)}
