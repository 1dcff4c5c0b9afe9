"""Writes `xlora/`: a tiny model, LoRA adapters, X-LoRA mixtures of them, and what PEFT computes with each.

Run it in an environment of its own, with torch, transformers 5 and peft; the tests need only what it writes:

    python tests/goldens/make_xlora_goldens.py
    python tests/goldens/make_xlora_goldens.py peft-layout      # with PEFT 0.18 or 0.19

- `base/`: a random model as transformers saves it. `adapters/a` … `adapters/d`: random adapters as PEFT saves them, of
  unequal ranks, alphas, targets and layers.
- `lora/<name>.npz`: logits and greedy text without and with one adapter, and with a weighted sum of all (`sum`).
- `mixtures/<number>/`: xlora_config.json and xlora_classifier.safetensors as the original library writes them; with the
  adapter folders that the config lists beside them they are a mixture as people download it. `expected.npz`: what PEFT
  computes with it in float32 and eval mode, both passes anew over the whole text for each token. Each pair of values of
  any two settings occurs, and each triple of those that decide the weights most. `settings.json` says which; the first
  `pairs` of them have all the pairs.
- `peft/`: the mixture `peft_saved` of settings.json once more, as PEFT saved it before version 0.20, which forgets most
  of it.

Arrays of an npz, with B rows, T tokens, M adapted modules, A adapters and V tokens in the vocabulary: `tokens` [B, T],
`logits` [B, T, V] and `scalings` [B, T, M, A] (before top-k) float32, `greedy` [B, 32] what generation chose after
`tokens`, `margins` [B, 32] the lead of each chosen token's logit, `last_logits` [B, V] those that chose the last one;
and `rounding`, how far `logits` and `last_logits` are from what the same model gives in float64, over the largest
logit. (Norms stay in float32 there.)

Two settings of the original library do not exist in PEFT: without bias is computed with biases of zero, and without
  ReLU and
dropout with the ReLUs taken out of the classifier.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import warnings
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, XLoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import MistralConfig, MistralForCausalLM

HERE = Path(__file__).parent / "xlora"
VOCAB, HIDDEN, FFN, LAYERS, ROWS, LENGTH, ANSWER = 97, 60, 44, 3, 2, 11, 32
CLOSEST = 0.002
"""Least lead of a chosen token's logit. Errors of float32 are some hundred times smaller."""
CLASSIFIER_SIZE = 26
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

ADAPTERS: dict[str, dict[str, Any]] = {
    "a": {"r": 4, "lora_alpha": 8, "target_modules": list(TARGETS[:5])},
    "b": {"r": 3, "lora_alpha": 2, "target_modules": list(TARGETS), "use_rslora": True, "lora_dropout": 0.1},
    "c": {
        "r": 5,
        "lora_alpha": 10,
        "target_modules": ["q_proj", "o_proj", "down_proj"],
        "rank_pattern": {"down_proj": 7, "layers.2.self_attn.q_proj": 2},
        "alpha_pattern": {"down_proj": 9, "layers.0.self_attn.o_proj": 4},
        "layers_to_transform": [0, 2],
    },
    "d": {"r": 6, "lora_alpha": 7, "target_modules": ["v_proj", "up_proj"]},
}
SUM = {"a": 0.7, "b": -0.4, "c": 1.0, "d": 0.3}
"""Weights of the adapters in `lora/sum.npz`."""

# In `dca` and `dcab` the columns are not in alphabetical order; in `dca` layer 1 has one adapted module less than the
# others.
FACTORS: dict[str, tuple[Any, ...]] = {
    "adapters": ("abc", "dca", "dcab"),
    "depth": (1, 2, 3),
    "layerwise": (True, False),
    "temperature": (1.0, 0.7, None),
    "top_k": (None, 1, 2),
    "softmax_topk": (False, True),
    "scaling_pass": ("0", "0.5", "1/n"),
    "global_weight": (1.0, 1.3),
    "dropout": (0.2, 0.0),
    "relu": (True, False),
    "bias": (True, False),
}
"""Values of each setting; a temperature of None is no softmax."""
CORE = ("depth", "layerwise", "temperature", "top_k", "scaling_pass")


def possible(case: dict[str, Any]) -> bool:
    """Whether these settings, all or some, make a case.

    A classifier of one layer has no ReLU. And PEFT's result must be defined: with a scaling pass value other than 0 it
    takes the top k of equal numbers; of up to three it takes the first ones, of more it takes what its selection
    algorithm leaves in front.
    """
    if case.get("depth") == 1 and not case.get("relu", True):
        return False
    return not (len(case.get("adapters", "")) > 3 and case.get("top_k") and case.get("scaling_pass", "0") != "0")


def choose_cases() -> tuple[list[dict[str, Any]], int]:
    """Few cases in which each pair of values of any two settings occurs, then more until each triple of `CORE` does;
    and how many the pairs took."""
    chooser = random.Random(0)

    def tuples(names: tuple[str, ...], size: int) -> set[tuple[tuple[str, Any], ...]]:
        return {
            tuple(zip(chosen, values, strict=True))
            for chosen in itertools.combinations(names, size)
            for values in itertools.product(*(FACTORS[name] for name in chosen))
            if possible(dict(zip(chosen, values, strict=True)))
        }

    cases: list[dict[str, Any]] = []
    pairs = 0
    for missing in (tuples(tuple(FACTORS), 2), tuples(CORE, 3)):
        for case in cases:
            missing -= {t for t in missing if all(case[name] == value for name, value in t)}
        while missing:
            # Candidates contain one missing tuple for certain; the rest is drawn.
            candidates: list[dict[str, Any]] = []
            while len(candidates) < 60:
                wanted = dict(chooser.choice(sorted(missing, key=repr)))
                case = {name: wanted.get(name, chooser.choice(values)) for name, values in FACTORS.items()}
                if possible(case):
                    candidates.append(case)
            best = max(candidates, key=lambda case: sum(all(case[n] == v for n, v in t) for t in missing))
            missing -= {t for t in missing if all(best[name] == value for name, value in t)}
            cases.append(best)
        pairs = pairs or len(cases)
    return cases, pairs


def generator(*parts: object) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(repr(parts).encode()))


def normal(shape: torch.Size | tuple[int, ...], scale: float, *seed: object) -> torch.Tensor:
    """Random values that bfloat16 holds exactly, in float32."""
    return (scale * torch.randn(tuple(shape), generator=generator(*seed))).bfloat16().float()


def write_base() -> None:
    config = MistralConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    model = MistralForCausalLM(config)
    for name, parameter in model.named_parameters():
        scale = 1.0 if "embed" in name else parameter.shape[-1] ** -0.5
        values = normal(parameter.shape, scale, "base", name)
        parameter.data.copy_(1 + 0.2 * values.bfloat16() * HIDDEN**0.5 if "norm" in name else values)
    model.bfloat16().save_pretrained("base")
    Path("base/generation_config.json").unlink()


def load_base(dtype: torch.dtype = torch.float32) -> MistralForCausalLM:
    model = MistralForCausalLM.from_pretrained("base", dtype=dtype, attn_implementation="eager").eval()
    # PEFT refuses to build a mixture otherwise.
    model.config.use_cache = False
    return model


def clean(folder: Path) -> None:
    """Remove the description that PEFT writes beside an adapter."""
    for readme in folder.rglob("README.md"):
        readme.unlink()


@torch.no_grad()
def write_adapter(name: str, settings: dict[str, Any]) -> None:
    # One of them in bfloat16, as a model in bfloat16 would give it.
    dtype = torch.bfloat16 if name == "c" else torch.float32
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    model = get_peft_model(load_base(dtype), config, autocast_adapter_dtype=False)
    for key, parameter in model.named_parameters():
        if "lora_A" in key:
            parameter.copy_(normal(parameter.shape, parameter.shape[1] ** -0.5, name, key))
        elif "lora_B" in key:
            parameter.copy_(normal(parameter.shape, 0.6 * parameter.shape[1] ** -0.5, name, key))
    model.save_pretrained(f"adapters/{name}")
    clean(Path("adapters"))


@torch.no_grad()
def compute(model: Any, *seed: object) -> dict[str, np.ndarray]:
    """The arrays of an npz, for the first random texts after which no choice of a token is too close for rounding to
    change it."""
    for attempt in itertools.count():
        tokens = torch.randint(3, VOCAB, (ROWS, LENGTH), generator=generator("prompt", *seed, attempt))
        arrays = compute_text(model, tokens)
        if arrays["margins"].min() > CLOSEST:
            return arrays
    raise AssertionError


@torch.no_grad()
def compute_text(model: Any, tokens: torch.Tensor) -> dict[str, np.ndarray]:
    """The greedy text is the reference's own; its margins are those of one more run over it."""
    logits = model(input_ids=tokens).logits
    whole = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=ANSWER,
        min_new_tokens=ANSWER,
        do_sample=False,
        use_cache=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    greedy = whole[:, LENGTH:]
    chosen = model(input_ids=whole[:, :-1]).logits[:, LENGTH - 1 :]
    top = chosen.topk(2)
    assert logits.dtype == torch.float32
    assert greedy.shape == (ROWS, ANSWER)
    assert torch.equal(top.indices[..., 0], greedy)
    arrays = {
        "tokens": tokens.numpy().astype(np.int32),
        "logits": logits.numpy(),
        "greedy": greedy.numpy().astype(np.int32),
        "margins": (top.values[..., 0] - top.values[..., 1]).numpy(),
        "last_logits": chosen[:, -1].numpy(),
    }
    classifier = getattr(getattr(model, "base_model", None), "internal_xlora_classifier", None)
    if classifier is not None:
        model(input_ids=tokens)
        arrays["scalings"] = model.get_latest_scalings().contiguous().numpy()
        classifier.dtype = torch.float64
    exact = model.double()(input_ids=whole[:, :-1]).logits.numpy()
    model.float()
    if classifier is not None:
        classifier.dtype = torch.float32
    found = np.concatenate([arrays["logits"], arrays["last_logits"][:, None]], axis=1)
    expected = np.concatenate([exact[:, :LENGTH], exact[:, -1:]], axis=1)
    assert exact.dtype == np.float64
    arrays["rounding"] = np.float32(np.abs(found - expected).max() / np.abs(exact).max())
    return arrays


@torch.no_grad()
def weighted_sum() -> MistralForCausalLM:
    """The base with the weighted sum of what PEFT says that each adapter adds to each weight."""
    model = load_base()
    weights = dict(model.named_parameters())
    for name, weight in SUM.items():
        adapted = PeftModel.from_pretrained(load_base(), f"adapters/{name}")
        for path, module in adapted.base_model.model.named_modules():
            if isinstance(module, LoraLayer):
                weights[f"{path}.weight"] += weight * module.get_delta_weight("default")
    return model


def classifier_weights(case: dict[str, Any], columns: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weight and bias of each linear layer of the classifier."""
    out = len(case["adapters"]) * (columns if case["layerwise"] else 1)
    sizes = [HIDDEN, *[CLASSIFIER_SIZE] * (case["depth"] - 1), out]
    seed = ("classifier", case["adapters"], case["depth"], case["layerwise"])
    scales = [1.3] * case["depth"]
    if case["temperature"] is None:
        # Outputs are scalings themselves then. With scalings of 5 the model amplifies its own rounding a hundred times.
        scales[-1] = 0.4
    return [
        (
            normal((rows, cols), scale * cols**-0.5, *seed, i, "weight"),
            normal((rows,), 0.3 * scale, *seed, i, "bias") if case["bias"] else torch.zeros(rows),
        )
        for i, (scale, (cols, rows)) in enumerate(zip(scales, itertools.pairwise(sizes), strict=True))
    ]


@torch.no_grad()
def build_mixture(case: dict[str, Any]) -> tuple[Any, list[tuple[torch.Tensor, torch.Tensor]]]:
    """PEFT's model of a case, and the weights of its classifier."""
    names = case["adapters"]
    config = XLoraConfig(
        task_type="CAUSAL_LM",
        hidden_size=HIDDEN,
        # Other names than these fail in the first forward pass.
        adapters={str(i): f"adapters/{name}" for i, name in enumerate(names)},
        xlora_depth=case["depth"],
        xlora_size=CLASSIFIER_SIZE,
        layerwise_scalings=case["layerwise"],
        enable_softmax=case["temperature"] is not None,
        softmax_temperature=case["temperature"] or 1.0,
        top_k_lora=case["top_k"],
        enable_softmax_topk=case["softmax_topk"],
        scaling_pass_value={"0": 0.0, "0.5": 0.5, "1/n": 1 / len(names)}[case["scaling_pass"]],
        global_scaling_weight=case["global_weight"],
        xlora_dropout_p=case["dropout"],
    )
    model = get_peft_model(load_base(), config).eval()
    classifier = model.base_model.internal_xlora_classifier
    weights = classifier_weights(case, classifier.n_layers)
    linears = [layer for layer in classifier.layers if isinstance(layer, torch.nn.Linear)]
    for linear, (weight, bias) in zip(linears, weights, strict=True):
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    if not case["relu"]:
        for i, layer in enumerate(classifier.layers):
            if isinstance(layer, torch.nn.ReLU):
                classifier.layers[i] = torch.nn.Identity()
    return model, weights


def write_hub_layout(folder: Path, case: dict[str, Any], weights: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """A mixture's own two files as the original library writes them."""
    # There the list of inner layers counts ReLU and dropout too, where they are.
    stride = 3 if case["relu"] else 1
    tensors: dict[str, torch.Tensor] = {}
    for i, (weight, bias) in enumerate(weights):
        name = "last" if i == len(weights) - 1 else f"inner.{i * stride}"
        tensors[f"{name}.weight"] = weight.bfloat16()
        if case["bias"]:
            tensors[f"{name}.bias"] = bias.bfloat16()
    save_file(tensors, folder / "xlora_classifier.safetensors")
    scaling_pass = {"0": 0.0, "0.5": 0.5, "1/n": 1 / len(case["adapters"])}[case["scaling_pass"]]
    config = {
        "base_model_id": "base",
        "adapters": list(case["adapters"]),
        "hidden_size": HIDDEN,
        "enable_softmax": case["temperature"] is not None,
        "enable_softmax_topk": case["softmax_topk"],
        "layerwise_scalings": case["layerwise"],
        "xlora_depth": case["depth"],
        "xlora_size": CLASSIFIER_SIZE,
        "enable_relu_and_dropout": case["relu"],
        "use_bias": case["bias"],
        "xlora_dropout_p": case["dropout"],
        "use_trainable_adapters": False,
        "softmax_temperature": case["temperature"] or 1.0,
        "top_k_lora": case["top_k"],
        "scaling_pass_value": scaling_pass,
        "global_scaling_weight": case["global_weight"],
    }
    (folder / "xlora_config.json").write_text(json.dumps(config, indent=1) + "\n")


def write_peft_layout() -> None:
    """A mixture as PEFT saves it: each expert beside much that is not its own."""
    described = json.loads(Path("settings.json").read_text())
    number = described["peft_saved"]
    config = json.loads(Path("mixtures", number, "xlora_config.json").read_text())
    model, weights = build_mixture({**described["mixtures"][number], "adapters": "".join(config["adapters"])})
    model.save_pretrained("peft")
    clean(Path("peft"))
    # From version 0.20 on, what has the name of another expert in its own, such as `layers.0.`, is not saved.
    saved = load_file("peft/adapter_model.safetensors")
    if len(saved) != 2 * len(weights):
        raise SystemExit(f"this version of PEFT saved only {sorted(saved)} of the classifier; take 0.18 or 0.19")


def write() -> None:
    """All files, in the working directory."""
    write_base()
    for name, settings in ADAPTERS.items():
        write_adapter(name, settings)

    Path("lora").mkdir()
    np.savez_compressed("lora/base.npz", **compute(load_base(), "base"))
    for name in ADAPTERS:
        model = PeftModel.from_pretrained(load_base(), f"adapters/{name}").eval()
        np.savez_compressed(f"lora/{name}.npz", **compute(model, name))
    np.savez_compressed("lora/sum.npz", **compute(weighted_sum(), "sum"))

    cases, pairs = choose_cases()
    mixtures: dict[str, Any] = {}
    for number, case in enumerate(cases, start=1):
        name = f"{number:02}"
        folder = Path("mixtures") / name
        folder.mkdir(parents=True)
        model, weights = build_mixture(case)
        write_hub_layout(folder, case, weights)
        arrays = compute(model, name)
        np.savez_compressed(folder / "expected.npz", **arrays)
        plain = load_base()(input_ids=torch.from_numpy(arrays["tokens"]).long()).logits.detach().numpy()
        effect = np.abs(arrays["logits"] - plain).max() / np.abs(plain).max()
        print(
            name,
            case,
            f"effect {effect:.2f}",
            f"closest {arrays['margins'].min():.4f} rounding {arrays['rounding']:.0e}",
            flush=True,
        )
        assert effect > 0.1
        assert arrays["rounding"] < 2e-5
        mixtures[name] = {key: value for key, value in case.items() if key != "adapters"}
    # Its classifier has dropout between its layers, which PEFT counts.
    saved = next(
        name
        for name, case in mixtures.items()
        if case["depth"] == 3 and case["dropout"] and case["relu"] and case["bias"]
    )
    versions = {package: version(package) for package in ("peft", "torch", "transformers")}
    described = {"versions": versions, "sum": SUM, "pairs": pairs, "peft_saved": saved, "mixtures": mixtures}
    Path("settings.json").write_text(json.dumps(described, indent=1) + "\n")


def main(peft_layout: str | None = None) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*enable_softmax_topk.*")
    # Paths that get into files are relative to the folder.
    with tempfile.TemporaryDirectory() as folder:
        if peft_layout:
            shutil.copytree(HERE, folder, dirs_exist_ok=True)
            shutil.rmtree(Path(folder) / "peft", ignore_errors=True)
        os.chdir(folder)
        if peft_layout:
            write_peft_layout()
        else:
            write()
        os.chdir(HERE.parent)
        shutil.rmtree(HERE, ignore_errors=True)
        shutil.copytree(folder, HERE)
    print(sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file()) // 1024, "KiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
