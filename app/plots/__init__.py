"""Plots that commands save with their results, drawn by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evburst.data.extras import require
from evburst.data.files import replacing


def new_figure(width: float, height: float) -> Any:
    """Return a matplotlib figure of the given size in inches that needs no display."""
    require("matplotlib", "train", "drawing a plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path, dpi: int = 110) -> None:
    """Write a figure as a picture, all of it or nothing; raises DataError if it cannot be written."""
    with replacing(path) as part:
        figure.savefig(part, dpi=dpi)
