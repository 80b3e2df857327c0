"""A sink that writes the number of boxes per window and class to counts.csv.

Importing this module registers the sink, so that `--sinks jsonl,counts` writes the file.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from evburst.app.inference import WindowResult
from evburst.app.outputs.sinks import RunInfo, sink, writing


@sink("counts", "counts.csv")
class CountSink:
    """Writes a row per window: the time of its end and the number of boxes of each class."""

    def __init__(self, path: Path, run: RunInfo) -> None:
        self._path, self._classes = path, run.classes
        with writing(path):
            self._file = path.open("w", newline="")
            self._rows = csv.writer(self._file)
            self._rows.writerow(["t_us", *run.classes])

    def write(self, result: WindowResult) -> None:
        """Write the row of one window."""
        counts = np.bincount(result.detections.labels, minlength=len(self._classes))
        with writing(self._path):
            self._rows.writerow([result.t1_us, *counts])

    def close(self) -> None:
        """Close the file; called once, even after an error."""
        with writing(self._path):
            self._file.close()
