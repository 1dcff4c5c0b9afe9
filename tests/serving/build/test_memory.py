"""What fits into the memory of a GPU, known before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from mistral_jax.checkpoint.description import ModelDescription, describe
from mistral_jax.hub.files import find_model
from mistral_jax.model.table_kinds import BLOCK
from mistral_jax.quant.placement import Placement
from serving.build import memory
from serving.build.memory import memory_needs, plan_cache
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
    used, of_block = needs.weights + needs.temporary, BLOCK * demo.config.kv_bytes_per_token(2)
    for blocks in (4, 9):
        # One sequence may fill all of the pool but its spare block.
        plan = plan_cache(settings, demo, gpu(used + blocks * of_block + 3), None)
        assert plan.length == (blocks - 1) * BLOCK
        assert plan.blocks == (blocks,)
        assert plan.nbytes == blocks * of_block
    # A great deal: the model's context, for all slots.
    plan = plan_cache(settings, demo, gpu(2**40), None)
    assert plan.length == demo.config.max_position_embeddings
    assert plan.blocks == (8 * plan.length // BLOCK + 1,)
    # What is not enough for all slots is shared.
    plan = plan_cache(replace(settings, max_seq_len=1024), demo, gpu(used + 33 * of_block), None)
    assert (plan.length, plan.blocks) == (1024, (33,))


def test_slots_that_share_nothing_need_room_for_all(demo: ModelDescription, gpu: Callable[[int], Placement]) -> None:
    settings = Settings(max_seqs=8, max_seq_len=None)
    needs = memory_needs(settings, demo, gpu(0), None)
    of_block = BLOCK * demo.config.kv_bytes_per_token(2)
    free = needs.weights + needs.temporary + (8 * 4 + 1) * of_block
    plan = plan_cache(settings, demo, gpu(free), None, shared=False)
    assert (plan.length, plan.blocks) == (4 * BLOCK, (33,))


@pytest.mark.parametrize("chosen", [{}, {"max_seq_len": 1024}])
def test_what_does_not_fit_is_refused_with_numbers(
    chosen: dict[str, Any], demo: ModelDescription, gpu: Callable[[int], Placement]
) -> None:
    settings = Settings(max_seqs=64, **chosen)
    needs = memory_needs(settings, demo, gpu(0), None)
    said = r"GiB of weights, [\d.]+ for programs and a cache for one sequence .* free"
    with pytest.raises(ValueError, match=said):
        plan_cache(settings, demo, gpu(needs.weights + needs.temporary + MIB // 4), None)


def test_a_cpu_gets_the_length_that_is_asked_for(demo: ModelDescription, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Placement, "free_memory", lambda self: 0)
    plan = plan_cache(Settings(max_seq_len=512), demo, Placement.default(), None)
    assert (plan.length, plan.blocks) == (512, (8 * 4 + 1,))
    with pytest.raises(ValueError, match="a context of at most 2048"):
        plan_cache(Settings(max_seq_len=4096), demo, Placement.default(), None)
    assert memory.memory_needs(Settings(), demo, Placement.default(), None).temporary == 0


def test_the_cache_takes_the_memory_that_it_is_given(
    demo: ModelDescription, gpu: Callable[[int], Placement], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Settings(max_seqs=4, max_seq_len=512, cache_memory=0.25, dtype="bfloat16")
    (blocks,) = plan_cache(asked, demo, gpu(2**40), None).blocks
    of_block = BLOCK * demo.config.kv_bytes_per_token(2)
    # More than the slots can fill: it keeps prompts.
    assert blocks > 4 * 4
    assert 2**28 - of_block < blocks * of_block <= 2**28
    with pytest.raises(ValueError, match=r"--cache-memory 0.002: a sequence of 2048 tokens takes 0\.\d+ GiB; give"):
        plan_cache(Settings(max_seq_len=2048, cache_memory=0.002), demo, gpu(2**40), None)
    with pytest.raises(ValueError, match=r"take a smaller cache \(--cache-memory\)"):
        plan_cache(replace(asked, cache_memory=4.0), demo, gpu(2**31), None)
    monkeypatch.undo()
    (on_cpu,) = plan_cache(replace(asked, dtype="float32"), demo, Placement.default(), None).blocks
    assert on_cpu == pytest.approx(blocks / 2, abs=1)
