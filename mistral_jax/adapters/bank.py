"""The adapters of a model by name: which numbers and rank rows of the bank each has, and how they get there.

The bank has a fixed size, `capacity` adapters and `R` rank rows, part of which may be free. An adapter that is loaded
later takes free rank rows, wherever they are: programs that were compiled stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import jax
import numpy as np

from conversion.adapters.modules import PARTS, ModuleKey, parts_of
from conversion.weights.tensor_source import Array
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.low_rank import PROJECTIONS, AdapterBank, LowRank, part_features
from mistral_jax.placement import Placement
from mistral_jax.quant.array import dense, padded
from mistral_jax.quant.dot import storable_axis, storable_shape


class Factors(Protocol):
    """An adapter's factors, read one module at a time. `conversion.adapters.lora.files.LoRAFiles` is one."""

    @property
    def name(self) -> str: ...

    @property
    def rank(self) -> int:
        """The largest of its modules."""
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
    """Its place among the weights of a `Mixture`."""
    rows: tuple[int, ...]
    """Its rank rows."""
    rank: int
    parts: tuple[str, ...]
    """What it changes, in the order of `PARTS`."""


SPARE_RANK = 16
"""Largest rank of an adapter that is loaded later, where nobody says."""

ONE_PRODUCT_BYTES = 2**20
"""Largest B of a projection with several parts that is kept as one matrix, zeros included: below this, fewer products
are faster than fewer bytes."""


class BankFullError(ValueError):
    """An adapter needs more than is free."""


class AdapterSet:
    """Names, and the bank that belongs to them. The bank is replaced (its arrays donated) by `load` and `unload`.

    Not thread-safe: one owner, who also owns the device.
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
        """Put adapters on the device, the first as number 0.

        Args:
          loras: checked to fit the model (`conversion.adapters.lora.files.check_fits`).
          dtype: of the factors.
          spare: adapters of at most `spare_rank` for which room is left in every part.
          apart: keep the B of each part by itself: zeros between them would not stay zero if the bank were trained.
        Raises:
          ValueError: two adapters have one name.
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
        """One projection's factors, filled on the host. Host memory: these."""
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
        """The number and the rank rows that an adapter would get.

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
        """Add an adapter, checked to fit the model. Nothing is compiled that `warm_up` did not compile.

        Raises:
          BankFullError, ValueError: see `room_for`.
          WeightFileError: see `Factors.read`; the bank is then as it was.
        """
        number, rows = self.room_for(lora)
        entry = _entry(lora, number, rows)
        # Read all before the first write: a broken file must leave nothing behind.
        read = {key: lora.read(key) for key in lora.modules}
        self._replace(entry, {key: (lora.modules[key].scale, *pair) for key, pair in read.items()})
        self.entries[lora.name] = entry
        return entry

    def unload(self, name: str) -> None:
        """Free what an adapter holds. No sequence may still use it.

        Raises:
          KeyError: there is no such adapter.
        """
        self._replace(self.entries[name], {})
        del self.entries[name]

    def warm_up(self) -> None:
        """Compile what `load` and `unload` run; the bank stays as it is."""
        nobody = AdapterEntry(name="", number=0, rows=(), rank=0, parts=())
        self._replace(nobody, {})
        jax.block_until_ready(self.bank)

    def _replace(self, entry: AdapterEntry, factors: Mapping[ModuleKey, tuple[float, Array, Array]]) -> None:
        """Overwrite the rank rows of an entry: with factors where it has some, with zeros elsewhere."""
        width = max(self.largest_spare_rank, 1)
        # Rows beyond the bank are dropped by the scatter.
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
    """Bytes of the bank of an `AdapterSet` with these arguments."""
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
    """Rank rows for adapters and the room beside them: a number that products need no padding for."""
    wanted = sum(lora.rank for lora in loras) + spare * spare_rank
    # They are outputs of the product with A, and what the product with B sums over.
    return storable_axis(wanted)


def _adapted_parts(loras: Sequence[Factors], spare: int) -> dict[str, tuple[str, ...]]:
    """The parts that some adapter may change, by projection; any, where some may be loaded later."""
    parts = PARTS if spare else parts_of(key for lora in loras for key in lora.modules)
    adapted = {name: tuple(part for part in fused if part in parts) for name, fused in PROJECTIONS.items()}
    return {name: chosen for name, chosen in adapted.items() if chosen}


def _is_one_product(out_features: Sequence[tuple[str, int]], parts: int, rank_rows: int, itemsize: int) -> bool:
    """Whether the B of a projection's parts are kept as one matrix."""
    rows = sum(size for _, size in out_features)
    return len(out_features) > 1 and rows * parts * rank_rows * itemsize <= ONE_PRODUCT_BYTES


def _entry(lora: Factors, number: int, rows: tuple[int, ...]) -> AdapterEntry:
    return AdapterEntry(name=lora.name, number=number, rows=rows, rank=lora.rank, parts=parts_of(lora.modules))


def _write_rows(
    low_rank: LowRank, rows: jax.Array, a: jax.Array, b: tuple[jax.Array, ...], scale: jax.Array
) -> LowRank:
    """Overwrite rank rows. `low_rank` is donated.

    Args:
      rows: int32 [r]; those out of bounds are not written.
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
    """The B of several parts, [out_p, R] each, as one [out, P * R] with zeros between."""
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
