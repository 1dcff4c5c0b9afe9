"""A GPU without enough memory: said before a program runs, in one line."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks.make_random_model import shape
from mistral_jax.quant.placement import Placement
from mistral_jax.runtime.device_memory import DeviceMemoryError, allocating, check_room, temporary_bytes
from mistral_jax.runtime.runner import Runner
from serving.engine.engine import JaxEngine
from serving.engine.messages import EngineState
from tests.mistral_jax import tiny_adapters
from tests.serving.fakes import FakeTokenizer
from tests.serving.harness import wait_for

MIB = 2**20


def test_estimates_grow_with_what_programs_hold() -> None:
    sizes: dict[str, Any] = {"slots": 8, "chunks": (16, 256), "itemsize": 2}
    config = shape("7b")
    base = temporary_bytes(config, **sizes)
    assert 100 * MIB < base < 512 * MIB
    assert temporary_bytes(config, **sizes | {"slots": 64}) > base
    assert temporary_bytes(config, **sizes | {"chunks": (4096,)}) > 2 * base
    assert temporary_bytes(replace(config, vocab_size=131072), **sizes) > 2 * base
    assert temporary_bytes(config, **sizes, rank_rows=144, layerwise=True) > base


def test_a_program_that_needs_more_than_is_free_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: Any = SimpleNamespace(memory_analysis=lambda: SimpleNamespace(temp_size_in_bytes=100 * MIB))
    gpu = Placement((SimpleNamespace(platform="gpu"),))  # type: ignore[arg-type]
    monkeypatch.setattr(Placement, "free_memory", lambda self: 60 * MIB)
    with pytest.raises(DeviceMemoryError, match="needs 100 MiB while it runs, and 60 MiB are left"):
        check_room(compiled, gpu)
    check_room(compiled, Placement.default())
    monkeypatch.setattr(Placement, "free_memory", lambda self: 101 * MIB)
    check_room(compiled, gpu)
    check_room(jax.jit(lambda x: x + 1).lower(jnp.ones(3)).compile(), gpu)


def test_only_a_lack_of_memory_is_put_in_our_words() -> None:
    with pytest.raises(DeviceMemoryError, match=r"a cache of 2,000 MiB does not fit .*--max-seqs"):  # noqa: SIM117
        with allocating("a cache", 2000 * MIB):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2097152000 bytes."
            )
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), allocating("a cache", MIB):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


@pytest.mark.parametrize("at", ["new_state", "warm_up"])
def test_a_server_without_memory_says_so_in_one_line(
    at: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runner = Runner(tiny_adapters.model(), slots=2, length=64, chunks=(16,))

    def fails(*args: Any) -> Any:
        raise DeviceMemoryError("a cache of 2 MiB does not fit")

    monkeypatch.setattr(runner, at, fails)
    engine = JaxEngine(
        load=lambda report: runner, tokenizer=FakeTokenizer(), eos_ids={2}, slots=2, queue_limit=2, warm_up=True
    )
    engine.start()
    wait_for(lambda: engine.status.state is EngineState.FAILED, 30)
    assert engine.status.detail == "the model could not be loaded: a cache of 2 MiB does not fit"
    assert "Traceback" not in caplog.text
