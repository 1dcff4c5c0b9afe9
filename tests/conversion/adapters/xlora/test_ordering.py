"""Ordering files: both formats, what is derived without one, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conversion.adapters.errors import AdapterError
from conversion.adapters.lora.files import LoRAFiles, open_lora
from conversion.adapters.modules import PARTS, ModuleKey
from conversion.adapters.xlora.ordering import (
    Ordering,
    PreloadAdapter,
    check_base_model,
    check_ordering,
    derive_layers,
    derive_ordering,
    read_ordering,
    write_ordering,
)
from conversion.files.output_files import OutputError
from tests.conversion.adapters.folders import keys, write_adapter


def ordering_file(folder: Path, values: Any) -> Path:
    path = folder / "ordering.json"
    path.write_text(json.dumps(values))
    return path


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[LoRAFiles]:
    """One of q and down, one of gate in the last two layers only."""
    folder = tmp_path_factory.mktemp("adapters")
    write_adapter(folder / "wide", keys(["q_proj", "down_proj"]))
    write_adapter(folder / "late", keys(["gate_proj"], [1, 2]), layers_to_transform=[1, 2])
    return [open_lora(folder / "wide"), open_lora(folder / "late")]


UNION = [
    *(ModuleKey(0, "q_proj"), ModuleKey(0, "down_proj")),
    *(ModuleKey(1, "q_proj"), ModuleKey(1, "gate_proj"), ModuleKey(1, "down_proj")),
    *(ModuleKey(2, "q_proj"), ModuleKey(2, "gate_proj"), ModuleKey(2, "down_proj")),
]


def test_the_first_format(tmp_path: Path) -> None:
    layers = {f"model.layers.{i}.self_attn.{part}": 4 * i + j for i in range(32) for j, part in enumerate(PARTS[:4])}
    ordering = read_ordering(ordering_file(tmp_path, {"order": ["1", "2", "3"], "layers": layers}))
    assert ordering.order == ("1", "2", "3")
    assert ordering.layers is not None
    assert len(ordering.layers) == 128
    assert ordering.layers[ModuleKey(31, "o_proj")] == 127
    assert (ordering.base_model_id, ordering.preload_adapters) == (None, ())


def test_todays_format(tmp_path: Path) -> None:
    values = {
        "base_model_id": "lab/base",
        "order": None,
        "preload_adapters": [{"name": "poet", "adapter_model_id": "lab/poet"}],
    }
    ordering = read_ordering(ordering_file(tmp_path, values))
    assert ordering == Ordering(
        base_model_id="lab/base", preload_adapters=(PreloadAdapter(name="poet", adapter_model_id="lab/poet"),)
    )


def test_what_is_written_is_read_again(tmp_path: Path, adapters: list[LoRAFiles]) -> None:
    ordering = derive_ordering(adapters, base_model_id="lab/base")
    assert ordering.order == ("wide", "late")
    assert ordering.layers == {key: index for index, key in enumerate(UNION)}
    check_ordering(ordering, adapters, layerwise=True)
    path = tmp_path / "ordering.json"
    write_ordering(path, ordering)
    assert read_ordering(path) == ordering
    assert list(json.loads(path.read_text())) == ["order", "layers", "base_model_id"]
    with pytest.raises(OutputError, match="exists already"):
        write_ordering(path, ordering)
    other = Ordering(preload_adapters=(PreloadAdapter(name="a", adapter_model_id="b"),))
    write_ordering(path, other, overwrite=True)
    assert read_ordering(path) == other


@given(st.sets(st.tuples(st.integers(0, 40), st.sampled_from(PARTS))))
def test_derived_indices_are_dense_and_follow_registration(modules: set[tuple[int, str]]) -> None:
    layers = derive_layers(ModuleKey(*module) for module in modules)
    assert list(layers.values()) == list(range(len(modules)))
    order = [(key.layer, PARTS.index(key.part)) for key in layers]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ([], "expected an object"),
        ({"order": "1"}, 'order is "1"; expected a list of texts'),
        ({"order": [1]}, r"order is \[1\]; expected a list of texts"),
        ({"order": ["a", "b", "a"]}, "order names a twice"),
        ({"layers": []}, r"layers is \[\]; expected an object"),
        ({"layers": {"model.layers.0.mlp.fc1": 0}}, "fc1, which is none of the linear layers .* another model"),
        ({"layers": {"model.layers.0.mlp.q_proj": 0}}, "q_proj, which is none of the linear layers"),
        ({"layers": {"lm_head": 0}}, "lm_head, which is none"),
        ({"layers": {"model.layers.0.self_attn.q_proj": 1}}, "has index 1; expected a whole number from 0 to 0"),
        ({"layers": {"model.layers.0.self_attn.q_proj": -1}}, "has index -1"),
        ({"layers": {"model.layers.0.self_attn.q_proj": True}}, "has index true"),
        (
            {"layers": {"model.layers.0.self_attn.q_proj": 0, "model.layers.1.self_attn.q_proj": 0}},
            r"both model\.layers\.0.* and model\.layers\.1.* have index 0",
        ),
        ({"base_model_id": 3}, "base_model_id is 3; expected a text"),
        ({"preload_adapters": {}}, "preload_adapters is .*expected a list of objects"),
        ({"preload_adapters": [{"name": "a"}]}, "preload_adapters is .*expected a list of objects"),
        (
            {"preload_adapters": [{"name": "a", "adapter_model_id": "b"}, {"name": "a", "adapter_model_id": "c"}]},
            "preload_adapters names a twice",
        ),
        (
            {"preload_adapters": [{"name": "\n\ra", "adapter_model_id": at} for at in "bc"]},
            r"preload_adapters names .*\\n\\ra.* twice",
        ),
    ],
)
def test_broken_files(tmp_path: Path, values: Any, match: str) -> None:
    with pytest.raises(AdapterError, match=match):
        read_ordering(ordering_file(tmp_path, values))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"there is no file .*nowhere\.json"):
        read_ordering(tmp_path / "nowhere.json")


def test_an_ordering_of_other_adapters(adapters: list[LoRAFiles]) -> None:
    with pytest.raises(AdapterError, match="the ordering names adapter wid; expected one of wide, late"):
        check_ordering(Ordering(order=("wid", "late")), adapters, layerwise=False)
    with pytest.raises(AdapterError, match="names 1 of 2 adapters; late is missing"):
        check_ordering(Ordering(order=("wide",)), adapters, layerwise=False)


def test_an_ordering_of_other_modules(adapters: list[LoRAFiles]) -> None:
    layers = {key: index for index, key in enumerate(key for key in UNION if key != ModuleKey(1, "gate_proj"))}
    with pytest.raises(
        AdapterError, match=r"no index for model\.layers\.1\.mlp\.gate_proj, which adapter late changes"
    ):
        check_ordering(Ordering(layers=layers), adapters, layerwise=True)


def test_an_ordering_without_layers_is_for_one_set_of_scalings(tmp_path: Path, adapters: list[LoRAFiles]) -> None:
    check_ordering(Ordering(), adapters, layerwise=False)
    check_ordering(Ordering(), [open_lora(write_adapter(tmp_path / "one", keys(["q_proj"], [0])))], layerwise=True)
    with pytest.raises(AdapterError, match=r"has no layers.* each of the 8 adapted modules"):
        check_ordering(Ordering(), adapters, layerwise=True)


def test_base_models_are_compared_where_they_are_hub_ids(tmp_path: Path) -> None:
    check_base_model({})
    check_base_model({"a": "Lab/Base", "b": None, "c": "lab/base", "d": "./lab/other", "e": str(tmp_path), "f": "x"})
    with pytest.raises(AdapterError, match="the ordering is for lab/base, and the served model for lab/other"):
        check_base_model({"the ordering": "lab/base", "config": "/a/b", "the served model": "lab/other"})
