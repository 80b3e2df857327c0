"""Log of a training run: log.csv, curves.png, and TensorBoard events if TensorBoard is installed."""

from __future__ import annotations

import csv
import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evburst.app.plots import new_figure, save_figure
from evburst.app.scoring import Score
from evburst.data.files import replacing
from evburst.eval.report.charts import names_in_any_script

_LOG = logging.getLogger(__name__)

LOGS = ("log.csv", "curves.png")
"""What `Curves` writes."""


def _number(text: object) -> float:
    """Return a cell of the log as a number; NaN if somebody has edited it."""
    try:
        return float(str(text))
    except ValueError:
        return float("nan")


class Curves:
    """Logs one row per epoch and plots the curves. A resumed run continues its log and replaces rows of epochs it repeats.

    Args:
        out: folder of the run.
        loss_names: parts of the loss.
        figures: names of the validation's figures.
    """

    def __init__(self, out: Path, loss_names: tuple[str, ...], figures: tuple[str, ...]) -> None:
        self._log, self._picture = (out / name for name in LOGS)
        self._loss_names, self._figures = loss_names, figures
        self._board = _tensorboard(out)

    def add(self, epoch: int, loss: NDArray[np.float64], scored: Score, seconds: float) -> None:
        """Log an epoch: the mean loss per window and the validation's figures."""
        row = {"epoch": epoch, **{n: round(float(v), 4) for n, v in zip(self._loss_names, loss, strict=True)}}
        row |= {name: round(value, 2) for name, value in scored.figures.items()}
        row |= scored.columns
        row |= {"seconds": round(seconds)}
        before = [own for own in self._rows() if not _number(own.get("epoch")) >= epoch]
        with replacing(self._log) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row), extrasaction="ignore")
            writer.writeheader()
            writer.writerows([*before, row])
        if self._board is not None:
            for name, value in row.items():
                self._board.add_scalar(name, value, epoch)
            self._board.flush()
        self._draw()
        _LOG.info(json.dumps({name: None if value != value else value for name, value in row.items()}))

    def _rows(self) -> list[dict[str, Any]]:
        """Return the rows of the log: none if there is no log yet, and those before a place at which it is no table."""
        rows: list[dict[str, Any]] = []
        if self._log.exists():
            with self._log.open(newline="", encoding="utf-8-sig", errors="replace") as file, suppress(csv.Error):
                rows.extend(csv.DictReader(file))
        return rows

    def _draw(self) -> None:
        """Loss and validation over the epochs so far."""
        rows = [{k: _number(v) for k, v in row.items()} for row in self._rows()]
        epochs = [row["epoch"] for row in rows]
        figure = new_figure(10, 4)
        left, right = figure.subplots(1, 2)
        for name in self._loss_names:
            left.plot(epochs, [row[name] for row in rows], marker=".", label=name)
        for name in [name for name in rows[0] if name.startswith(self._figures)]:
            width = 2.0 if name in self._figures else 0.8
            right.plot(epochs, [row[name] for row in rows], marker=".", linewidth=width, label=name.replace("ap50_", "AP50 "))
        left.set(xlabel="epoch", ylabel="loss per window", title="training")
        right.set(xlabel="epoch", ylabel="%", title="validation", ylim=(0, 100))
        for axes in (left, right):
            axes.legend(fontsize=8)
            axes.grid(alpha=0.3)
        with names_in_any_script():
            save_figure(figure, self._picture, dpi=100)


def _tensorboard(out: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out / "tensorboard"))
