"""The kinds of files: where good ones come from, how they are broken, and who reads them."""

from __future__ import annotations

import base64
import json
import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conversion.adapters.lora.files import open_lora
from conversion.adapters.xlora.files import open_xlora
from conversion.adapters.xlora.ordering import read_ordering
from conversion.config.params_to_config import params_to_config
from conversion.files.json_file import read_json_object
from conversion.gguf.config import hf_config
from conversion.gguf.container.file import GGUFFile
from conversion.gguf.writing.from_config import gguf_metadata, rope_factors
from conversion.gguf.writing.new_model import open_folder
from conversion.inspection import inspect
from conversion.weights.safetensors_io import SafetensorsFile, read_array
from conversion.weights.tensor_source import WeightFileError
from conversion.weights.weight_files import find_weight_files
from mistral_jax.chat.errors import ChatTemplateError
from mistral_jax.checkpoint.description import describe
from mistral_jax.hub.files import ModelFiles
from mistral_jax.model.config import ConfigError, MistralConfig
from mistral_jax.tokenizer import TokenizerError, load_tokenizer
from mistral_jax.tokenizer.gguf import end_of_generation_ids, tokenizer_from_gguf
from tests.conversion import tiny_models
from tests.conversion.adapters import folders
from tests.conversion.gguf_files import write_good
from tests.fuzz_files.mutations import mutated_bytes, mutated_json, mutated_protobuf, mutated_safetensors

GOLDENS = Path(__file__).parents[1] / "goldens"
DOCUMENTED = (ConfigError, TokenizerError, WeightFileError, ChatTemplateError)
"""What readers of files may raise."""

Reader = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of file."""

    name: str
    seeds: list[tuple[Path, bytes]]
    """Where a mutated file goes, and a good one for that place. All else in its folder stays as it is."""
    mutate: Callable[[bytes, random.Random], bytes]
    readers: Callable[[Path], Iterable[Reader]]
    """What reads a file at a path. Each may refuse it; a file counts as loaded when none of them does."""


def all_kinds(scratch: Path) -> dict[str, Kind]:
    """Every kind, with its good files in folders under `scratch`."""
    made = (
        _config(scratch),
        _params(scratch),
        _tokenizer_json(scratch),
        _tekken(scratch),
        _tokenizer_model(scratch),
        _side_files(scratch),
        _generation(scratch),
        _adapter_config(scratch),
        _xlora_config(scratch),
        _ordering(scratch),
        _safetensors(scratch),
        _index(scratch),
        _gguf(scratch),
    )
    return {kind.name: kind for kind in made}


def _model(folder: Path, **changes: Any) -> Path:
    tiny_models.write_folder(folder, hidden_size=32, intermediate_size=32, num_hidden_layers=1, **changes)
    tiny_models.write_tokenizer(folder)
    # It says the same as the model file, and would be read instead.
    (folder / "tokenizer.json").unlink(missing_ok=True)
    return folder


def _converted(folder: Path) -> object:
    with open_folder(folder) as model:
        return model.shapes()


def _config(scratch: Path) -> Kind:
    seeds: list[tuple[Path, bytes]] = []
    goldens = sorted((GOLDENS / "parity").glob("*/config.json"))
    # That one has no GGUF form.
    for number, path in enumerate(path for path in goldens if path.parent.name != "yarn-untruncated"):
        folder = _model(scratch / f"config{number}")
        seeds.append((folder / "config.json", path.read_bytes()))
    own = _model(scratch / "config")
    seeds += [(own / "config.json", (own / "config.json").read_bytes())] * 5

    def described(path: Path) -> object:
        config = read_json_object(path, error=ConfigError)
        return gguf_metadata(config), rope_factors(config)

    def readers(path: Path) -> list[Reader]:
        config = [
            lambda: MistralConfig.from_folder(path.parent),
            lambda: described(path),
            lambda: str(inspect(path.parent)),
        ]
        # The weights beside the others are not theirs.
        return [*config, lambda: _converted(path.parent)] if path.parent == own else config

    return Kind(name="config.json", seeds=seeds, mutate=mutated_json, readers=readers)


def _params(scratch: Path) -> Kind:
    folder = _model(scratch / "params")
    (folder / "config.json").unlink()
    params = {"dim": 32, "n_layers": 1, "head_dim": 20, "hidden_dim": 32, "n_heads": 6, "n_kv_heads": 2}
    params |= {"norm_eps": 1e-5, "vocab_size": 311, "rope_theta": 1e6}
    yarn = {"factor": 16, "original_max_position_embeddings": 64, "beta": 32, "alpha": 1, "apply_scale": False}
    seeds = [
        params,
        {**params, "yarn": yarn, "llama_4_scaling": {"beta": 0.1, "original_max_position_embeddings": 64}},
        {**params, "sliding_window": [None, 7], "max_seq_len": 512, "tied_embeddings": True},
    ]

    def readers(path: Path) -> list[Reader]:
        return [
            lambda: MistralConfig.from_folder(path.parent),
            lambda: str(inspect(path.parent)),
            lambda: MistralConfig.from_hf(params_to_config(read_json_object(path, error=ConfigError))),
        ]

    listed = [(folder / "params.json", json.dumps(seed).encode()) for seed in seeds]
    return Kind(name="params.json", seeds=listed, mutate=mutated_json, readers=readers)


def _tokenizer_readers(path: Path) -> list[Reader]:
    def encoded() -> object:
        tokenizer = load_tokenizer(path.parent)
        return tokenizer.decode(tokenizer.encode("A text, <s> with 3 words\n"))

    return [encoded, lambda: _converted(path.parent)]


def _tokenizer_json(scratch: Path) -> Kind:
    seeds: list[tuple[Path, bytes]] = []
    for kind in ("byte_level", "byte_fallback", "metaspace"):
        folder = _model(scratch / f"tokenizer.{kind}", vocab_size=600)
        (folder / "tokenizer.model").unlink()
        (folder / "tokenizer_config.json").unlink()
        seeds.append((folder / "tokenizer.json", (GOLDENS / "tokenizers" / kind / "tokenizer.json").read_bytes()))
    beside = _model(scratch / "tokenizer.beside")  # a tokenizer.model of the same vocabulary, or of another
    tiny_models.write_tokenizer(beside)
    seeds.append((beside / "tokenizer.json", (beside / "tokenizer.json").read_bytes()))
    return Kind(name="tokenizer.json", seeds=seeds, mutate=mutated_json, readers=_tokenizer_readers)


def _tekken(scratch: Path) -> Kind:
    from conversion.tokenizer.word_splits import TEKKEN_PATTERN

    folder = _model(scratch / "tekken")
    entries = [bytes([b]) for b in range(256)] + [b"he", b"ll", b"hell", b"  ", b"\xc3\xa9"]
    control = [{"rank": i, "token_str": text} for i, text in enumerate(("<unk>", "<s>", "</s>", "[INST]", "[/INST]"))]
    vocab = [
        {"rank": i, "token_bytes": base64.b64encode(entry).decode(), "token_str": None}
        for i, entry in enumerate(entries)
    ]
    config = {"pattern": TEKKEN_PATTERN, "num_vocab_tokens": len(entries), "default_vocab_size": 261 + 20}
    data = {
        "config": {**config, "default_num_special_tokens": 20, "version": "v7"},
        "vocab": vocab,
        "special_tokens": control,
    }
    listed = [data, {**data, "config": {**data["config"], "version": "v3"}, "special_tokens": None}]
    seeds = [(folder / "tekken.json", json.dumps(seed).encode()) for seed in listed]
    return Kind(name="tekken.json", seeds=seeds, mutate=mutated_json, readers=_tokenizer_readers)


def _tokenizer_model(scratch: Path) -> Kind:
    folder = _model(scratch / "sentencepiece")
    plain = _model(scratch / "sentencepiece.plain")
    (plain / "tokenizer_config.json").unlink()
    seeds = [(place / "tokenizer.model", (folder / "tokenizer.model").read_bytes()) for place in (folder, plain)]
    return Kind(name="tokenizer.model", seeds=seeds, mutate=mutated_protobuf, readers=_tokenizer_readers)


def _side_files(scratch: Path) -> Kind:
    names = ["<unk>", "<s>", "</s>"]
    special = {"unk_token": "<unk>", "bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>"}
    decoder = {
        str(i): {"content": text, "special": i < 3} for i, text in [*enumerate(names), (307, "<think>"), (308, "[X]")]
    }
    contents = {
        "tokenizer_config.json": {
            **special,
            "add_bos_token": True,
            "added_tokens_decoder": decoder,
            "additional_special_tokens": ["</s>"],
        },
        "special_tokens_map.json": {**special, "additional_special_tokens": [{"content": "<s>"}]},
        "added_tokens.json": {"<think>": 307, "[X]": 308},
    }
    seeds: list[tuple[Path, bytes]] = []
    for name, content in contents.items():
        folder = _model(scratch / f"side.{name}")
        (folder / "tokenizer_config.json").unlink()
        seeds.append((folder / name, json.dumps(content).encode()))
    return Kind(name="side files", seeds=seeds, mutate=mutated_json, readers=_tokenizer_readers)


def _generation(scratch: Path) -> Kind:
    folder = _model(scratch / "generation")
    content = {"eos_token_id": [2, 5], "temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.1}
    content |= {"repetition_penalty": 1.1, "do_sample": True, "bos_token_id": 1}

    def readers(path: Path) -> list[Reader]:
        return [
            lambda: describe(ModelFiles(name="x", folder=path.parent)).defaults,
            lambda: _converted(path.parent),
        ]

    seeds = [(folder / "generation_config.json", json.dumps(content).encode())]
    return Kind(name="generation_config.json", seeds=seeds, mutate=mutated_json, readers=readers)


def _adapter_config(scratch: Path) -> Kind:
    listed = [
        folders.write_adapter(scratch / "lora" / "plain"),
        folders.write_adapter(scratch / "lora" / "targets", target_modules="all-linear", use_rslora=True),
        folders.write_adapter(
            scratch / "lora" / "patterns",
            rank_pattern={"layers.0.self_attn.q_proj": 2, "v_proj": 2},
            alpha_pattern={"q_proj": 3.5},
            layers_to_transform=[0, 1, 2],
        ),
    ]

    def readers(path: Path) -> list[Reader]:
        return [lambda: open_lora(path.parent).close(), lambda: str(inspect(path.parent))]

    seeds = [(folder / "adapter_config.json", (folder / "adapter_config.json").read_bytes()) for folder in listed]
    return Kind(name="adapter_config.json", seeds=seeds, mutate=mutated_json, readers=readers)


def _xlora_config(scratch: Path) -> Kind:
    listed = [
        folders.write_hub(scratch / "xlora" / "plain"),
        folders.write_hub(scratch / "xlora" / "top", top_k_lora=2, enable_softmax_topk=True),
        folders.write_hub(
            scratch / "xlora" / "named",
            adapters={name: f"./{name}" for name in ("adapter_1", "adapter_2", "adapter_10")},
        ),
    ]

    def readers(path: Path) -> list[Reader]:
        return [lambda: open_xlora(path.parent).close(), lambda: str(inspect(path.parent))]

    seeds = [(folder / "xlora_config.json", (folder / "xlora_config.json").read_bytes()) for folder in listed]
    return Kind(name="xlora_config.json", seeds=seeds, mutate=mutated_json, readers=readers)


def _ordering(scratch: Path) -> Kind:
    folder = scratch / "ordering"
    folder.mkdir()
    layers = {f"model.layers.{layer}.self_attn.q_proj": layer for layer in range(4)}
    content = {
        "order": ["adapter_1", "adapter_2"],
        "layers": layers,
        "base_model_id": "tiny-lab/tiny-base",
        "preload_adapters": [{"name": "a", "adapter_model_id": "tiny-lab/a"}],
    }
    seeds = [(folder / "ordering.json", json.dumps(content).encode())]
    return Kind(name="ordering", seeds=seeds, mutate=mutated_json, readers=lambda path: [lambda: read_ordering(path)])


def _safetensors(scratch: Path) -> Kind:
    model = _model(scratch / "safetensors")
    lora = folders.write_adapter(scratch / "safetensors.lora")
    xlora = folders.write_hub(scratch / "safetensors.xlora")
    places = [model / "model.safetensors", lora / "adapter_model.safetensors", xlora / "xlora_classifier.safetensors"]

    def arrays(path: Path) -> object:
        file = SafetensorsFile(path)
        try:
            return [read_array(file, name) for name in file.names()]
        finally:
            file.close()

    def readers(path: Path) -> list[Reader]:
        own: dict[str, Reader] = {
            "model.safetensors": lambda: _converted(path.parent),
            "adapter_model.safetensors": lambda: _lora(path.parent),
            "xlora_classifier.safetensors": lambda: open_xlora(path.parent).close(),
        }
        return [lambda: arrays(path), lambda: str(inspect(path)), lambda: str(inspect(path.parent)), own[path.name]]

    seeds = [(place, place.read_bytes()) for place in places]
    return Kind(name="safetensors", seeds=seeds, mutate=mutated_safetensors, readers=readers)


def _lora(folder: Path) -> object:
    lora = open_lora(folder)
    try:
        return [lora.read(key) for key in lora.modules]
    finally:
        lora.close()


def _index(scratch: Path) -> Kind:
    source = GOLDENS / "parity" / "mistral-sharded"
    folder = scratch / "index"
    shutil.copytree(source, folder)
    name = "model.safetensors.index.json"

    def readers(path: Path) -> list[Reader]:
        return [lambda: find_weight_files(path.parent), lambda: str(inspect(path.parent))]

    seeds = [(folder / name, (folder / name).read_bytes())]
    return Kind(name="safetensors index", seeds=seeds, mutate=mutated_json, readers=readers)


def _gguf(scratch: Path) -> Kind:
    folder = scratch / "gguf"
    folder.mkdir()
    write_good(folder / "good.gguf")
    listed = [folder / "good.gguf"]
    listed += [GOLDENS / "gguf" / f"{name}.gguf" for name in ("narrow.IQ4_XS", "ministral3.Q4_K_M", "llama3.Q4_0")]
    goods = [path.read_bytes() for path in listed]
    heads: dict[int, int] = {}
    for path, good in zip(listed, goods, strict=True):
        with GGUFFile(path) as gguf:
            heads[len(good)] = min(info.offset for info in gguf.tensors.values())

    def mutate(good: bytes, chance: random.Random) -> bytes:
        return mutated_bytes(good, chance, heads[len(good)])

    def whole(path: Path) -> object:
        with GGUFFile(path) as gguf:
            for name, info in gguf.tensors.items():
                gguf.read_raw(name, np.empty(info.nbytes, np.uint8))
            return [gguf.metadata[key] for key in gguf.metadata]

    def served(path: Path) -> object:
        with GGUFFile(path) as gguf:
            config = MistralConfig.from_hf(hf_config(gguf))
            tokenizer = tokenizer_from_gguf(gguf.metadata)
            end_of_generation_ids(gguf.metadata, tokenizer)
            tokenizer.decode(tokenizer.encode("A text, <s> with 3 words\n"))
            return config

    def readers(path: Path) -> list[Reader]:
        return [lambda: whole(path), lambda: str(inspect(path)), lambda: served(path)]

    seeds = [(folder / "mutated.gguf", good) for good in (*goods, *goods[1:], *goods[1:])]
    return Kind(name="GGUF", seeds=seeds, mutate=mutate, readers=readers)
