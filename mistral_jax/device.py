"""Devices by the names that people use, and the memory that they have left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import psutil

if TYPE_CHECKING:
    # jax.Device is this class, under a name that type checkers take for a variable.
    from jaxlib._jax import Device
else:
    Device = Any

__all__ = ["Device", "choose_device", "free_memory"]


def choose_device(wanted: str) -> Device:
    """The device for `auto`, `cpu`, `gpu` or `gpu:N`.

    Raises:
      ValueError: there is no such device.
    """
    platform, _, number = wanted.partition(":")
    if platform == "auto":
        return jax.devices()[0]
    try:
        devices = jax.devices(platform)
    except RuntimeError as error:
        raise ValueError(
            f"device {wanted}: JAX finds no {platform} here (found: {jax.default_backend()}). For NVIDIA GPUs install "
            "mistral-jax-server[cuda13] or mistral-jax-server[cuda12]; `mistral-jax doctor` shows what is there."
        ) from error
    index = int(number or 0)
    if index >= len(devices):
        raise ValueError(f"device {wanted}: there are only {len(devices)} such devices, numbered from 0")
    return devices[index]


def free_memory(device: Device) -> int:
    """Bytes that can still be allocated on a device."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    return psutil.virtual_memory().available
