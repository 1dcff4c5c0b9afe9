"""The vocabularies of Mistral's own tokenizer files as llama.cpp's converter writes them, spelled out independently of
ours."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from sentencepiece import SentencePieceProcessor

from conversion.gguf.writing.from_tokenizer import tokenizer_to_gguf
from tests.mistral_jax.tokenizer.tokenizer_corpus import SENTENCEPIECE, TEKKEN

type Metadata = dict[str, Any]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
LLAMA = "tokenizer.ggml."


@cache
def converted_sentencepiece(version: str) -> Metadata:
    """Neither user-defined pieces nor the unknown id are written, and no flags."""
    model = SentencePieceProcessor(model_file=str(SENTENCEPIECE[version]))
    types: list[int] = []
    for i in range(model.vocab_size()):
        kind = UNKNOWN if model.is_unknown(i) else CONTROL if model.is_control(i) else NORMAL
        types.append(UNUSED if model.is_unused(i) else BYTE if model.is_byte(i) else kind)
    return {
        "general.architecture": "llama",
        LLAMA + "model": "llama",
        LLAMA + "pre": "default",
        LLAMA + "tokens": [model.id_to_piece(i) for i in range(model.vocab_size())],
        LLAMA + "scores": np.array([model.get_score(i) for i in range(model.vocab_size())], np.float32),
        LLAMA + "token_type": np.array(types, np.int32),
        LLAMA + "bos_token_id": 1,
        LLAMA + "eos_token_id": 2,
    }


@cache
def tekkenizer(name: str) -> Tekkenizer:
    return Tekkenizer.from_file(TEKKEN[name])


@cache
def converted_tekken(name: str) -> Metadata:
    """Merges of each token: every split into two tokens, that of the lowest ranks first."""
    source = tekkenizer(name)
    num_control = source.num_special_tokens
    letters = [chr(b) for b in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))]
    others = [chr(b) for b in range(256) if chr(b) not in letters]
    spell = str.maketrans({byte: chr(256 + i) for i, byte in enumerate(others)})
    entries = [source.id_to_byte_piece(i) for i in range(num_control, source.n_words)]
    ranks = {entry: i for i, entry in enumerate(entries)}
    names = [entry.decode("latin-1").translate(spell) for entry in entries]
    merges: list[str] = []
    for entry, text in zip(entries, names, strict=True):
        splits = [
            (ranks[entry[:cut]], ranks[entry[cut:]], cut)
            for cut in range(1, len(entry))
            if entry[:cut] in ranks and entry[cut:] in ranks
        ]
        merges += [f"{text[:cut]} {text[cut:]}" for _, _, cut in sorted(splits)]
    control = [source.id_to_piece(i) for i in range(num_control)]
    return {
        "general.architecture": "llama",
        LLAMA + "model": "gpt2",
        LLAMA + "pre": "tekken",
        LLAMA + "tokens": [*control, *names],
        LLAMA + "scores": np.zeros(source.n_words, np.float32),
        LLAMA + "token_type": np.array([CONTROL] * num_control + [NORMAL] * len(names), np.int32),
        LLAMA + "merges": merges,
        LLAMA + "bos_token_id": 1,
        LLAMA + "eos_token_id": 2,
        LLAMA + "unknown_token_id": 0,
        LLAMA + "padding_token_id": 11,
        LLAMA + "add_bos_token": True,
        LLAMA + "add_eos_token": False,
        "tokenizer.chat_template": "mistral-v3-tekken",
    }


@cache
def written(name: str, folder: Path) -> Metadata:
    """One of Mistral's files as we write it, from a folder that has nothing else."""
    if name in TEKKEN:
        (folder / "tekken.json").write_bytes(TEKKEN[name].read_bytes())
        return tokenizer_to_gguf(folder, vocab_size=131072)
    (folder / f"tokenizer.model.{name}").write_bytes(SENTENCEPIECE[name].read_bytes())
    return tokenizer_to_gguf(folder, vocab_size=32000 if name == "v1" else 32768)


def small() -> Metadata:
    """A sentencepiece vocabulary that can be read at a glance: merges to "ab", "abc" and "▁ab"."""
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "ab", "▁ab", "abc", "▁", "a", "b", "c"]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * 7]
    return {
        LLAMA + "model": "llama",
        LLAMA + "tokens": texts,
        LLAMA + "scores": np.array([0] * 259 + [-float(i) for i in range(7)], np.float32),
        LLAMA + "token_type": np.array(types, np.int32),
        LLAMA + "bos_token_id": 1,
        LLAMA + "eos_token_id": 2,
    }


def with_tokens(metadata: Metadata, *added: tuple[str, int], score: float = -1000.0) -> Metadata:
    """The same with tokens (text, type) behind the others."""
    texts, types = zip(*added, strict=True)
    changed = dict(metadata)
    changed[LLAMA + "tokens"] = [*metadata[LLAMA + "tokens"], *texts]
    changed[LLAMA + "token_type"] = np.array([*metadata[LLAMA + "token_type"], *types], np.int32)
    if LLAMA + "scores" in metadata:
        changed[LLAMA + "scores"] = np.array([*metadata[LLAMA + "scores"], *[score] * len(added)], np.float32)
    return changed
