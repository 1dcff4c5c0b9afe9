"""Heat maps show the numbers they are given, with readable names."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("agg")

import matplotlib.pyplot as plt

from conversion.adapters.modules import ModuleKey
from mistral_jax.notebook.heat_maps import TOKENS_PER_LINE, layers_by_adapters, tokens_by_adapters
from mistral_jax.notebook.results import Scalings

MODULES = (ModuleKey(0, "q_proj"), ModuleKey(0, "down_proj"), ModuleKey(2, "q_proj"))


def scalings(tokens: int = 5, *, modules: tuple[ModuleKey, ...] = MODULES, softmax: bool = True) -> Scalings:
    values = np.random.default_rng(0).normal(size=(tokens, len(modules) or 1, 2)).astype(np.float32)
    if softmax:
        values = np.exp(values) / np.exp(values).sum(-1, keepdims=True)
    return Scalings(
        tokens=tuple(range(tokens)),
        texts=("▁Hello", "$x$", "\n", "<0xE2>", "☃\U0010ffff", *("a" for _ in range(tokens - 5)))[:tokens],
        adapters=("poet", "cook"),
        modules=modules,
        values=values,
        weights=values * (values > 0.5) * 2,
        softmax=softmax,
    )


@pytest.fixture(autouse=True)
def figures() -> Iterator[None]:
    yield
    for number in plt.get_fignums():
        # Every figure can be drawn, without a warning.
        plt.figure(number).canvas.draw()
    plt.close("all")


def labels(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def test_tokens_are_shown_with_the_mean_over_modules() -> None:
    shown = scalings()
    (axes,) = tokens_by_adapters(shown)
    image = axes.images[0]
    np.testing.assert_allclose(image.get_array(), shown.values.mean(axis=1).T)
    assert image.get_clim() == (0, 1)
    assert labels(axes.xaxis) == ["␣Hello", "$x$", "↵", "<0xE2>", "☃�"]
    assert labels(axes.yaxis) == ["poet", "cook"]
    assert not any(label.get_parse_math() for label in axes.get_xticklabels())
    assert len(axes.figure.axes) == 2  # the other is the colour bar


def test_one_part_and_what_is_left_after_top_k() -> None:
    shown = scalings()
    (axes,) = tokens_by_adapters(shown, "q_proj", after_top_k=True)
    np.testing.assert_allclose(axes.images[0].get_array(), shown.weights[:, [0, 2]].mean(axis=1).T)
    low, high = axes.images[0].get_clim()
    assert low == 0
    assert high >= shown.weights[:, [0, 2]].mean(axis=1).max()


def test_long_texts_go_on_in_further_lines() -> None:
    shown = scalings(TOKENS_PER_LINE + 3)
    first, second = tokens_by_adapters(shown)
    assert len(labels(first.xaxis)) == TOKENS_PER_LINE
    assert len(labels(second.xaxis)) == 3
    rest = np.ma.getdata(second.images[0].get_array())
    np.testing.assert_allclose(rest[:, :3], shown.values[-3:].mean(axis=1).T)
    assert rest.shape == (2, TOKENS_PER_LINE)


def test_layers_are_shown_with_a_panel_for_each_part() -> None:
    shown = scalings()
    q, down = layers_by_adapters(shown)
    assert (q.get_title(), down.get_title()) == ("q_proj", "down_proj")
    np.testing.assert_allclose(q.images[0].get_array(), shown.values.mean(axis=0)[[0, 2]])
    np.testing.assert_allclose(np.ma.getdata(down.images[0].get_array())[0], shown.values.mean(axis=0)[1])
    assert np.ma.getmaskarray(down.images[0].get_array()).tolist() == [[False, False], [True, True]]
    assert labels(q.yaxis) == ["layers.0", "layers.2"]
    assert labels(q.xaxis) == ["poet", "cook"]
    (alone,) = layers_by_adapters(shown[1:2], "down_proj")
    np.testing.assert_allclose(np.ma.getdata(alone.images[0].get_array())[0], shown.values[1, 1])


def test_scalings_without_softmax_have_zero_in_the_middle() -> None:
    shown = scalings(softmax=False)
    low, high = layers_by_adapters(shown)[0].images[0].get_clim()
    assert low == -high
    assert high == pytest.approx(np.abs(shown.values.mean(axis=0)).max())


def test_what_cannot_be_drawn_is_told() -> None:
    with pytest.raises(ValueError, match="no adapter changes a part 'v_proj'; expected one of q_proj, down_proj"):
        tokens_by_adapters(scalings(), "v_proj")
    with pytest.raises(ValueError, match="not layerwise"):
        layers_by_adapters(scalings(modules=()))
    with pytest.raises(ValueError, match="no token to draw"):
        layers_by_adapters(scalings()[:0])
    (axes,) = tokens_by_adapters(scalings(modules=()), "v_proj")
    assert "all modules" in axes.get_title(loc="left")


def test_matplotlib_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"mistral-jax-server\[notebook\]"):
        tokens_by_adapters(scalings())
