"""Heat maps of X-LoRA scalings, for notebooks.

    scalings = model.scalings("The silk of spiders is")
    tokens_by_adapters(scalings)
    layers_by_adapters(scalings)

Needs matplotlib: `pip install "mistral-jax-server[notebook]"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from conversion.adapters.modules import PARTS, parts_of
from mistral_jax.notebook.results import Scalings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOKENS_PER_LINE = 40
"""Longer texts continue on further lines."""

_CELL = 0.25
"""Inches."""
_BAR = 0.16
"""Inches of the colour bar."""
_CHARACTER = 0.067
"""Inches of a character of a label (8 points, monospace)."""
_SYMBOLS = str.maketrans({"▁": "␣", "Ġ": "␣", " ": "␣", "\n": "↵", "\t": "⇥", "\r": "↵"})
"""Visible signs for whitespace, and for the ways in which vocabularies write a space."""


def tokens_by_adapters(scalings: Scalings, part: str | None = None, *, after_top_k: bool = False) -> list[Axes]:
    """Draw the scaling of each adapter for each token of a text: the mean over the adapted modules.

    Args:
      scalings: see `LanguageModel.scalings`; `scalings[10:20]` draws some of the tokens.
      part: only modules of this part, such as "q_proj", in all layers.
      after_top_k: draw the adapter weights instead of the classifier's scalings.
    Returns: the axes of each line of tokens; `axes[0].figure` is their figure, to save or change.
    Raises:
      ValueError: no adapter changes this part, or there are no tokens.
    """
    _check_tokens(scalings)
    table = _values(scalings, after_top_k)
    if part is not None:
        table = table[:, _columns_of(scalings, part)]
    means = table.mean(axis=1)  # [T, E]
    lines = [slice(i, i + TOKENS_PER_LINE) for i in range(0, len(means), TOKENS_PER_LINE)]
    E = len(scalings.adapters)
    labels = [_shown(text) for text in scalings.texts]
    which = "all modules" if part is None or not scalings.modules else f"{part} of all layers"
    title = f"Scalings of each token, mean over {which}"
    figure, axes = _subplots(
        rows=len(lines),
        columns=1,
        cells=(min(len(means), TOKENS_PER_LINE), E),
        labels=(labels, scalings.adapters),
        title=title,
    )
    limits = _limits(scalings, means, after_top_k)
    image = None
    for axis, line in zip(axes[:, 0], lines, strict=True):
        # A shorter last line keeps the size of the cells.
        padded = np.full((E, min(len(means), TOKENS_PER_LINE)), np.nan, np.float32)
        padded[:, : len(means[line])] = means[line].T
        image = _draw(axis, padded, limits)
        _label(axis.xaxis, labels[line], rotation=90)
        _label(axis.yaxis, scalings.adapters)
    _add_bar(figure, axes, image, _meaning(after_top_k))
    axes[0, 0].set_title(title, fontsize=10, loc="left")
    return list(axes[:, 0])


def layers_by_adapters(scalings: Scalings, part: str | None = None, *, after_top_k: bool = False) -> list[Axes]:
    """Draw the scaling of each adapter in each layer, a panel for each adapted part: the mean over the tokens.

    Args: as for `tokens_by_adapters`.
    Returns: the axes of each panel.
    Raises:
      ValueError: the classifier is not layerwise, no adapter changes this part, or there are no tokens.
    """
    _check_tokens(scalings)
    if not scalings.modules:
        raise ValueError(
            "this classifier has one set of scalings for all layers (it is not layerwise); use tokens_by_adapters"
        )
    if part is not None:
        _columns_of(scalings, part)
    means = _values(scalings, after_top_k).mean(axis=0)  # [M, E]
    parts = parts_of(scalings.modules) if part is None else (part,)
    layers = sorted({key.layer for key in scalings.modules})
    names = [f"layers.{layer}" for layer in layers]
    figure, axes = _subplots(
        rows=1,
        columns=len(parts),
        cells=(len(scalings.adapters), len(layers)),
        labels=(scalings.adapters, names),
        title="",
    )
    limits = _limits(scalings, means, after_top_k)
    image = None
    for axis, shown in zip(axes[0], parts, strict=True):
        # Layers in which no adapter changes this part stay empty.
        table = np.full((len(layers), len(scalings.adapters)), np.nan, np.float32)
        for key, row in zip(scalings.modules, means, strict=True):
            if key.part == shown:
                table[layers.index(key.layer)] = row
        image = _draw(axis, table, limits)
        _label(axis.xaxis, scalings.adapters, rotation=90)
        _label(axis.yaxis, names if axis is axes[0, 0] else [])
        axis.set_title(shown, fontsize=9)
    _add_bar(figure, axes, image, _meaning(after_top_k))
    return list(axes[0])


def _check_tokens(scalings: Scalings) -> None:
    if not len(scalings):
        raise ValueError("there is no token to draw; give a text or a slice of tokens that is not empty")


def _columns_of(scalings: Scalings, part: str) -> list[int]:
    """The columns of the modules of a part."""
    if not scalings.modules and part in PARTS:
        return [0]
    columns = [i for i, key in enumerate(scalings.modules) if key.part == part]
    if not columns:
        expected = ", ".join(parts_of(scalings.modules) or PARTS)
        raise ValueError(f"no adapter changes a part {part!r}; expected one of {expected}")
    return columns


def _values(scalings: Scalings, after_top_k: bool) -> np.ndarray:
    return scalings.weights if after_top_k else scalings.values


def _meaning(after_top_k: bool) -> str:
    return "weight of the adapter" if after_top_k else "scaling"


def _limits(scalings: Scalings, means: np.ndarray, after_top_k: bool) -> tuple[float, float]:
    """The ends of the colour scale: 0 and 1 if values are shares of a whole, so that maps are comparable."""
    if scalings.softmax and not after_top_k:
        return 0.0, 1.0
    low, high = float(means.min()), float(means.max())
    if low >= 0:
        return 0.0, max(high, 1.0)
    return -max(-low, high), max(-low, high)


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('heat maps need matplotlib: pip install "mistral-jax-server[notebook]"') from error
    return plt


def _subplots(
    *,
    rows: int,
    columns: int,
    cells: tuple[int, int],
    labels: tuple[Sequence[str], Sequence[str]],
    title: str,
) -> tuple[Figure, Any]:
    """A figure of panels with square cells, and room for labels.

    Args:
      cells: number of columns and rows of a panel.
      labels: of the x axis, where they are vertical, and of the y axis.
      title: of the first panel.
    """
    below_labels, left_labels = (max(map(len, texts)) * _CHARACTER + 0.1 for texts in labels)
    left, below, right, top, between = left_labels + 0.1, below_labels + 0.2, 1.0, 0.4, 0.15
    cells_wide, cells_high = cells
    width = left + columns * cells_wide * _CELL + (columns - 1) * between + right
    # If the title widens the figure, the cells keep their size.
    right += max(left + 1.3 * len(title) * _CHARACTER - width, 0)
    width = max(width, left + 1.3 * len(title) * _CHARACTER)
    height = top + rows * (cells_high * _CELL + below)
    figure, axes = _pyplot().subplots(
        rows,
        columns,
        figsize=(width, height),
        squeeze=False,
        gridspec_kw={
            "left": left / width,
            "right": 1 - right / width,
            "top": 1 - top / height,
            "bottom": below / height,
            "hspace": below / (cells_high * _CELL),
            "wspace": between / (cells_wide * _CELL),
        },
    )
    return figure, axes


def _draw(axis: Axes, table: np.ndarray, limits: tuple[float, float]) -> Any:
    """Draw the cells, [y, x]."""
    image = axis.imshow(
        table, aspect="auto", cmap="magma" if limits[0] == 0 else "RdBu_r", vmin=limits[0], vmax=limits[1]
    )
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return image


def _label(axis: Any, texts: Any, *, rotation: int = 0) -> None:
    """Label the cells along an axis, verbatim: a dollar sign does not start a formula."""
    axis.set_ticks(
        range(len(texts)), labels=list(texts), fontsize=8, family="monospace", rotation=rotation, parse_math=False
    )


def _add_bar(figure: Figure, axes: Any, image: Any, meaning: str) -> None:
    last = axes[0, -1].get_position()
    width = _BAR / figure.get_figwidth()
    bar = figure.colorbar(image, cax=figure.add_axes((last.x1 + 1.5 * width, last.y0, width, last.height)))
    bar.set_label(meaning, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def _shown(text: str) -> str:
    """A token as a label; characters that the font lacks are replaced."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family="monospace")))
    return "".join(c if font.get_char_index(ord(c)) else "\ufffd" for c in text.translate(_SYMBOLS))
