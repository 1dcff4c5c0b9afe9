"""Tensors of GGUF files have the values, names and order of the Hugging Face checkpoint, packed or not."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import quants

from conversion.gguf import source as source_module
from conversion.gguf.container.file import GGUFError, GGUFFile
from conversion.gguf.source import GGUFLayout, GGUFSource
from conversion.weights.ggml_types import BY_NAME
from conversion.weights.tensor_source import PackedSource
from tests.conversion.arrays import Arrays
from tests.conversion.fake_gguf import FakeGGUF, tensor_info

GOLDENS = Path(__file__).parents[2] / "goldens" / "gguf"
# N heads, K key-value heads, H dimensions; D and F are whole blocks of 32, N * H is not.
V, D, F, N, K, H, L = 37, 64, 96, 6, 2, 20, 2
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def random_model(*, biases: bool = False) -> dict[str, np.ndarray]:
    """Under Hugging Face's names, float32."""
    random = np.random.default_rng(7)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (V, D),
        "lm_head.weight": (V, D),
        "model.norm.weight": (D,),
    }
    for layer in range(L):
        prefix = f"model.layers.{layer}."
        shapes[f"{prefix}input_layernorm.weight"] = (D,)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (D,)
        for name, rows, columns in (
            ("self_attn.q_proj", N * H, D),
            ("self_attn.k_proj", K * H, D),
            ("self_attn.v_proj", K * H, D),
            ("self_attn.o_proj", D, N * H),
            ("mlp.gate_proj", F, D),
            ("mlp.up_proj", F, D),
            ("mlp.down_proj", D, F),
        ):
            shapes[f"{prefix}{name}.weight"] = (rows, columns)
            if biases:
                shapes[f"{prefix}{name}.bias"] = (rows,)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def in_file_order(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k from halves to adjacent pairs, one by one."""
    out = np.empty_like(rows)
    size = len(rows) // heads
    for head in range(heads):
        for i in range(size // 2):
            out[head * size + 2 * i] = rows[head * size + i]
            out[head * size + 2 * i + 1] = rows[head * size + size // 2 + i]
    return out


def rotary(name: str) -> int | None:
    return N if ".q_proj." in name else K if ".k_proj." in name else None


def packed(values: np.ndarray, kind: Kind) -> np.ndarray:
    """As a file would have it; vectors and rows that are no whole blocks as float32."""
    block = gguf.GGML_QUANT_SIZES[kind][0]
    return values if values.ndim == 1 or values.shape[1] % block else quants.quantize(values, kind)


class Written:
    """A file with a model, under construction."""

    def __init__(self, path: Path, architecture: str = "llama") -> None:
        self.path = path
        self.writer = gguf.GGUFWriter(path, architecture)
        self.writer.add_block_count(L)
        self.writer.add_context_length(512)
        self.writer.add_embedding_length(D)
        self.writer.add_feed_forward_length(F)
        self.writer.add_head_count(N)
        self.writer.add_head_count_kv(K)
        self.writer.add_key_length(H)
        self.writer.add_layer_norm_rms_eps(1e-5)

    def add(self, name: str, data: np.ndarray, kind: Kind | None = None) -> None:
        kind = Kind.F32 if data.dtype == np.float32 else Kind.F16 if data.dtype == np.float16 else kind
        self.writer.add_tensor(name, np.ascontiguousarray(data), raw_dtype=kind)

    def add_model(self, tensors: dict[str, np.ndarray], kind: Kind) -> None:
        layout = GGUFLayout(Arrays(tensors), num_heads=N, num_kv_heads=K)
        for name in layout.names():
            values = np.empty(layout.shape(name), layout.dtype(name))
            layout.read_into(name, values)
            self.add(name, packed(values, kind), kind)

    def open(self) -> GGUFSource:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        return GGUFSource(GGUFFile(self.path))


def floats(source: GGUFSource, name: str, dtype: Any = np.float32) -> np.ndarray:
    out = np.full(source.shape(name), 77, dtype)
    source.read_into(name, out)
    return out


def blocks(source: GGUFSource, name: str) -> np.ndarray:
    shape = source.shape(name)
    columns = shape[1] if len(shape) > 1 else 1
    out = np.full((shape[0], source.kind(name).row_bytes(columns)), 77, np.uint8)
    source.read_packed(name, out)
    return out


@pytest.fixture(params=["whole", "pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with so little memory at a time that every tensor is read in several pieces."""
    if request.param == "pieces":
        monkeypatch.setattr(source_module, "_CHUNK_BYTES", 1500)
        monkeypatch.setattr(source_module, "_CHUNK_VALUES", 1024)


# ---- round trips


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("architecture", ["llama", "mistral3"])
@pytest.mark.parametrize("biases", [False, True])
def test_plain_tensors_come_back_bit_for_bit(tmp_path: Path, architecture: str, biases: bool) -> None:
    tensors = random_model(biases=biases)
    written = Written(tmp_path / "model.gguf", architecture)
    written.add_model(tensors, Kind.F32)
    source = written.open()
    assert isinstance(source, PackedSource)
    assert set(source.names()) == set(tensors)
    for name, expected in tensors.items():
        assert source.shape(name) == expected.shape
        assert source.dtype(name) == np.float32
        np.testing.assert_array_equal(floats(source, name), expected)
        np.testing.assert_array_equal(blocks(source, name), expected.reshape(len(expected), -1).view(np.uint8))


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.Q5_1, Kind.F16, Kind.BF16])
def test_packed_rows_are_those_of_the_model_in_its_own_order(tmp_path: Path, kind: Kind) -> None:
    """Reordering packed rows gives the blocks of the reordered matrix, and their values."""
    tensors = random_model()
    written = Written(tmp_path / "model.gguf")
    written.add_model(tensors, kind)
    source = written.open()
    for name, original in tensors.items():
        expected = packed(original, kind)
        if expected.dtype == np.float32:
            assert source.kind(name).name == "F32"
            continue
        assert source.kind(name).name == kind.name
        np.testing.assert_array_equal(blocks(source, name), expected.view(np.uint8))
        values = quants.dequantize(expected, kind)
        np.testing.assert_array_equal(floats(source, name), values)
        np.testing.assert_array_equal(floats(source, name, BFLOAT16), values.astype(BFLOAT16))
        np.testing.assert_array_equal(floats(source, name, np.float16), values.astype(np.float16))


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0])
def test_unpacking_and_reordering_commute(tmp_path: Path, kind: Kind) -> None:
    """The file's rows are reordered one by one here, after unpacking."""
    written = Written(tmp_path / "model.gguf")
    written.add_model(random_model(), kind)
    source = written.open()
    raw = {tensor.name: tensor for tensor in gguf.GGUFReader(written.path).tensors}
    for name, stored, heads in (("q", "attn_q", N), ("k", "attn_k", K)):
        tensor = raw[f"blk.1.{stored}.weight"]
        values = floats(source, f"model.layers.1.self_attn.{name}_proj.weight")
        np.testing.assert_array_equal(in_file_order(values, heads), quants.dequantize(tensor.data, tensor.tensor_type))
        assert not np.array_equal(values, quants.dequantize(tensor.data, tensor.tensor_type))


@pytest.mark.parametrize("path", sorted(GOLDENS.glob("*.gguf")), ids=lambda path: path.name)
def test_files_of_llama_cpp_have_the_values_that_gguf_py_reads(path: Path) -> None:
    file = GGUFFile(path)
    source = GGUFSource(file)
    architecture = file.architecture
    heads = (
        file.metadata[f"{architecture}.attention.head_count"],
        file.metadata[f"{architecture}.attention.head_count_kv"],
    )
    seen: set[str] = set()
    for tensor in gguf.GGUFReader(path).tensors:
        names = source_module.hf_names(tensor.name)
        if not names:
            continue
        (name,) = names
        expected = quants.dequantize(tensor.data, tensor.tensor_type)
        actual = floats(source, name)
        if ".q_proj." in name or ".k_proj." in name:
            actual = in_file_order(actual, heads[".k_proj." in name])
        np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32), err_msg=name)
        assert source.kind(name).name == tensor.tensor_type.name
        seen.add(name)
    assert set(source.names()) == seen


# ---- what some files have


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0])
def test_a_fused_projection_is_taken_apart(tmp_path: Path, kind: Kind) -> None:
    tensors = random_model(biases=True)
    written = Written(tmp_path / "model.gguf")
    rest = {name: values for name, values in tensors.items() if not name.split(".")[-2].startswith(("q_", "k_", "v_"))}
    written.add_model(rest, kind)
    for layer in range(L):
        for part in ("weight", "bias"):
            q, k, v = (tensors[f"model.layers.{layer}.self_attn.{head}_proj.{part}"] for head in "qkv")
            fused = np.concatenate([in_file_order(q, N), in_file_order(k, K), v])
            written.add(f"blk.{layer}.attn_qkv.{part}", packed(fused, kind), kind)
    source = written.open()
    assert set(source.names()) == set(tensors)
    for name, original in tensors.items():
        expected = packed(original, kind)
        np.testing.assert_array_equal(blocks(source, name), expected.reshape(len(expected), -1).view(np.uint8))
        if expected.dtype == np.float32:
            np.testing.assert_array_equal(floats(source, name), original)


def test_missing_biases_of_a_model_that_has_some_are_zeros(tmp_path: Path) -> None:
    tensors = random_model()
    bias = np.arange(N * H, dtype=np.float32)
    tensors["model.layers.0.self_attn.q_proj.bias"] = bias
    written = Written(tmp_path / "model.gguf")
    written.add_model(tensors, Kind.Q8_0)
    source = written.open()
    projections = [f"model.layers.{layer}.self_attn.{head}_proj.bias" for layer in range(L) for head in "qkvo"]
    assert set(source.names()) == {*tensors, *projections}
    for name in projections:
        expected = bias if name in tensors else np.zeros(source.shape(name), np.float32)
        np.testing.assert_array_equal(floats(source, name), expected)
        assert source.kind(name).name == "F32"
    assert source.shape("model.layers.1.self_attn.o_proj.bias") == (D,)
    with pytest.raises(GGUFError, match="read it as floats"):
        source.read_packed("model.layers.1.self_attn.o_proj.bias", np.empty((D, 4), np.uint8))


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.F16])
def test_a_scale_beside_a_weight_is_applied(tmp_path: Path, kind: Kind) -> None:
    tensors = random_model()
    written = Written(tmp_path / "model.gguf")
    written.add_model(tensors, kind)
    written.add("blk.0.attn_q.scale", np.array([0.37], np.float32))
    written.add("blk.0.ffn_up.scale", np.array([1.0], np.float32))
    written.add("blk.0.ffn_up.input_scale", np.array([3.0], np.float32))
    source = written.open()
    assert set(source.names()) == set(tensors)
    q, up = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"
    values = quants.dequantize(packed(tensors[q], kind), kind)
    np.testing.assert_array_equal(floats(source, q), values * np.float32(0.37))
    np.testing.assert_array_equal(floats(source, q, BFLOAT16), (values * np.float32(0.37)).astype(BFLOAT16))
    assert (source.kind(q).name, source.dtype(q)) == ("F32", np.float32)
    with pytest.raises(GGUFError, match="read it as floats"):
        source.read_packed(q, np.empty((N * H, 68), np.uint8))
    np.testing.assert_array_equal(blocks(source, up), packed(tensors[up], kind).view(np.uint8))


def test_other_tensors_of_the_file_are_left_out(tmp_path: Path) -> None:
    tensors = random_model()
    written = Written(tmp_path / "model.gguf")
    written.add_model(tensors, Kind.F16)
    written.add("rope_freqs.weight", np.ones(H // 2, np.float32))
    written.add("blk.0.attn_rot_embd.weight", np.ones(H // 2, np.float32))
    written.add("v.patch_embd.weight", np.ones((3, 4), np.float32))
    assert set(written.open().names()) == set(tensors)


def test_the_output_matrix_of_a_tied_model_is_not_written() -> None:
    tensors = random_model()
    layout = GGUFLayout(Arrays(tensors), num_heads=N, num_kv_heads=K, tied=True)
    assert "output.weight" not in set(layout.names())
    assert "output.weight" in set(GGUFLayout(Arrays(tensors), num_heads=N, num_kv_heads=K).names())


# ---- refusals


@pytest.mark.parametrize(
    ("name", "data", "named"),
    [
        ("blk.0.attn_q_norm.weight", np.ones(H, np.float32), "attn_q_norm"),
        ("blk.0.ffn_up.scale", np.ones(3, np.float32), "expected one F32"),
        ("blk.0.ffn_up.scale", np.array([np.nan], np.float32), "finite"),
        ("blk.0.attn_norm.scale", np.ones(1, np.float32), "attn_norm.scale"),
        ("blk.0.ffn_gate_inp.weight", np.ones((8, D), np.float32), "Mixtral"),
        ("blk.0.attn_qkv.weight", np.ones(((N + 2 * K) * H, D), np.float32), "both"),
        ("blk.0.attn_q.bias", np.ones(N * H + 1, np.float32), "not those of 6 heads"),
        ("blk.0.attn_qkv.bias", np.ones(N * H, np.float32), "not those of 6 heads"),
        ("blk.0.ffn_up.bias", np.ones((2, 3, 4), np.float32), "a vector or a matrix"),
        ("blk.2.attn_norm.weight", np.ones(D, np.float32), "block_count"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, name: str, data: np.ndarray, named: str) -> None:
    written = Written(tmp_path / "model.gguf")
    written.add_model(random_model(), Kind.Q8_0)
    written.add(name, data)
    with pytest.raises(GGUFError, match=named) as refused:
        written.open()
    assert "model.gguf" in str(refused.value)


def test_a_vector_in_blocks_is_refused(tmp_path: Path) -> None:
    written = Written(tmp_path / "model.gguf")
    written.add_model(random_model(), Kind.Q8_0)
    written.add("blk.0.ffn_up.bias", quants.quantize(np.ones(F, np.float32), Kind.Q8_0), Kind.Q8_0)
    with pytest.raises(GGUFError, match="vector in blocks"):
        written.open()


def test_destinations_must_fit(tmp_path: Path) -> None:
    written = Written(tmp_path / "model.gguf")
    written.add_model(random_model(), Kind.Q8_0)
    source = written.open()
    name = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(ValueError, match="does not fit"):
        source.read_into(name, np.empty((N * H, D + 1), np.float32))
    with pytest.raises(ValueError, match="does not fit"):
        source.read_into(name, np.empty((D, N * H), np.float32).T)
    with pytest.raises(ValueError, match="expected contiguous uint8"):
        source.read_packed(name, np.empty((N * H, D), np.uint8))


# ---- memory


class Zeros(FakeGGUF):
    """A file of zeros."""

    def read_raw_rows(self, name: str, first: int, count: int, out: np.ndarray) -> None:
        out[...] = 0


@pytest.mark.parametrize("kind", ["Q8_0", "F16"])
def test_reading_takes_a_few_mebibytes_beside_the_destination(kind: str) -> None:
    rows, columns = 4096, 4096
    shapes = {"token_embd.weight": (32, columns), "blk.0.attn_q.weight": (rows, columns)}
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.embedding_length": columns,
        "llama.feed_forward_length": 32,
        "llama.attention.head_count": 32,
    }
    infos = {name: tensor_info(name, shape, kind) for name, shape in shapes.items()}
    source = GGUFSource(Zeros(metadata, infos))  # pyright: ignore
    name = "model.layers.0.self_attn.q_proj.weight"
    out = np.empty((rows, columns), np.float32)
    raw = np.empty((rows, BY_NAME[kind].row_bytes(columns)), np.uint8)
    source.read_into(name, out)  # compiles
    tracemalloc.start()
    try:
        source.read_into(name, out)
        source.read_packed(name, raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20
