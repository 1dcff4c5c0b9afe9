"""Loads a model: its Flax module with the weights on the device."""

from __future__ import annotations

import logging

from mistral_jax.checkpoint.description import ModelDescription
from mistral_jax.checkpoint.summary import summarize
from mistral_jax.checkpoint.weights import Progress, choose_dtype, load_weights, open_weights, stored_dtype
from mistral_jax.model.mistral import Mistral
from mistral_jax.quant.native import native
from mistral_jax.quant.placement import Placement
from mistral_jax.quant.plan import Activations, Quantization

logger = logging.getLogger("mistral_jax")


def load_module(
    description: ModelDescription,
    *,
    dtype: str = "auto",
    quant: Quantization = "auto",
    activations: Activations = "auto",
    placement: Placement | None = None,
    progress: Progress | None = None,
) -> Mistral:
    """Download missing weights, and load them to the device.

    Args:
      dtype: see `mistral_jax.checkpoint.weights.choose_dtype`.
      quant, activations: see `mistral_jax.quant.plan`.
      placement: None: JAX's default device.
    """
    source = open_weights(description.config, description.files.fetch_weights())
    target = placement or Placement.default()
    chosen = choose_dtype(dtype, stored_dtype(source), target.platform)
    module = load_weights(
        description.config,
        source,
        dtype=chosen,
        quant=quant,
        activations=activations,
        placement=target,
        progress=progress,
    )
    held = summarize(module)
    if target.platform == "cpu" and native.KINDS & held.bytes_by_form.keys() and not native.available():
        logger.warning(
            "decoding from packed weights is some ten times slower without a C++ compiler; install one, "
            "or unpack the weights while loading (--quant none; %.1f GiB)",
            held.weights * chosen.itemsize / 2**30,
        )
    return module
