"""The optimizer: parts of the parameters may have a learning rate of their own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from mistral_jax.training.programs import OptimizerSettings, make_optimizer
from mistral_jax.training.settings import TrainingSettings


def test_a_part_of_the_parameters_learns_at_its_own_rate() -> None:
    settings = TrainingSettings(learning_rate=1e-2, clip_norm=0.0)
    params = {"classifier": jnp.ones(3), "experts": {"a": jnp.ones(2)}}
    gradient = {"classifier": jnp.array([1.0, -2.0, 3.0]), "experts": {"a": jnp.array([1.0, -2.0])}}
    changes = {}
    for rates in ({}, {"experts": 0.1}):
        transform, _ = make_optimizer(OptimizerSettings.of(settings, 100, rates))
        changes[bool(rates)], _ = jax.jit(transform.update)(gradient, transform.init(params), params)
    assert changes[True]["classifier"] == pytest.approx(changes[False]["classifier"])
    assert changes[True]["experts"]["a"] == pytest.approx(0.1 * changes[False]["experts"]["a"])
    assert float(changes[False]["experts"]["a"][0]) == pytest.approx(-1e-2 / 11, rel=1e-4)
