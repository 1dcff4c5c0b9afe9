"""GGUF files as a source of tensors under Hugging Face's names and in Hugging Face's order, and the reverse."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np

from conversion.dequantize import dequantize
from conversion.gguf.config import Shape, fields_of, naming, shape_of
from conversion.gguf.container.file import GGUFError, GGUFFile
from conversion.gguf.names import gguf_name, hf_names, is_scale, scale_name
from conversion.weights.decoder_weights import HEAD, Format, read_name
from conversion.weights.ggml_types import BY_NAME, GGMLType
from conversion.weights.tensor_names import RenamedSource, halves_to_pairs, pairs_to_halves, rotary_heads
from conversion.weights.tensor_source import Array, TensorSource

_CHUNK_BYTES = 2**20
"""Bytes of packed rows that are read at a time where they are reordered or unpacked: few enough for the cache of a
core."""
_CHUNK_VALUES = 2**19
"""Values unpacked at a time. The program that unpacks is compiled for this many, whatever the shape of the tensor."""


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """Location of a tensor: some rows of one in the file, with their order and factor."""

    name: str
    first: int
    shape: tuple[int, ...]
    heads: int | None
    """Rows are in adjacent pairs within each of this many heads; None: in Hugging Face's order."""
    scale: float
    """A factor of all values."""


class GGUFSource:
    """The text model of a GGUF file: float values by `read_into`, and the packed blocks themselves by `read_packed`.

    - The rows of q and k are brought into Hugging Face's order, packed or not.
    - A fused q, k and v is split.
    - Where a file has biases for some of the attention's projections, the others have zero biases; likewise the MLP's.
    - Weights with a scale beside them (NVFP4) are multiplied by it. Their stored type is F32, since their blocks alone
      are not their values.

    Raises:
      GGUFError: the model is not implemented, or the file has tensors that belong to none.
    """

    def __init__(self, gguf: GGUFFile) -> None:
        self._file = gguf
        with naming(gguf):
            self._stored = _stored_tensors(gguf, shape_of(gguf, fields_of(gguf)))
        self._zeros = _missing_biases(self._stored)

    def names(self) -> Iterable[str]:
        return [*self._stored, *self._zeros]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._zeros[name] if name in self._zeros else self._stored[name].shape

    def kind(self, name: str) -> GGMLType:
        """The type that a tensor is stored in; F32 for one whose blocks alone are not its values."""
        if name in self._zeros or self._stored[name].scale != 1:
            return BY_NAME["F32"]
        return self._file.tensors[self._stored[name].name].type

    def dtype(self, name: str) -> np.dtype[Any]:
        """float32 for packed blocks: the type that loses nothing."""
        kind = self.kind(name)
        return kind.dtype if kind.dtype is not None else np.dtype(np.float32)

    def read_into(self, name: str, out: Array) -> None:
        """See `TensorSource.read_into`: the values, unpacked."""
        if out.shape != self.shape(name) or not out.flags.c_contiguous:
            raise ValueError(
                f"{name}: destination {out.shape} does not fit tensor {self.shape(name)}, or is not contiguous"
            )
        if name in self._zeros:
            out[...] = 0
            return
        stored = self._stored[name]
        kind = self._file.tensors[stored.name].type
        if kind.dtype == out.dtype and stored.scale == 1:
            self._read(stored, out.reshape(stored.shape[0], -1).view(np.uint8))
            return
        flat = out.reshape(-1)
        done = 0
        for rows in self._chunks(stored):
            if stored.heads is not None:
                rows = pairs_to_halves(rows, len(rows) * stored.heads // stored.shape[0])
            for values in _unpacked(rows, kind, out.dtype if stored.scale == 1 else np.dtype(np.float32)):
                part = flat[done : done + values.size]
                np.copyto(part, values if stored.scale == 1 else values * np.float32(stored.scale), casting="unsafe")
                done += values.size

    def read_packed(self, name: str, out: Array) -> None:
        """Fill `out`, uint8 [rows, row_bytes] and C-contiguous, with a tensor's blocks (a plain type's elements), rows
        in order.

        Raises:
          GGUFError: the tensor has a scale beside it, so that its blocks alone are not its values.
        """
        stored = self._stored.get(name)
        if stored is None or stored.scale != 1:
            raise GGUFError(f"{name} is not stored as blocks that hold its values; read it as floats")
        rows, row_bytes = self._packed_shape(stored)
        if out.shape != (rows, row_bytes) or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(
                f"{name}: destination is {out.dtype} {out.shape}; expected contiguous uint8 {(rows, row_bytes)}"
            )
        self._read(stored, out)

    def close(self) -> None:
        self._file.close()

    def _packed_shape(self, stored: _Stored) -> tuple[int, int]:
        """Rows and bytes of a row; a vector's elements are its rows."""
        kind = self._file.tensors[stored.name].type
        return stored.shape[0], kind.row_bytes(stored.shape[1] if len(stored.shape) > 1 else 1)

    def _read(self, stored: _Stored, out: Array) -> None:
        """Fill `out` [rows, row_bytes] with packed rows in order: straight from the file where they are in order."""
        if stored.heads is None:
            self._read_rows(stored, 0, stored.shape[0], out)
            return
        halves = out.reshape(stored.heads, 2, -1, out.shape[1])
        head = 0
        for rows in self._chunks(stored):
            pairs = rows.reshape(-1, halves.shape[2], 2, out.shape[1])
            np.copyto(halves[head : head + len(pairs)], pairs.swapaxes(1, 2))
            head += len(pairs)

    def _chunks(self, stored: _Stored) -> Iterator[Array]:
        """Packed rows in the file's order, some at a time: uint8 [n, row_bytes] of whole heads, in a buffer that is
        reused."""
        rows, row_bytes = self._packed_shape(stored)
        unit = 1 if stored.heads is None else rows // stored.heads
        step = min(rows, max(1, _CHUNK_BYTES // (unit * row_bytes)) * unit)
        buffer = np.empty((step, row_bytes), np.uint8)
        for first in range(0, rows, step):
            part = buffer[: min(step, rows - first)]
            self._read_rows(stored, first, len(part), part)
            yield part

    def _read_rows(self, stored: _Stored, first: int, count: int, out: Array) -> None:
        """Rows as the file has them."""
        if len(stored.shape) > 1:
            self._file.read_raw_rows(stored.name, stored.first + first, count, out)
            return
        info = self._file.tensors[stored.name]
        raw = np.empty(info.nbytes, np.uint8)
        self._file.read_raw(stored.name, raw)
        start = stored.first + first
        out[...] = raw.reshape(info.shape[0], -1)[start : start + count]


def _stored_tensors(gguf: GGUFFile, shape: Shape) -> dict[str, _Stored]:
    """The location of each of a model's tensors, by Hugging Face name."""
    stored: dict[str, _Stored] = {}
    for name in gguf.tensors:
        if is_scale(name) and name.removesuffix(".scale") + ".weight" in gguf.tensors:
            continue
        for hf_name, part in _parts(gguf, name, shape):
            if hf_name in stored:
                raise GGUFError(f"both {stored[hf_name].name!r} and {name!r} hold {hf_name}")
            stored[hf_name] = part
    return stored


def _parts(gguf: GGUFFile, name: str, shape: Shape) -> Iterator[tuple[str, _Stored]]:
    """The tensors in a tensor of the file, under Hugging Face's names.

    Raises:
      GGUFError: its name is unknown, or its rows are not those of the heads.
    """
    names = hf_names(name)
    if not names:
        return
    info = gguf.tensors[name]
    if not 1 <= len(info.shape) <= 2:
        raise GGUFError(f"tensor {name!r} has shape {list(info.shape)}; expected a vector or a matrix")
    if len(info.shape) == 1 and info.type.dtype is None:
        raise GGUFError(
            f"tensor {name!r} is a vector in blocks of {info.type.name}; expected plain numbers, such as F32"
        )
    heads = [rotary_heads(hf_name, num_heads=shape.num_heads, num_kv_heads=shape.num_kv_heads) for hf_name in names]
    counts = [info.shape[0]]
    if len(names) > 1:
        fused = read_name(name, Format.GGUF)
        counts = [] if fused is None else list(fused.weight.part_rows(shape))
    if sum(counts) != info.shape[0] or any(
        n and count != n * shape.head_dim for n, count in zip(heads, counts, strict=True)
    ):
        raise GGUFError(
            f"tensor {name!r} has {info.shape[0]} rows, which are not those of {shape.num_heads} heads and "
            f"{shape.num_kv_heads} key-value heads of {shape.head_dim} dimensions"
        )
    scale = _scale(gguf, name) if name.endswith(".weight") else 1.0
    first = 0
    for hf_name, count, number in zip(names, counts, heads, strict=True):
        yield hf_name, _Stored(name=name, first=first, shape=(count, *info.shape[1:]), heads=number, scale=scale)
        first += count


def _scale(gguf: GGUFFile, name: str) -> float:
    """The factor of a weight."""
    info = gguf.tensors.get(scale_name(name))
    if info is None:
        return 1.0
    if info.elements != 1 or info.type.name != "F32":
        raise GGUFError(
            f"tensor {info.name!r} is {info.type_name} {list(info.shape)}; expected one F32, the factor of {name!r}"
        )
    raw = np.empty(4, np.uint8)
    gguf.read_raw(info.name, raw)
    scale = float(raw.view("<f4")[0])
    if not np.isfinite(scale):
        raise GGUFError(f"tensor {info.name!r} is {scale}; expected a finite factor of {name!r}")
    return scale


def _missing_biases(stored: dict[str, _Stored]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of biases that the file lacks and that are zeros: a model has them on all projections of a kind,
    or on none."""
    missing: dict[str, tuple[int, ...]] = {}
    read = {name: found for name in stored if (found := read_name(name, Format.HF)) is not None}
    biased = {found.weight.bias for found in read.values() if found.kind == "bias"}
    for name, found in read.items():
        bias = found._replace(kind="bias").spelled(Format.HF)
        if found.weight.bias in biased and bias not in stored:
            missing[bias] = stored[name].shape[:1]
    return missing


def _unpacked(rows: Array, kind: GGMLType, dtype: np.dtype[Any]) -> Iterator[Array]:
    """The values of packed rows [n, row_bytes] in order, flat, some at a time."""
    if kind.dtype is not None:
        # Norms and biases, mostly: a thousand values each, for which a program on a device would take longer than
        # numpy.
        yield rows.reshape(-1).view(kind.dtype).astype(dtype)
        return
    blocks = rows.reshape(-1, kind.block_bytes)
    step = _CHUNK_VALUES // kind.block_size
    device = _host_device()
    for first in range(0, len(blocks), step):
        part = blocks[first : first + step]
        padded = np.zeros((step, kind.block_bytes), np.uint8)
        padded[: len(part)] = part
        values = np.asarray(dequantize(padded, kind, dtype=dtype, device=device))
        yield values[: len(part)].reshape(-1)


@cache
def _host_device() -> Any:
    """JAX's CPU device; the default device where `JAX_PLATFORMS` excludes the CPU."""
    try:
        return jax.devices("cpu")[0]
    except RuntimeError:
        return None


class GGUFLayout(RenamedSource):
    """The tensors of a Hugging Face text model under the names and in the order of a GGUF file.

    Args:
      source: under Hugging Face's names; see `conversion.weights.tensor_names` for other checkpoints.
      tied: omit the output matrix, if there is one: it is the embedding.
    Raises:
      GGUFError: a tensor has no name in GGUF files.
    """

    def __init__(self, source: TensorSource, *, num_heads: int, num_kv_heads: int, tied: bool = False) -> None:
        names = [name for name in source.names() if not (tied and name == HEAD)]
        super().__init__(source, {gguf_name(name): name for name in names})
        self._heads = {
            gguf_name(name): rotary_heads(name, num_heads=num_heads, num_kv_heads=num_kv_heads) for name in names
        }

    def read_into(self, name: str, out: Array) -> None:
        super().read_into(name, out)
        heads = self._heads[name]
        if heads is not None:
            for head in out.reshape(heads, -1, *out.shape[1:]):
                head[...] = halves_to_pairs(head, 1)
