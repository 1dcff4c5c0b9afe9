"""Embeddings in notebooks, over the tiny model of `test_language_model`."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax.notebook.language_model import LanguageModel
from tests.mistral_jax.notebook.test_language_model import CONFIG, folder, model

__all__ = ["folder", "model"]


def test_embeddings_are_pooled_hidden_states_of_length_one(model: LanguageModel) -> None:
    tokens = model.encode("Once upon a time")
    hidden = np.asarray(model.module.hidden_states(jnp.asarray([tokens]))[0], np.float64)
    for pooling, expected in (("mean", hidden.mean(axis=0)), ("last", hidden[-1])):
        found = model.embed("Once upon a time", pooling=pooling)
        assert (found.shape, found.dtype) == ((CONFIG.hidden_size,), np.float32)
        np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-5)
        np.testing.assert_array_equal(model.embed(tokens, pooling=pooling), found)


def test_several_texts_have_the_bits_that_each_has_alone(model: LanguageModel) -> None:
    texts = ["Once", "upon a time " * 4, "x"]
    found = model.embed(texts)
    assert found.shape == (3, CONFIG.hidden_size)
    for text, vector in zip(texts, found, strict=True):
        np.testing.assert_array_equal(model.embed(text), vector)
    assert model.embed([]).shape == (0, CONFIG.hidden_size)


def test_dimensions_are_cut_and_scaled_again(model: LanguageModel) -> None:
    whole, short = model.embed("Once"), model.embed("Once", dimensions=7)
    np.testing.assert_allclose(short, whole[:7] / np.linalg.norm(whole[:7]), atol=1e-6)
    for wrong in (0, CONFIG.hidden_size + 1):
        with pytest.raises(ValueError, match=f"expected 1 to {CONFIG.hidden_size}"):
            model.embed("Once", dimensions=wrong)


def test_a_text_that_does_not_fit_is_refused(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="a prompt of 65 tokens: expected 1 to 64"):
        model.embed([3] * 65)
