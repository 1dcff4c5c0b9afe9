"""LoRA folders: what opening them gives, and what each kind of damage is told as."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from conversion.adapters.lora.files import AdapterError, LoRAModule, check_fits, open_lora
from conversion.adapters.modules import PARTS, ModuleKey
from conversion.weights.tensor_source import WeightFileError
from tests.conversion.adapters.folders import (
    BASE,
    FEATURES,
    NUM_LAYERS,
    keys,
    peft_config,
    peft_tensors,
    random_factors,
    write_adapter,
    write_folder,
)

Q0 = ModuleKey(0, "q_proj")


def refused(match: str, folder: Path) -> None:
    with pytest.raises(AdapterError, match=match):
        open_lora(folder)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_an_adapter_of_all_linear_layers(tmp_path: Path, dtype: Any) -> None:
    factors = random_factors(keys(), dtype=dtype)
    lora = open_lora(write_folder(tmp_path / "poet", peft_config(), peft_tensors(factors)))
    assert (lora.name, lora.base_model, lora.rank, lora.parts) == ("poet", BASE, 2, PARTS)
    assert list(lora.modules) == keys()
    assert lora.modules[ModuleKey(1, "k_proj")] == LoRAModule(rank=2, scale=4.0, in_features=20, out_features=12)
    assert lora.parameters == sum(a.size + b.size for a, b in factors.values())
    for key, (a, b) in factors.items():
        read_a, read_b = lora.read(key)
        assert read_a.dtype == read_b.dtype == dtype
        np.testing.assert_array_equal(read_a, a)
        np.testing.assert_array_equal(read_b, b)
    check_fits(lora, num_layers=NUM_LAYERS, features=FEATURES)
    assert open_lora(tmp_path / "poet", name="p").name == "p"


def test_scales_follow_rslora_and_patterns(tmp_path: Path) -> None:
    ranks = dict.fromkeys(keys(["q_proj"]), 5) | {ModuleKey(2, "down_proj"): 3}
    tensors = peft_tensors(random_factors(keys(), ranks=ranks))
    config = peft_config(
        use_rslora=True,
        rank_pattern={r"layers\.2\.mlp\.down_proj": 3, "q_proj": 5},
        alpha_pattern={"model.layers.1.self_attn.(q_proj|k_proj)": 7, "oj": 100},
    )
    modules = open_lora(write_folder(tmp_path / "a", config, tensors)).modules
    assert {key: module.rank for key, module in modules.items() if module.rank != 2} == ranks
    assert modules[Q0].scale == 8 / math.sqrt(5)
    assert modules[ModuleKey(1, "q_proj")].scale == 7 / math.sqrt(5)
    assert modules[ModuleKey(1, "k_proj")].scale == 7 / math.sqrt(2)
    assert modules[ModuleKey(2, "down_proj")].scale == 8 / math.sqrt(3)
    assert modules[ModuleKey(1, "down_proj")].scale == 8 / math.sqrt(2)  # "oj" matches no whole component


@pytest.mark.parametrize(
    ("prefix", "infix"),
    [
        ("base_model.model.", ""),
        ("base_model.model.", "default."),
        ("base_model.model.", "0."),
        ("base_model.lora_model.model.", "adapter_10."),
        ("", ""),
        ("base_model.model.language_model.", ""),
    ],
)
def test_names_as_other_libraries_write_them(tmp_path: Path, prefix: str, infix: str) -> None:
    factors = random_factors(keys())
    tensors = peft_tensors(factors, prefix=prefix, infix=infix)
    tensors["base_model.internal_xlora_classifier.layers.0.weight"] = np.zeros((3, 20), np.float32)
    lora = open_lora(write_folder(tmp_path / "a", peft_config(), tensors))
    np.testing.assert_array_equal(lora.read(ModuleKey(2, "up_proj"))[1], factors[ModuleKey(2, "up_proj")][1])


def test_what_peft_puts_beside_the_factors_of_an_expert_is_skipped(tmp_path: Path) -> None:
    own, other = random_factors(keys(), seed=1), random_factors(keys(layers=[1]), seed=2)
    prefix = "base_model.lora_model.model."
    tensors = peft_tensors(own, prefix=prefix) | peft_tensors(other, prefix=prefix, infix="2.")
    for name in (
        *("model.layers.1.mlp.up_proj.base_layer.weight", "model.layers.1.input_layernorm.weight", "lm_head.weight"),
        *("model.layers.1.self_attn.q_proj.base_layer.bias",),
    ):
        tensors[prefix + name] = np.zeros(3, np.float32)
    lora = open_lora(write_folder(tmp_path / "1", peft_config(), tensors))
    for key, (a, b) in own.items():
        np.testing.assert_array_equal(lora.read(key)[0], a)
        np.testing.assert_array_equal(lora.read(key)[1], b)
    saved = tensors | {prefix + "lm_head.modules_to_save.weight": np.zeros(3, np.float32)}
    refused("changes the output matrix", write_folder(tmp_path / "2", peft_config(), saved))


def test_the_base_may_be_wrapped_or_without_a_head(tmp_path: Path) -> None:
    tensors = {
        name.replace(".model.layers", ".model.language_model.layers"): array
        for name, array in peft_tensors(random_factors(keys(["q_proj"]), 3)).items()
    }
    config = peft_config(target_modules=r".*language_model.*\.q_proj", rank_pattern={"language_model.layers.*": 3})
    assert len(open_lora(write_folder(tmp_path / "wrapped", config, tensors)).modules) == NUM_LAYERS
    tensors = {
        name.replace(".model.layers", ".layers"): array
        for name, array in peft_tensors(random_factors(keys(["q_proj"]))).items()
    }
    folder = write_folder(tmp_path / "bare", peft_config(target_modules=["q_proj"]), tensors)
    assert len(open_lora(folder).modules) == NUM_LAYERS


@pytest.mark.parametrize(
    ("targets", "present"),
    [
        (["q_proj", "v_proj"], keys(["q_proj", "v_proj"])),
        (["self_attn.q_proj"], keys(["q_proj"])),
        (["model.layers.1.mlp.up_proj"], [ModuleKey(1, "up_proj")]),
        (r".*\.[12]\.self_attn\.(q|k)_proj", keys(["q_proj", "k_proj"], [1, 2])),
        ("all-linear", keys()),
        (None, [ModuleKey(0, "q_proj"), ModuleKey(2, "up_proj")]),
    ],
)
def test_targets_in_every_form(tmp_path: Path, targets: Any, present: list[ModuleKey]) -> None:
    lora = open_lora(write_adapter(tmp_path / "a", present, target_modules=targets))
    assert list(lora.modules) == present
    check_fits(lora, num_layers=NUM_LAYERS, features=FEATURES)


def test_layers_left_out_on_purpose_are_named(tmp_path: Path) -> None:
    some = keys(["q_proj"], [0, 2])
    lora = open_lora(write_adapter(tmp_path / "a", some, layers_to_transform=[0, 2]))
    check_fits(lora, num_layers=NUM_LAYERS, features=FEATURES)
    excluded = keys(["q_proj"], [0]) + keys(["k_proj"]) + keys(["q_proj"], [2])
    check_fits(
        open_lora(write_adapter(tmp_path / "b", excluded, exclude_modules=["layers.1.self_attn.q_proj"])),
        num_layers=NUM_LAYERS,
        features=FEATURES,
    )


def test_a_lost_layer_is_noticed(tmp_path: Path) -> None:
    refused(
        r"no weights for model\.layers\.1\.self_attn\.q_proj, which .* targets \(it has q_proj in layers 0, 2 only\).*"
        "layers_to_transform",
        write_adapter(tmp_path / "hole", keys(["q_proj"], [0, 2])),
    )
    refused(
        r"no weights for model\.layers\.0\.mlp\.up_proj.*no up_proj at all",
        write_adapter(tmp_path / "part", keys(["q_proj"]), target_modules=["q_proj", "up_proj"]),
    )
    last = open_lora(write_adapter(tmp_path / "last", keys(["q_proj"], [0, 1])))
    with pytest.raises(AdapterError, match=r"no weights for model\.layers\.2\.self_attn\.q_proj.*in layers 0-1 only"):
        check_fits(last, num_layers=NUM_LAYERS, features=FEATURES)


def test_half_a_module_is_refused(tmp_path: Path) -> None:
    for factor, other in (("A", "B"), ("B", "A")):
        tensors = peft_tensors(random_factors(keys()))
        del tensors[f"base_model.model.model.layers.1.mlp.up_proj.lora_{factor}.weight"]
        refused(
            rf"lora_{other} of model\.layers\.1\.mlp\.up_proj without its lora_{factor}",
            write_folder(tmp_path / "a", peft_config(), tensors),
        )


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("use_dora", True, "use_dora is set; DoRA"),
        ("lora_bias", True, "lora_bias is set"),
        ("modules_to_save", ["lm_head"], "modules_to_save is set"),
        ("fan_in_fan_out", True, "fan_in_fan_out is set; transposed"),
        ("layer_replication", [[0, 2]], "layer_replication is set"),
        ("target_parameters", ["experts.w1"], "target_parameters is set"),
        ("trainable_token_indices", [3], "trainable_token_indices is set"),
        ("alora_invocation_tokens", [3], "alora_invocation_tokens is set"),
        ("init_lora_weights", "pissa_niter_4", "the base model's own weights were changed"),
        ("peft_type", "LOHA", "peft_type is LOHA"),
        ("peft_type", None, "peft_type is missing"),
        ("r", 0, "r is 0; expected a whole number of at least 1"),
        ("r", "8", 'r is "8"; expected a whole number'),
        ("lora_alpha", math.inf, "lora_alpha is Infinity; expected a finite number"),
        ("use_rslora", 1, "use_rslora is 1; expected true or false"),
        ("rank_pattern", {"q_proj": 0}, "rank_pattern is .*expected an object of ranks"),
        ("rank_pattern", {"(": 2}, "rank_pattern has '\\(', which is no regular expression"),
        ("alpha_pattern", {"q_proj": "x"}, "alpha_pattern is .*finite numbers"),
        ("target_modules", "(", "target_modules has '\\('"),
        ("target_modules", 3, "target_modules is 3; expected a list of module names"),
        ("layers_to_transform", ["0"], "layers_to_transform is .*layer numbers"),
        ("base_model_name_or_path", 3, "base_model_name_or_path is 3; expected a text"),
    ],
)
def test_configurations_that_are_wrong_or_not_implemented(tmp_path: Path, key: str, value: Any, match: str) -> None:
    folder = write_folder(tmp_path / "a", peft_config(**{key: value}), peft_tensors(random_factors(keys())))
    refused(match, folder)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight", "belongs to DoRA"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias", "is a bias"),
        ("base_model.model.model.layers.0.self_attn.q_proj.bias", "is a bias"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "changes the embedding"),
        ("base_model.model.model.embed_tokens.weight", "changes the embedding"),
        ("base_model.model.lm_head.lora_A.weight", "changes the output matrix"),
        ("base_model.model.model.layers.0.mlp.q_proj.lora_A.weight", "is no factor of a linear layer"),
        ("base_model.model.model.layers.0.block_sparse_moe.gate.lora_A.weight", "is no factor of a linear layer"),
        (
            "base_model.model.model.vision_tower.layers.0.self_attn.q_proj.lora_A.weight",
            "is no factor of a linear layer",
        ),
    ],
)
def test_tensors_that_are_not_implemented(tmp_path: Path, name: str, match: str) -> None:
    tensors = peft_tensors(random_factors(keys())) | {name: np.zeros((2, 20), np.float32)}
    refused(f"tensor {name} {match}", write_folder(tmp_path / "a", peft_config(), tensors))


def test_missing_files(tmp_path: Path) -> None:
    refused("there is no folder", tmp_path / "nowhere")
    folder = write_adapter(tmp_path / "a")
    refused("is a file; expected the folder of an adapter", folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").rename(folder / "config.bak")
    refused("there is no file .*adapter_config.json", folder)
    (folder / "config.bak").rename(folder / "adapter_config.json")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refused(r"its weights in adapter_model\.bin only; such files can run code", folder)
    (folder / "adapter_model.bin").unlink()
    refused(r"has no adapter_model\.safetensors", folder)


def test_a_broken_configuration(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_config.json").write_text("{")
    refused("is no valid JSON|nested", folder)
    (folder / "adapter_config.json").write_text("[]")
    refused("expected an object", folder)


def test_a_truncated_file(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(WeightFileError, match="not a whole safetensors file"):
        open_lora(folder)


def test_ranks_that_differ(tmp_path: Path) -> None:
    refused(
        "has rank 2, and adapter_config.json says 4",
        write_folder(tmp_path / "a", peft_config(r=4), peft_tensors(random_factors(keys()))),
    )
    factors = random_factors(keys())
    factors[Q0] = (factors[Q0][0], np.zeros((24, 3), np.float32))
    refused(
        r"\[2, 20\] and .*\[24, 3\] have ranks 2 and 3",
        write_folder(tmp_path / "b", peft_config(), peft_tensors(factors)),
    )


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((2, 20), np.int32), "has type int32; expected floating point"),
        (np.zeros(40, np.float32), r"has shape \[40\]; expected a matrix"),
        (np.zeros((2, 0), np.float32), r"has shape \[2, 0\]; expected a matrix"),
    ],
)
def test_tensors_that_are_no_factors(tmp_path: Path, array: np.ndarray, match: str) -> None:
    tensors = peft_tensors(random_factors(keys()))
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] = array
    refused(match, write_folder(tmp_path / "a", peft_config(), tensors))


def test_two_adapters_in_one_file(tmp_path: Path) -> None:
    factors = random_factors(keys())
    twice = peft_tensors(factors) | peft_tensors(factors, infix="default.")
    refused(
        r"both .*lora_A\.default\.weight and .*lora_A\.weight are factor A",
        write_folder(tmp_path / "a", peft_config(), twice),
    )
    half = peft_tensors({key: factors[key] for key in keys(layers=[0])}) | peft_tensors(
        {key: factors[key] for key in keys(layers=[1])}, infix="other."
    )
    refused("belong to different adapters", write_folder(tmp_path / "b", peft_config(), half))


def test_no_factors_at_all(tmp_path: Path) -> None:
    stray = {"base_model.internal_xlora_classifier.last.bias": np.zeros(3, np.float32)}
    refused("holds no factors of linear layers", write_folder(tmp_path / "a", peft_config(), stray))


@pytest.mark.parametrize(("value", "match"), [(math.nan, "NaN"), (math.inf, "infinite"), (-math.inf, "infinite")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float, match: str) -> None:
    factors = random_factors(keys())
    factors[ModuleKey(1, "v_proj")][1][3, 1] = value
    lora = open_lora(write_folder(tmp_path / "a", peft_config(), peft_tensors(factors)))
    lora.read(Q0)
    with pytest.raises(AdapterError, match=rf"model\.layers\.1\.self_attn\.v_proj\.lora_B\.weight holds {match}"):
        lora.read(ModuleKey(1, "v_proj"))


def test_an_adapter_of_another_model(tmp_path: Path) -> None:
    lora = open_lora(write_adapter(tmp_path / "a"))
    with pytest.raises(AdapterError, match=r"changes model\.layers\.2\..*, and the model has 2 layers"):
        check_fits(lora, num_layers=2, features=FEATURES)
    with pytest.raises(
        AdapterError, match=r"model\.layers\.0\.mlp\.up_proj with 20 inputs and 28 outputs; the model's has 20 and 32"
    ):
        check_fits(lora, num_layers=3, features=FEATURES | {"up_proj": (32, 20)})
