"""The native kernels: unpacked bits of the reference, products whose bits no neighbour changes, and what happens
without them."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import quants

from conversion.weights.ggml_types import BY_NAME, GGMLType
from mistral_jax.quant.native import native

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler, as the kernels do"
)

KINDS = sorted(native.KINDS)
HALF_FLOATS = {
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
}
"""Where a block's half floats are; elsewhere, and but for MXFP4: at its beginning."""


def random_blocks(kind: GGMLType, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Random bytes, with factors that make the weights about one in size."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows, columns // kind.block_size, kind.block_bytes), dtype=np.uint8)
    if kind.name == "MXFP4":
        blocks[..., 0] = rng.integers(122, 127, blocks.shape[:2])
    else:
        for at in HALF_FLOATS.get(kind.name, (0,)):
            halves = np.float16(rng.uniform(-0.01, 0.01, blocks.shape[:2]))
            blocks[..., at : at + 2] = halves[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def reference(raw: np.ndarray, kind: GGMLType) -> np.ndarray:
    return quants.dequantize(raw, gguf.GGMLQuantizationType[kind.name])


matmul = jax.jit(native.matmul, static_argnums=2)
dequantize = jax.jit(native.dequantize, static_argnums=(1, 2))


def same_bits(a: object, b: object) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def test_the_kernels_compile_here():
    assert native.unavailable_because() is None
    assert native.available()
    assert native.available(BY_NAME["Q4_K"])
    assert not native.available(BY_NAME["IQ1_S"])


@pytest.mark.parametrize("name", KINDS)
def test_unpacked_weights_have_the_bits_of_the_reference(name: str):
    kind = BY_NAME[name]
    raw = random_blocks(kind, 37, 768)
    expected = reference(raw, kind)
    assert same_bits(dequantize(raw, kind, jnp.float32), expected)
    assert same_bits(dequantize(raw, kind, jnp.bfloat16), expected.astype(jnp.bfloat16))


def test_some_rows_are_unpacked_without_a_slice():
    kind = BY_NAME["Q5_K"]
    raw = random_blocks(kind, 50, 512)
    expected = reference(raw, kind)
    some = jax.jit(lambda raw, first: native.dequantize(raw, kind, first=first, count=7))
    for first in (0, 21, 43):
        assert same_bits(some(raw, first), expected[first : first + 7])
    for first in (-1, 44, 2**31 - 1):
        with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match=f"no rows {first} to {first + 7} among 50"):
            some(raw, first).block_until_ready()
    assert same_bits(native.dequantize(jnp.array(raw), kind, first=48), expected[48:])
    with pytest.raises(ValueError, match="give `count`, too"):
        native.dequantize(jnp.array(raw), kind, first=jnp.array(3))


@pytest.mark.parametrize("name", KINDS)
def test_any_bytes_are_unpacked_as_the_reference_does(name: str):
    """Factors of every kind: zeros, numbers below the normal range, infinities, and what is no number."""
    kind = BY_NAME[name]
    raw = np.random.default_rng(1).integers(0, 256, (256, kind.block_bytes), dtype=np.uint8)
    raw[:, 0] = np.arange(256)
    with np.errstate(all="ignore"):
        expected = reference(raw, kind)
        rounded = expected.astype(jnp.bfloat16)
    for unpacked, wanted in (
        (dequantize(raw, kind, jnp.float32), expected),
        (dequantize(raw, kind, jnp.bfloat16), rounded),
    ):
        got, no_number = np.asarray(unpacked), np.isnan(wanted)
        assert (np.isnan(got) == no_number).all()
        assert same_bits(got[~no_number], wanted[~no_number])


def test_half_floats_of_every_value_are_read():
    kind = BY_NAME["Q8_0"]
    raw = np.zeros((65536, 34), np.uint8)
    raw[:, :2] = np.arange(65536, dtype=np.uint16)[:, None].view(np.uint8)
    raw[:, 2:] = 1
    got = np.asarray(dequantize(raw, kind, jnp.float32))[:, 5]
    expected = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    assert np.array_equal(got, expected, equal_nan=True)
    assert same_bits(np.signbit(got), np.signbit(expected))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("columns", [256, 1280])
def test_products_are_those_of_the_unpacked_weights(name: str, columns: int):
    kind = BY_NAME[name]
    raw = random_blocks(kind, 39, columns)
    x = np.random.default_rng(2).standard_normal((9, columns)).astype(np.float32)
    weight = reference(raw, kind).astype(np.float64)
    error = np.abs(np.asarray(matmul(x, raw, kind)) - x @ weight.T)
    assert (error <= 1e-6 * (np.abs(x) @ np.abs(weight).T)).all()


@pytest.mark.parametrize("name", KINDS)
def test_a_row_has_the_same_bits_alone_and_among_others(name: str):
    kind = BY_NAME[name]
    raw = random_blocks(kind, 41, 1536)
    x = np.random.default_rng(3).standard_normal((150, 1536)).astype(np.float32)
    together = np.asarray(matmul(x, raw, kind))
    for first, last in [(0, 1), (149, 150), (17, 18), (3, 5), (40, 47), (1, 9), (5, 21), (60, 125), (0, 149)]:
        assert same_bits(matmul(x[first:last], raw, kind), together[first:last])
    order = np.random.default_rng(4).permutation(150)
    assert same_bits(matmul(x[order], raw, kind), together[order])


@pytest.mark.parametrize("rows", [1, 8])
def test_the_split_among_threads_changes_no_bits(rows: int):
    """A large product is shared among threads; a few of its outputs are computed by one."""
    kind = BY_NAME["Q4_K"]
    raw = jax.device_put(random_blocks(kind, 3001, 512))
    x = np.random.default_rng(5).standard_normal((rows, 512)).astype(np.float32)
    whole = np.asarray(matmul(x, raw, kind))
    for first, last in [(0, 1), (7, 12), (1500, 1517), (2998, 3001)]:
        assert same_bits(matmul(x, raw[first:last], kind), whole[:, first:last])
    assert all(same_bits(matmul(x, raw, kind), whole) for _ in range(20))


def test_numbers_below_the_normal_range_are_kept_by_every_thread():
    """XLA's threads flush them to zero, other threads do not; a result must not depend on which thread computes it."""
    kind = BY_NAME["Q8_0"]
    raw = np.zeros((4096, 34 * 16), np.uint8)
    raw[:, 0::34], raw[:, 1::34] = np.float16(1).view(np.uint16) & 255, np.float16(1).view(np.uint16) >> 8
    raw[:, 2::34] = 1
    x = np.full((1, 512), 2.0**-140, np.float32)
    assert (np.asarray(matmul(x, raw, kind)) == np.float32(16 * 2.0**-140)).all()


def test_nothing_times_something_is_zero_and_no_rows_give_no_rows():
    kind = BY_NAME["Q4_0"]
    raw = random_blocks(kind, 5, 64)
    assert matmul(np.zeros((0, 64), np.float32), raw, kind).shape == (0, 5)
    assert matmul(np.zeros((3, 64), np.float32), raw[:0], kind).shape == (3, 0)
    assert same_bits(
        matmul(np.zeros((3, 0), np.float32), np.zeros((5, 0), np.uint8), kind), np.zeros((3, 5), np.float32)
    )
    assert dequantize(raw[:0], kind, jnp.float32).shape == (0, 64)
    assert dequantize(raw[:, :0], kind, jnp.bfloat16).shape == (5, 0)


def test_works_in_loops_with_donated_arguments_and_under_vmap():
    kind = BY_NAME["Q8_0"]
    raw = random_blocks(kind, 64, 64)
    x = np.random.default_rng(6).standard_normal((3, 64)).astype(np.float32)

    @partial(jax.jit, donate_argnums=0)
    def thrice(x: jax.Array, raw: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, _: (native.matmul(x, raw, kind), None), x, length=3)[0]

    expected = matmul(matmul(matmul(x, raw, kind), raw, kind), raw, kind)
    assert same_bits(thrice(jnp.array(x), raw), expected)
    mapped = jax.vmap(lambda row: native.matmul(row[None], raw, kind)[0])(x)
    assert same_bits(mapped, matmul(x, raw, kind))
    assert same_bits(native.matmul(jnp.array(x), jnp.array(raw), kind), matmul(x, raw, kind))


def test_many_at_once_from_many_threads():
    """Independent products in one program, and several programs at once, share XLA's threads without waiting for each
    other."""
    kind = BY_NAME["Q6_K"]
    raws = [jax.device_put(random_blocks(kind, 700, 256, seed)) for seed in range(12)]
    x = np.random.default_rng(7).standard_normal((2, 256)).astype(np.float32)

    @jax.jit
    def all_of_them(x: jax.Array, raws: list[jax.Array]) -> list[jax.Array]:
        return [native.matmul(x, raw, kind) for raw in raws]

    expected = [np.asarray(matmul(x, raw, kind)) for raw in raws]

    def run(_: int) -> bool:
        return all(map(same_bits, all_of_them(x, raws), expected))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(run, range(100)))


def test_what_does_not_fit_together_is_refused():
    kind = BY_NAME["Q4_K"]
    raw, x = jnp.zeros((8, 288), jnp.uint8), jnp.zeros((2, 512), jnp.float32)
    with pytest.raises(ValueError, match="there is no kernel for IQ1_S"):
        native.matmul(x, raw, BY_NAME["IQ1_S"])
    with pytest.raises(ValueError, match="512 columns of activations do not fit a packed matrix of 256 columns"):
        native.matmul(x, raw[:, :144], kind)
    with pytest.raises(ValueError, match="whole Q4_K blocks of 144 bytes"):
        native.matmul(x, raw[:, :140], kind)
    with pytest.raises(ValueError, match=r"float32 \[rows, columns\], not bfloat16"):
        native.matmul(x.astype(jnp.bfloat16), raw, kind)
    with pytest.raises(ValueError, match="not to float16"):
        native.dequantize(raw, kind, jnp.float16)


@pytest.mark.parametrize(
    ("x", "raw", "out", "kind", "message"),
    [
        ((2, 512), (8, 289), (2, 8), 12, "rows of 289 bytes do not hold 512 weights of ggml type 12"),
        ((2, 500), (8, 288), (2, 8), 12, "rows of 288 bytes do not hold 500 weights"),
        ((2, 512), (8, 288), (2, 8), 99, "of ggml type 99"),
        ((2, 512), (8, 288), (2, 9), 12, "takes x"),
        ((2, 512), (288,), (2, 8), 12, "takes x"),
    ],
)
def test_the_kernel_itself_trusts_no_shape(x, raw, out, kind, message):
    assert native.available()
    call = jax.ffi.ffi_call("mistral_jax_packed_matmul", jax.ShapeDtypeStruct(out, jnp.float32))
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match=message):
        call(jnp.zeros(x, jnp.float32), jnp.zeros(raw, jnp.uint8), kind=np.int32(kind)).block_until_ready()


def test_without_a_compiler_the_reason_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    kernels = native.Kernels(tmp_path, compilers=("no-such-compiler",))
    with caplog.at_level(logging.INFO):
        reasons = [kernels.problem() for _ in range(3)]
    assert reasons == ["there is no C++ compiler (no-such-compiler) on the PATH"] * 3
    assert len(caplog.records) == 1


def test_a_failing_compiler_is_quoted_and_leaves_nothing(tmp_path: Path):
    compiler = tmp_path / "c++"
    compiler.write_text(
        "#!/bin/sh\necho 'kernels.cc:1: note: fine' >&2\necho 'kernels.cc:2: error: no such header' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    folder = tmp_path / "cache"
    reason = native.Kernels(folder, compilers=(str(compiler),)).problem()
    assert reason == f"{compiler} cannot compile the kernels: kernels.cc:2: error: no such header"
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def slow_compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Writes what the real one made: a part of it, then, after a while, the rest."""
    folder = tmp_path_factory.mktemp("compiler")
    native.Kernels(folder / "made").library()
    (made,) = (folder / "made").iterdir()
    compiler = folder / "c++"
    compiler.write_text(
        f"#!/bin/sh\nfor last; do :; done\nhead -c 9000 {made} > $last; sleep 0.3; tail -c +9001 {made} >> $last\n"
    )
    compiler.chmod(0o755)
    return str(compiler)


def test_compiling_twice_at_once_does_not_clash_and_a_broken_file_is_replaced(tmp_path: Path, slow_compiler: str):
    folder = tmp_path / "cache"

    def load(_: int) -> bool:
        return native.Kernels(folder, compilers=(slow_compiler,)).library().PackedMatmul is not None

    with ThreadPoolExecutor(3) as threads:
        assert all(threads.map(load, range(3)))
    (made,) = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    # A part of a library would crash the process that loads it.
    broken = tmp_path / "broken" / made.name
    broken.parent.mkdir(mode=0o700)
    broken.write_bytes(made.read_bytes()[:1000])
    assert native.Kernels(broken.parent, compilers=(slow_compiler,)).library().PackedMatmul is not None
    assert broken.read_bytes() == made.read_bytes()


def test_a_cache_folder_that_others_write_to_is_not_used(tmp_path: Path, slow_compiler: str):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o777)
    assert native.Kernels(folder, compilers=(slow_compiler,)).library().PackedMatmul is not None
    assert list(folder.iterdir()) == []


def test_one_thread_is_enough(tmp_path: Path):
    """With a pool of a single thread, which runs the program itself, nothing waits for a second one."""
    script = (
        "import jax, numpy as np; from conversion.weights.ggml_types import BY_NAME; from mistral_jax.quant.native "
        "import native\n"
        "kind, x = BY_NAME['Q8_0'], np.ones((2, 256), np.float32)\n"
        "raws = [np.full((4096, 272), i, np.uint8) for i in range(4)]\n"
        "f = jax.jit(lambda x, raws: [native.matmul(x, raw, kind) for raw in raws])\n"
        "for _ in range(20): jax.block_until_ready(f(x, raws))\n"
        "print('done')"
    )
    environment = {**os.environ, "NPROC": "1", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stdout == "done\n", run.stderr
