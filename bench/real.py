"""Boxes on recordings of real sensors: python bench/real.py --data FOLDER --weights street --json docs/results/real_street.json

FOLDER holds recordings that are not part of evburst: gen1_street_td.dat (a car drives ahead; its box by eye at the first and
last moment, linear in between), pedro_frame*.npy with .xml (PEDRo, persons), and dvs128/ with boxes_auto_50ms.csv (persons and
hand-sized objects in front of a static DVS128). Boxes count from a score of 0.3, and as found from an IoU of 0.5. Nothing was
trained on these recordings, and nothing may be chosen on them.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evburst import Detector
from evburst.app.provenance import provenance
from evburst.data.boxes import Detections, iou_matrix
from evburst.eval.report.tables import Table

SCORE, IOU = 0.3, 0.5
GEN1_S = 0.74
GEN1_FIRST, GEN1_LAST = np.array([120.0, 88, 161, 128]), np.array([113.0, 87, 166, 138])

Boxes = NDArray[np.float32]


def found(detections: Detections, label: int, truth: Boxes) -> tuple[int, int]:
    """Return how many boxes of the truth `(n, 4)` are found, each by a box of its own, and how many other boxes there are."""
    chosen = detections.boxes_xyxy[detections.labels == label]
    overlaps = iou_matrix(truth.astype(np.float32), chosen)
    hits = 0
    for _ in range(min(overlaps.shape)):
        row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
        if overlaps[row, column] < IOU:
            break
        hits += 1
        overlaps[row], overlaps[:, column] = -1, -1
    return hits, len(detections) - hits


def gen1(folder: Path, settings: dict[str, Any], window_ms: float) -> dict[str, float]:
    """The car ahead: windows in which it is found, of how many, and other boxes per window (some are of parked cars)."""
    windows = hits = others = 0
    detector = Detector(sensor_size="304x240", window_ms=window_ms, **settings)
    for result in detector.stream(folder / "gen1_street_td.dat"):
        share = min(result.t1_us * 1e-6 / GEN1_S, 1.0)
        truth = (GEN1_FIRST + share * (GEN1_LAST - GEN1_FIRST))[None]
        hit, other = found(result.detections, detector.classes.index("car"), truth)
        windows, hits, others = windows + 1, hits + hit, others + other
    return {"windows": windows, "found": hits, "other_boxes": others}


def pedro(folder: Path, settings: dict[str, Any]) -> dict[str, int]:
    """Persons found in PEDRo's windows of 40 ms."""
    persons = hits = others = 0
    detector = Detector(sensor_size="346x260", window_ms=40.0, **settings)
    for path in sorted(folder.glob("pedro_frame*.npy")):
        corners = [
            [float(box.findtext(name, "")) for name in ("xmin", "ymin", "xmax", "ymax")]
            for box in ElementTree.parse(path.with_suffix(".xml")).iter("bndbox")
        ]
        (result, *_) = sorted(detector(np.load(path)), key=lambda result: -result.t1_us)
        hit, other = found(result.detections, detector.classes.index("pedestrian"), np.array(corners))
        persons, hits, others = persons + len(corners), hits + hit, others + other
    return {"persons": persons, "found": hits, "other_boxes": others}


def dvs128(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Persons: share found and other boxes per window; objects: share of windows with a car, and with any box."""
    truth: dict[str, dict[int, list[list[float]]]] = defaultdict(dict)
    with (folder / "boxes_auto_50ms.csv").open() as file:
        for row in csv.DictReader(file):
            box = [float(row[name]) for name in ("x0", "y0", "x1", "y1")]
            truth[row["file"]].setdefault(int(row["t1_us"]), []).append(box)
    figures: dict[str, Any] = {}
    windows = cars = boxed = 0
    detector = Detector(window_ms=50.0, **settings)
    car, person = (detector.classes.index(name) for name in ("car", "pedestrian"))
    for path in sorted(folder.glob("*.aedat")):
        labelled = hits = others = 0
        first: int | None = None
        for result in detector.stream(path):
            if path.name.startswith("person"):
                first = result.t0_us if first is None else first
                boxes = truth[path.name].get(result.t1_us, truth[path.name].get(result.t1_us - first, []))
                if boxes:
                    hit, other = found(result.detections, person, np.array(boxes))
                    labelled, hits, others = labelled + len(boxes), hits + hit, others + other
            else:
                windows, boxed = windows + 1, boxed + bool(len(result.detections))
                cars += bool((result.detections.labels == car).any())
        if labelled:
            figures[path.stem] = {"windows": labelled, "recall": hits / labelled, "other_boxes_per_window": others / labelled}
    return {**figures, "objects": {"windows": windows, "with_car": cars / windows, "with_any_box": boxed / windows}}


_PERSONS = {
    "person_walking_a": "a person walking",
    "person_standing_up_a_rotated": "a person standing up, the camera on its side",
}
"""Recordings of a person, and what they show."""


def table(reports: list[dict[str, Any]]) -> str:
    """Return the reports as a table for docs/results.md, one column per network."""
    columns = [f"{report['weights']}, {report['network'].upper()}" for report in reports]
    rows = []
    for name in reports[0]["gen1"]:
        cars = [r["gen1"][name] for r in reports]
        cells = [f"{found['found']} of {found['windows']}, {found['other_boxes']}" for found in cars]
        rows.append([f"Gen1, car ahead, windows of {name}: found, other boxes", *cells])
    people = [r["pedro"] for r in reports]
    cells = [f"{found['found']} of {found['persons']}, {found['other_boxes']}" for found in people]
    rows.append(["PEDRo, persons: found, other boxes", *cells])
    for recording, shown in _PERSONS.items():
        persons = [r["dvs128"][recording] for r in reports]
        cells = [f"{found['recall']:.2f}, {found['other_boxes_per_window']:.2f}" for found in persons]
        rows.append([f"DVS128, {shown}, {persons[0]['windows']} windows: recall, other boxes per window", *cells])
    objects = [r["dvs128"]["objects"] for r in reports]
    cells = [f"{100 * found['with_car']:.1f} %, {100 * found['with_any_box']:.1f} %" for found in objects]
    what = f"DVS128, hand-sized objects, {objects[0]['windows']:,} windows: share with a `car`, with any box"
    return Table(["recording", *columns], [*rows, [what, *cells]], 1 + len(columns)).markdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", default="street")
    parser.add_argument("--ann", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    settings = {"weights": args.weights, "ann": args.ann, "score": SCORE}
    report = {
        "weights": Path(args.weights).stem,
        "network": "ann" if args.ann else "snn",
        "gen1": {f"{ms:g} ms": gen1(args.data, settings, ms) for ms in (50.0, 25.0)},
        "pedro": pedro(args.data, settings),
        "dvs128": dvs128(args.data / "dvs128", settings),
        **provenance(),
    }
    print(json.dumps(report, indent=1))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
