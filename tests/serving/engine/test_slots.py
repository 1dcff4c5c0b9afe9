"""What is told of each slot, while its sequence moves through prefill and decoding."""

from __future__ import annotations

from typing import Any

from mistral_jax.runtime.buckets import PrefillChunk
from mistral_jax.runtime.sampling.params import SamplingParams
from serving.engine.messages import Request, SlotStatus
from serving.engine.scheduler import LiveSequence, Scheduler
from serving.engine.slots import slot_statuses
from tests.serving.engine.test_scheduler import roomy_cache


def test_a_slot_tells_how_far_its_sequence_is() -> None:
    chunks = [PrefillChunk(0, 16, 16), PrefillChunk(16, 3, 16)]
    sizes: Any = {"slots": 2, "queue_limit": 1, "chunk_budget": 16}
    cache = roomy_cache(2)
    scheduler = Scheduler[PrefillChunk](**sizes, chunks=lambda _request, _start: list(chunks), cache=cache)
    params = SamplingParams(seed=1, max_tokens=5)
    request = Request(request_id="a", prompt=tuple(range(20)), params=params)
    sequence = LiveSequence[PrefillChunk](request=request, deliver=lambda _events: None, max_tokens=5)
    assert slot_statuses(scheduler.slots) == [SlotStatus(id=0), SlotStatus(id=1)]
    assert not slot_statuses(scheduler.slots)[0].is_processing

    scheduler.submit([sequence])
    scheduler.admit()
    told = SlotStatus(id=0, params=params, prompt_tokens=20, processed=0, generated=0, max_tokens=5)
    assert slot_statuses(scheduler.slots) == [told, SlotStatus(id=1)]
    scheduler.next_round()
    assert slot_statuses(scheduler.slots)[0].processed == 16
    scheduler.next_round()
    assert slot_statuses(scheduler.slots)[0].processed == 20
    sequence.clock.tokens = 3
    assert (slot_statuses(scheduler.slots)[0].generated, slot_statuses(scheduler.slots)[0].held) == (3, 23)
    scheduler.retire(sequence)
    assert slot_statuses(scheduler.slots) == [SlotStatus(id=0), SlotStatus(id=1)]
