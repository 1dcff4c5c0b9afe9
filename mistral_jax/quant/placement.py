"""Placement of arrays: on one device, or sharded over several.

Over several devices only output axes are sharded (rows of matrices, heads of caches), and gathered before they are
summed over, so that one device computes each whole sum. Arrays that do not divide evenly are replicated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import psutil
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

if TYPE_CHECKING:
    # jax.Device is this class, but type checkers take that name for a variable.
    from jaxlib._jax import Device
else:
    Device = Any

__all__ = ["AXIS", "Device", "Placement", "choose_placement"]

AXIS = "devices"
"""The one axis of the mesh."""


@dataclass(frozen=True)
class Placement:
    """The devices of a model's arrays: weights, caches, adapters and all other inputs of its programs."""

    devices: tuple[Device, ...]

    @classmethod
    def default(cls) -> Placement:
        """JAX's default device."""
        return cls((jax.devices()[0],))

    @classmethod
    def of(cls, arrays: Any) -> Placement:
        """The placement of a pytree: the devices of its first array, in the order of their mesh."""
        sharding = jax.tree.leaves(arrays)[0].sharding
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return cls(tuple(sharding.mesh.devices.flat))
        return cls(tuple(sharding.device_set))

    @cached_property
    def mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), (AXIS,))

    @property
    def count(self) -> int:
        return len(self.devices)

    @property
    def device(self) -> Device:
        """The first device."""
        return self.devices[0]

    @property
    def platform(self) -> str:
        """For example cpu or gpu."""
        return self.device.platform

    @property
    def is_one_gpu(self) -> bool:
        """Whether the kernels for GPUs are worth a try."""
        return self.count == 1 and self.platform != "cpu"

    def divides(self, length: int) -> bool:
        """Whether an axis of this length is sharded over the devices."""
        return self.count > 1 and length % self.count == 0

    def sharding(self, axis: int | None = None) -> Sharding:
        """Args:
        axis: the axis to shard over the devices; None: replicate.
        """
        if self.count == 1:
            return SingleDeviceSharding(self.device)
        return NamedSharding(self.mesh, PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS))

    def put(self, arrays: Any, axis: int | None = None) -> Any:
        """Copy a pytree of host or device arrays to these devices. Args: see `sharding`."""
        return jax.device_put(arrays, self.sharding(axis))

    def put_pieces(self, pieces: Sequence[jax.Array]) -> jax.Array:
        """Join arrays of equal shape [n, ...], one for each device, to one [devices * n, ...] sharded along axis 0."""
        first, *rest = pieces[0].shape
        placed = [jax.device_put(piece, device) for piece, device in zip(pieces, self.devices, strict=True)]
        return jax.make_array_from_single_device_arrays((self.count * first, *rest), self.sharding(0), placed)

    def free_memory(self) -> int:
        """Bytes that can still be allocated on every device: the minimum over devices."""
        return min(map(_free_memory, self.devices))


def choose_placement(wanted: str) -> Placement:
    """The device for `auto`, `cpu`, `gpu` or `gpu:N`.

    Raises:
      ValueError: the device does not exist.
    """
    platform, _, number = wanted.partition(":")
    if platform == "auto":
        return Placement.default()
    try:
        devices = jax.devices(platform)
    except RuntimeError as error:
        raise ValueError(
            f"device {wanted}: JAX finds no {platform} here (found: {jax.default_backend()}). For NVIDIA GPUs install "
            "mistral-jax-server[cuda13] or mistral-jax-server[cuda12]; `mistral-jax doctor` lists the devices."
        ) from error
    index = int(number or 0)
    if index >= len(devices):
        raise ValueError(f"device {wanted}: there are only {len(devices)} such devices, numbered from 0")
    return Placement((devices[index],))


def _free_memory(device: Device) -> int:
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    return psutil.virtual_memory().available
