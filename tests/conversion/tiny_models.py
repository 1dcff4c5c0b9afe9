"""Small random models as folders, in Hugging Face's and in Mistral's own format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from conversion.gguf.container.file import GGUFFile
from conversion.gguf.tokenizer import tokenizer_files
from conversion.weights.safetensors_io import write_safetensors
from conversion.weights.tensor_names import halves_to_pairs

DEMO = Path(__file__).parents[2] / "mistral_jax" / "hub" / "bundled" / "demo"
GOLDENS = Path(__file__).parents[1] / "goldens" / "gguf"
CONFIG: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 311,
    "hidden_size": 256,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Rows of 256 are whole blocks of every type, those of 96 of the small ones, those of 120 of none."""


def write_tokenizer(folder: Path) -> None:
    """A small sentencepiece tokenizer, of 307 tokens."""
    for name, content in _tokenizer().items():
        (folder / name).write_bytes(content)


@cache
def _tokenizer() -> dict[str, bytes]:
    with GGUFFile(GOLDENS / "narrow.BF16.gguf") as file:
        return tokenizer_files(file.metadata)


def random_tensors(config: Mapping[str, Any], dtype: Any = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    """A model's tensors under Hugging Face's names."""
    rng = np.random.default_rng(seed)
    D, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    N, K = (config[f"num_{heads}"] * config["head_dim"] for heads in ("attention_heads", "key_value_heads"))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (V, D)
    for layer in range(config["num_hidden_layers"]):
        for name, shape in {
            "self_attn.q_proj": (N, D),
            "self_attn.k_proj": (K, D),
            "self_attn.v_proj": (K, D),
            "self_attn.o_proj": (D, N),
            "mlp.gate_proj": (F, D),
            "mlp.up_proj": (F, D),
            "mlp.down_proj": (D, F),
            "input_layernorm": (D,),
            "post_attention_layernorm": (D,),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    return {name: (0.05 * rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}


def write_folder(
    folder: Path, *, dtype: Any = np.float32, tensors: Mapping[str, np.ndarray] | None = None, **changes: Any
) -> Path:
    """A folder in Hugging Face's format; `changes` of `CONFIG`."""
    config = {**CONFIG, **changes}
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", tensors or random_tensors(config, dtype))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.7, "top_k": 40, "do_sample": True}))
    write_tokenizer(folder)
    return folder


_PARAMS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "head_dim": "head_dim",
    "hidden_dim": "intermediate_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "vocab_size": "vocab_size",
    "rope_theta": "rope_theta",
}
_OWN_NAMES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attention_norm",
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "model.layers": "layers",
}


def write_mistral_folder(folder: Path) -> Path:
    """The same model as `write_folder` writes, in Mistral's own format."""
    folder.mkdir()
    tensors: dict[str, np.ndarray] = {}
    for name, array in random_tensors(CONFIG).items():
        if "q_proj" in name or "k_proj" in name:
            array = halves_to_pairs(array, CONFIG["num_attention_heads" if "q_proj" in name else "num_key_value_heads"])
        for theirs, own in _OWN_NAMES.items():
            name = name.replace(theirs, own)
        tensors[name] = array
    write_safetensors(folder / "consolidated.safetensors", tensors)
    params = {own: CONFIG[theirs] for own, theirs in _PARAMS.items()} | {"max_seq_len": 512}
    (folder / "params.json").write_text(json.dumps(params))
    write_tokenizer(folder)
    return folder
