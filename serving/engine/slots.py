"""The slots of an engine, for those who watch it."""

from __future__ import annotations

from collections.abc import Sequence

from mistral_jax.runtime.buckets import PrefillChunk
from serving.engine.messages import SlotStatus
from serving.engine.scheduler import LiveSequence


def slot_statuses(sequences: Sequence[LiveSequence[PrefillChunk] | None]) -> list[SlotStatus]:
    """How far the sequence in each slot is."""
    return [_status(slot, sequence) for slot, sequence in enumerate(sequences)]


def _status(slot: int, sequence: LiveSequence[PrefillChunk] | None) -> SlotStatus:
    if sequence is None:
        return SlotStatus(id=slot)
    prompt = len(sequence.prompt)
    return SlotStatus(
        id=slot,
        params=sequence.params,
        prompt_tokens=prompt,
        processed=prompt if sequence.is_ready or sequence.steps else 0 if sequence.use is None else sequence.use.ran,
        generated=sequence.clock.tokens,
        max_tokens=sequence.max_tokens,
        adapters=sequence.request.adapters,
    )
