"""Files that we write, read by the reference reader of the `gguf` package."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from conversion.gguf.container.writer import GGUFWriter, NewTensor, file_size
from conversion.weights.ggml_types import BY_NAME

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "naïve 😀",
    "a.empty": "",
    "a.bool": True,
    "a.int": 7,
    "a.negative": -7,
    "a.large": 2**40,
    "a.very_negative": -(2**40),
    "a.float": 1e-5,
    "a.uint8": np.uint8(200),
    "a.int16": np.int16(-200),
    "a.uint64": np.uint64(1),
    "a.float64": np.float64(0.1),
    "a.strings": ["", "▁the", "b\nc"],
    "a.ints": [1, -2, 3],
    "a.floats": [0.5, -1],
    "a.bools": [True, False],
    "a.array": np.array([1, 2, 3], np.uint16),
}
VALUE_TYPES = {
    "a.bool": "BOOL",
    "a.int": "UINT32",
    "a.negative": "INT32",
    "a.large": "UINT64",
    "a.very_negative": "INT64",
    "a.float": "FLOAT32",
    "a.uint8": "UINT8",
    "a.int16": "INT16",
    "a.uint64": "UINT64",
    "a.float64": "FLOAT64",
    "a.ints": "INT32",
    "a.floats": "FLOAT32",
    "a.bools": "BOOL",
    "a.array": "UINT16",
}
TENSORS = (
    NewTensor(name="a", shape=(3, 5), type=BY_NAME["F32"]),
    NewTensor(name="b", shape=(7,), type=BY_NAME["F16"]),
    NewTensor(name="c", shape=(2, 3, 64), type=BY_NAME["Q8_0"]),
)


def write(path: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    data = {tensor.name: rng.integers(0, 255, tensor.nbytes, dtype=np.uint8) for tensor in TENSORS}
    data["a"] = rng.standard_normal((3, 5), np.float32)
    data["b"] = rng.standard_normal(7).astype(np.float16)
    with path.open("wb") as file:
        writer = GGUFWriter(file, METADATA, TENSORS)
        writer.write("a", data["a"][:2])
        writer.write("a", data["a"][2:])
        writer.write("b", data["b"])
        for first in range(0, data["c"].size, 50):
            writer.write("c", data["c"][first : first + 50])
        writer.finish()
    return data


def test_metadata_and_tensors_are_what_the_reference_reads(tmp_path: Path) -> None:
    data = write(tmp_path / "x.gguf")
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    for key, value in METADATA.items():
        found = reader.fields[key].contents()
        if isinstance(value, float):
            assert found == pytest.approx(value), key
        elif isinstance(value, np.ndarray):
            assert found == value.tolist(), key
        else:
            assert found == value, key
        if key in VALUE_TYPES:
            assert reader.fields[key].types[-1].name == VALUE_TYPES[key], key
    assert [tensor.name for tensor in reader.tensors] == ["a", "b", "c"]
    for tensor, expected in zip(reader.tensors, TENSORS, strict=True):
        assert tensor.tensor_type.name == expected.type.name
        assert tuple(int(n) for n in reversed(tensor.shape)) == expected.shape
        assert np.ascontiguousarray(tensor.data).tobytes() == data[tensor.name].tobytes()


def test_the_size_is_known_before(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").stat().st_size == file_size(METADATA, TENSORS)


def test_tensors_out_of_order_or_of_another_size_are_refused() -> None:
    writer = GGUFWriter(io.BytesIO(), {}, TENSORS)
    with pytest.raises(ValueError, match="where 'a' is due"):
        writer.write("b", np.zeros(7, np.float16))
    with pytest.raises(ValueError, match="76 bytes of 'a' where 'a' lacks 60"):
        writer.write("a", np.zeros(19, np.float32))
    writer.write("a", np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="'b' where 'a' lacks 48"):
        writer.write("b", np.zeros(7, np.float16))
    with pytest.raises(ValueError, match="3 tensors were not written"):
        writer.finish()


def test_what_gguf_cannot_express_is_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        GGUFWriter(io.BytesIO(), {}, [TENSORS[0], TENSORS[0]])
    with pytest.raises(ValueError, match="no whole number"):
        GGUFWriter(io.BytesIO(), {}, [NewTensor(name="x", shape=(2, 33), type=BY_NAME["Q8_0"])])
    for value in (None, {}, [None], [[1]], np.zeros((2, 2)), np.complex64(1)):
        with pytest.raises(ValueError, match="x: "):
            GGUFWriter(io.BytesIO(), {"x": value}, [])
