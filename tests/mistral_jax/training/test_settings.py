"""Settings: what makes no sense is refused by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

import pytest

from mistral_jax.training.settings import LoRATrainingSettings, XLoRATrainingSettings


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"epochs": 0.0}, "epochs is 0.0; expected a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"final_learning_rate": 1.5}, "expected a fraction"),
        ({"steps": 3, "warmup_steps": 4}, "warmup_steps is 4, and there are only 3 steps"),
        ({"validation_split": 1.0}, "validation_split is 1.0"),
        ({"too_long": "squeeze"}, "expected one of refuse, skip, cut"),
        ({"max_length": 1}, "max_length is 1; expected at least 2"),
        ({"accumulate": -1}, "accumulate is -1"),
        ({"rank": 0}, "rank is 0"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"targets": ("q_proj", "lm_head")}, "targets is 'lm_head'; expected some of q_proj"),
        ({"targets": ()}, "targets is empty"),
        ({"targets": ("q_proj", "q_proj")}, "naming a layer twice"),
        ({"save_dtype": "int8"}, "save_dtype is 'int8'"),
    ],
)
def test_lora(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        LoRATrainingSettings(**changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"size": 0}, "size is 0"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"adapter_learning_rate": 0.0}, "adapter_learning_rate is 0.0; expected a number above 0"),
        ({"adapter_learning_rate": 1e-3, "alone": 1.0}, "alone is 1.0; expected a number from 0 to below 1"),
        ({"alone": 0.5}, "alone is for experts that are trained; give adapter_learning_rate"),
        ({"dropout": -0.1}, "dropout is -0.1"),
    ],
)
def test_xlora(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        XLoRATrainingSettings(**changes)


@pytest.mark.parametrize("kind", [LoRATrainingSettings, XLoRATrainingSettings])
def test_every_field_is_documented(kind: type) -> None:
    hints = get_type_hints(kind, include_extras=True)
    assert all(isinstance(hints[item.name].__metadata__[0], str) for item in fields(kind))
