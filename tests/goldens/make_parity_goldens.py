"""Writes `parity/<variant>/`: tiny random models and the logits that the reference implementation gives for them.

Run it in an environment of its own, with torch and transformers 5; the tests need only what it writes:

    python tests/goldens/make_parity_goldens.py [variant ...]

Each folder is a model as people download it (safetensors and config.json), with `expected.npz` beside it: for each text
`i`, the token ids `tokens_i` and float32 logits `logits_i` [T, V], computed in float32 with eager attention *from the
files as saved*. Weights are random but large enough that positions, windows and heads all show in the logits; sizes are
odd, so that a swapped axis cannot pass. `python tests/parity_table.py` prints how close our logits come.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent / "parity"
VOCAB, HIDDEN, FFN, LAYERS = 97, 60, 40, 2
TEXT_LENGTHS = (61, 9)

# Three query heads on one kv head, of 20 dimensions; variants change what they need to.
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 20,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
MISTRAL = {**BASE, "sliding_window": None}
# Six query heads on two kv heads.
GROUPED = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10}
VISION = {
    "hidden_size": 12,
    "intermediate_size": 14,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 6,
    "patch_size": 4,
    "image_size": 16,
}


def plain(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


def yarn(**extra: Any) -> dict[str, Any]:
    return {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 4.0,
        "beta_slow": 1.0,
        **extra,
    }


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MINISTRAL3 = {
    **MISTRAL,
    **GROUPED,
    "rope_parameters": {
        "type": "yarn",
        "rope_theta": 10000.0,
        "factor": 32.0,
        "original_max_position_embeddings": 16,
        "max_position_embeddings": 512,
        "beta_fast": 4.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
}


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights that make attention sharp and every bias and norm matter. Seeded by name: independent of the order of
    modules."""
    for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
        generator = torch.Generator().manual_seed(1000 * seed + index)
        values = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            values = 1 + 0.2 * values
        elif name.endswith(".bias"):
            values = 0.3 * values
        elif "q_proj" in name or "k_proj" in name:
            values = values * 1.5 * parameter.shape[1] ** -0.5
        elif "embed" not in name and parameter.ndim > 1:
            values = values * parameter.shape[1] ** -0.5
        parameter.data.copy_(values)


def to_version_4(config: dict[str, Any]) -> None:
    """Rewrite a config.json as version 4 of the reference wrote it: `rope_theta`, `rope_scaling`, `torch_dtype`."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.46.0"


def write_model(
    folder: Path,
    config: transformers.PreTrainedConfig,
    *,
    seed: int,
    dtype: torch.dtype = torch.bfloat16,
    version: int = 5,
    shard: str = "5GB",
    edit: Callable[[dict[str, Any]], None] | None = None,
    rewrite: Callable[[Path], None] | None = None,
) -> None:
    """A model as the reference saves it, then its config.json as an older version or a careless author would have
    it."""
    model_class = getattr(transformers, config.architectures[0])
    model = model_class(config)
    randomise(model, seed)
    model.tie_weights()
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    (folder / "generation_config.json").unlink(missing_ok=True)
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    if version == 4:
        to_version_4(raw)
    if edit is not None:
        edit(raw)
    path.write_text(json.dumps(raw, indent=2) + "\n")
    if rewrite is not None:
        rewrite(folder)


@torch.no_grad()
def write_expected(folder: Path, reference: Path, seed: int) -> None:
    """Logits of the model in `reference` for texts of our own, to `folder`/expected.npz."""
    architecture = json.loads((reference / "config.json").read_text())["architectures"][0]
    model_class = getattr(transformers, architecture)
    model = model_class.from_pretrained(reference, dtype=torch.float32, attn_implementation="eager").eval()
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for i, length in enumerate(TEXT_LENGTHS):
        tokens = rng.integers(3, VOCAB, length).astype(np.int32)
        logits = model(input_ids=torch.from_numpy(tokens.astype(np.int64))[None], use_cache=False).logits[0]
        assert logits.dtype == torch.float32
        arrays[f"tokens_{i}"], arrays[f"logits_{i}"] = tokens, logits.numpy()
    np.savez_compressed(folder / "expected.npz", **arrays)


def mistral(**changes: Any) -> transformers.PreTrainedConfig:
    return transformers.MistralConfig(architectures=["MistralForCausalLM"], **{**MISTRAL, **changes})


def llama(**changes: Any) -> transformers.PreTrainedConfig:
    return transformers.LlamaConfig(architectures=["LlamaForCausalLM"], **{**BASE, **changes})


def mistral3(text: dict[str, Any], *, tied: bool) -> transformers.PreTrainedConfig:
    return transformers.Mistral3Config(
        architectures=["Mistral3ForConditionalGeneration"],
        text_config=text,
        vision_config={"model_type": "pixtral", **VISION},
        image_token_index=3,
        tie_word_embeddings=tied,
    )


def without(*keys: str) -> Callable[[dict[str, Any]], None]:
    def edit(config: dict[str, Any]) -> None:
        for key in keys:
            del config[key]

    return edit


def rename_to_modules(folder: Path) -> None:
    """Rename the tensors of a wrapped model from the names on the hub to those of the modules in memory, which some
    tools save."""
    path = folder / "model.safetensors"

    def rename(name: str) -> str:
        if name.startswith("language_model.lm_head."):
            return name.removeprefix("language_model.")
        if name.startswith("language_model.model."):
            return name.replace("language_model.model.", "model.language_model.", 1)
        return f"model.{name}"

    save_file({rename(name): tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def forget_tying(config: dict[str, Any]) -> None:
    """As in Mistral Small 3.1: neither the wrapper nor the text model says whether the embeddings are tied."""
    del config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"]


def tie_in_wrapper_only(config: dict[str, Any]) -> None:
    config["text_config"]["tie_word_embeddings"] = False


def write_mistral_format(folder: Path, source: Path) -> None:
    """The model in `source` in Mistral's own format. Written row by row from the definition of the layout, not by
    reshaping."""
    raw = json.loads((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")

    def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
        size = weight.shape[0] // heads
        out = torch.empty_like(weight)
        for head in range(heads):
            for pair in range(size // 2):
                # Here a pair is rows i and i + size / 2 of a head; there it is rows 2i and 2i + 1.
                out[head * size + 2 * pair] = weight[head * size + pair]
                out[head * size + 2 * pair + 1] = weight[head * size + pair + size // 2]
        return out

    own = {
        "tok_embeddings.weight": tensors["model.embed_tokens.weight"],
        "norm.weight": tensors["model.norm.weight"],
        "output.weight": tensors["lm_head.weight"],
    }
    for layer in range(raw["num_hidden_layers"]):
        hf, ours = f"model.layers.{layer}.", f"layers.{layer}."
        own |= {
            ours + "attention.wq.weight": interleave(
                tensors[hf + "self_attn.q_proj.weight"], raw["num_attention_heads"]
            ),
            ours + "attention.wk.weight": interleave(
                tensors[hf + "self_attn.k_proj.weight"], raw["num_key_value_heads"]
            ),
            ours + "attention.wv.weight": tensors[hf + "self_attn.v_proj.weight"],
            ours + "attention.wo.weight": tensors[hf + "self_attn.o_proj.weight"],
            ours + "feed_forward.w1.weight": tensors[hf + "mlp.gate_proj.weight"],
            ours + "feed_forward.w2.weight": tensors[hf + "mlp.down_proj.weight"],
            ours + "feed_forward.w3.weight": tensors[hf + "mlp.up_proj.weight"],
            ours + "attention_norm.weight": tensors[hf + "input_layernorm.weight"],
            ours + "ffn_norm.weight": tensors[hf + "post_attention_layernorm.weight"],
        }
    save_file(own, folder / "consolidated.safetensors")
    params = {
        "dim": raw["hidden_size"],
        "n_layers": raw["num_hidden_layers"],
        "head_dim": raw["head_dim"],
        "hidden_dim": raw["intermediate_size"],
        "n_heads": raw["num_attention_heads"],
        "n_kv_heads": raw["num_key_value_heads"],
        "norm_eps": raw["rms_norm_eps"],
        "vocab_size": raw["vocab_size"],
        "rope_theta": raw["rope_parameters"]["rope_theta"],
    }
    (folder / "params.json").write_text(json.dumps(params, indent=2) + "\n")


Variant = tuple[Callable[[], transformers.PreTrainedConfig], dict[str, Any]]
F16, F32 = torch.float16, torch.float32
THETA_1E6 = {"rope_parameters": plain(1e6)}

VARIANTS: dict[str, Variant] = {
    "mistral-v0.1-window": (
        lambda: mistral(sliding_window=11, rope_parameters=plain(1e4)),
        {"version": 4, "dtype": F32},
    ),
    "mistral-v0.2-config4": (lambda: mistral(**THETA_1E6), {"version": 4, "edit": without("head_dim")}),
    "mistral-v0.3-config5": (lambda: mistral(**GROUPED, **THETA_1E6), {}),
    # 8 kv heads and a window of 4096 are what a *missing* key means.
    "mistral-defaults": (
        lambda: mistral(num_attention_heads=8, num_key_value_heads=8, head_dim=4, sliding_window=4096),
        {"edit": without("sliding_window", "num_key_value_heads", "rope_parameters", "tie_word_embeddings")},
    ),
    "nemo": (
        lambda: mistral(num_attention_heads=4, num_key_value_heads=2, head_dim=20, **THETA_1E6),
        {"version": 4, "dtype": F16},
    ),
    "mistral-tied": (lambda: mistral(tie_word_embeddings=True), {"dtype": F16}),
    "mistral-sharded": (lambda: mistral(**GROUPED), {"shard": "40KB"}),
    "rope-linear-config4": (
        lambda: mistral(rope_parameters={**plain(1e4), "rope_type": "linear", "factor": 2.5}),
        {"version": 4},
    ),
    "rope-linear-config5": (lambda: llama(rope_parameters={**plain(1e4), "rope_type": "linear", "factor": 4.0}), {}),
    "yarn-attention-factor": (lambda: mistral(rope_parameters=yarn(attention_factor=1.3)), {}),
    "yarn-mscale": (lambda: mistral(rope_parameters=yarn(mscale=0.7, mscale_all_dim=1.4)), {"version": 4}),
    "yarn-mscale-all-dim-0": (lambda: mistral(rope_parameters=yarn(mscale=1.0, mscale_all_dim=0.0)), {}),
    "yarn-plain": (lambda: mistral(rope_parameters=yarn()), {"version": 4}),
    "yarn-untruncated": (lambda: mistral(rope_parameters=yarn(truncate=False)), {}),
    "mistral3": (
        lambda: mistral3({"model_type": "mistral", **MISTRAL, **GROUPED, "rope_parameters": plain(1e9)}, tied=False),
        {},
    ),
    "mistral3-module-names": (
        lambda: mistral3({"model_type": "mistral", **MISTRAL, "rope_parameters": plain(1e9)}, tied=False),
        {"edit": forget_tying, "rewrite": rename_to_modules},
    ),
    "mistral3-ministral3": (
        lambda: mistral3({"model_type": "ministral3", **MINISTRAL3, "tie_word_embeddings": True}, tied=True),
        {"edit": tie_in_wrapper_only},
    ),
    "ministral3": (
        lambda: transformers.Ministral3Config(architectures=["Ministral3ForCausalLM"], **MINISTRAL3),
        {"dtype": F16},
    ),
    "ministral-layer-types": (
        lambda: transformers.MinistralConfig(
            architectures=["MinistralForCausalLM"],
            **{**BASE, "sliding_window": 9, "num_hidden_layers": 3},
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        {},
    ),
    "llama-2": (
        lambda: llama(num_attention_heads=3, num_key_value_heads=3, rms_norm_eps=1e-6),
        {"version": 4, "dtype": F16, "edit": without("num_key_value_heads", "head_dim")},
    ),
    "llama-3-config4": (
        lambda: llama(**GROUPED, rope_parameters=LLAMA3, eos_token_id=[2, 5, 7], tie_word_embeddings=True),
        {"version": 4},
    ),
    "llama-3-config5": (lambda: llama(rope_parameters=LLAMA3, eos_token_id=[2, 5, 7]), {}),
    "llama-biases": (lambda: llama(**GROUPED, attention_bias=True, mlp_bias=True), {}),
}
MISTRAL_FORMAT = "mistral-format"


def main(wanted: list[str]) -> None:
    torch.set_num_threads(1)
    for seed, (variant, (make_config, how)) in enumerate(VARIANTS.items(), start=1):
        if wanted and variant not in wanted:
            continue
        folder = HERE / variant
        shutil.rmtree(folder, ignore_errors=True)
        write_model(folder, make_config(), seed=seed, **how)
        write_expected(folder, folder, seed)
        print(variant, sum(path.stat().st_size for path in folder.iterdir()) // 1024, "KiB")
    if not wanted or MISTRAL_FORMAT in wanted:
        source, folder = HERE / "mistral-v0.3-config5", HERE / MISTRAL_FORMAT
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_mistral_format(folder, source)
        shutil.copy(source / "expected.npz", folder / "expected.npz")


if __name__ == "__main__":
    main(sys.argv[1:])
