"""LoRA and X-LoRA equal PEFT. The goldens and their maker: `tests/goldens/make_xlora_goldens.py`."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from conversion.adapters.xlora.files import open_xlora
from mistral_jax.model.mistral import Mistral
from tests.parity_xlora import (
    BOUND,
    GOLDENS,
    LORAS,
    MIXTURES,
    PAIRS,
    SETTINGS,
    Golden,
    Subject,
    assemble,
    cached,
    load_base,
    weights_of,
    whole,
)

pytestmark = pytest.mark.slow(by="file")

# Layerwise with unequal layers, top-k with its softmax, a scaling pass with adapters.
THROUGH_CACHES = "08"


@pytest.fixture(scope="module")
def base() -> Mistral:
    return load_base()


@pytest.mark.parametrize("name", LORAS)
def test_fixed_weights_equal_the_reference(base: Mistral, name: str) -> None:
    golden = Golden.of_lora(name)
    ours = whole(Subject.of_loras(base, LORAS[name]), golden.whole_text)
    assert golden.errors(ours).logits <= BOUND
    assert golden.chosen(ours) == golden.greedy.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("number", PAIRS)
def test_mixtures_equal_the_reference(base: Mistral, number: str, tmp_path: Path) -> None:
    """Logits, scalings, and after each beginning of the reference's greedy text the same next token."""
    golden = Golden.of_mixture(number)
    ours = whole(Subject.of_mixture(base, assemble(number, tmp_path / "mixture")), golden.whole_text)
    errors = golden.errors(ours)
    assert errors.logits <= BOUND
    assert errors.scalings is not None
    assert errors.scalings <= BOUND
    assert golden.chosen(ours) == golden.greedy.tolist()


def test_a_mixture_through_the_caches_equals_the_reference(base: Mistral, tmp_path: Path) -> None:
    """In chunks, token by token, and generating; the command of `tests.parity_xlora` does it with all of them."""
    golden = Golden.of_mixture(THROUGH_CACHES)
    subject = Subject.of_mixture(base, assemble(THROUGH_CACHES, tmp_path / "mixture"))
    errors = golden.errors(cached(subject, golden.whole_text))
    assert errors.logits <= BOUND
    assert errors.scalings is not None
    assert errors.scalings <= BOUND
    assert golden.generated(subject)


def test_a_mixture_as_peft_saves_it_is_the_same_mixture(tmp_path: Path) -> None:
    """The same names of modules and values, beside what PEFT puts there without need."""
    number = SETTINGS["peft_saved"]
    hub, peft = open_xlora(assemble(number, tmp_path / "hub")), open_xlora(GOLDENS / "peft")
    assert peft.layer_index == hub.layer_index
    assert peft.num_columns == hub.num_columns
    for (weight, bias), (other_weight, other_bias) in zip(peft.classifier, hub.classifier, strict=True):
        np.testing.assert_array_equal(weight, np.asarray(other_weight, np.float32))
        np.testing.assert_array_equal(np.asarray(bias), np.asarray(other_bias, np.float32))
    for ours, theirs in zip(peft.adapters, hub.adapters, strict=True):
        assert ours.modules == theirs.modules
        for key in theirs.modules:
            for factor, other in zip(ours.read(key), theirs.read(key), strict=True):
                np.testing.assert_array_equal(factor, np.asarray(other, np.float32))
    same = ("enable_softmax", "enable_softmax_topk", "layerwise_scalings", "xlora_depth", "softmax_temperature")
    for field in (*same, "top_k_lora", "scaling_pass_value", "global_scaling_weight"):
        assert getattr(peft.config, field) == getattr(hub.config, field), field


def test_goldens_cover_what_they_should() -> None:
    """A golden cannot drop out unseen: any two values of different settings occur together in those that are always
    run."""
    values = {
        "adapters": {("a", "b", "c"), ("d", "c", "a"), ("d", "c", "a", "b")},
        "depth": {1, 2, 3},
        "layerwise": {True, False},
        "temperature": {1.0, 0.7, None},
        "top_k": {None, 1, 2},
        "softmax_topk": {True, False},
        "scaling_pass": {"0", "0.5", "1/n"},
        "global_weight": {1.0, 1.3},
        "dropout": {0.0, 0.2},
        "relu": {True, False},
        "bias": {True, False},
    }
    # Without a hidden layer there is no ReLU.
    missing = {(("depth", 1), ("relu", False))}
    cases = []
    for number in PAIRS:
        config = json.loads((GOLDENS / "mixtures" / number / "xlora_config.json").read_text())
        cases.append({"adapters": tuple(config["adapters"]), **MIXTURES[number]})
    for (name, some), (other, more) in itertools.combinations(values.items(), 2):
        for value, another in itertools.product(some, more):
            present = any(case[name] == value and case[other] == another for case in cases)
            assert present != (((name, value), (other, another)) in missing), (name, value, other, another)


def test_a_top_k_of_one_more_would_show(base: Mistral, tmp_path: Path) -> None:
    """The bound is tight enough to see the weights of adapters that should not have been chosen."""
    number = "04"
    assert MIXTURES[number]["top_k"] == 1
    golden = Golden.of_mixture(number)
    folder = assemble(number, tmp_path / "mixture")
    path = folder / "xlora_config.json"
    path.write_text(path.read_text().replace('"top_k_lora": 1', '"top_k_lora": 2'))
    errors = golden.errors(whole(Subject.of_mixture(base, folder), golden.whole_text))
    assert errors.logits > 1e-2
    assert errors.scalings is not None
    assert errors.scalings <= BOUND, "scalings come before top-k, of a scaling pass that is the base model's"


def test_weights_are_what_the_definition_says() -> None:
    """Of the check itself: the weights that it expects of given scalings."""
    number = next(n for n, s in MIXTURES.items() if s["top_k"] == 2 and s["softmax_topk"] and s["global_weight"] == 1.3)
    weights = weights_of(np.array([0.2, -1.0, 0.7, 0.1]), number)
    total = np.exp(0.2) + np.exp(0.7)
    np.testing.assert_allclose(weights, 1.3 * np.array([np.exp(0.2) / total, 0, np.exp(0.7) / total, 0]))
