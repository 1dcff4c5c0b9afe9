"""Sampling parameters as plain data."""

from __future__ import annotations

import dataclasses

from mistral_jax.runtime.sampling.params import SamplingParams


def test_a_sequence_of_a_call_differs_in_its_limit_and_seed_only() -> None:
    call = SamplingParams(
        temperature=0.3, top_k=5, top_p=0.9, logit_bias={3: 1.5}, stop=("x",), logprobs=2, ignore_eos=True
    )
    own = call.for_sequence(max_tokens=7, seed=11)
    assert own == dataclasses.replace(call, max_tokens=7, seed=11)
    assert (call.max_tokens, call.seed) == (None, None)
    assert own.logit_bias is call.logit_bias  # neither copied nor checked again, however many sequences there are
