"""Adapters and mixtures written and read again, in every layout, and what is refused before anything is written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from conversion.adapters.errors import AdapterError
from conversion.adapters.lora.files import check_fits, open_lora
from conversion.adapters.modules import PARTS, ModuleKey
from conversion.adapters.writing import ChangedLoRA, NewLoRA, write_lora, write_peft_xlora, write_xlora
from conversion.adapters.xlora.config import XLoRAConfig
from conversion.adapters.xlora.files import open_xlora
from conversion.files.output_files import OutputError
from tests.conversion.adapters.folders import (
    BASE,
    FEATURES,
    HIDDEN,
    NUM_LAYERS,
    Factors,
    classifier_linears,
    keys,
    peft_config,
    peft_tensors,
    random_factors,
    write_adapter,
    write_folder,
)

UNEVEN = [*keys(["q_proj"], [0, 1]), ModuleKey(1, "down_proj")]


def same(folder: Path, factors: Factors) -> None:
    lora = open_lora(folder)
    assert set(lora.modules) == set(factors)
    for key, (a, b) in factors.items():
        read_a, read_b = lora.read(key)
        assert read_a.dtype == a.dtype
        np.testing.assert_array_equal(read_a, a)
        np.testing.assert_array_equal(read_b, b)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    ("modules", "num_layers", "targets", "layers"),
    [
        (keys(), None, list(PARTS), None),
        (keys(["v_proj", "q_proj"]), NUM_LAYERS, ["q_proj", "v_proj"], None),
        (keys(["up_proj"], [0, 2]), None, ["up_proj"], [0, 2]),
        (keys(["up_proj"], [0, 1]), NUM_LAYERS, ["up_proj"], [0, 1]),
        (
            UNEVEN,
            None,
            [f"model.layers.{i}" for i in ("0.self_attn.q_proj", "1.self_attn.q_proj", "1.mlp.down_proj")],
            None,
        ),
    ],
)
def test_a_lora_is_read_as_it_was_written(
    tmp_path: Path, modules: list[ModuleKey], num_layers: int | None, targets: list[str], layers: Any, dtype: Any
) -> None:
    factors = random_factors(modules, 3, dtype=dtype)
    new = NewLoRA(factors=factors, rank=3, alpha=7.5, dropout=0.1, num_layers=num_layers)
    write_lora(tmp_path / "a", new, base_model=BASE)
    same(tmp_path / "a", factors)
    lora = open_lora(tmp_path / "a")
    assert {module.scale for module in lora.modules.values()} == {2.5}
    assert (lora.base_model, lora.config.dropout) == (BASE, 0.1)
    check_fits(lora, num_layers=NUM_LAYERS, features=FEATURES)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["target_modules"], config["layers_to_transform"]) == (targets, layers)


def test_rslora(tmp_path: Path) -> None:
    lora = NewLoRA(factors=random_factors(keys()), rank=2, alpha=8, use_rslora=True)
    write_lora(tmp_path / "a", lora, base_model=BASE)
    assert open_lora(tmp_path / "a").modules[ModuleKey(0, "q_proj")].scale == 8 / math.sqrt(2)


def test_a_lora_is_overwritten_only_on_request_and_with_nothing_else_in_it(tmp_path: Path) -> None:
    first, second = new_lora(["q_proj"], 1), new_lora(["q_proj"], 2)
    write_lora(tmp_path / "a", first, base_model=BASE)
    with pytest.raises(OutputError, match="exists already"):
        write_lora(tmp_path / "a", second, base_model=BASE)
    same(tmp_path / "a", first.factors)
    write_lora(tmp_path / "a", second, base_model=BASE, overwrite=True)
    same(tmp_path / "a", second.factors)
    (tmp_path / "a" / "notes.txt").touch()
    with pytest.raises(OutputError, match=r"notes\.txt in it is not part"):
        write_lora(tmp_path / "a", first, base_model=BASE, overwrite=True)


def test_loras_that_could_not_be_read_back(tmp_path: Path) -> None:
    factors = random_factors(keys())

    def refused(match: str, factors: Factors, **changes: Any) -> None:
        lora = NewLoRA(factors=factors, **{"rank": 2, "alpha": 2.0, **changes})
        with pytest.raises(AdapterError, match=match):
            write_lora(tmp_path / "a", lora, base_model=BASE)
        assert not list(tmp_path.iterdir())

    refused("adapter a changes no module", {})
    refused(r"shapes \[2, 20\] and \[24, 2\]; expected \[4, in\] and \[out, 4\]", factors, rank=4)
    refused("has alpha nan", factors, alpha=math.nan)
    factors[ModuleKey(1, "up_proj")][0][1, 2] = np.nan
    refused(r"a factor of model\.layers\.1\.mlp\.up_proj has values that are not finite", factors)


def new_lora(parts: list[str], seed: int, rank: int = 2) -> NewLoRA:
    return NewLoRA(factors=random_factors(keys(parts), rank, seed=seed), rank=rank, alpha=4)


def test_changed_factors_keep_their_configuration(tmp_path: Path) -> None:
    """Ranks and scales that differ from module to module are nothing that a new adapter has."""
    modules = keys(["q_proj", "v_proj"])
    before = random_factors(modules, ranks={key: 4 for key in modules if key.part == "q_proj"})
    patterns = {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 1}}
    config = peft_config(target_modules=["q_proj", "v_proj"], **patterns)
    write_folder(tmp_path / "old", config, peft_tensors(before))
    after = {key: (a + 1, b - 1) for key, (a, b) in before.items()}
    other = new_lora(["o_proj"], 2)

    def write(factors: Factors, folder: str = "x") -> None:
        adapters = {"a": ChangedLoRA(folder=tmp_path / "old", factors=factors), "b": other}
        write_xlora(tmp_path / folder, config=settings, classifier=classifier, adapters=adapters, base_model=BASE)

    settings = XLoRAConfig(hidden_size=HIDDEN)
    classifier = classifier_linears([HIDDEN, 2])
    write(after)
    same(tmp_path / "x" / "a", after)
    old, new = open_lora(tmp_path / "old"), open_lora(tmp_path / "x" / "a")
    assert new.modules == old.modules
    assert {module.scale for module in new.modules.values()} == {2.0, 0.5}
    with pytest.raises(AdapterError, match=r"the factors are not those of the modules that .*old changes"):
        write(other.factors, "y")
    key = next(iter(after))
    with pytest.raises(
        AdapterError, match=r"shapes \[1, 20\] and \[24, 4\]; expected those of .*old, \[4, 20\] and \[24, 4\]"
    ):
        write(after | {key: (after[key][0][:1], after[key][1])}, "y")
    after[key][0][0, 0] = np.inf
    with pytest.raises(AdapterError, match="has values that are not finite"):
        write(after, "y")
    assert not (tmp_path / "y").exists()


Writer = Callable[..., None]


@pytest.mark.parametrize("write", [write_xlora, write_peft_xlora])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {"layerwise_scalings": True},
        {"xlora_dropout_p": 0.0, "top_k_lora": 1, "softmax_temperature": 0.5},
        {"use_bias": False, "scaling_pass_value": 0.5, "global_scaling_weight": 2.0, "enable_softmax": False},
    ],
)
def test_a_mixture_is_read_as_it_was_written(
    tmp_path: Path, write: Writer, depth: int, changes: dict[str, Any]
) -> None:
    config = XLoRAConfig(hidden_size=HIDDEN, xlora_depth=depth, xlora_size=7, **changes)
    outputs = 3 * (9 if config.layerwise_scalings else 1)
    classifier = classifier_linears([HIDDEN, *(depth - 1) * [7], outputs], bias=config.use_bias)
    adapters = {
        "poet": new_lora(["q_proj", "gate_proj"], 1),
        "clerk": new_lora(["q_proj", "o_proj"], 2, rank=5),
        "copied": write_adapter(tmp_path / "elsewhere", keys(["o_proj"])),
    }
    write(tmp_path / "x", config=config, classifier=classifier, adapters=adapters, base_model=BASE)
    xlora = open_xlora(tmp_path / "x")
    peft = write is write_peft_xlora
    names = ("0", "1", "2") if peft else tuple(adapters)
    assert xlora.config == replace(config, base_model_id=BASE, adapters=names, use_bias=config.use_bias or peft)
    assert [adapter.rank for adapter in xlora.adapters] == [2, 5, 2]
    assert xlora.adapters[2].folder.parent == tmp_path / "x"
    same(tmp_path / "x" / names[1], random_factors(keys(["q_proj", "o_proj"]), 5, seed=2))
    for (weight, bias), (read_weight, read_bias) in zip(classifier, xlora.classifier, strict=True):
        np.testing.assert_array_equal(read_weight, weight)
        if bias is None and peft:
            np.testing.assert_array_equal(read_bias, np.zeros(len(weight)))
        else:
            np.testing.assert_array_equal(read_bias, bias)
    # A mixture is written over one, also from its own adapters.
    own = {name: tmp_path / "x" / name for name in names}
    write(tmp_path / "x", config=config, classifier=classifier, adapters=own, base_model=BASE, overwrite=True)
    assert open_xlora(tmp_path / "x").config == xlora.config
    (tmp_path / "x" / names[0] / "notes.txt").touch()
    with pytest.raises(OutputError, match=r"notes\.txt in it is not part"):
        write(tmp_path / "x", config=config, classifier=classifier, adapters=own, base_model=BASE, overwrite=True)


def test_a_moved_mixture_of_peft_is_found(tmp_path: Path) -> None:
    classifier = classifier_linears([HIDDEN, 1])
    adapters = {"0": new_lora(["q_proj"], 1)}
    write_peft_xlora(
        tmp_path / "x",
        config=XLoRAConfig(hidden_size=HIDDEN),
        classifier=classifier,
        adapters=adapters,
        base_model=BASE,
    )
    config = json.loads((tmp_path / "x" / "adapter_config.json").read_text())
    assert config["adapters"] == {"0": str(tmp_path / "x" / "0")}
    (tmp_path / "x").rename(tmp_path / "y")
    assert open_xlora(tmp_path / "y").adapters[0].folder == tmp_path / "y" / "0"


@pytest.mark.parametrize("write", [write_xlora, write_peft_xlora])
def test_mixtures_that_could_not_be_read_back(tmp_path: Path, write: Writer) -> None:
    good: dict[str, Any] = {
        "config": XLoRAConfig(hidden_size=HIDDEN),
        "classifier": classifier_linears([HIDDEN, 2]),
        "adapters": {"a": new_lora(["q_proj"], 1), "b": new_lora(["q_proj"], 2)},
        "base_model": BASE,
    }

    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(AdapterError, match=match):
            write(tmp_path / "x", **{**good, **changes})
        assert not list(tmp_path.iterdir())

    refused(r"shapes \[\[3, 20\]\]; expected \[\[2, 20\]\]", classifier=classifier_linears([HIDDEN, 3]))
    refused(
        r"expected \[\[6, 20\]\] .*3 sets of scalings x 2",
        config=XLoRAConfig(hidden_size=HIDDEN, layerwise_scalings=True),
    )
    weight, bias = good["classifier"][0]
    refused("should have a bias of 2 values, and has none", classifier=[(weight, None)])
    refused(
        r"should have a bias of 2 values, and has one of shape \[3\]", classifier=[(weight, np.zeros(3, np.float32))]
    )
    refused("layer 0 of the classifier has values that are not finite", classifier=[(weight * np.inf, bias)])
    refused("needs adapters", adapters={})
    refused("'../a' is no name for an adapter", adapters={"../a": new_lora(["q_proj"], 1)})
    refused("there is no folder", adapters={"a": tmp_path / "nowhere", "b": new_lora(["q_proj"], 1)})
    refused(
        "adapter b changes no module",
        adapters={"a": new_lora(["q_proj"], 1), "b": NewLoRA(factors={}, rank=2, alpha=1)},
    )


def test_peft_has_no_classifier_without_relu(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="PEFT puts ReLU between the layers"):
        write_peft_xlora(
            tmp_path / "x",
            config=XLoRAConfig(hidden_size=HIDDEN, xlora_depth=2, xlora_size=7, enable_relu_and_dropout=False),
            classifier=classifier_linears([HIDDEN, 7, 1]),
            adapters={"a": new_lora(["q_proj"], 1)},
            base_model=BASE,
        )
