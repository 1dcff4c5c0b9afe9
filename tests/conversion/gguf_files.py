"""Small GGUF files for tests: good ones from the gguf package's writer, and hostile ones byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from conversion.gguf.container.file import GGUFFile
from conversion.gguf.container.writer import GGUFWriter as OwnWriter
from conversion.gguf.container.writer import NewTensor
from conversion.weights.ggml_types import BY_NAME

RNG = np.random.default_rng(5)
FLOATS = {
    "token_embd.weight": RNG.standard_normal((7, 64)).astype(np.float32),
    "blk.0.ffn_gate_exps.weight": RNG.standard_normal((3, 5, 32)).astype(np.float32),
    "output_norm.weight": RNG.standard_normal(11).astype(np.float32),
}
PACKED = {
    "blk.0.attn_q.weight": ("Q8_0", RNG.standard_normal((6, 96)).astype(np.float32)),
    "blk.0.attn_k.weight": ("Q4_0", RNG.standard_normal((2, 64)).astype(np.float32)),
    "blk.0.attn_v.weight": ("BF16", RNG.standard_normal((3, 17)).astype(np.float32)),
}
TOKENS = [
    "<unk>",
    "<s>",
    "</s>",
    "▁the",
    "é",
    "🦜",
    "",
    "a" * 300,
    "\0\0\0\0\0\0\0\0\0",
    *(f"▁w{n}" for n in range(200)),
]
METADATA: dict[str, Any] = {
    "general.name": "Ein kleines Modell ü🦜",
    "llama.block_count": 3,
    "llama.rope.freq_base": 1e6,
    "llama.causal": True,
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.scores": [-0.5 * n for n in range(len(TOKENS))],
    "llama.attention.head_count_kv": [2, 4, 2],
    "some.truths": [True, False, True],
}


def raw_tensors() -> dict[str, np.ndarray[Any, Any]]:
    """The bytes that each tensor of a good file should have, as uint8 [..., row_bytes]."""
    raw = {name: values.view(np.uint8) for name, values in FLOATS.items()}
    for name, (kind, values) in PACKED.items():
        raw[name] = quantize(values, GGMLQuantizationType[kind]).view(np.uint8)
    return raw


def write_good(path: Path, *, version: int = 3, alignment: int | None = None, **split: Any) -> Path:
    """A whole file, or with the arguments of GGUFWriter for them, a split model whose first part is to be opened."""
    writer = GGUFWriter(path, "llama", **split)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for key, value in METADATA.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    for name, values in FLOATS.items():
        writer.add_tensor(name, values)
    for name, (kind, _) in PACKED.items():
        writer.add_tensor(name, raw_tensors()[name], raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if version != 3:
        data = bytearray(path.read_bytes())
        data[4:8] = struct.pack("<I", version)
        path.write_bytes(data)
    return path


def rewritten(
    source: Path,
    path: Path,
    changes: dict[str, Any],
    extra: dict[str, np.ndarray[Any, Any]] | None = None,
    *,
    only: frozenset[str] | None = None,
) -> Path:
    """A copy of a GGUF file with other metadata (None: without that key), and F32 tensors beside its own (or `only`
    some)."""
    with GGUFFile(source) as file, path.open("wb") as out:
        copied = {name: info for name, info in file.tensors.items() if only is None or name in only}
        tensors = {name: NewTensor(name=name, shape=info.shape, type=info.type) for name, info in copied.items()}
        for name, array in (extra or {}).items():
            tensors[name] = NewTensor(name=name, shape=array.shape, type=BY_NAME["F32"])
        kept = {key: value for key, value in {**file.metadata, **changes}.items() if value is not None}
        writer = OwnWriter(out, kept, list(tensors.values()))
        for name, info in copied.items():
            data = np.empty(info.nbytes, np.uint8)
            file.read_raw(name, data)
            writer.write(name, data)
        for name, array in (extra or {}).items():
            writer.write(name, array)
        writer.finish()
    return path


# ---- byte by byte


def string(text: str | bytes, length: int | None = None) -> bytes:
    """A string as GGUF has it; `length` lies about its size."""
    encoded = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def array(name: str, element: int, count: int, values: bytes) -> bytes:
    return key(name, 9, struct.pack("<IQ", element, count) + values)


def number(name: str, value: int, kind: int = 4, layout: str = "<I") -> bytes:
    return key(name, kind, struct.pack(layout, value))


def tensor(name: str | bytes, dims: Sequence[int], kind: int, offset: int, *, n_dims: int | None = None) -> bytes:
    """An entry of the tensor table; dimensions as the format has them, innermost first."""
    return (
        string(name)
        + struct.pack("<I", len(dims) if n_dims is None else n_dims)
        + struct.pack(f"<{len(dims)}Q", *dims)
        + struct.pack("<IQ", kind, offset)
    )


def file_bytes(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    *,
    data: int = 0,
    alignment: int = 32,
    version: int = 3,
    key_count: int | None = None,
    tensor_count: int | None = None,
) -> bytes:
    """A file of these entries and so many bytes of data; the counts can be lies."""
    head = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    head += b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % max(1, alignment)) + bytes(n % 251 for n in range(data))
