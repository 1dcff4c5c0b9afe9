"""The GGUF reader: the gguf package's files, vocabularies, split models, raw reading, and files that are given by
mistake."""

from __future__ import annotations

import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion.gguf.container.file import GGUFError, GGUFFile
from conversion.gguf.container.file_bytes import OpenedFile
from conversion.gguf.container.metadata import string_runs
from conversion.weights.tensor_source import WeightFileError
from tests.conversion.gguf_files import (
    METADATA,
    TOKENS,
    array,
    file_bytes,
    key,
    number,
    raw_tensors,
    string,
    tensor,
    write_good,
)

GOLDENS = sorted((Path(__file__).parents[3] / "goldens" / "gguf").glob("*.gguf"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_good(tmp_path / "good.gguf")


def saved(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# ---- reading


@pytest.mark.parametrize("version", [2, 3])
def test_reads_what_the_package_wrote(tmp_path: Path, version: int) -> None:
    with GGUFFile(write_good(tmp_path / "good.gguf", version=version)) as gguf:
        assert (gguf.version, gguf.architecture, gguf.paths) == (version, "llama", (tmp_path / "good.gguf",))
        assert set(gguf.metadata) == {*METADATA, "general.architecture"}
        for name, expected in METADATA.items():
            actual = gguf.metadata[name]
            if isinstance(actual, np.ndarray):
                np.testing.assert_array_equal(actual, expected)
            else:
                assert actual == expected
                assert type(actual) is type(expected)
        for name, expected in raw_tensors().items():
            out = np.empty(expected.shape, np.uint8)
            gguf.read_raw(name, out)
            np.testing.assert_array_equal(out, expected)
            np.testing.assert_array_equal(gguf.view(name), expected)
            assert not gguf.view(name).flags.writeable


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda path: path.name)
def test_agrees_with_the_package_on_files_of_llama_cpp(golden: Path) -> None:
    reference = GGUFReader(golden)
    gguf = GGUFFile(golden)
    fields = {name: field for name, field in reference.fields.items() if not name.startswith("GGUF.")}
    assert list(gguf.metadata) == list(fields)
    for name, field in fields.items():
        actual = gguf.metadata[name]
        assert (actual.tolist() if isinstance(actual, np.ndarray) else actual) == field.contents()
    assert list(gguf.tensors) == [item.name for item in reference.tensors]
    for item in reference.tensors:
        info = gguf.tensors[item.name]
        assert info.shape == tuple(item.shape[::-1].tolist())
        assert (info.type.name, info.nbytes, info.offset) == (item.tensor_type.name, item.n_bytes, item.data_offset)
        assert gguf.view(item.name).tobytes() == item.data.tobytes()


def test_shapes_types_and_sizes(path: Path) -> None:
    gguf = GGUFFile(path)
    experts = gguf.tensors["blk.0.ffn_gate_exps.weight"]
    assert (experts.shape, experts.type.name, experts.rows, experts.row_bytes) == ((3, 5, 32), "F32", 15, 128)
    packed = gguf.tensors["blk.0.attn_q.weight"]
    assert (packed.shape, packed.type_name, packed.nbytes, packed.elements) == ((6, 96), "Q8_0", 6 * 3 * 34, 576)
    assert gguf.nbytes == sum(raw.size for raw in raw_tensors().values())
    assert gguf.bits_per_weight == pytest.approx(8 * gguf.nbytes / gguf.elements)


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_other_alignments(tmp_path: Path, alignment: int) -> None:
    gguf = GGUFFile(write_good(tmp_path / "good.gguf", alignment=alignment))
    assert all(info.offset % alignment == 0 for info in gguf.tensors.values())
    for name, expected in raw_tensors().items():
        np.testing.assert_array_equal(gguf.view(name), expected)


def test_rows_of_a_tensor(path: Path) -> None:
    gguf = GGUFFile(path)
    whole = raw_tensors()["blk.0.ffn_gate_exps.weight"].reshape(15, 128)
    for first, count in [(0, 15), (4, 3), (14, 1), (15, 0)]:
        out = np.empty((count, 128), np.uint8)
        gguf.read_raw_rows("blk.0.ffn_gate_exps.weight", first, count, out)
        np.testing.assert_array_equal(out, whole[first : first + count])
    for first, count in [(-1, 2), (14, 2), (16, 0), (3, -1)]:
        with pytest.raises(IndexError, match="15 rows"):
            gguf.read_raw_rows("blk.0.ffn_gate_exps.weight", first, count, np.empty((2, 128), np.uint8))


def test_fills_part_of_a_larger_array_and_refuses_what_does_not_fit(path: Path) -> None:
    gguf = GGUFFile(path)
    expected = raw_tensors()["blk.0.attn_q.weight"]
    whole = np.zeros((9, 102), np.uint8)
    gguf.read_raw("blk.0.attn_q.weight", whole[2:8])
    np.testing.assert_array_equal(whole[2:8], expected)
    assert not whole[:2].any()
    assert not whole[8:].any()
    for out in (np.empty((6, 101), np.uint8), np.empty((102, 6), np.uint8).T, np.empty((6, 102), np.int8)):
        with pytest.raises(ValueError, match="does not fit"):
            gguf.read_raw("blk.0.attn_q.weight", out)
    with pytest.raises(KeyError, match=r"no tensor 'blk\.9'"):
        gguf.read_raw("blk.9", whole)


def test_scalars_and_every_type_of_value(tmp_path: Path) -> None:
    layouts = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 10: "<Q", 11: "<q", 12: "<d"}
    keys = [key(f"scalar.{kind}", kind, struct.pack(layout, 77)) for kind, layout in layouts.items()]
    keys += [
        array(f"array.{kind}", kind, 3, struct.pack(f"<3{layout[1]}", 5, 6, 7)) for kind, layout in layouts.items()
    ]
    keys += [key("yes", 7, b"\1"), key("odd", 7, b"\2"), array("truths", 7, 3, b"\0\1\2"), array("none", 4, 0, b"")]
    keys += [array("no strings", 8, 0, b""), number("minus", -1, 5, "<i"), number("big", 2**64 - 1, 10, "<Q")]
    path = saved(tmp_path / "values.gguf", file_bytes(keys, [tensor("scalar", [], 0, 0)], data=4))
    gguf = GGUFFile(path)
    for kind, layout in layouts.items():
        assert gguf.metadata[f"scalar.{kind}"] == 77
        values = gguf.metadata[f"array.{kind}"]
        assert (values.tolist(), values.dtype) == ([5, 6, 7], np.dtype(layout))
        assert not values.flags.writeable
    assert gguf.metadata["yes"] is True
    assert gguf.metadata["odd"] is True
    assert gguf.metadata["truths"].dtype == np.bool_
    assert gguf.metadata["truths"].view(np.uint8).tolist() == [0, 1, 1]
    assert (gguf.metadata["none"].size, gguf.metadata["no strings"]) == (0, [])
    assert (gguf.metadata["minus"], gguf.metadata["big"]) == (-1, 2**64 - 1)
    assert (gguf.tensors["scalar"].shape, gguf.view("scalar").shape) == ((), (4,))


def test_metadata_can_be_described_without_decoding_it(path: Path) -> None:
    metadata = GGUFFile(path).metadata
    assert metadata.describe("tokenizer.ggml.tokens") == f"string[{len(TOKENS)}]"
    assert (metadata.describe("llama.block_count"), metadata.count("llama.block_count")) == ("u32", 1)
    assert metadata.count("tokenizer.ggml.tokens") == len(TOKENS)
    assert "tokenizer.ggml.merges" not in metadata
    assert metadata.get("tokenizer.ggml.merges") is None
    with pytest.raises(KeyError, match=r"tokenizer\.ggml\.merges"):
        metadata["tokenizer.ggml.merges"]


def test_bytes_that_are_not_utf8_survive_in_vocabularies_and_are_marked_elsewhere(tmp_path: Path) -> None:
    keys = [array("tokens", 8, 2, string(b"\xe2\x96") + string(b"\xe2\x97")), key("name", 8, string(b"caf\xe9"))]
    metadata = GGUFFile(saved(tmp_path / "bytes.gguf", file_bytes(keys))).metadata
    assert [token.encode("utf-8", "surrogateescape") for token in metadata["tokens"]] == [b"\xe2\x96", b"\xe2\x97"]
    assert metadata["name"] == "caf�"


# ---- vocabularies: strings are stepped over many at a time

odd_strings = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"", b"\0", b"\0" * 7, b"\0" * 8, b"\0" * 20, b"\5\0\0\0\0\0\0\0abcde", b"x" * 255, b"x" * 256]),
    st.binary(min_size=250, max_size=600),
)


@settings(max_examples=150, deadline=None)
@given(
    strings=st.lists(odd_strings, max_size=150), repeated=st.integers(1, 40), start=st.integers(0, 9), tail=st.binary()
)
def test_strings_are_found_whatever_they_hold(
    strings: list[bytes], repeated: int, start: int, tail: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    strings = strings * repeated
    path = tmp_path_factory.getbasetemp() / "strings"
    data = b"".join(string(text) for text in strings)
    path.write_bytes(bytes(start) + data + tail)
    file = OpenedFile(path)
    runs = list(string_runs(file, start, len(strings), "strings"))
    found = [text.encode("utf-8", "surrogateescape") for run in runs for text in run.decoded(file, "strings")]
    assert found == strings
    assert not runs or runs[-1].stop == start + len(data)


def test_long_strings_among_short_ones(tmp_path: Path) -> None:
    strings = ["short", "long" * 200_000, "x", "y" * (2**18 - 8), "", "end"] * 3
    keys = [array("tokens", 8, len(strings), b"".join(map(string, strings))), number("after", 5)]
    metadata = GGUFFile(saved(tmp_path / "long.gguf", file_bytes(keys))).metadata
    assert metadata["tokens"] == strings
    assert metadata["after"] == 5


def test_a_large_vocabulary_costs_nothing_before_it_is_used(tmp_path: Path) -> None:
    tokens = b"".join(string(f"▁token{n}") for n in range(131_072))
    merges = b"".join(string(f"▁a{n} b{n}") for n in range(262_144))
    keys = [array("tokens", 8, 131_072, tokens), array("merges", 8, 262_144, merges)]
    path = saved(tmp_path / "vocabulary.gguf", file_bytes(keys))
    times: list[float] = []
    for _ in range(5):
        start = time.thread_time()
        gguf = GGUFFile(path)
        times.append(time.thread_time() - start)
    # Measured: 0.01 s.
    assert min(times) < 0.1
    assert gguf.metadata["tokens"][131_071] == "▁token131071"
    assert gguf.metadata["merges"][262_143] == "▁a262143 b262143"


# ---- split models


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    write_good(tmp_path / "model.gguf", split_max_tensors=2)
    return sorted(tmp_path.glob("model-*.gguf"))


def test_a_split_model_opens_from_any_part(parts: list[Path]) -> None:
    assert [part.name for part in parts] == [f"model-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for part in parts:
        with GGUFFile(part) as gguf:
            assert gguf.paths == tuple(parts)
            assert gguf.metadata["tokenizer.ggml.tokens"] == TOKENS
            assert {gguf.tensors[name].part for name in gguf.tensors} == {0, 1, 2}
            for name, expected in raw_tensors().items():
                out = np.empty(expected.shape, np.uint8)
                gguf.read_raw(name, out)
                np.testing.assert_array_equal(out, expected)
                np.testing.assert_array_equal(gguf.view(name), expected)


def test_missing_parts_are_named(parts: list[Path]) -> None:
    parts[0].unlink()
    parts[2].unlink()
    with pytest.raises(GGUFError, match=r"2 are missing.*model-00001-of-00003\.gguf, model-00003-of-00003\.gguf"):
        GGUFFile(parts[1])


def test_parts_that_were_renamed_are_noticed(parts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"must end in -00002-of-00003\.gguf"):
        GGUFFile(parts[1].rename(tmp_path / "other.gguf"))
    parts[2].rename(parts[1])
    parts[0].with_name("model-00003-of-00003.gguf").write_bytes(parts[1].read_bytes())
    with pytest.raises(GGUFError, match=r"says that it is part 3 of 3, where its name makes it part 2"):
        GGUFFile(parts[0])


def split_part(number_: int, count: int, total: Any, name: str) -> bytes:
    keys = [number("split.no", number_, 2, "<H"), number("split.count", count, 2, "<H"), total]
    return file_bytes(keys, [tensor(name, [8], 0, 0)], data=32)


def test_contradictions_between_parts(tmp_path: Path) -> None:
    total = number("split.tensors.count", 3, 5, "<i")
    one = saved(tmp_path / "m-00001-of-00002.gguf", split_part(0, 2, total, "a"))
    two = saved(tmp_path / "m-00002-of-00002.gguf", split_part(1, 2, total, "b"))
    with pytest.raises(GGUFError, match=r"hold 2 tensors where split.tensors.count says 3"):
        GGUFFile(one)
    saved(two, split_part(1, 2, total, "a"))
    with pytest.raises(GGUFError, match=r"tensor 'a' is in both .*00001.* and .*00002"):
        GGUFFile(one)
    saved(two, split_part(1, 3, total, "b"))
    with pytest.raises(GGUFError, match=r"00002-of-00002.*part 2 of 3"):
        GGUFFile(one)
    saved(two, file_bytes(tensors=[tensor("b", [8], 0, 0)], data=32))
    with pytest.raises(GGUFError, match=r"00002-of-00002.*split.no is missing"):
        GGUFFile(one)
    saved(one, file_bytes([key("split.count", 8, string("2"))]))
    with pytest.raises(GGUFError, match=r"split.count is string, where a whole number"):
        GGUFFile(one)


def test_a_part_of_one_is_a_whole_model(tmp_path: Path) -> None:
    keys = [number("split.no", 0, 2, "<H"), number("split.count", 1, 2, "<H")]
    data = file_bytes(keys, [tensor("a", [8], 0, 0)], data=32)
    assert list(GGUFFile(saved(tmp_path / "whole.gguf", data)).tensors) == ["a"]


# ---- types that are not implemented


def test_tensors_of_unknown_types_are_refused_only_when_read(tmp_path: Path) -> None:
    tensors = [tensor("known", [8], 0, 0), tensor("new", [64, 2], 77, 32), tensor("q1", [128], 41, 96)]
    gguf = GGUFFile(saved(tmp_path / "new.gguf", file_bytes(tensors=tensors, data=121)))
    assert gguf.view("known").shape == (32,)
    assert (gguf.tensors["new"].shape, gguf.tensors["new"].type_id, gguf.tensors["new"].nbytes) == ((2, 64), 77, 64)
    assert (gguf.tensors["new"].type_name, gguf.tensors["q1"].type_name) == ("unknown (number 77)", "Q1_0 (number 41)")
    assert gguf.tensors["q1"].nbytes == 25
    out = np.empty(64, np.uint8)
    for attempt in (lambda: gguf.read_raw("new", out), lambda: gguf.view("new"), lambda: gguf.tensors["new"].type):
        with pytest.raises(
            GGUFError, match=r"'new' is of the tensor type unknown \(number 77\), which is not implemented"
        ):
            attempt()


# ---- files that are given by mistake

MISTAKES = {
    "empty": (b"", "is empty"),
    "cut": (b"GG", "only 2 bytes"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4368439584\n",
        "git-lfs pointer.*of 4368439584 bytes.*git lfs pull",
    ),
    "html": (b"\n<!DOCTYPE html><html>", "HTML.*login"),
    "ggml": (b"tjgg\3\0\0\0", "GGJT format"),
    "safetensors": (struct.pack("<Q", 20) + b'{"__metadata__": {}}', "safetensors"),
    "zip": (b"PK\3\4....", "zip archive, or a PyTorch checkpoint"),
    "pickle": (b"\x80\2}q\0.", "pickle"),
    "zeros": (bytes(5000), "zeros only.*not finished"),
    "text": ("Entry not found: été".encode() * 400, "text file that begins with 'Entry not found"),
    "bytes": (b"\xff\xfe\xfd\xfc", r"b'\\xff\\xfe\\xfd\\xfc'.*expected"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_other_files_are_recognised(tmp_path: Path, kind: str) -> None:
    data, message = MISTAKES[kind]
    with pytest.raises(GGUFError, match=rf"{kind}\.gguf is not a GGUF file: .*{message}"):
        GGUFFile(saved(tmp_path / f"{kind}.gguf", data))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"cannot open GGUF file .*gone\.gguf: No such file"):
        GGUFFile(tmp_path / "gone.gguf")
    with pytest.raises(GGUFError, match="is a folder without GGUF files"):
        GGUFFile(tmp_path)
    (tmp_path / "a.gguf").touch()
    with pytest.raises(GGUFError, match=r"is a folder; name the file itself, one of a\.gguf"):
        GGUFFile(str(tmp_path))
    with pytest.raises(GGUFError, match="no regular file"):
        GGUFFile("/dev/null")
    with pytest.raises(GGUFError, match="cannot open"):
        GGUFFile("nul\0byte.gguf")
    assert issubclass(GGUFError, WeightFileError)


def test_versions_and_byte_orders_that_are_not_implemented(tmp_path: Path) -> None:
    big_endian = b"GGUF" + struct.pack(">IQQ", 3, 0, 0)
    with pytest.raises(GGUFError, match=r"big-endian.*0x3000000.*gguf-convert-endian"):
        GGUFFile(saved(tmp_path / "big.gguf", big_endian))
    for version, message in [(1, "version 1, a format"), (4, "version is 4, where 2 or 3"), (0, "version is 0")]:
        with pytest.raises(GGUFError, match=message):
            GGUFFile(saved(tmp_path / "version.gguf", file_bytes(version=version)))


def test_a_file_without_architecture_says_so(tmp_path: Path) -> None:
    gguf = GGUFFile(saved(tmp_path / "plain.gguf", file_bytes()))
    assert (gguf.bits_per_weight, gguf.nbytes) == (0, 0)
    with pytest.raises(GGUFError, match=r"general.architecture is None"):
        gguf.architecture


# ---- files that change, threads, closing


def test_a_file_cut_after_opening_is_noticed(path: Path) -> None:
    gguf = GGUFFile(path)
    last = max(gguf.tensors.values(), key=lambda info: info.offset)
    with path.open("rb+") as other:
        other.truncate(last.offset + 10)
    with pytest.raises(GGUFError, match=rf"ends inside tensor '{last.name}': at byte {last.offset + 10}"):
        gguf.read_raw(last.name, np.empty(last.nbytes, np.uint8))
    with pytest.raises(GGUFError, match="ends inside tensor"):
        gguf.view(last.name)
    with path.open("rb+") as other:
        other.truncate(100)
    with pytest.raises(GGUFError, match=r"the value of 'tokenizer.ggml.tokens'"):
        gguf.metadata["tokenizer.ggml.tokens"]


def test_closing(path: Path) -> None:
    gguf = GGUFFile(path)
    view, scores = gguf.view("blk.0.attn_q.weight"), gguf.metadata["tokenizer.ggml.scores"]
    gguf.close()
    gguf.close()
    np.testing.assert_array_equal(view, raw_tensors()["blk.0.attn_q.weight"])
    assert gguf.metadata["tokenizer.ggml.scores"] is scores
    out = np.empty(view.shape, np.uint8)
    for attempt in (
        lambda: gguf.read_raw("blk.0.attn_q.weight", out),
        lambda: gguf.view("blk.0.attn_q.weight"),
        lambda: gguf.metadata["tokenizer.ggml.tokens"],
    ):
        with pytest.raises(GGUFError, match="has been closed"):
            attempt()


def test_an_abandoned_file_is_closed(path: Path) -> None:
    def open_descriptors() -> int:
        return sum(1 for link in Path("/proc/self/fd").iterdir() if link.exists() and link.resolve() == path)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    gguf = GGUFFile(path)
    assert open_descriptors() == 1
    del gguf
    assert open_descriptors() == 0
    for _ in range(3):
        with pytest.raises(GGUFError):
            GGUFFile(saved(path, b"GGUF" + bytes(3)))
    assert open_descriptors() == 0


def test_several_threads_read_at_once_and_one_closes(path: Path) -> None:
    expected = raw_tensors()
    gguf = GGUFFile(path)
    started = threading.Barrier(9, timeout=10)

    def read() -> tuple[int, str]:
        started.wait()
        whole, end = 0, ""
        try:
            for _ in range(200):
                for name, raw in expected.items():
                    out = np.zeros(raw.shape, np.uint8)
                    gguf.read_raw(name, out)
                    assert (out == raw).all()
                    assert gguf.metadata["tokenizer.ggml.tokens"] == TOKENS
                    whole += 1
        except GGUFError as error:
            end = str(error)
        return whole, end

    with ThreadPoolExecutor(8) as pool:
        workers = [pool.submit(read) for _ in range(8)]
        started.wait()
        time.sleep(0.02)
        gguf.close()
        results = [worker.result() for worker in workers]
    assert all(whole == 200 * len(expected) or end.endswith("open it again to read from it") for whole, end in results)
    assert any(end for _, end in results)
