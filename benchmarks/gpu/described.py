"""Compiling for an NVIDIA GPU that this machine does not have.

XLA compiles for a *described* GPU: no driver and no device are needed, only the compiler in `jax-cuda12-plugin`. What
comes out is the scheduled program that such a GPU would run: its kernels, copies and temporary memory. It says nothing
about time, and kernels are not tuned by timing them (`--xla_gpu_autotune_level=0`).

Import this module before JAX starts a backend: it makes that the CPU's, and sets XLA_FLAGS.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0 " + os.environ.get("XLA_FLAGS", "")

import jax
import jax_plugins.xla_cuda12  # noqa: F401  registers the compiler; without a driver it complains, which is harmless
from jax._src import xla_bridge
from jax.experimental import topologies

from mistral_jax.quant.placement import Placement


@dataclass(frozen=True, kw_only=True)
class GPU:
    """What XLA needs to know of a GPU, and what a prediction of time does (see `benchmarks.gpu_programs`)."""

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

    @property
    def target(self) -> str:
        """The description for XLA, a text proto."""
        major, minor = self.capability
        device = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "shared_memory_per_block": 49152,
            "shared_memory_per_core": self.shared_memory_per_core,
            "threads_per_core_limit": self.threads_per_core,
            "core_count": self.cores,
            "fpus_per_core": self.lanes,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 65535,
            "block_dim_limit_z": 65535,
            "memory_bandwidth": int(self.bandwidth),
            "l2_cache_size": self.l2,
            "clock_rate_ghz": self.clock_ghz,
            "device_memory_size": self.memory,
            "shared_memory_per_block_optin": self.shared_memory,
            "registers_per_core_limit": 65536,
            "registers_per_block_limit": 65536,
        }
        fields = " ".join(f"{name}: {value}" for name, value in device.items())
        return (
            f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {major} minor: {minor} }} }}\n"
            'platform_name: "CUDA"\n'
            "dnn_version_info { major: 9 minor: 10 }\n"
            "runtime_version { major: 12 minor: 9 patch: 0 }\n"
            f'device_description_str: "{self.name}"\n'
        )


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
"""By short name; figures of NVIDIA's data sheets and of CUDA's tables of capabilities."""

jax.config.update("jax_platforms", "cpu")
_canonical_platform = xla_bridge.canonicalize_platform


def _canonical_or_cuda(platform: str) -> str:
    """JAX asks for a running backend of this name, though none is needed (jax-ml/jax#23971)."""
    try:
        return _canonical_platform(platform)
    except RuntimeError:
        return "cuda"


xla_bridge.canonicalize_platform = _canonical_or_cuda


class DescribedPlacement(Placement):
    """A placement on described devices: "putting" an array there leaves its shape."""

    @property
    def platform(self) -> str:
        return "gpu"

    def put(self, arrays: Any, axis: int | None = None) -> Any:
        return shapes_on(arrays, self, axis)


def described(gpu: GPU, count: int = 1) -> DescribedPlacement:
    """Some described devices of one host."""
    topology = topologies.get_topology_desc(platform="cuda", target_config=gpu.target, topology=f"1x1x{count}")
    return DescribedPlacement(tuple(topology.devices))


def shapes_on(tree: Any, placement: Placement, axis: int | None = None) -> Any:
    """The shapes and types of a pytree of arrays, with a placement."""
    sharding = placement.sharding(axis)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


@contextmanager
def lowering_for(gpu: GPU) -> Generator[None]:
    """While programs are traced and lowered: Pallas asks which GPU it is."""
    device = jax.sharding.AbstractDevice(device_kind=gpu.name, num_cores=gpu.cores, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)):
        yield


def compile_for(gpu: GPU, program: Any, *arguments: Any, **static: Any) -> jax.stages.Compiled:
    """Compile a jitted function for arguments that are shapes on a described device.

    Args:
      arguments: pytrees of `jax.ShapeDtypeStruct` with shardings (see `shapes_on`), or host arrays.
    """
    with lowering_for(gpu):
        lowered = program.trace(*arguments, **static).lower(lowering_platforms=("cuda",))
    return lowered.compile()
