"""The share of a GPU's memory, with a driver that is made up."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from serving.build import gpus
from serving.build.gpus import SHARE, GPUMemory, choose_device, gpu_memory, share_of
from serving.settings.settings import Settings

GIB = 2**30


def memory(free: float, total: float = 80, processes: tuple[int, ...] = ()) -> GPUMemory:
    return GPUMemory(name="H100", total=int(total * GIB), free=int(free * GIB), processes=processes)


class NVMLError(Exception):
    pass


@dataclass
class FakeDriver:
    """As much of `pynvml` as is called."""

    gpus: dict[str, GPUMemory]
    """By UUID, in the driver's order."""
    fails: str = ""
    """The name of a function that raises."""
    NVMLError: type[Exception] = NVMLError
    calls: list[str] = field(default_factory=list[str])

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fails:
            raise NVMLError("not supported")

    def nvmlInit(self) -> None:
        self._called("init")

    def nvmlShutdown(self) -> None:
        self._called("shutdown")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return list(self.gpus)[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in self.gpus:
            raise NVMLError("not found")
        return uuid

    def nvmlDeviceGetName(self, handle: str) -> str:
        return self.gpus[handle].name

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        self._called("memory")
        return SimpleNamespace(total=self.gpus[handle].total, free=self.gpus[handle].free)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid) for pid in self.gpus[handle].processes]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*gpus._OF_XLA, "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(gpus, "_chosen", None)
    monkeypatch.setattr(gpus, "pynvml", None)
    monkeypatch.setattr(gpus, "jax_may_use_gpus", lambda: True)


def share() -> str | None:
    import os

    return os.environ.get(SHARE)


def test_an_empty_gpu_gives_the_usual_share_and_a_shared_one_less(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert share_of(memory(79), None, 0) == 0.9
    assert not caplog.records
    assert share_of(memory(20.5, processes=(17, 4)), None, 0) == pytest.approx(0.25)
    assert "GPU 0 (H100) has 20.5 of 80.0 GiB free (processes that use it: 17, 4): the server takes 20.0" in caplog.text


def test_a_share_that_is_asked_for_is_given_or_refused_with_numbers() -> None:
    assert share_of(memory(70), 0.5, 1) == 0.5
    assert share_of(memory(79.5), 0.98, 1) == 0.98
    with pytest.raises(
        ValueError, match=r"GPU 1 .* has 30.0 of 80.0 .* 0.5 needs more; .* take at most 0.36, or choose"
    ):
        share_of(memory(30), 0.5, 1)


def test_a_full_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0.8 of 80.0 GiB free \(processes that use it: 9\): next to nothing is left"):
        share_of(memory(0.8, processes=(9,)), None, 0)
    with pytest.raises(ValueError, match="needs more; stop what holds it, or choose"):
        share_of(memory(0.1), 0.5, 0)


def test_the_driver_is_asked_for_the_gpu_that_cuda_numbers_so(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver({f"GPU-{i}": memory(10 + i, processes=(i,)) for i in range(3)})
    monkeypatch.setattr(gpus, "pynvml", driver)
    assert gpu_memory(1) == memory(11, processes=(1,))
    assert driver.calls == ["init", "memory", "shutdown"]
    assert gpu_memory(3) is None
    for visible, found in {
        "2,0": 12,
        "GPU-1": 11,
        " 1 ": 11,
        "MIG-7": None,
        "": None,
        "9": None,
        "GPU-x": None,
    }.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        wanted = None if found is None else memory(found, processes=(found - 10,))
        assert gpu_memory(0) == wanted, visible


def test_gpus_of_several_kinds_are_numbered_only_by_the_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    other = GPUMemory(name="L4", total=24 * GIB, free=20 * GIB, processes=())
    monkeypatch.setattr(gpus, "pynvml", FakeDriver({"GPU-0": memory(5), "GPU-1": other}))
    assert gpu_memory(1) is None
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert gpu_memory(1) == other


@pytest.mark.parametrize("fails", ["init", "memory"])
def test_a_driver_that_does_not_tell(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver({"GPU-0": memory(50)}, fails=fails)
    monkeypatch.setattr(gpus, "pynvml", driver)
    assert gpu_memory(0) is None
    assert ("shutdown" in driver.calls) is (fails != "init")
    choose_device(Settings())
    assert share() == "0.9000"
    choose_device(Settings(gpu_memory_utilization=0.3))
    assert share() == "0.3000"


def test_the_share_is_set_before_jax_starts(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(gpus, "pynvml", FakeDriver({"GPU-0": memory(40.5)}))
    choose_device(Settings())
    assert share() == "0.5000"
    choose_device(Settings(gpu_memory_utilization=0.25))
    assert share() == "0.2500"
    # Here JAX finds only a CPU.
    assert "--gpu-memory-utilization does nothing here" in caplog.text
    choose_device(Settings(device="cpu"))


def test_what_users_say_to_xla_themselves_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "pynvml", FakeDriver({"GPU-0": memory(0.1)}))
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    choose_device(Settings())
    assert share() is None
    with pytest.raises(ValueError, match="and the variable XLA_PYTHON_CLIENT_PREALLOCATE both say how much"):
        choose_device(Settings(gpu_memory_utilization=0.5))
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE")
    monkeypatch.setenv(SHARE, ".7")
    choose_device(Settings())
    assert share() == ".7"


def test_a_gpu_that_jax_does_not_use_may_be_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "pynvml", FakeDriver({"GPU-0": memory(0.1)}))
    with pytest.raises(ValueError, match="next to nothing is left"):
        choose_device(Settings())
    monkeypatch.setattr(gpus, "jax_may_use_gpus", lambda: False)
    choose_device(Settings())
    assert share() is None


def test_jax_uses_gpus_if_it_is_installed_for_them_and_not_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    installed = {"jax-cuda13-plugin"}
    monkeypatch.setattr(gpus, "_is_installed", installed.__contains__)
    monkeypatch.setattr(gpus, "jax", SimpleNamespace(config=SimpleNamespace(jax_platforms=None)))
    assert gpus.jax_may_use_gpus()
    for platforms, may in {"cpu": False, "cuda,cpu": True, "gpu": True, "": True}.items():
        monkeypatch.setattr(gpus, "jax", SimpleNamespace(config=SimpleNamespace(jax_platforms=platforms)))
        assert gpus.jax_may_use_gpus() is may
    installed.clear()
    assert not gpus.jax_may_use_gpus()
    monkeypatch.undo()
    assert gpus._is_installed("jax")
    assert not gpus._is_installed("jax-of-another-world")
