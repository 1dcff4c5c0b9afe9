"""C++ kernels for products with packed weights on a CPU, and for unpacking them.

XLA's CPU backend unpacks blocks one element at a time, far below memory bandwidth. The C++ files in this folder run at
memory bandwidth. The machine's C++ compiler builds them for its processor when they are first needed; the result is
kept in the user's cache folder. Without a compiler everything falls back to XLA: check `available` before calling
`matmul` or `dequantize`.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path

import jax
import jax.ffi
import jax.numpy as jnp
import numpy as np

from conversion.weights.ggml_types import GGMLType

_log = logging.getLogger(__name__)

KINDS = frozenset(
    ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4")
)
"""Names of the types that the kernels support."""

_HERE = Path(__file__).parent
_SOURCES = (_HERE / "integer_kernels.cc", _HERE / "kernels.cc")
"""Compiled at the same time."""
_FOLDER = Path("~/.cache/mistral-jax/native")
_COMPILERS = ("c++", "g++", "clang++")
# No implicit fused multiply-add: unpacked weights have the bits of the reference.
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-pthread",
    "-w",
)
# Target this processor: the first flag that the compiler accepts. Some compilers for ARM know only the second.
_TARGETS = (("-march=native",), ("-mcpu=native",), ())
_COMPILE_SECONDS = 120

_MATMUL = "mistral_jax_packed_matmul"
_DEQUANTIZE = "mistral_jax_packed_dequantize"
_INTEGER_MATMUL = "mistral_jax_integer_matmul"
_INTERLEAVE = "mistral_jax_interleave_rows"


class NativeError(Exception):
    """The kernels are not available on this machine; the message says why."""


def available(kind: GGMLType | None = None) -> bool:
    """Whether `matmul` and `dequantize` work here for weights of type `kind` (None: at all). The first call compiles
    (seconds)."""
    return (kind is None or kind.name in KINDS) and unavailable_because() is None


def unavailable_because() -> str | None:
    """Why the kernels are not available on this machine; None if they are. The first call compiles (seconds)."""
    return _kernels.problem()


def matmul(x: jax.Array, raw: jax.Array, kind: GGMLType) -> jax.Array:
    """`x` float32 [R, in] times the packed matrix `raw` uint8 [out, row_bytes] of type `kind`, transposed: float32 [R,
    out].

    Computed in float32, without rounding activations. A row of the result has the same bits for every number and order
    of rows, and for every number of threads. Reads each weight once for up to 64 rows. CPU only; works under `jax.jit`.

    Raises:
      ValueError: types or shapes do not match.
      NativeError: not `available`.
    """
    _check(raw, kind)
    if x.ndim != 2 or x.dtype != jnp.float32:
        raise ValueError(f"activations must be float32 [rows, columns], not {x.dtype} {list(x.shape)}")
    if x.shape[1] != _columns(raw, kind):
        raise ValueError(
            f"{x.shape[1]} columns of activations do not fit a packed matrix of {_columns(raw, kind)} columns"
        )
    result = jax.ShapeDtypeStruct((x.shape[0], raw.shape[0]), jnp.float32)
    return jax.ffi.ffi_call(_MATMUL, result, vmap_method="sequential")(x, raw, kind=np.int32(kind.id))


def dequantize(
    raw: jax.Array,
    kind: GGMLType,
    dtype: jax.typing.DTypeLike = jnp.float32,
    *,
    first: jax.Array | int = 0,
    count: int | None = None,
) -> jax.Array:
    """The plain matrix: uint8 [rows, row_bytes] of type `kind` -> float32 or bfloat16 [count, columns].

    Unlike slicing `raw`, choosing rows makes no copy. In float32 the result has the bits of `gguf.quants`; bfloat16 is
    that, rounded to nearest, ties to even. CPU only; works under `jax.jit`, where rows out of range are an error at run
    time.

    Args:
      first: the first row; may be a traced int32 scalar if `count` is given.
      count: number of rows; None: all rows from `first` on.
    Raises:
      ValueError: types or shapes do not match.
      NativeError: not `available`.
    """
    _check(raw, kind)
    if dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"weights are unpacked to float32 or bfloat16, not to {jnp.dtype(dtype)}")
    if count is None:
        if not isinstance(first, int):
            raise ValueError("the number of rows must be known before the program runs: give `count`, too")
        count = raw.shape[0] - first
    result = jax.ShapeDtypeStruct((count, _columns(raw, kind)), jnp.dtype(dtype))
    call = jax.ffi.ffi_call(_DEQUANTIZE, result, vmap_method="sequential")
    return call(raw, jnp.asarray(first, jnp.int32), kind=np.int32(kind.id))


def interleave(raw: jax.Array, kind: GGMLType, tile_bytes: int) -> jax.Array:
    """Rows of a packed matrix, sixteen interleaved, for `integer_matmul`: uint8 [out, row_bytes] -> uint8 [ceil(out /
    16), tile_bytes]. Nothing is rounded; missing rows are zeros. CPU only; works under `jax.jit`.

    Raises:
      ValueError: types or shapes do not match.
      NativeError: not `available`.
    """
    _check(raw, kind)
    tiles = jax.ShapeDtypeStruct((-(-raw.shape[0] // 16), tile_bytes), jnp.uint8)
    return jax.ffi.ffi_call(_INTERLEAVE, tiles)(raw, kind=np.int32(kind.id))


def integer_matmul(x: jax.Array, tiles: jax.Array, kind: GGMLType, outputs: int) -> jax.Array:
    """`x` float32 [R, in] times a matrix [outputs, in] that `interleave` has made, transposed: float32 [R, outputs].

    Each 32 activations are rounded to 8 bits with one scale; integers are multiplied and summed exactly. A row of the
    result has the same bits for every number and order of rows, for every number of threads and on every processor
    with a fused multiply-add. CPU only; works under `jax.jit`.

    Raises:
      ValueError: `x` is not float32 [R, in]. Shapes that do not match are an error at run time.
      NativeError: not `available`.
    """
    if x.ndim != 2 or x.dtype != jnp.float32:
        raise ValueError(f"activations must be float32 [rows, columns], not {x.dtype} {list(x.shape)}")
    if reason := unavailable_because():
        raise NativeError(reason)
    result = jax.ShapeDtypeStruct((x.shape[0], outputs), jnp.float32)
    return jax.ffi.ffi_call(_INTEGER_MATMUL, result, vmap_method="sequential")(x, tiles, kind=np.int32(kind.id))


def _check(raw: jax.Array, kind: GGMLType) -> None:
    if kind.name not in KINDS:
        raise ValueError(f"there is no kernel for {kind.name}; expected one of {', '.join(sorted(KINDS))}")
    if raw.ndim != 2 or raw.dtype != jnp.uint8 or raw.shape[1] % kind.block_bytes:
        raise ValueError(
            f"packed weights must be uint8 [rows, bytes], whole {kind.name} blocks of {kind.block_bytes} bytes in "
            "each row,"
            f" not {raw.dtype} {list(raw.shape)}"
        )
    if reason := unavailable_because():
        raise NativeError(reason)


def _columns(raw: jax.Array, kind: GGMLType) -> int:
    return raw.shape[1] // kind.block_bytes * kind.block_size


class Kernels:
    """The compiled kernels of one process: compiled once, at the first request, by the thread that makes it."""

    def __init__(self, folder: Path, compilers: tuple[str, ...] = _COMPILERS) -> None:
        self._folder = folder
        self._compilers = compilers
        self._lock = threading.Lock()
        self._asked = False
        self._problem: str | None = None

    def problem(self) -> str | None:
        """Why the kernels are not available, logged once; None: they are registered with XLA."""
        with self._lock:
            if not self._asked:
                self._asked = True
                try:
                    _register(self.library())
                except (NativeError, OSError) as error:
                    self._problem = str(error)
                    _log.info("packed weights are unpacked by XLA, slowly: %s", error)
            return self._problem

    def library(self) -> ctypes.CDLL:
        """The loaded library, compiled unless the cache folder has it.

        Raises:
          NativeError: there is no compiler, or it fails.
          OSError: the library cannot be written or loaded.
        """
        if os.name != "posix":
            raise NativeError(f"the kernels are compiled on Linux and macOS, not on {platform.system()}")
        folder = self._folder.expanduser()
        if not _make_private(folder):
            with tempfile.TemporaryDirectory() as temporary:
                return ctypes.CDLL(str(self._compile(Path(temporary) / "kernels.so")))
        fingerprint = _fingerprint()
        for path in folder.glob(f"{fingerprint}-*.so"):
            if path.stem == _content_name(fingerprint, path):
                return ctypes.CDLL(str(path))
            _log.info("%s is damaged: compiling again", path)
        with tempfile.TemporaryDirectory(dir=folder, prefix="compiling-") as temporary:
            made = self._compile(Path(temporary) / "kernels.so")
            # Atomic: several processes may do this at once.
            path = made.replace(folder / f"{_content_name(fingerprint, made)}.so")
        return ctypes.CDLL(str(path))

    def _compile(self, path: Path) -> Path:
        compiler = next((found for name in self._compilers if (found := shutil.which(name))), None)
        if compiler is None:
            raise NativeError(f"there is no C++ compiler ({', '.join(self._compilers)}) on the PATH")
        errors: list[str] = []
        for target in _TARGETS:
            objects = [path.with_suffix(f".{source.stem}.o") for source in _SOURCES]
            include = ("-isystem", jax.ffi.include_dir())
            problem = _run(
                [compiler, *_FLAGS, *target, *include, "-c", str(source), "-o", str(made)]
                for source, made in zip(_SOURCES, objects, strict=True)
            ) or _run([[compiler, "-shared", "-pthread", *map(str, objects), "-o", str(path)]])
            if problem is None and path.exists():
                return path
            errors.append(problem or "it wrote no library")
        raise NativeError(f"{compiler} cannot compile the kernels: {errors[0]}")


def _run(commands: Iterable[list[str]]) -> str | None:
    """Run commands at the same time. What went wrong with the first that failed; None: nothing.

    Raises:
      NativeError: one did not finish in time.
    """
    running = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    problem = None
    try:
        for process in running:
            _, told = process.communicate(timeout=_COMPILE_SECONDS)
            if process.returncode != 0 and problem is None:
                lines = [line for line in told.splitlines() if "error" in line] or told.splitlines()
                problem = "; ".join(lines[:3]) or f"exit status {process.returncode}"
    except subprocess.TimeoutExpired as error:
        raise NativeError(f"{error.cmd[0]} did not finish within {_COMPILE_SECONDS} seconds") from None
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return problem


def _content_name(fingerprint: str, path: Path) -> str:
    """A name with the hash of the contents: a damaged file must not be loaded, as it can crash the process."""
    return f"{fingerprint}-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def _register(library: ctypes.CDLL) -> None:
    jax.ffi.register_ffi_target(_MATMUL, jax.ffi.pycapsule(library.PackedMatmul), platform="cpu")
    jax.ffi.register_ffi_target(_DEQUANTIZE, jax.ffi.pycapsule(library.PackedDequantize), platform="cpu")
    jax.ffi.register_ffi_target(_INTEGER_MATMUL, jax.ffi.pycapsule(library.IntegerMatmul), platform="cpu")
    jax.ffi.register_ffi_target(_INTERLEAVE, jax.ffi.pycapsule(library.InterleaveRows), platform="cpu")


def _make_private(folder: Path) -> bool:
    """Create a folder for code that is executed. False: it is not writable, or other users can write to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & 0o022 and os.access(folder, os.W_OK)


def _fingerprint() -> str:
    """A hash of what the machine code depends on: the source, the flags, XLA's interface and the processor."""
    parts = [
        *(source.read_text() for source in sorted((*_SOURCES, *_HERE.glob("*.h")))),
        repr((_FLAGS, _TARGETS)),
        version("jaxlib"),
        platform.machine(),
        _processor(),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _processor() -> str:
    """The first processor's model and instruction sets: machines may share a home folder."""
    facts = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU ")
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return "".join(line for line in takewhile(str.strip, lines) if line.startswith(facts))
    except OSError:
        return platform.processor()


# XLA registers targets by name for the whole process, so there is only one instance.
_kernels = Kernels(_FOLDER)
