"""GPUs: what XLA needs to know to compile for one, and what bounds the time of a program.

Figures of NVIDIA's data sheets and of CUDA's tables of capabilities.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LAUNCH = 2e-6
"""Seconds that a kernel costs besides its work: an assumption, until it is measured."""


@dataclass(frozen=True, kw_only=True)
class GPU:
    """One kind of GPU."""

    name: str
    capability: tuple[int, int]
    """CUDA's compute capability."""
    cores: int
    """Streaming multiprocessors."""
    lanes: int
    """Float32 units of each."""
    clock_ghz: float
    memory: int
    """Bytes."""
    bandwidth: float
    """Of the memory, bytes per second."""
    l2: int
    """Bytes of the cache that all cores share."""
    shared_memory: int
    """Bytes that a block of threads may use at most."""
    shared_memory_per_core: int
    threads_per_core: int
    tensor_flops: float
    """Dense bfloat16 operations per second of the tensor cores."""

    def seconds(self, *, moved: int, operations: int, kernels: int) -> float:
        """A bound of what a program can reach: bytes over bandwidth or operations over the peak rate, whichever is
        larger, and a launch for each kernel."""
        return max(moved / self.bandwidth, operations / self.tensor_flops) + kernels * LAUNCH


_HOPPER = GPU(
    name="NVIDIA H100 80GB HBM3",
    capability=(9, 0),
    cores=132,
    lanes=128,
    clock_ghz=1.98,
    memory=84929347584,
    bandwidth=3.35e12,
    l2=50 * 2**20,
    shared_memory=232448,
    shared_memory_per_core=233472,
    threads_per_core=2048,
    tensor_flops=989e12,
)

GPUS = {
    "h100": _HOPPER,
    "h200": replace(_HOPPER, name="NVIDIA H200", memory=150754820096, bandwidth=4.8e12),
    "a100": GPU(
        name="NVIDIA A100-SXM4-80GB",
        capability=(8, 0),
        cores=108,
        lanes=64,
        clock_ghz=1.41,
        memory=85097971712,
        bandwidth=2.04e12,
        l2=40 * 2**20,
        shared_memory=166912,
        shared_memory_per_core=167936,
        threads_per_core=2048,
        tensor_flops=312e12,
    ),
    "l4": GPU(
        name="NVIDIA L4",
        capability=(8, 9),
        cores=58,
        lanes=128,
        clock_ghz=2.04,
        memory=23580639232,
        bandwidth=0.3e12,
        l2=48 * 2**20,
        shared_memory=101376,
        shared_memory_per_core=102400,
        threads_per_core=1536,
        tensor_flops=121e12,
    ),
    "rtx4090": GPU(
        name="NVIDIA GeForce RTX 4090",
        capability=(8, 9),
        cores=128,
        lanes=128,
        clock_ghz=2.52,
        memory=25386352640,
        bandwidth=1.008e12,
        l2=72 * 2**20,
        shared_memory=101376,
        shared_memory_per_core=102400,
        threads_per_core=1536,
        tensor_flops=165e12,
    ),
}
"""By short name."""


def gpu_of(device_kind: str) -> GPU | None:
    """The GPU that JAX calls by this name; None if it is not among `GPUS`."""
    return next((gpu for gpu in GPUS.values() if gpu.name == device_kind), None)
