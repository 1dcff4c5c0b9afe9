"""Heat maps of what an X-LoRA classifier says, for notebooks.

    scalings = model.scalings("The silk of spiders is")
    tokens_by_adapters(scalings)
    layers_by_adapters(scalings)

Needs matplotlib: `pip install "mistral-jax[notebook]"`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from conversion.adapters.modules import PARTS
from mistral_jax.results import Scalings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOKENS_PER_LINE = 40
"""Longer texts go on in a further line."""

_CELL = 0.25
"""Inches."""
_BAR = 0.16
"""Inches of the colour bar."""
_SYMBOLS = str.maketrans({"▁": "␣", "Ġ": "␣", " ": "␣", "\n": "↵", "\t": "⇥", "\r": "↵"})
"""Signs for what cannot be seen, and for how vocabularies write a space."""


def tokens_by_adapters(scalings: Scalings, part: str | None = None, *, after_top_k: bool = False) -> Figure:
    """Draw how much of each adapter each token of a text gets: the mean over the adapted modules.

    Args:
      scalings: see `LanguageModel.scalings`; `scalings[10:20]` draws some of the tokens.
      part: only modules of this part, such as "q_proj", in all layers.
      after_top_k: draw the weights that are used instead of what the classifier says.
    Returns: the figure; `figure.axes[0]` is its first line of tokens.
    Raises:
      ValueError: no adapter changes such a part, or there is no token.
    """
    _check_tokens(scalings)
    table = _values(scalings, after_top_k)
    if part is not None:
        table = table[:, _columns_of(scalings, part)]
    means = table.mean(axis=1)  # [T, E]
    lines = [slice(i, i + TOKENS_PER_LINE) for i in range(0, len(means), TOKENS_PER_LINE)]
    E = len(scalings.adapters)
    figure, axes = _subplots(
        rows=len(lines), columns=1, cells_wide=min(len(means), TOKENS_PER_LINE), cells_high=E, below=1.0
    )
    limits = _limits(scalings, means, after_top_k)
    image = None
    for axis, line in zip(axes[:, 0], lines, strict=True):
        # A last line that is shorter keeps the size of the cells.
        padded = np.full((E, min(len(means), TOKENS_PER_LINE)), np.nan, np.float32)
        padded[:, : len(means[line])] = means[line].T
        image = _draw(axis, padded, limits)
        _label(axis.xaxis, [_shown(text) for text in scalings.texts[line]], rotation=90)
        _label(axis.yaxis, scalings.adapters)
    _add_bar(figure, axes, image, _meaning(scalings, after_top_k))
    which = "all modules" if part is None else f"{part} of all layers" if scalings.modules else "all modules"
    axes[0, 0].set_title(f"Scalings of each token, mean over {which}", fontsize=10, loc="left")
    return figure


def layers_by_adapters(scalings: Scalings, part: str | None = None, *, after_top_k: bool = False) -> Figure:
    """Draw how much of each adapter each layer gets, a panel for each adapted part: the mean over the tokens.

    Args: as for `tokens_by_adapters`.
    Raises:
      ValueError: the classifier is not layerwise, or no adapter changes such a part, or there is no token.
    """
    _check_tokens(scalings)
    if not scalings.modules:
        raise ValueError(
            "this classifier has one set of scalings for all layers (it is not layerwise); see tokens_by_adapters"
        )
    if part is not None:
        _columns_of(scalings, part)
    means = _values(scalings, after_top_k).mean(axis=0)  # [M, E]
    present = {key.part for key in scalings.modules}
    parts = [p for p in PARTS if p in present] if part is None else [part]
    layers = sorted({key.layer for key in scalings.modules})
    figure, axes = _subplots(
        rows=1, columns=len(parts), cells_wide=len(scalings.adapters), cells_high=len(layers), below=1.0
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
        _label(axis.yaxis, [f"layers.{layer}" for layer in layers] if axis is axes[0, 0] else [])
        axis.set_title(shown, fontsize=9)
    _add_bar(figure, axes, image, _meaning(scalings, after_top_k))
    return figure


def _check_tokens(scalings: Scalings) -> None:
    if not len(scalings):
        raise ValueError("there is no token to draw; give a text that is not empty, or another stretch of it")


def _columns_of(scalings: Scalings, part: str) -> list[int]:
    """The columns of the modules of a part."""
    if not scalings.modules and part in PARTS:
        return [0]
    columns = [i for i, key in enumerate(scalings.modules) if key.part == part]
    if not columns:
        present = {key.part for key in scalings.modules}
        expected = ", ".join(p for p in PARTS if p in present or not present)
        raise ValueError(f"no adapter changes a part {part!r}; expected one of {expected}")
    return columns


def _values(scalings: Scalings, after_top_k: bool) -> np.ndarray:
    return scalings.weights if after_top_k else scalings.values


def _meaning(scalings: Scalings, after_top_k: bool) -> str:
    return "weight of the adapter" if after_top_k else "scaling"


def _limits(scalings: Scalings, means: np.ndarray, after_top_k: bool) -> tuple[float, float]:
    """What the ends of the colours mean: 0 and 1 where values are shares of a whole, so that maps can be compared."""
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
        raise ImportError('heat maps need matplotlib: pip install "mistral-jax[notebook]"') from error
    return plt


def _subplots(*, rows: int, columns: int, cells_wide: int, cells_high: int, below: float) -> tuple[Figure, Any]:
    """A figure with square cells, and room for labels.

    Args:
      below: inches for the labels under each panel.
    """
    left, right, top, between = 1.2, 1.0, 0.4, 0.15
    width = left + columns * cells_wide * _CELL + (columns - 1) * between + right
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
    """The cells: [y, x]."""
    image = axis.imshow(
        table, aspect="auto", cmap="magma" if limits[0] == 0 else "RdBu_r", vmin=limits[0], vmax=limits[1]
    )
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return image


def _label(axis: Any, texts: Any, *, rotation: int = 0) -> None:
    """Names of the cells along an axis, exactly as they are: a dollar sign begins no formula."""
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
    """A token as a label: characters that the font lacks are replaced."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family="monospace")))
    return "".join(c if font.get_char_index(ord(c)) else "\ufffd" for c in text.translate(_SYMBOLS))
