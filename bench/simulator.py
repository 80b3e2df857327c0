"""Compare the statistics of simulated windows with those of a real recording, and measure the speed of simulation.

    python bench/simulator.py --root PICTURES --spec street --real recording_td.dat --picture out.png --json out.json

Prints the median and the 10th to 90th percentile, over real and simulated windows, of: events per pixel and second, share of ON
events, share of pixels that fire, events per firing pixel, and median time between two events of a pixel. Then prints how many
windows per second are simulated, and how many are read and augmented (one process each).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evburst.app.provenance import provenance
from evburst.data.datasets import SPECS
from evburst.data.datasets.augment import AugmentConfig, augment
from evburst.data.datasets.registry import DatasetConfig, Request, open_dataset
from evburst.data.encoding import unpack
from evburst.data.events import EventWindow, SensorSize
from evburst.data.readers import open_events
from evburst.eval.report.tables import Table

NAMES = ("events / pixel / s", "ON share", "pixels firing", "events / firing pixel", "interval of a pixel, ms")


def statistics(window: EventWindow, size: SensorSize) -> list[float]:
    """Return the statistics listed in NAMES for one window; NaN if there are too few events."""
    events = unpack(window)
    if not len(events):
        return [0.0, np.nan, 0.0, np.nan, np.nan]
    pixel = events["y"].astype(np.int64) * size.width + events["x"]
    firing = len(np.unique(pixel))
    order = np.lexsort((events["t"], pixel))
    same_pixel = np.diff(pixel[order]) == 0
    intervals = np.diff(events["t"][order])[same_pixel]
    seconds = (window.t1_us - window.t0_us) * 1e-6
    area = size.width * size.height
    return [
        len(events) / area / seconds,
        float(events["p"].mean()),
        firing / area,
        len(events) / firing,
        float(np.median(intervals)) / 1000 if len(intervals) else np.nan,
    ]


def draw(window: EventWindow, size: SensorSize) -> NDArray[np.uint8]:
    """Draw a window as `(H, W)` uint8, ON events bright and OFF events dark."""
    events = unpack(window)
    image = np.full((size.height, size.width), 128.0)
    np.add.at(image, (events["y"], events["x"]), np.where(events["p"] == 1, 35.0, -35.0))
    return image.clip(0, 255).astype(np.uint8)


def table(columns: dict[str, Sequence[list[float]]]) -> str:
    """Return a table of the medians (10th to 90th percentile) with a column per source."""
    lines = [f"{'':26}" + "".join(f"{name:>30}" for name in columns)]
    for k, name in enumerate(NAMES):
        cells = [np.nanpercentile([row[k] for row in rows], [50, 10, 90]) for rows in columns.values()]
        lines.append(f"{name:26}" + "".join(f"{f'{m:.3g} ({low:.3g} to {high:.3g})':>30}" for m, low, high in cells))
    return "\n".join(lines)


def report(columns: dict[str, Sequence[list[float]]]) -> dict[str, Any]:
    """Return windows, and median, 10th and 90th percentile of each statistic, by source."""
    found: dict[str, Any] = {}
    for source, rows in columns.items():
        values = np.nanpercentile(np.array(rows), [50, 10, 90], axis=0).T
        found[source] = {"windows": len(rows), **dict(zip(NAMES, values.round(5).tolist(), strict=True))}
    return found


def document_table(reports: Sequence[dict[str, Any]]) -> str:
    """Return reports as a table for docs/benchmarks.md, with two columns each: real and simulated."""
    heads, columns = [], []
    for one in reports:
        heads += [f"{one['recording']}, {one['real']['windows']} windows", f"simulated `{one['spec']}`"]
        columns += [one["real"], one["simulated"]]
    lines = [
        [name, *(f"{m:.3g} ({low:.3g} to {high:.3g})" for m, low, high in (column[name] for column in columns))]
        for name in NAMES
    ]
    return Table(["", *heads], lines, texts=1 + len(heads)).markdown()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", required=True, help="folder with boxes.csv and images/")
    parser.add_argument("--spec", choices=("street", "caltech6"), default="street")
    parser.add_argument("--real", type=Path, required=True, help="a real recording")
    parser.add_argument("--windows", type=int, default=64, help="simulated windows (default: 64)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--picture", type=Path, help="write real (above) and simulated (below) windows as PNG")
    args = parser.parse_args()
    window_us = 100_000 if args.spec == "caltech6" else 50_000
    size = SPECS[args.spec].sensor_size
    real = list(islice(open_events(args.real).windows(window_us), 200))
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        request = Request("train", window_us, args.windows, Path(cache), seed=1, workers=1)
        data = open_dataset(DatasetConfig("simulated", args.root, args.spec), request)
        simulation_s = time.perf_counter() - start
        items = [data[i] for i in range(len(data))]
        rng = np.random.default_rng(0)
        augment(items[:4], size, AugmentConfig(), rng)
        start = time.perf_counter()
        for i in range(len(items)):
            augment([data[int(k)] for k in (i, *rng.integers(0, len(items), 3))], size, AugmentConfig(), rng)
        reading_s = time.perf_counter() - start
        simulated, measured = [statistics(item.window, size) for item in items], [statistics(w, size) for w in real]
        print(table({f"real ({len(real)})": measured, f"simulated ({len(items)})": simulated}))
        if args.json:
            figures = {"spec": args.spec, "recording": args.real.name, **report({"real": measured, "simulated": simulated})}
            args.json.write_text(json.dumps({**figures, **provenance()}, indent=1) + "\n")
        print(f"simulated {len(items) / simulation_s:.1f} windows/s, read and augmented {len(items) / reading_s:.0f} windows/s")
        if args.picture:
            shown = min(4, len(real), len(items))
            parts = (real[:shown], [item.window for item in items[:shown]])
            rows = [np.concatenate([draw(window, size) for window in part], 1) for part in parts]
            cv2.imwrite(str(args.picture), np.concatenate(rows))


if __name__ == "__main__":
    main()
