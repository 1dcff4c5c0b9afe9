"""Sampling parameters in llama.cpp's names."""

from __future__ import annotations

from collections.abc import Sequence

from mistral_jax.runtime.sampling.params import SamplingParams
from serving.api.schemas import GenerationSettings


def generation_settings(params: SamplingParams, *, repeat_last_n: int, samplers: Sequence[str]) -> GenerationSettings:
    """The settings of a request, without the texts in it.

    Args:
      repeat_last_n: number of last tokens that the repetition penalty counts.
      samplers: llama.cpp's names of what is applied, in this order.
    """
    limit = -1 if params.max_tokens is None else params.max_tokens
    return GenerationSettings(
        n_predict=limit,
        max_tokens=limit,
        seed=-1 if params.seed is None else params.seed,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        typical_p=params.typical_p,
        top_n_sigma=params.top_n_sigma,
        xtc_probability=params.xtc_probability,
        xtc_threshold=params.xtc_threshold,
        dry_multiplier=params.dry_multiplier,
        dry_base=params.dry_base,
        dry_allowed_length=params.dry_allowed_length,
        dry_penalty_last_n=params.dry_penalty_last_n,
        repeat_last_n=repeat_last_n,
        repeat_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        n_probs=params.logprobs or 0,
        ignore_eos=params.ignore_eos,
        samplers=list(samplers),
    )
