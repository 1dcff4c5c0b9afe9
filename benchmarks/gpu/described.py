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
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0 " + os.environ.get("XLA_FLAGS", "")

import jax
import jax_plugins.xla_cuda12  # noqa: F401  registers the compiler; without a driver it complains, which is harmless
from jax._src import xla_bridge
from jax.experimental import topologies

from benchmarks.gpu.devices import GPU
from mistral_jax.quant.placement import Placement


def target_of(gpu: GPU) -> str:
    """The description for XLA, a text proto."""
    major, minor = gpu.capability
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "shared_memory_per_core": gpu.shared_memory_per_core,
        "threads_per_core_limit": gpu.threads_per_core,
        "core_count": gpu.cores,
        "fpus_per_core": gpu.lanes,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": int(gpu.bandwidth),
        "l2_cache_size": gpu.l2,
        "clock_rate_ghz": gpu.clock_ghz,
        "device_memory_size": gpu.memory,
        "shared_memory_per_block_optin": gpu.shared_memory,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    fields = " ".join(f"{name}: {value}" for name, value in device.items())
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {major} minor: {minor} }} }}\n"
        'platform_name: "CUDA"\n'
        "dnn_version_info { major: 9 minor: 10 }\n"
        "runtime_version { major: 12 minor: 9 patch: 0 }\n"
        f'device_description_str: "{gpu.name}"\n'
    )


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
    topology = topologies.get_topology_desc(platform="cuda", target_config=target_of(gpu), topology=f"1x1x{count}")
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
