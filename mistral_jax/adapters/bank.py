"""The adapters of a model by name, with the number and rank rows of each in the bank; loading and unloading them.

The bank has a fixed size, `capacity` adapters and `R` rank rows, some of which may be free. An adapter that is loaded
later takes any free rank rows, so compiled programs stay valid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import jax
import numpy as np

from conversion.adapters.modules import PARTS, ModuleKey, parts_of
from conversion.weights.stored_shapes import storable_axis, storable_shape
from conversion.weights.tensor_source import Array
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.low_rank import PROJECTIONS, AdapterBank, LowRank, part_features
from mistral_jax.quant.array import dense, padded
from mistral_jax.quant.placement import Placement


class Factors(Protocol):
    """An adapter's factors, read one module at a time; for example `conversion.adapters.lora.files.LoRAFiles`."""

    @property
    def name(self) -> str: ...

    @property
    def rank(self) -> int:
        """The largest rank of its modules."""
        ...

    @property
    def modules(self) -> Mapping[ModuleKey, ModuleScale]: ...

    def read(self, key: ModuleKey) -> tuple[Array, Array]:
        """A [r, in] and B [out, r]."""
        ...


class ModuleScale(Protocol):
    @property
    def rank(self) -> int: ...

    @property
    def scale(self) -> float: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterEntry:
    """One adapter in the bank."""

    name: str
    number: int
    """Its index on axis A of a `Mixture`'s weights."""
    rows: tuple[int, ...]
    """Its rank rows."""
    rank: int
    parts: tuple[str, ...]
    """The parts that it changes, in the order of `PARTS`."""


SPARE_RANK = 16
"""Default for the largest rank of an adapter that is loaded later."""

ONE_PRODUCT_BYTES = 2**20
"""Largest B, zeros included, of a projection with several parts that is stored as one matrix: up to this size fewer
products are faster than fewer bytes."""


class BankFullError(ValueError):
    """An adapter needs more room than is free."""


class AdapterSet:
    """Adapters by name, and their bank. `load` and `unload` replace the bank and donate its arrays.

    Not thread-safe: owned by the thread that owns the device.
    """

    def __init__(
        self,
        config: MistralConfig,
        loras: Sequence[Factors],
        *,
        dtype: jax.typing.DTypeLike,
        placement: Placement | None = None,
        spare: int = 0,
        spare_rank: int = SPARE_RANK,
        apart: bool = False,
    ) -> None:
        """Put adapters on the device, numbered from 0.

        Args:
          loras: already checked to fit the model (`conversion.adapters.lora.files.check_fits`).
          dtype: of the factors.
          spare: number of further adapters, of at most `spare_rank`, to reserve room for in every part.
          apart: store the B of each part separately, for training: the zeros of a common matrix would not stay zero.
        Raises:
          ValueError: two adapters have the same name.
          WeightFileError: see `Factors.read`.
        """
        names = [lora.name for lora in loras]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two adapters have the name {sorted(twice)[0]!r}; give each a name of its own")
        self.config = config
        self.dtype = np.dtype(dtype)
        self.capacity = len(loras) + spare
        self.largest_spare_rank = spare_rank if spare else 0
        self._placement = placement or Placement.default()
        self._apart = apart
        self.entries: dict[str, AdapterEntry] = {}
        first = 0
        for number, lora in enumerate(loras):
            rows = tuple(range(first, first + lora.rank))
            self.entries[lora.name] = _entry(lora, number, rows)
            first += lora.rank
        self.rank_rows = _rank_rows(loras, spare, spare_rank)
        self._write = jax.jit(_write_rows, donate_argnums=0, out_shardings=self._placement.sharding())
        self.bank = self._build(loras, _adapted_parts(loras, spare))

    @property
    def nbytes(self) -> int:
        return self.bank.nbytes

    def _build(self, loras: Sequence[Factors], adapted: Mapping[str, tuple[str, ...]]) -> AdapterBank:
        owner = np.zeros((self.rank_rows,), np.int32)
        for entry in self.entries.values():
            owner[list(entry.rows)] = entry.number
        layers = tuple(
            {projection: self._projection(loras, layer, projection, parts) for projection, parts in adapted.items()}
            for layer in range(self.config.num_layers)
        )
        return AdapterBank(owner=self._put(owner), layers=layers)

    def _projection(self, loras: Sequence[Factors], layer: int, projection: str, adapted: tuple[str, ...]) -> LowRank:
        """One projection's factors, built on the host. Host memory: these factors."""
        R, features = self.rank_rows, part_features(self.config)
        P, columns = len(adapted), features[adapted[0]][1]
        a = np.zeros((P, R, columns), self.dtype)
        b = [np.zeros((features[part][0], R), self.dtype) for part in adapted]
        scale = np.zeros((P, R), np.float32)
        for lora in loras:
            rows = self.entries[lora.name].rows
            for i, part in enumerate(adapted):
                module = lora.modules.get(ModuleKey(layer, part))
                if module is None:
                    continue
                chosen = slice(rows[0], rows[0] + module.rank)
                a[i, chosen], b[i][:, chosen] = lora.read(ModuleKey(layer, part))
                scale[i, chosen] = module.scale
        out_features = tuple((part, features[part][0]) for part in PROJECTIONS[projection])
        is_one = not self._apart and _is_one_product(out_features, P, R, self.dtype.itemsize)
        return LowRank(
            a=padded(self._put(a.reshape(P * R, columns))),
            b=padded(self._put(_one_matrix(b, adapted, out_features)))
            if is_one
            else tuple(padded(self._put(x)) for x in b),
            scale=self._put(scale),
            parts=adapted,
            out_features=out_features,
        )

    def _put(self, x: Array) -> jax.Array:
        return self._placement.put(x)

    def room_for(self, lora: Factors) -> tuple[int, tuple[int, ...]]:
        """The number and rank rows that an adapter would get.

        Raises:
          BankFullError: there is not enough room; the message says what is free.
          ValueError: the name is taken.
        """
        if lora.name in self.entries:
            raise ValueError(f"an adapter {lora.name!r} is loaded already; unload it first, or choose another name")
        if lora.rank > self.largest_spare_rank:
            raise BankFullError(
                f"the adapter has rank {lora.rank}; room was left for adapters of rank {self.largest_spare_rank}"
            )
        numbers = set(range(self.capacity)) - {entry.number for entry in self.entries.values()}
        taken = {row for entry in self.entries.values() for row in entry.rows}
        free = [row for row in range(self.rank_rows) if row not in taken]
        if not numbers or len(free) < lora.rank:
            raise BankFullError(f"all {self.capacity} places for adapters are taken; unload one first")
        return min(numbers), tuple(free[: lora.rank])

    def load(self, lora: Factors) -> AdapterEntry:
        """Add an adapter that was checked to fit the model. Compiles nothing after `warm_up`.

        Raises:
          BankFullError, ValueError: see `room_for`.
          WeightFileError: see `Factors.read`; the bank is unchanged.
        """
        number, rows = self.room_for(lora)
        entry = _entry(lora, number, rows)
        # Read everything before the first write: a broken file must leave the bank unchanged.
        read = {key: lora.read(key) for key in lora.modules}
        self._replace(entry, {key: (lora.modules[key].scale, *pair) for key, pair in read.items()})
        self.entries[lora.name] = entry
        return entry

    def unload(self, name: str) -> None:
        """Free an adapter's number and rank rows. No sequence may still use it.

        Raises:
          KeyError: there is no such adapter.
        """
        self._replace(self.entries[name], {})
        del self.entries[name]

    def warm_up(self) -> None:
        """Compile what `load` and `unload` run; the bank's contents do not change."""
        empty = AdapterEntry(name="", number=0, rows=(), rank=0, parts=())
        self._replace(empty, {})
        jax.block_until_ready(self.bank)

    def _replace(self, entry: AdapterEntry, factors: Mapping[ModuleKey, tuple[float, Array, Array]]) -> None:
        """Overwrite the rank rows of an entry with its factors, and with zeros where it has none."""
        width = max(self.largest_spare_rank, 1)
        # The scatter drops rows beyond the bank.
        rows = np.full((width,), self.rank_rows, np.int32)
        rows[: len(entry.rows)] = entry.rows
        layers: list[dict[str, LowRank]] = []
        for layer, projections in enumerate(self.bank.layers):
            changed: dict[str, LowRank] = {}
            for projection, low_rank in projections.items():
                columns = low_rank.a.shape[1]
                a = np.zeros((len(low_rank.parts), width, columns), self.dtype)
                outs = dict(low_rank.out_features)
                b = [np.zeros((outs[part], width), self.dtype) for part in low_rank.parts]
                scale = np.zeros((len(low_rank.parts), width), np.float32)
                for i, part in enumerate(low_rank.parts):
                    if (found := factors.get(ModuleKey(layer, part))) is not None:
                        value, own_a, own_b = found
                        scale[i, : len(own_a)], a[i, : len(own_a)], b[i][:, : len(own_a)] = value, own_a, own_b
                changed[projection] = self._write(low_rank, rows, a, tuple(b), scale)
            layers.append(changed)
        owner = np.array(self.bank.owner)
        owner[list(entry.rows)] = entry.number
        self.bank = AdapterBank(owner=self._put(owner), layers=tuple(layers))


def bank_bytes(
    config: MistralConfig,
    loras: Sequence[Factors],
    *,
    dtype: jax.typing.DTypeLike,
    spare: int = 0,
    spare_rank: int = SPARE_RANK,
) -> int:
    """Bytes of the bank that an `AdapterSet` with these arguments allocates."""
    features, itemsize = part_features(config), np.dtype(dtype).itemsize
    R = _rank_rows(loras, spare, spare_rank)
    layer = 0
    for projection, adapted in _adapted_parts(loras, spare).items():
        P, outs = len(adapted), [(part, features[part][0]) for part in PROJECTIONS[projection]]
        is_one = _is_one_product(outs, P, R, itemsize)
        matrices = [(P * R, features[adapted[0]][1])]
        matrices += [(sum(size for _, size in outs), P * R)] if is_one else [(features[part][0], R) for part in adapted]
        layer += sum(math.prod(storable_shape(*matrix)) for matrix in matrices) * itemsize + 4 * P * R
    return layer * config.num_layers + 4 * R


def _rank_rows(loras: Sequence[Factors], spare: int, spare_rank: int) -> int:
    """Number of rank rows for the adapters and the spare ones, rounded up so that products need no padding."""
    wanted = sum(lora.rank for lora in loras) + spare * spare_rank
    # They are the outputs of the product with A, and the product with B sums over them.
    return storable_axis(wanted)


def _adapted_parts(loras: Sequence[Factors], spare: int) -> dict[str, tuple[str, ...]]:
    """The parts that some adapter may change, by projection: all parts if adapters may be loaded later."""
    parts = PARTS if spare else parts_of(key for lora in loras for key in lora.modules)
    adapted = {name: tuple(part for part in fused if part in parts) for name, fused in PROJECTIONS.items()}
    return {name: chosen for name, chosen in adapted.items() if chosen}


def _is_one_product(out_features: Sequence[tuple[str, int]], parts: int, rank_rows: int, itemsize: int) -> bool:
    """Whether the B of a projection's parts are stored as one matrix."""
    rows = sum(size for _, size in out_features)
    return len(out_features) > 1 and rows * parts * rank_rows * itemsize <= ONE_PRODUCT_BYTES


def _entry(lora: Factors, number: int, rows: tuple[int, ...]) -> AdapterEntry:
    return AdapterEntry(name=lora.name, number=number, rows=rows, rank=lora.rank, parts=parts_of(lora.modules))


def _write_rows(
    low_rank: LowRank, rows: jax.Array, a: jax.Array, b: tuple[jax.Array, ...], scale: jax.Array
) -> LowRank:
    """Overwrite rank rows. `low_rank` is donated.

    Args:
      rows: int32 [r]; rows out of bounds are not written.
      a, b, scale: [P, r, in], [out_p, r] for each part, and [P, r].
    """
    P, R = low_rank.scale.shape
    dtype = low_rank.a.dtype
    stacked = dense(low_rank.a, dtype).reshape(P, R, -1).at[:, rows].set(a, mode="drop").reshape(low_rank.a.shape)
    if not isinstance(low_rank.b, tuple):
        cube = dense(low_rank.b, dtype).reshape(-1, P, R)
        first = 0
        for part, size in low_rank.out_features:
            if part in low_rank.parts:
                i = low_rank.parts.index(part)
                cube = cube.at[first : first + size, i, rows].set(b[i], mode="drop")
            first += size
        new_b = padded(cube.reshape(low_rank.b.shape))
    else:
        new_b = tuple(
            padded(dense(x, dtype).at[:, rows].set(y, mode="drop")) for x, y in zip(low_rank.b, b, strict=True)
        )
    return replace(low_rank, a=padded(stacked), b=new_b, scale=low_rank.scale.at[:, rows].set(scale, mode="drop"))


def _one_matrix(b: Sequence[Array], parts: Sequence[str], out_features: Sequence[tuple[str, int]]) -> Array:
    """The B of several parts, [out_p, R] each, as one block-diagonal [out, P * R]."""
    P, R = len(b), b[0].shape[1]
    out = sum(size for _, size in out_features)
    cube = np.zeros((out, P, R), b[0].dtype)
    first = 0
    for part, size in out_features:
        if part in parts:
            i = list(parts).index(part)
            cube[first : first + size, i] = b[i]
        first += size
    return cube.reshape(out, P * R)
