"""X-LoRA models on disk: every layout, the order of columns and modules, and what each kind of damage is told as."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conversion.adapters.errors import AdapterError
from conversion.adapters.lora.files import open_lora
from conversion.adapters.modules import ModuleKey
from conversion.adapters.xlora.config import XLoRAConfig, read_xlora_config
from conversion.adapters.xlora.files import check_xlora_fits, open_xlora
from conversion.adapters.xlora.layout import is_xlora_folder
from conversion.adapters.xlora.ordering import Ordering
from conversion.weights.tensor_source import WeightFileError
from tests.conversion.adapters.folders import (
    BASE,
    FEATURES,
    HIDDEN,
    NUM_LAYERS,
    ROWS,
    TWO_PARTS,
    classifier_linears,
    classifier_tensors,
    keys,
    write_adapter,
    write_folder,
    write_hub,
)

GOLDENS = Path(__file__).parents[3] / "goldens" / "xlora"
NAMES = ("adapter_1", "adapter_2", "adapter_10")


def refused(match: str, folder: Path, ordering: Ordering | None = None) -> None:
    with pytest.raises(AdapterError, match=match):
        open_xlora(folder, ordering=ordering)


def write_peft(folder: Path, *, adapters: Any, tensors: dict[str, np.ndarray], **changes: Any) -> Path:
    config = {
        **{"peft_type": "XLORA", "base_model_name_or_path": BASE, "task_type": "CAUSAL_LM", "hidden_size": HIDDEN},
        **{"layerwise_scalings": True, "xlora_depth": 2, "xlora_size": 7, "adapters": adapters, **changes},
    }
    return write_folder(folder, config, {f"base_model.internal_xlora_classifier.{k}": v for k, v in tensors.items()})


def test_the_original_layout(tmp_path: Path) -> None:
    linears = classifier_linears([HIDDEN, ROWS])
    xlora = open_xlora(write_hub(tmp_path / "x", tensors=classifier_tensors(linears, ["last"])))
    assert xlora.config == XLoRAConfig(hidden_size=HIDDEN, base_model_id=BASE, adapters=NAMES, layerwise_scalings=True)
    assert tuple(adapter.name for adapter in xlora.adapters) == NAMES
    assert xlora.num_columns == 6
    assert xlora.layer_index == {key: index for index, key in enumerate(keys(TWO_PARTS))}
    np.testing.assert_array_equal(xlora.classifier[0][0], linears[0][0])
    np.testing.assert_array_equal(xlora.classifier[0][1], linears[0][1])
    check_xlora_fits(xlora, hidden_size=HIDDEN, num_layers=NUM_LAYERS, features=FEATURES)
    assert xlora.base_models == {"xlora_config.json": BASE}


@pytest.mark.parametrize(
    ("depth", "names", "changes"),
    [
        (2, ["inner.0", "last"], {}),
        (3, ["inner.0", "inner.3", "last"], {}),
        (4, ["inner.0", "inner.3", "inner.6", "last"], {}),
        (3, ["inner.0", "inner.1", "last"], {"enable_relu_and_dropout": False}),
        (3, ["inner.0", "inner.3", "last"], {"use_bias": False}),
        (2, ["base_model.internal_xlora_classifier.inner.0", "last"], {}),
    ],
)
def test_deeper_classifiers(tmp_path: Path, depth: int, names: list[str], changes: dict[str, Any]) -> None:
    linears = classifier_linears([HIDDEN, *(depth - 1) * [7], ROWS], bias=changes.get("use_bias", True))
    tensors = classifier_tensors(linears, names)
    xlora = open_xlora(write_hub(tmp_path / "x", tensors=tensors, xlora_depth=depth, xlora_size=7, **changes))
    assert len(xlora.classifier) == depth
    for (weight, bias), (read_weight, read_bias) in zip(linears, xlora.classifier, strict=True):
        np.testing.assert_array_equal(read_weight, weight)
        np.testing.assert_array_equal(read_bias, bias)


def test_one_set_of_scalings_for_all_modules(tmp_path: Path) -> None:
    tensors = classifier_tensors(classifier_linears([HIDDEN, 3]), ["last"])
    xlora = open_xlora(write_hub(tmp_path / "x", tensors=tensors, layerwise_scalings=False))
    assert xlora.num_columns == 1
    assert xlora.layer_index == dict.fromkeys(keys(TWO_PARTS), 0)


@pytest.mark.parametrize("adapters", [None, ["a", "b", "c"], {"1": "x", "2": "y", "3": "z"}])
def test_the_older_layout(tmp_path: Path, adapters: Any) -> None:
    names = [str(number) for number in range(1, 4)]
    write_older(tmp_path, names, adapters)
    xlora = open_xlora(tmp_path)
    assert [adapter.folder.name for adapter in xlora.adapters] == names
    assert xlora.adapters[0].folder.parent.name == "X-LoRA_adapters"


def write_older(folder: Path, names: list[str], adapters: Any) -> None:
    write_hub(folder / "X-LoRA", names=names)
    config = json.loads((folder / "X-LoRA" / "xlora_config.json").read_text())
    (folder / "X-LoRA" / "xlora_config.json").write_text(json.dumps({**config, "adapters": adapters}))
    (folder / "X-LoRA_adapters").mkdir()
    for name in names:
        (folder / "X-LoRA" / name).rename(folder / "X-LoRA_adapters" / name)


@pytest.mark.parametrize("path", ["é" * 300, "/" + "a/" * 4000, "nul\0byte"])
def test_a_path_that_no_file_can_have(tmp_path: Path, path: str) -> None:
    write_older(tmp_path, ["poet"], {"poet": "", "chemist": path})
    refused(r"names adapter chemist, which has no folder in .* \(nor is there an adapter in", tmp_path)


@pytest.mark.parametrize(("numbers", "dropout"), [((0, 3), 0.2), ((0, 2), 0.0)])
def test_peft(tmp_path: Path, numbers: tuple[int, int], dropout: float) -> None:
    linears = classifier_linears([HIDDEN, 7, NUM_LAYERS * 2 * 2])
    tensors = classifier_tensors(linears, [f"layers.{number}" for number in numbers])
    adapters = {"0": "/nowhere/a", "1": "elsewhere/b"}
    folder = write_peft(tmp_path / "x", adapters=adapters, tensors=tensors, xlora_dropout_p=dropout)
    write_adapter(folder / "0", keys(TWO_PARTS))
    write_adapter(folder / "elsewhere" / "b", keys(TWO_PARTS), r=3)
    xlora = open_xlora(folder)
    assert [(adapter.name, adapter.rank) for adapter in xlora.adapters] == [("0", 2), ("1", 3)]
    assert xlora.config.base_model_id == BASE
    assert xlora.config.enable_relu_and_dropout
    np.testing.assert_array_equal(xlora.classifier[1][0], linears[1][0])
    shutil.rmtree(folder / "0")
    refused(
        r"adapter_config\.json names adapter 0, which has no folder in .* \(nor is there an adapter in /nowhere/a\)",
        folder,
    )


def test_a_checkpoint_of_peft() -> None:
    folder = GOLDENS / "peft"
    xlora = open_xlora(folder)
    assert [adapter.name for adapter in xlora.adapters] == ["0", "1", "2"]
    assert [weight.shape for weight, _ in xlora.classifier] == [(26, 60), (26, 26), (3, 26)]
    assert (xlora.num_columns, xlora.config.top_k_lora, xlora.config.scaling_pass_value) == (1, 1, 0.5)
    for expert, name in zip(xlora.adapters, "abc", strict=True):
        original = open_lora(GOLDENS / "adapters" / name)
        assert expert.modules == original.modules
        for key in expert.modules:
            np.testing.assert_array_equal(expert.read(key)[0], original.read(key)[0])
            np.testing.assert_array_equal(expert.read(key)[1], original.read(key)[1])


def test_more_than_ten_adapters_of_peft_keep_their_columns(tmp_path: Path) -> None:
    names = [str(number) for number in range(12)]
    tensors = classifier_tensors(classifier_linears([HIDDEN, NUM_LAYERS * 12]), ["layers.0"])
    folder = write_peft(tmp_path / "x", adapters={name: name for name in sorted(names)}, tensors=tensors, xlora_depth=1)
    for name in names:
        write_adapter(folder / name, keys(["q_proj"]), r=1)
    assert [adapter.name for adapter in open_xlora(folder).adapters] == names


def test_what_peft_loses_when_it_saves_is_noticed(tmp_path: Path) -> None:
    linears = classifier_linears([HIDDEN, 7, 12])
    folder = write_peft(
        tmp_path / "x", adapters={"0": "0", "1": "1"}, tensors=classifier_tensors(linears[1:], ["layers.3"])
    )
    for name in "01":
        write_adapter(folder / name, keys(TWO_PARTS))
    refused("expected 2 linear layers, from layers.0 on. PEFT from 0.20 on loses layers", folder)


def test_adapters_in_natural_order_where_nothing_names_them(tmp_path: Path) -> None:
    folder = write_hub(tmp_path / "x")
    config = json.loads((folder / "xlora_config.json").read_text())
    del config["adapters"]
    (folder / "xlora_config.json").write_text(json.dumps(config))
    assert open_xlora(folder).config.adapters == NAMES


def test_adapters_that_were_trained_along(tmp_path: Path) -> None:
    folder = write_hub(tmp_path / "x")
    (folder / "adapters").mkdir()
    for name in NAMES:
        (folder / name).rename(folder / "adapters" / name)
    assert open_xlora(folder).config.adapters == NAMES


def test_an_ordering_says_what_columns_and_modules_are(tmp_path: Path) -> None:
    order = ("adapter_10", "adapter_1", "adapter_2")
    layers = {key: index for index, key in enumerate(reversed(keys(TWO_PARTS)))}
    folder = write_hub(tmp_path / "x")
    xlora = open_xlora(folder, ordering=Ordering(order=order, layers=layers, base_model_id=BASE))
    assert xlora.config.adapters == tuple(adapter.name for adapter in xlora.adapters) == order
    assert xlora.layer_index == layers
    assert xlora.base_models == {"the ordering file": BASE, "xlora_config.json": BASE}
    positions = open_xlora(folder, ordering=Ordering(order=("3", "1", "2"), layers=layers))
    assert positions.config.adapters == order
    assert positions.ordering is not None
    assert positions.ordering.order == order
    assert open_xlora(folder, ordering=Ordering(layers=layers)).config.adapters == NAMES


def test_an_ordering_may_know_modules_that_no_adapter_changes(tmp_path: Path) -> None:
    more = keys([*TWO_PARTS, "v_proj"])
    tensors = classifier_tensors(classifier_linears([HIDDEN, len(more) * 3]), ["last"])
    folder = write_hub(tmp_path / "x", tensors=tensors)
    refused(r"has shape \[27, 20\]; expected \[18, 20\] \(6 modules that the adapters change x 3 adapters = 18", folder)
    xlora = open_xlora(folder, ordering=Ordering(layers={key: index for index, key in enumerate(more)}))
    assert xlora.num_columns == 9
    assert xlora.layer_index[ModuleKey(2, "gate_proj")] == 8


def test_orderings_that_do_not_fit(tmp_path: Path) -> None:
    folder = write_hub(tmp_path / "x")
    layers = {key: index for index, key in enumerate(keys(TWO_PARTS))}
    refused(
        "the ordering names adapter adapter_3, which has no folder .* adapters there: adapter_1, adapter_2, adapter_10",
        folder,
        Ordering(order=("adapter_1", "adapter_2", "adapter_3")),
    )
    refused(
        r"has shape \[18, 20\]; expected \[12, 20\] \(6 modules in the ordering x 2 adapters = 12, hidden_size 20\)",
        folder,
        Ordering(order=NAMES[:2], layers=layers),
    )
    refused(
        r"no index for model\.layers\.2\.", folder, Ordering(layers={k: i for k, i in layers.items() if k.layer < 2})
    )
    refused("has no layers", folder, Ordering(order=NAMES))
    refused(
        "the ordering file is for lab/other, and xlora_config.json for tiny",
        folder,
        Ordering(base_model_id="lab/other"),
    )


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ([HIDDEN, 7, ROWS + 3], r"last\.weight has shape \[21, 7\]; expected \[18, 7\] \(.*xlora_size 7\)"),
        (
            [HIDDEN, 8, ROWS],
            r"inner\.0\.weight has shape \[8, 20\]; expected \[7, 20\] \(xlora_size 7, hidden_size 20\)",
        ),
        ([HIDDEN + 1, 7, ROWS], r"inner\.0\.weight has shape \[7, 21\]; expected \[7, 20\]"),
    ],
)
def test_a_classifier_of_the_wrong_size(tmp_path: Path, sizes: list[int], match: str) -> None:
    tensors = classifier_tensors(classifier_linears(sizes), ["inner.0", "last"])
    refused(match, write_hub(tmp_path / "x", tensors=tensors, xlora_depth=2, xlora_size=7))


@pytest.mark.parametrize(
    ("names", "depth", "match"),
    [
        (["inner.0", "last"], 1, "xlora_depth is 1: expected 1 linear layer, last"),
        (
            ["inner.0", "last"],
            3,
            "has inner.0, last, and xlora_depth is 3: expected 3 linear layers, inner.0 and so on",
        ),
        (["inner.3", "last"], 2, "expected 2 linear layers, inner.0, then last"),
        (["inner.0", "inner.3"], 2, "expected 2 linear layers"),
        (["layers.0", "last"], 2, "mixes names of two formats"),
        (["inner.0", "internal_xlora_classifier.inner.0"], 2, "are the same layer of the classifier"),
        (["inner.0", "first"], 2, r"tensor first\.bias is not part of an X-LoRA classifier"),
    ],
)
def test_a_classifier_of_other_layers(tmp_path: Path, names: list[str], depth: int, match: str) -> None:
    tensors = classifier_tensors(classifier_linears([HIDDEN, 7, ROWS]), names)
    refused(match, write_hub(tmp_path / "x", tensors=tensors, xlora_depth=depth, xlora_size=7))


def test_damaged_classifiers(tmp_path: Path) -> None:
    good = classifier_tensors(classifier_linears([HIDDEN, ROWS]), ["last"])
    for number, (value, match) in enumerate([(math.nan, "NaN"), (math.inf, "infinite values")]):
        weight = good["last.weight"].copy()
        weight[5, 3] = value
        refused(f"last.weight holds {match}", write_hub(tmp_path / str(number), tensors=good | {"last.weight": weight}))
    refused("use_bias is false, and last has one", write_hub(tmp_path / "a", use_bias=False))
    only_bias = {"last.bias": good["last.bias"]}
    refused("tensor last.weight is missing", write_hub(tmp_path / "b", tensors=only_bias))
    refused(
        "use_bias is true, and last has none", write_hub(tmp_path / "c", tensors={"last.weight": good["last.weight"]})
    )
    refused("has type int32", write_hub(tmp_path / "d", tensors=good | {"last.bias": np.zeros(ROWS, np.int32)}))
    refused("has no tensors", write_hub(tmp_path / "e", tensors={}))
    path = write_hub(tmp_path / "f") / "xlora_classifier.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(WeightFileError, match="not a whole safetensors file"):
        open_xlora(tmp_path / "f")


def test_missing_files(tmp_path: Path) -> None:
    refused("there is no folder", tmp_path / "nowhere")
    refused("is no X-LoRA model: expected xlora_config.json", write_adapter(tmp_path / "lora"))
    folder = write_hub(tmp_path / "x")
    (folder / "adapter_2" / "adapter_model.safetensors").unlink()
    refused(r"adapter_2 has no adapter_model\.safetensors", folder)
    shutil.rmtree(folder / "adapter_2")
    refused(r"xlora_config\.json names adapter adapter_2, which has no folder", folder)
    (folder / "xlora_classifier.safetensors").rename(folder / "xlora_classifier.pt")
    refused(r"xlora_classifier\.safetensors is missing.*; xlora_classifier\.pt can run code", folder)
    (folder / "xlora_classifier.pt").unlink()
    refused(r"xlora_classifier\.safetensors is missing, which holds the classifier of the X-LoRA model$", folder)


def test_a_mixture_of_nothing(tmp_path: Path) -> None:
    folder = write_hub(tmp_path / "x", names=[])
    (folder / "xlora_config.json").write_text('{"hidden_size": 20}')
    refused("has no adapters", folder)


def test_more_adapters_are_to_be_kept_than_there_are(tmp_path: Path) -> None:
    refused("top_k_lora is 4, and there are 3 adapters", write_hub(tmp_path / "x", top_k_lora=4))
    assert open_xlora(write_hub(tmp_path / "y", top_k_lora=3)).config.top_k_lora == 3


def test_a_mixture_of_another_model(tmp_path: Path) -> None:
    xlora = open_xlora(write_hub(tmp_path / "x"))
    with pytest.raises(AdapterError, match=r"takes hidden states of 20 values .* the model's have 24"):
        check_xlora_fits(xlora, hidden_size=24, num_layers=NUM_LAYERS, features=FEATURES)
    with pytest.raises(AdapterError, match=r"adapter adapter_1 changes .*the model has 2 layers"):
        check_xlora_fits(xlora, hidden_size=HIDDEN, num_layers=2, features=FEATURES)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("hidden_size", None, "hidden_size is missing; expected a whole number"),
        ("xlora_depth", 0, "xlora_depth is 0; expected a whole number of at least 1"),
        ("xlora_size", 1.5, "xlora_size is 1.5"),
        ("enable_softmax", "yes", 'enable_softmax is "yes"; expected true or false'),
        ("softmax_temperature", 0, "softmax_temperature is 0; expected a number above 0"),
        ("scaling_pass_value", math.nan, "scaling_pass_value is NaN; expected a finite number"),
        ("xlora_dropout_p", 1.0, "xlora_dropout_p is 1.0; expected a number from 0 to below 1"),
        ("top_k_lora", 0, "top_k_lora is 0; expected a whole number of at least 1"),
        ("adapters", ["a", "a"], "expected each name once"),
        ("adapters", "a", 'adapters is "a"; expected a list of texts'),
        ("adapters", {"a": 3}, "expected an object of paths, or a list of names"),
        ("base_model_id", 3, "base_model_id is 3; expected a text"),
    ],
)
def test_configurations_that_make_no_sense(tmp_path: Path, key: str, value: Any, match: str) -> None:
    folder = write_hub(tmp_path / "x")
    config = json.loads((folder / "xlora_config.json").read_text())
    (folder / "xlora_config.json").write_text(json.dumps({**config, key: value}))
    refused(match, folder)


def test_defaults_are_those_of_the_original(tmp_path: Path) -> None:
    (tmp_path / "xlora_config.json").write_text('{"hidden_size": 20, "stop_token_id": 2}')
    config, paths = read_xlora_config(tmp_path / "xlora_config.json")
    assert config == XLoRAConfig(hidden_size=20)
    assert (config.xlora_size, config.enable_relu_and_dropout, config.use_bias, paths) == (2048, True, True, {})


def test_which_folders_are_mixtures(tmp_path: Path) -> None:
    assert is_xlora_folder(write_hub(tmp_path / "x"))
    assert not is_xlora_folder(write_adapter(tmp_path / "lora"))
    assert not is_xlora_folder(tmp_path)
