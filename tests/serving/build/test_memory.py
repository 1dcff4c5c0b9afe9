"""What fits into the memory of a GPU, known before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mistral_jax.checkpoint.description import ModelDescription, describe
from mistral_jax.hub.files import find_model
from mistral_jax.model.table_kinds import BLOCK
from mistral_jax.quant.placement import Placement
from serving.build import memory
from serving.build.memory import all_cache_bytes, memory_needs, sequence_length
from serving.settings.settings import Settings

MIB = 2**20


@pytest.fixture(scope="module")
def demo() -> ModelDescription:
    return describe(find_model("demo"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Placement]:
    """A placement on a GPU with so many free bytes."""

    def with_free(free: int) -> Placement:
        monkeypatch.setattr(Placement, "free_memory", lambda self: free)
        return Placement((SimpleNamespace(platform="gpu"),))  # type: ignore[arg-type]

    return with_free


def test_all_that_is_left_beside_weights_and_programs_is_for_the_cache(
    demo: ModelDescription, gpu: Callable[[int], Placement]
) -> None:
    settings = Settings(max_seqs=8, max_seq_len=None)
    needs = memory_needs(settings, demo, gpu(0), None)
    assert needs.temporary > 10 * MIB
    for tokens in (4 * BLOCK, 5 * BLOCK + 3, 9 * BLOCK):
        needed = needs.weights + needs.temporary
        needed += 8 * tokens * demo.config.kv_bytes_per_token(2)
        length = sequence_length(settings, demo, gpu(needed), None)
        assert length == tokens // BLOCK * BLOCK
        cache = all_cache_bytes(settings, demo, gpu(needed), None, length=length)
        assert cache <= needed - needs.weights - needs.temporary
    # A great deal: the model's context.
    assert sequence_length(settings, demo, gpu(2**40), None) == demo.config.max_position_embeddings


@pytest.mark.parametrize("chosen", [{}, {"max_seq_len": 1024}])
def test_what_does_not_fit_is_refused_with_numbers(
    chosen: dict[str, Any], demo: ModelDescription, gpu: Callable[[int], Placement]
) -> None:
    settings = Settings(max_seqs=64, **chosen)
    needs = memory_needs(settings, demo, gpu(0), None)
    with pytest.raises(ValueError, match=r"GiB of weights, [\d.]+ for programs and a cache for 64 sequences .* free"):
        sequence_length(settings, demo, gpu(needs.weights + needs.temporary + MIB), None)
    if chosen:
        cache = all_cache_bytes(settings, demo, gpu(0), None, length=1024)
        assert sequence_length(settings, demo, gpu(needs.weights + needs.temporary + cache), None) == 1024


def test_a_cpu_gets_the_length_that_is_asked_for(demo: ModelDescription, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Placement, "free_memory", lambda self: 0)
    assert sequence_length(Settings(max_seq_len=512), demo, Placement.default(), None) == 512
    with pytest.raises(ValueError, match="a context of at most 2048"):
        sequence_length(Settings(max_seq_len=4096), demo, Placement.default(), None)
    assert memory.memory_needs(Settings(), demo, Placement.default(), None).temporary == 0
