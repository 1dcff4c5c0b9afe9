"""A model to be written as a GGUF file: its metadata, and its tensors under the file's names and in the file's order.

The same for every source: a folder in Hugging Face's format, one in Mistral's own, or another GGUF file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import ml_dtypes
import numpy as np

from conversion.config.params_to_config import params_to_config
from conversion.files.json_fields import JSONFields
from conversion.files.json_file import read_json_object
from conversion.files.regular_file import exists, is_folder
from conversion.gguf.config import hf_config
from conversion.gguf.container.file import GGUFFile
from conversion.gguf.rope import FACTORS_TENSOR
from conversion.gguf.source import GGUFLayout, GGUFSource
from conversion.gguf.writing.from_config import gguf_architecture, gguf_metadata, has_biases, rope_factors
from conversion.gguf.writing.from_tokenizer import tokenizer_to_gguf
from conversion.quantize import quantize
from conversion.weights.decoder_weights import EMBEDDING, HEAD
from conversion.weights.ggml_types import GGMLType
from conversion.weights.safetensors_io import SafetensorsFiles, read_array
from conversion.weights.tensor_names import HuggingFaceText, MistralFormat, is_mistral_format
from conversion.weights.tensor_source import Array, TensorSource, WeightFileError
from conversion.weights.weight_files import find_weight_files

_QUANTIZED_FROM = frozenset(map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16)))
_RAW_BYTES = 8 * 2**20
"""Bytes copied at a time of a tensor that is copied unchanged."""
_SCALARS = {
    **{"u8": np.uint8, "i8": np.int8, "u16": np.uint16, "i16": np.int16, "u32": np.uint32, "i32": np.int32},
    **{"u64": np.uint64, "i64": np.int64, "f32": np.float32, "f64": np.float64},
}
"""Numpy types of metadata types, so that a number keeps its type when it is copied."""
_NOT_COPIED = re.compile(r"split\..*|quantize\.imatrix\..*|general\.(?:alignment|file_type|quantization_version)")
_SAMPLING = {
    **{"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"},
    "repetition_penalty": "penalty_repeat",
}
"""Names in generation_config.json, and those under `general.sampling.`."""


@dataclass(frozen=True, kw_only=True)
class NewGGUFModel:
    """A context manager: closes the files that it reads from."""

    metadata: Mapping[str, Any]
    """All metadata that does not depend on the target type."""
    config: Mapping[str, Any]
    """The `config.json` that describes the model."""
    layout: TensorSource
    """Values of the tensors under the file's names."""
    packed: GGUFFile | None = None
    """A source that may have tensors in the target type already."""
    resources: ExitStack = field(default_factory=ExitStack)

    @property
    def tied(self) -> bool:
        """There is no output matrix."""
        return "output.weight" not in set(self.layout.names())

    @property
    def layers(self) -> int:
        return (self.config.get("text_config") or self.config)["num_hidden_layers"]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors, in the order of the file: embedding, rope factors, layers, output."""
        shapes = {name: self.layout.shape(name) for name in self.layout.names()}
        if self.packed is None:
            factors = rope_factors(self.config)
            if factors is not None:
                shapes[FACTORS_TENSOR] = factors.shape
        elif FACTORS_TENSOR in self.packed.tensors:
            shapes[FACTORS_TENSOR] = self.packed.tensors[FACTORS_TENSOR].shape
        return {name: shapes[name] for name in sorted(shapes, key=_place)}

    def encoded(self, name: str, kind: GGMLType) -> Iterator[Array]:
        """The bytes of a tensor in a type, piece by piece.

        Raises:
          WeightFileError: it has values that the type cannot hold.
        """
        if name == FACTORS_TENSOR and self.packed is not None:
            # Unchanged: the metadata is kept, and may scale the rope by another factor, which the configuration
            # combines with these.
            yield from self._copied(name)
        elif name == FACTORS_TENSOR:
            yield np.asarray(rope_factors(self.config))
        elif self._has_packed(name, kind):
            yield from self._copied(name)
        else:
            yield _encoded(read_array(self.layout, name), kind, name)

    def requantised(self, name: str, kind: GGMLType) -> bool:
        """Whether `encoded` unpacks blocks and packs the values again."""
        if self.packed is None or name not in self.packed.tensors or kind.dtype is not None:
            return False
        return self.packed.tensors[name].type.dtype is None and not self._has_packed(name, kind)

    def _has_packed(self, name: str, kind: GGMLType) -> bool:
        """Whether the source file has this tensor in this type, by itself and without a separate scale."""
        if self.packed is None or name not in self.packed.tensors or kind.dtype is not None:
            return False
        info = self.packed.tensors[name]
        scaled = name.removesuffix(".weight") + ".scale" in self.packed.tensors
        return info.type == kind and info.shape == self.layout.shape(name) and not scaled

    def _copied(self, name: str) -> Iterator[Array]:
        assert self.packed is not None
        info = self.packed.tensors[name]
        step = max(1, _RAW_BYTES // info.row_bytes)
        for first in range(0, info.rows, step):
            out = np.empty((min(step, info.rows - first), info.row_bytes), np.uint8)
            self.packed.read_raw_rows(name, first, len(out), out)
            yield out

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resources.close()


def open_folder(folder: Path, *, name: str | None = None) -> NewGGUFModel:
    """A model folder in Hugging Face's or Mistral's own format.

    Args:
      name: for `general.name`; None: the folder's.
    Raises:
      WeightFileError, TokenizerError: a file is missing, broken, or contains what GGUF files cannot.
    """
    if not is_folder(folder):
        raise WeightFileError(f"{folder} is no model folder and no GGUF file; those can be converted to GGUF")
    config = _read_config(folder)
    text = config.get("text_config") or config
    if config.get("quantization_config") or text.get("quantization_config"):
        raise WeightFileError(
            f"{folder} is quantised already, in a form that is not implemented; convert the model that it was made from"
        )
    architecture = gguf_metadata(config)  # raises first if the model cannot be converted
    files = SafetensorsFiles(find_weight_files(folder))
    resources = ExitStack()
    resources.callback(files.close)
    heads, kv_heads = _head_counts(config)
    source: TensorSource = HuggingFaceText(files)
    if is_mistral_format(files.names()):
        source = MistralFormat(files, num_heads=heads, num_kv_heads=kv_heads)
    if not has_biases(config) and (biases := sorted(name for name in source.names() if name.endswith(".bias"))):
        raise WeightFileError(
            f"{folder} has {biases[0]} and {len(biases) - 1} more, and models of its class have no biases "
            "(transformers ignores such tensors): remove them, or name the class that the model was trained as"
        )
    layout = GGUFLayout(source, num_heads=heads, num_kv_heads=kv_heads, tied=_is_tied(config, source))
    generation = folder / "generation_config.json"
    fields = JSONFields(_read_json(generation), error=WeightFileError, source=str(generation))
    sampling = {
        f"general.sampling.{key}": fields.whole(theirs, least=-1) if key == "top_k" else fields.number(theirs, most=1e3)
        for theirs, key in _SAMPLING.items()
        if theirs in fields
    }
    metadata = {
        "general.architecture": gguf_architecture(config),
        "general.type": "model",
        "general.name": name or model_name(folder),
        **sampling,
        **architecture,
        **tokenizer_to_gguf(folder, vocab_size=text["vocab_size"]),
    }
    return NewGGUFModel(metadata=metadata, config=config, layout=layout, resources=resources)


def open_gguf(path: Path, *, name: str | None = None) -> NewGGUFModel:
    """A GGUF file, whose metadata is kept as it is.

    An implied sliding window is written explicitly, and so is its absence where the name changes: readers would have to
    guess again, and the name is part of the rule (see `conversion.gguf.config`).

    Args:
      name: for `general.name`; None: the file's own.
    Raises:
      WeightFileError: it is broken, or the model is not implemented.
    """
    with ExitStack() as opened:
        gguf = opened.enter_context(GGUFFile(path))
        config = hf_config(gguf)
        heads, kv_heads = _head_counts(config)
        metadata = {key: _typed(gguf, key) for key in gguf.metadata if not _NOT_COPIED.fullmatch(key)}
        if name is not None:
            metadata["general.name"] = name
        if name is not None or config["sliding_window"] is not None:
            metadata.setdefault(f"{gguf.architecture}.attention.sliding_window", config["sliding_window"] or 0)
        return NewGGUFModel(
            metadata=metadata,
            config=config,
            layout=GGUFLayout(GGUFSource(gguf), num_heads=heads, num_kv_heads=kv_heads),
            packed=gguf,
            resources=opened.pop_all(),
        )


def model_name(folder: Path) -> str:
    """The name of a folder's model: in the cache of the Hub the repository's name, elsewhere the folder's."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.split("--")[-1]
    return folder.name


def _encoded(values: Array, kind: GGMLType, name: str) -> Array:
    """The bytes of a tensor's values in a type."""
    if values.dtype == kind.dtype:
        return values
    if values.dtype not in _QUANTIZED_FROM:
        values = values.astype(np.float32)
    try:
        return np.asarray(quantize(values, kind))
    except ValueError as error:
        raise WeightFileError(f"{name}: {error}") from error


def _typed(gguf: GGUFFile, key: str) -> Any:
    """A metadata value that keeps its type when it is written."""
    value = gguf.metadata[key]
    scalar = _SCALARS.get(gguf.metadata.describe(key))
    return value if scalar is None else scalar(value)


def _read_config(folder: Path) -> dict[str, Any]:
    if exists(folder / "config.json"):
        return _read_json(folder / "config.json")
    if exists(folder / "params.json"):
        return params_to_config(_read_json(folder / "params.json"))
    raise WeightFileError(f"{folder} has neither config.json nor params.json: is it a model folder?")


def _read_json(path: Path) -> dict[str, Any]:
    """An object; {} where there is no file."""
    return read_json_object(path, error=WeightFileError, missing_ok=True)


def _head_counts(config: Mapping[str, Any]) -> Sequence[int]:
    metadata = gguf_metadata(config)
    prefix = gguf_architecture(config)
    return [cast("int", metadata[f"{prefix}.attention.{key}"]) for key in ("head_count", "head_count_kv")]


def _is_tied(config: Mapping[str, Any], source: TensorSource) -> bool:
    """Whether the output matrix is the embedding. The weight files decide: some configurations claim it by mistake."""
    text = config.get("text_config") or config
    if not (config.get("tie_word_embeddings") or text.get("tie_word_embeddings")):
        return False
    if HEAD not in set(source.names()):
        return True
    return source.shape(HEAD) == source.shape(EMBEDDING) and np.array_equal(
        read_array(source, HEAD), read_array(source, EMBEDDING)
    )


def _place(name: str) -> tuple[int, int, str]:
    match = re.match(r"blk\.(\d+)\.", name)
    if match is not None:
        return 1, int(match[1]), name
    return (0 if name in ("token_embd.weight", FACTORS_TENSOR) else 2), 0, name
