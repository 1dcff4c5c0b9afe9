"""The safetensors reader against the safetensors package, and what it says of files that are broken."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from conversion.weights.safetensors_io import (
    SafetensorsFile,
    SafetensorsFiles,
    index_files,
    read_array,
    write_safetensors,
)
from conversion.weights.tensor_source import WeightFileError
from tests.cpu_time import cpu_seconds_at_most

RNG = np.random.default_rng(0)
TENSORS = {
    "a.weight": RNG.standard_normal((5, 7)).astype(np.float32),
    "b.weight": RNG.standard_normal((3, 2, 4)).astype(ml_dtypes.bfloat16),
    "c": RNG.standard_normal(11).astype(np.float16),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(3.5, np.float64),
    "ids": np.arange(6, dtype=np.int64).reshape(2, 3),
    "flags": np.array([True, False]),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


def raw_file(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """A file with any header; `length` lies about its size."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded) if length is None else length) + encoded + data)
    return path


def entry(start: int, stop: int, shape: list[Any] | None = None, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


# ---- reading


def test_reads_what_the_package_wrote(path: Path) -> None:
    file = SafetensorsFile(path)
    assert set(file.names()) == set(TENSORS)
    assert file.metadata == {"format": "pt"}
    for name, expected in TENSORS.items():
        actual = read_array(file, name)
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
        assert actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("wanted", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_converts_while_reading(path: Path, wanted: Any) -> None:
    for name in ("a.weight", "b.weight", "c"):
        out = np.empty(TENSORS[name].shape, wanted)
        SafetensorsFile(path).read_into(name, out)
        np.testing.assert_array_equal(out, TENSORS[name].astype(wanted))


def test_converts_tensors_larger_than_its_buffer(tmp_path: Path) -> None:
    big = RNG.standard_normal(2_500_001).astype(np.float16)
    write_safetensors(tmp_path / "big.safetensors", {"big": big})
    out = np.empty(big.shape, np.float32)
    SafetensorsFile(tmp_path / "big.safetensors").read_into("big", out)
    np.testing.assert_array_equal(out, big.astype(np.float32))


def test_fills_part_of_a_larger_array(path: Path) -> None:
    whole = np.zeros((9, 7), np.float32)
    SafetensorsFile(path).read_into("a.weight", whole[2:7])
    np.testing.assert_array_equal(whole[2:7], TENSORS["a.weight"])
    assert not whole[:2].any()
    assert not whole[7:].any()


def test_a_destination_of_another_shape_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.weight"):
        SafetensorsFile(path).read_into("a.weight", np.empty((7, 5), np.float32))
    with pytest.raises(ValueError, match="contiguous"):
        SafetensorsFile(path).read_into("a.weight", np.empty((7, 5), np.float32).T)


def test_types_that_are_not_implemented_are_named_when_used(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "f8", {"w": entry(0, 4, [4], "F8_E4M3")}, bytes(4))
    file = SafetensorsFile(path)
    assert file.shape("w") == (4,)
    with pytest.raises(WeightFileError, match="F8_E4M3"):
        file.dtype("w")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightFileError, match=r"gone\.safetensors"):
        SafetensorsFile(tmp_path / "gone.safetensors")


def test_a_file_cut_while_loading_is_noticed(path: Path) -> None:
    file = SafetensorsFile(path)
    with path.open("rb+") as other:
        other.truncate(path.stat().st_size - 200)
    last = max(file.names(), key=lambda name: file._entries[name][3])
    with pytest.raises(WeightFileError, match="ends inside tensor"):
        read_array(file, last)


def test_closing_twice_is_harmless(path: Path) -> None:
    files = SafetensorsFiles([path])
    files.close()
    files.close()


# ---- broken files

BROKEN: dict[str, tuple[Any, bytes, int | None]] = {
    "empty header": (b"", b"", None),
    "not JSON": (b"{not json", b"", None),
    "not UTF-8": (b'{"\xff\xfe": 1}', b"", None),
    "a list": ([1, 2], b"", None),
    "a number of 5000 digits": (b'{"a": ' + b"9" * 5000 + b"}", b"", None),
    "nested 100,000 deep": (b"[" * 100_000, b"", None),
    "claims more than the file": ({}, b"", 1 << 20),
    "claims 2^63 bytes": ({}, b"", 1 << 63),
    "entry is a number": ({"a": 1}, b"", None),
    "entry is null": ({"a": None}, b"", None),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4), None),
    "no offsets": ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4), None),
    "three offsets": ({"a": {**entry(0, 4), "data_offsets": [0, 2, 4]}}, bytes(4), None),
    "shape is text": ({"a": {**entry(0, 4), "shape": "1"}}, bytes(4), None),
    "shape is a fraction": ({"a": entry(0, 4, [1.0])}, bytes(4), None),
    "shape is a truth value": ({"a": entry(0, 4, [True])}, bytes(4), None),
    "negative size": ({"a": entry(0, 4, [-1])}, bytes(4), None),
    "two negative sizes": ({"a": entry(0, 4, [-1, -1])}, bytes(4), None),
    "negative offset": ({"a": entry(-4, 0, [1])}, bytes(4), None),
    "backward offsets": ({"a": entry(4, 0, [1])}, bytes(4), None),
    "beyond the end": ({"a": entry(0, 8)}, bytes(4), None),
    "sizes multiply past 64 bits": ({"a": entry(0, 4, [2**62, 4])}, bytes(4), None),
    "another size than its shape": ({"a": entry(0, 8, [1])}, bytes(8), None),
    "overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), None),
    "same place twice": ({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8), None),
    "hole": ({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12), None),
    "something appended": ({"a": entry(0, 4)}, bytes(9), None),
    "metadata is a list": ({"__metadata__": [1]}, b"", None),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_one_clear_error_at_once(tmp_path: Path, case: str) -> None:
    """Our verdict is the package's; ours says which file."""
    header, data, length = BROKEN[case]
    path = raw_file(tmp_path / "broken.safetensors", header, data, length=length)
    with cpu_seconds_at_most(1.0), pytest.raises(WeightFileError, match=r"broken\.safetensors"):
        SafetensorsFile(path)
    with pytest.raises(safetensors.SafetensorError):
        safetensors.safe_open(path, "numpy").__enter__()


@pytest.mark.parametrize("size", [0, 3, 8, 9])
def test_a_stub_is_no_file(tmp_path: Path, size: int) -> None:
    path = tmp_path / "stub.safetensors"
    path.write_bytes(bytes([200]) * size)
    with pytest.raises(WeightFileError, match="not a whole safetensors file"):
        SafetensorsFile(path)


def test_every_truncation_is_noticed(path: Path) -> None:
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(WeightFileError):
            SafetensorsFile(path)


@given(position=st.integers(0, 2000), byte=st.integers(0, 255))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_byte_is_refused_or_gives_what_the_package_gives(path: Path, position: int, byte: int) -> None:
    save_file(TENSORS, path, metadata={"format": "pt"})
    content = bytearray(path.read_bytes())
    content[position % len(content)] = byte
    path.write_bytes(content)
    try:
        file = SafetensorsFile(path)
        arrays = {name: read_array(file, name) for name in file.names()}
    except WeightFileError:
        return
    for name, expected in load_file(path).items():
        assert arrays[name].tobytes() == expected.tobytes()


# ---- several files


def test_several_files_are_one_source(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "1.safetensors", {"a": np.ones(3, np.float32)})
    write_safetensors(tmp_path / "2.safetensors", {"b": np.zeros((2, 2), np.float16)})
    files = SafetensorsFiles([tmp_path / "1.safetensors", tmp_path / "2.safetensors"])
    assert set(files.names()) == {"a", "b"}
    assert files.shape("b") == (2, 2)
    assert files.dtype("b") == np.float16
    assert read_array(files, "a").tolist() == [1, 1, 1]


def test_a_name_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("1", "2"):
        write_safetensors(tmp_path / f"{name}.safetensors", {"a": np.ones(3, np.float32)})
    with pytest.raises(WeightFileError, match="'a' is in both"):
        SafetensorsFiles([tmp_path / "1.safetensors", tmp_path / "2.safetensors"])


def test_an_index_names_its_shards(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}))
    with pytest.raises(WeightFileError, match=r"missing: 1\.safetensors, 2\.safetensors"):
        index_files(index)
    for name in ("1", "2"):
        (tmp_path / f"{name}.safetensors").touch()
    assert [path.name for path in index_files(index)] == ["1.safetensors", "2.safetensors"]


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": [2]}}']
)
def test_a_broken_index_is_named(tmp_path: Path, text: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(WeightFileError, match=r"model\.safetensors\.index\.json"):
        index_files(index)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(WeightFileError, match="outside its own folder"):
        index_files(index)


# ---- writing


def test_the_package_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    write_safetensors(path, {**TENSORS, "strided": np.arange(12, dtype=np.float32).reshape(3, 4).T})
    read = load_file(path)
    for name, expected in TENSORS.items():
        assert read[name].tobytes() == expected.tobytes()
    np.testing.assert_array_equal(read["strided"], np.arange(12, dtype=np.float32).reshape(3, 4).T)


def test_a_failed_write_leaves_the_old_file_and_no_debris(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def fail(_fd: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_safetensors(path, {"a": np.ones(3, np.float32)})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_written_file_may_be_read_by_whom_other_files_may(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    write_safetensors(tmp_path / "model.safetensors", {"a": np.zeros(3, np.float32)})
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
