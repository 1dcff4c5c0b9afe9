"""How much memory of a GPU the server takes, settled before JAX starts.

XLA reserves a share of a GPU's memory at its first use, and tells nobody when it gets less. So the driver is asked
first what is free, as other processes may hold some of it.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
from dataclasses import dataclass

import jax

from mistral_jax.quant.placement import Placement, choose_placement
from serving.settings.settings import Settings

try:
    import pynvml
except ImportError:  # installed with the extras for CUDA
    pynvml = None

logger = logging.getLogger("mistral_jax.server")

USUAL_SHARE = 0.9
"""Of a GPU's memory; more is left to the driver, to the code of kernels and to libraries."""

BESIDE = 512 << 20
"""Bytes that CUDA takes of a GPU besides XLA's share, for each process."""

LEAST_SHARE = 0.01

SHARE = "XLA_CLIENT_MEM_FRACTION"
"""XLA's variable for its share of the memory."""

_OF_XLA = (SHARE, "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_ALLOCATOR")
"""Variables by which users say themselves how XLA reserves memory."""

_GIB = 2**30
_chosen: str | None = None
"""The share that this process has set."""


@dataclass(frozen=True, kw_only=True)
class GPUMemory:
    """The memory of a GPU, as its driver tells."""

    name: str
    total: int
    """Bytes."""
    free: int
    """Bytes."""
    processes: tuple[int, ...]
    """Numbers of the processes that compute on it."""


def choose_device(settings: Settings) -> Placement:
    """The device that the settings name. For a GPU, sets the share of its memory that XLA will reserve: call it before
    JAX uses a device.

    Raises:
      ValueError: the device does not exist, or has not that much free memory.
    """
    if settings.device != "cpu" and jax_may_use_gpus():
        _set_share(settings)
    placement = choose_placement(settings.device)
    if placement.platform == "cpu" and settings.gpu_memory_utilization is not None:
        logger.warning("--gpu-memory-utilization does nothing here: the model runs on a CPU")
    return placement


def jax_may_use_gpus() -> bool:
    """Whether JAX is installed for CUDA, and not told to use other devices only."""
    platforms: str | None = jax.config.jax_platforms
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return False
    return any(_is_installed(f"jax-cuda{version}-plugin") for version in (12, 13))


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _set_share(settings: Settings) -> None:
    global _chosen
    wanted = settings.gpu_memory_utilization
    theirs = [name for name in _OF_XLA if os.environ.get(name) and not (name == SHARE and os.environ[name] == _chosen)]
    if theirs:
        if wanted is not None:
            raise ValueError(
                f"--gpu-memory-utilization and the variable {theirs[0]} both say how much memory of a GPU to reserve; "
                "remove one of them"
            )
        return
    number = int(settings.device.partition(":")[2] or 0)
    memory = gpu_memory(number)
    share = (wanted or USUAL_SHARE) if memory is None else share_of(memory, wanted, number)
    _chosen = os.environ[SHARE] = f"{share:.4f}"


def share_of(memory: GPUMemory, wanted: float | None, number: int) -> float:
    """The share of a GPU's memory that is reserved.

    Args:
      wanted: None: the usual one, or less where other processes hold memory.
      number: of the GPU, for messages.
    Raises:
      ValueError: that much is not free.
    """
    possible = (memory.free - BESIDE) / memory.total
    state = f"GPU {number} ({memory.name}) has {memory.free / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free"
    if memory.processes:
        state += f" (processes that use it: {', '.join(map(str, memory.processes))})"
    if possible < (LEAST_SHARE if wanted is None else wanted):
        least = max(possible, 0.0)
        asked = "next to nothing is left" if wanted is None else f"--gpu-memory-utilization {wanted} needs more"
        lower = "" if least < LEAST_SHARE else f", take at most {int(least * 100) / 100}"
        raise ValueError(
            f"{state}: {asked}; stop what holds it{lower}, or choose another GPU with CUDA_VISIBLE_DEVICES"
        )
    share = min(USUAL_SHARE if wanted is None else wanted, possible)
    if wanted is None and share < USUAL_SHARE:
        logger.info("%s: the server takes %.1f GiB", state, share * memory.total / _GIB)
    return share


def gpu_memory(number: int) -> GPUMemory | None:
    """The memory of the GPU that CUDA gives this number; None: it is not known."""
    if pynvml is None:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None  # no driver
    try:
        handle = _handle(number)
        if handle is None:
            return None
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        processes = tuple(process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
        name = pynvml.nvmlDeviceGetName(handle)
        return GPUMemory(name=str(name), total=int(memory.total), free=int(memory.free), processes=processes)
    except pynvml.NVMLError as error:
        logger.debug("the driver does not tell the memory of GPU %d: %s", number, error)
        return None
    finally:
        pynvml.nvmlShutdown()


def _handle(number: int) -> object | None:
    """The driver's handle of CUDA's GPU `number`; None where it is not known which that is."""
    assert pynvml is not None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        if number >= len(names):
            return None
        if names[number].startswith("GPU-"):
            return pynvml.nvmlDeviceGetHandleByUUID(names[number])
        if not names[number].isdecimal():
            return None  # a part of a GPU
        number = int(names[number])
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    # CUDA numbers the fastest first, the driver by their place on the bus: of GPUs of one kind that is the same.
    alike = len({pynvml.nvmlDeviceGetName(handle) for handle in handles}) == 1
    by_bus = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    return handles[number] if number < len(handles) and (alike or by_bus) else None
