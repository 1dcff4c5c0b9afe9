"""Random models of awkward shapes, as Hugging Face folders, for `make_gguf.py` to convert.

Sizes are chosen so that the files stay small, that no two axes are equal by chance, and that rows of some tensors are
not whole blocks of the wanted type, for which llama.cpp falls back to others.
"""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece.sentencepiece_model_pb2 as sentencepiece_model
import torch
import transformers

PACKAGE = Path(__file__).parents[2] / "mistral_jax"
DEMO = PACKAGE / "hub" / "bundled" / "demo"
BYTE_LEVEL = Path(__file__).parent / "tokenizers" / "byte_level"

K_TYPES = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS")
LEGACY_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
ALL_TYPES = ("F32", "BF16", *LEGACY_TYPES, *K_TYPES)


@dataclass(frozen=True, kw_only=True)
class RandomModel:
    """A model to make: its configuration, its tokenizer, and the types it is quantised to."""

    config: Callable[[], transformers.PreTrainedConfig]
    tokenizer: Callable[[Path], int]
    """Writes the tokenizer's files to a folder and returns the size of the vocabulary."""
    types: tuple[str, ...]
    pre_tokenizer: str | None = None
    """The name that the converter is to write for a byte-level tokenizer, which it knows by a hash only."""
    extra_metadata: tuple[tuple[str, int], ...] = ()
    """Integers to add to the metadata of the file: keys that readers honour and the converter does not write."""


# Rows are whole blocks of 256, except those of the output projection (two query heads of 48 dimensions) and the down
# projection.
WIDE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 48,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# The 80 columns of the output projection are no whole block of any type; no row is a whole block of 256.
NARROW: dict[str, Any] = {
    **WIDE,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 20,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 32.0,
    "original_max_position_embeddings": 16,
    "max_position_embeddings": 512,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
WINDOW = 9


def plain_rope(theta: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


def sentencepiece_tokenizer(folder: Path, *, add_space_prefix: bool) -> int:
    """The demo's tokenizer cut down to control tokens, bytes, 19 merged pieces, the space and the lower-case
    letters."""
    model = sentencepiece_model.ModelProto()
    model.ParseFromString((DEMO / "tokenizer.model").read_bytes())
    pieces = list(model.pieces)
    letters = {"▁", *string.ascii_lowercase}
    kept = [*pieces[:280], *(piece for piece in pieces[280:] if piece.piece in letters)]
    assert letters <= {piece.piece for piece in kept}
    assert all(set(piece.piece) <= letters for piece in kept[261:])
    del model.pieces[:]
    model.pieces.extend(kept)
    model.trainer_spec.vocab_size = len(kept)
    model.normalizer_spec.add_dummy_prefix = add_space_prefix
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    config = json.loads((DEMO / "tokenizer_config.json").read_text())
    config["add_prefix_space"] = add_space_prefix
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(kept)


def byte_level_tokenizer(folder: Path) -> int:
    """Of Llama 3's kind, cut down."""
    shutil.copy(BYTE_LEVEL / "tokenizer_config.json", folder)
    data = json.loads((BYTE_LEVEL / "tokenizer.json").read_text())
    data["truncation"] = None
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return len(data["model"]["vocab"]) + len(data["added_tokens"])


def with_space(folder: Path) -> int:
    return sentencepiece_tokenizer(folder, add_space_prefix=True)


def without_space(folder: Path) -> int:
    return sentencepiece_tokenizer(folder, add_space_prefix=False)


def mistral(shape: dict[str, Any], theta: float, **changes: Any) -> transformers.PreTrainedConfig:
    return transformers.MistralConfig(
        architectures=["MistralForCausalLM"], **{"sliding_window": None, **shape, **plain_rope(theta), **changes}
    )


def llama(**changes: Any) -> transformers.PreTrainedConfig:
    return transformers.LlamaConfig(architectures=["LlamaForCausalLM"], **{**NARROW, **changes})


MODELS: dict[str, RandomModel] = {
    "wide": RandomModel(
        config=lambda: mistral(WIDE, 1e6, tie_word_embeddings=True), tokenizer=without_space, types=K_TYPES
    ),
    # IQ4_NL and F16 instead of IQ4_XS.
    "narrow": RandomModel(
        config=lambda: mistral(NARROW, 1e4),
        tokenizer=with_space,
        types=("BF16", *LEGACY_TYPES, "IQ4_XS"),
    ),
    # llama3 scaling is written as a tensor of factors.
    "llama3": RandomModel(
        config=lambda: llama(
            num_hidden_layers=2,
            head_dim=32,
            rope_parameters=LLAMA3_ROPE,
            tie_word_embeddings=True,
            bos_token_id=476,
            eos_token_id=477,
        ),
        tokenizer=byte_level_tokenizer,
        types=("Q8_0", "Q4_0"),
        pre_tokenizer="llama-bpe",
    ),
    "biases": RandomModel(
        config=lambda: llama(**plain_rope(1e4), attention_bias=True),
        tokenizer=with_space,
        types=("Q8_0",),
    ),
    # Q4_K_M of rows that are no whole blocks: Q5_0, Q8_0 and F16 instead.
    "ministral3": RandomModel(
        config=lambda: transformers.Ministral3Config(
            architectures=["Ministral3ForCausalLM"],
            **{**NARROW, "num_hidden_layers": 2, "rope_parameters": YARN_ROPE},
        ),
        tokenizer=without_space,
        types=("Q4_K_M",),
    ),
    # llama.cpp neither writes nor reads this key for this architecture; the reference is transformers.
    "window": RandomModel(
        config=lambda: mistral(NARROW, 1e4, sliding_window=WINDOW, tie_word_embeddings=True),
        tokenizer=with_space,
        types=("BF16",),
        extra_metadata=(("llama.attention.sliding_window", WINDOW),),
    ),
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
        elif parameter.ndim > 1:
            values = values * parameter.shape[1] ** -0.5
        parameter.data.copy_(values)


def write_model(folder: Path, random: RandomModel, *, seed: int) -> None:
    """A bfloat16 model and its tokenizer, as people publish them."""
    folder.mkdir(parents=True)
    vocab_size = random.tokenizer(folder)
    config = random.config()
    config.vocab_size = vocab_size
    model = getattr(transformers, config.architectures[0])(config)
    randomise(model, seed)
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(folder)
