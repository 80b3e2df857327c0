"""Charts of a report: matplotlib figures as SVG text for a self-contained page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#57606a", "#0969da", "#d1590a", "#1a7f37", "#8250df", "#bf3989", "#9a6700")
_INK, _GRID = "#57606a", "#e3e7eb"
_INCH_PX = 72
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "evburst",
    "font.family": "sans-serif",
    "font.size": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
}


_WIDTH, _HEIGHT = 420, 250
_MOST_NAMES, _MOST_FIGURES = 60, 24


@dataclass(frozen=True)
class Series:
    """A line, points or bars: `xs` and `ys` of equal length; `low` and `high` bound a band."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str = COLOURS[0]
    dash: str = "-"
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Labels:
    """Titles of the axes, and their fixed limits, if any."""

    x: str
    y: str
    x_range: tuple[float, float] | None = None
    y_range: tuple[float | None, float | None] = (0, None)


def lines(series: Sequence[Series], labels: Labels, width: int = _WIDTH, height: int = _HEIGHT) -> str:
    """Draw lines through all points, with a band if `low` and `high` are given."""
    figure, axes = _axes(labels, width, height)
    for series_item in series:
        axes.plot(series_item.xs, series_item.ys, series_item.dash, color=series_item.colour, linewidth=1.6)
        if series_item.low:
            axes.fill_between(
                series_item.xs, series_item.low, series_item.high, color=series_item.colour, alpha=0.18, linewidth=0
            )
    return _svg(figure, axes, labels)


def points(series: Sequence[Series], labels: Labels) -> str:
    """Draw a dot for each point, and the names of the series in a legend."""
    figure, axes = _axes(labels)
    for series_item in series:
        axes.plot(series_item.xs, series_item.ys, "o", color=series_item.colour, markersize=8, label=series_item.name)
    axes.legend(frameon=False, fontsize=10)
    return _svg(figure, axes, labels)


def bars(series_item: Series, titles: Sequence[str], labels: Labels) -> str:
    """Draw a bar at each x; `titles` are shown on hover."""
    figure, axes = _axes(labels, height=190)
    axes.grid(False, axis="x")
    axes.set_xticks([])
    for k, bar in enumerate(axes.bar(series_item.xs, series_item.ys, 0.85, color=series_item.colour)):
        bar.set_gid(f"bar{k}")
    svg = _svg(figure, axes, labels)
    for k, title in enumerate(titles):
        svg = svg.replace(f'<g id="bar{k}">', f"<g><title>{escape(title)}</title>", 1)
    return svg


def ranked(names: Sequence[str], values: Sequence[float], colours: Sequence[str], label: str) -> str:
    """Draw horizontal bars, the first at the top, each with its value."""
    labels = Labels(label, "", y_range=(len(names) - 0.5, -0.5))
    figure, axes = _axes(labels)
    axes.grid(False, axis="y")
    drawn = axes.barh(range(len(names)), values, 0.7, color=colours)
    axes.bar_label(drawn, [f"{value:,.3g}" for value in values], padding=4, fontsize=10)
    axes.set_yticks(range(len(names)), names)
    axes.margins(x=0.12)
    return _svg(figure, axes, labels)


def steps(series: Sequence[Series], labels: Labels) -> str:
    """Draw outlines of histograms: `xs` are the bin edges, one more than `ys`."""
    figure, axes = _axes(labels, height=220)
    for series_item in series:
        axes.stairs(series_item.ys, series_item.xs, color=series_item.colour, linewidth=1.6)
    return _svg(figure, axes, labels)


def matrix(shares: NDArray[np.float64], names: Sequence[str], columns: str, rows: str) -> str:
    """A square matrix of shares in [0, 1] as a picture, darkest at 1, with figures where there are few classes."""
    n = len(names)
    side = int(np.clip(120 + 26 * n, 260, 900))
    labels = Labels(columns, rows, y_range=(n - 0.5, -0.5))
    figure, axes = _axes(labels, side, side)
    axes.grid(False)
    axes.imshow(shares, cmap="Greens", vmin=0, vmax=1)
    every = max(1, -(-n // _MOST_NAMES))
    at = list(range(0, n, every))
    axes.set_xticks(at, [names[k] for k in at], rotation=90, fontsize=8)
    axes.set_yticks(at, [names[k] for k in at], fontsize=8)
    if n <= _MOST_FIGURES:
        for i, j in np.argwhere(shares > 0):
            colour = "white" if shares[i, j] > 0.6 else _INK
            axes.annotate(f"{100 * shares[i, j]:.0f}", (j, i), ha="center", va="center", fontsize=8, color=colour)
    return _svg(figure, axes, labels)


def colour(k: int) -> str:
    """Return the colour of the k-th network."""
    return COLOURS[k % len(COLOURS)]


def nice_top(values: Sequence[float]) -> float:
    """Return a round number that is not below any of the values, as upper limit of an axis from 0."""
    largest = max(values, default=0.0)
    if largest <= 0:
        return 1.0
    step = 10.0 ** np.floor(np.log10(largest))
    return float(next(step * k for k in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * k >= largest))


@contextmanager
def names_in_any_script() -> Iterator[None]:
    """Suppress warnings that matplotlib's font lacks letters of class names: in SVG the reader's fonts draw them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from", UserWarning)
        yield


def _axes(labels: Labels, width: int = _WIDTH, height: int = _HEIGHT) -> tuple[Figure, Axes]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]  # keys are matplotlib's own
        figure = Figure(figsize=(width / _INCH_PX, height / _INCH_PX), layout="constrained")
        axes = figure.subplots()
    axes.set_xlabel(labels.x)
    axes.set_ylabel(labels.y)
    return figure, axes


def _svg(figure: Figure, axes: Axes, labels: Labels) -> str:
    """Return the `<svg>` element, scaled to the width of its container."""
    import matplotlib as mpl

    if labels.x_range is not None:
        axes.set_xlim(*labels.x_range)
    axes.set_ylim(*labels.y_range)
    file = io.StringIO()
    with mpl.rc_context(_STYLE), names_in_any_script():  # type: ignore[arg-type]  # keys are matplotlib's own
        figure.savefig(file, format="svg", transparent=True)
    svg = file.getvalue()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    width, _, height = re.search(r'viewBox="0 0 ([\d.]+)( )([\d.]+)"', svg).groups()  # type: ignore[union-attr]
    opening = f'<svg viewBox="0 0 {width} {height}" role="img" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return re.sub(r"<svg[^>]*>", opening, svg, count=1)
