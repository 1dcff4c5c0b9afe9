"""A tiny random model with the vocabulary and the chat format of Mistral-7B-Instruct-v0.3."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from sentencepiece import SentencePieceProcessor

from tests.conversion.tiny_models import CONFIG, random_tensors, write_folder
from tests.mistral_jax.tokenizer.tokenizer_corpus import SENTENCEPIECE

LENGTH = 2048
TOKENIZER = SENTENCEPIECE["v3"]
CONTROL_TOKENS = 771
"""The first ids are control tokens; bytes come after them."""
CLOSING = ('"', "}", "]")
"""What ends a part of a JSON document: a model that never writes these is never done."""


def write_model(folder: Path) -> Path:
    """A model that says nonsense but ends: its completions, and the strings and lists of its JSON documents.

    Its context is `LENGTH` tokens. It writes no control tokens of its own accord.
    """
    config = {
        **CONFIG,
        "vocab_size": 32768,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": LENGTH,
    }
    write_folder(folder, tensors=_with_biases(random_tensors(config)), **config)
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    shutil.copyfile(TOKENIZER, folder / "tokenizer.model.v3")
    return folder


def _with_biases(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits of about unit variance, raised for tokens that end something.

    The first feature of each token is the same and large, and stays so through the layers: the first column of the head
    is what is added to the logits.
    """
    for name, array in tensors.items():
        if name.endswith(("layernorm.weight", "norm.weight")):
            array[:] = 1
    tensors["model.embed_tokens.weight"][:, 0] = 3
    tensors["lm_head.weight"] *= 7
    vocabulary = SentencePieceProcessor(model_file=str(TOKENIZER))
    added = np.zeros(len(tensors["lm_head.weight"]), np.float32)
    added[:CONTROL_TOKENS] = -10
    added[[vocabulary.eos_id(), *(vocabulary.piece_to_id(text) for text in CLOSING)]] = 5
    # Of 48 features the first has about this value after the last norm.
    tensors["lm_head.weight"][:, 0] = added / 6.5
    return tensors
