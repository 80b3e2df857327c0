"""Plots that commands save with their results, drawn by matplotlib."""

from __future__ import annotations

from typing import Any

from evburst.data.extras import require


def new_figure(width: float, height: float) -> Any:
    """Return a matplotlib figure of the given size in inches that needs no display."""
    require("matplotlib", "train", "drawing a plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
