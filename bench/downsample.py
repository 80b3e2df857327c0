"""AP, energy and latency of a detector on a sensor that is larger than the one it was trained on, for each --downsample.

    python bench/downsample.py --json docs/results/downsample.json
    python bench/downsample.py --sensor-size 640x480 --factors 1 2 --json docs/results/downsample.json

Recordings are drawn streets (data/simulation/scenes/street.py) of 0.6 s each, whose boxes are known; no network was trained or
chosen on them. The file of --json keeps the figures of other sensors that it contains.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evburst import Detector
from evburst.app.provenance import provenance
from evburst.app.runs import block_side
from evburst.data.boxes import Detections
from evburst.data.events import EventArray, SensorSize
from evburst.data.samples.make_street import CAMERA
from evburst.data.simulation.scenes.street import StreetScene
from evburst.data.simulation.sensor import EventSimulator
from evburst.eval.coco import average_precision
from evburst.eval.report.tables import Table
from evburst.models.detectors.postprocess import SCORED

STEP_US, WINDOW_US, SPAN_US = 2_500, 50_000, 600_000


def drive(size: SensorSize, seed: int) -> tuple[EventArray, list[Detections]]:
    """Events of a drive through the drawn street, and the boxes at the end of every window."""
    scene, sensor = StreetScene(size, seed), EventSimulator(size, CAMERA, seed)
    sensor.step(scene.render(0), -1)
    parts = [sensor.step(scene.render(t), t) for t in range(STEP_US, SPAN_US + 1, STEP_US)]
    events = np.concatenate(parts)
    events = events[(events["t"] >= 0) & (events["t"] < SPAN_US)]
    return EventArray(events, size), [scene.boxes(t) for t in range(WINDOW_US, SPAN_US + 1, WINDOW_US)]


def measured(weights: str, size: SensorSize, factor: int, drives: list[tuple[EventArray, list[Detections]]]) -> dict[str, Any]:
    """Figures of one factor over all drives."""
    detector = Detector(weights, sensor_size=size, score=SCORED.score, downsample=factor)

    def results() -> Iterator[tuple[Detections, Any]]:
        for events, labels in drives:
            yield from zip(labels, detector.stream(events), strict=True)

    labels, found = zip(*results(), strict=True)
    scored = average_precision(list(labels), [one.detections for one in found], detector.classes)
    return {
        "downsample": factor,
        "ap": round(scored.ap, 2),
        "ap50": round(scored.ap50, 2),
        "energy_uj": round(float(np.mean([one.energy_pj for one in found])) / 1e6, 1),
        "latency_ms": round(float(np.median([one.latency_ms for one in found])), 1),
    }


def table(records: list[dict[str, Any]]) -> str:
    """The table of docs/benchmarks.md, of several sensors."""
    rows = []
    for record in records:
        size = SensorSize(*record["sensor_size"])
        for row in record["results"]:
            default = ", the default" if row["downsample"] == block_side(0, size, None) else ""
            cells = [f"{row['ap']:.1f}", f"{row['ap50']:.1f}", f"{row['energy_uj']:.0f} µJ", f"{row['latency_ms']:.1f}"]
            rows.append([f"{size.width}x{size.height}", f"{row['downsample']}{default}", *cells])
    return Table(["sensor", "`--downsample`", "AP", "AP50", "energy per window", "ms per window"], rows, 2).markdown()


def with_record(records: list[dict[str, Any]], record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records of several sensors with this one, in the place of an earlier one of the same weights and sensor."""
    names = ("weights", "sensor_size")
    same = [all(one[name] == record[name] for name in names) for one in records]
    return [record if is_same else one for one, is_same in zip(records, same, strict=True)] + ([] if any(same) else [record])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", default="street")
    parser.add_argument("--sensor-size", default="1280x720", metavar="WxH")
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 2, 3, 4], metavar="N")
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--json", type=Path, help="also write the figures to this file, beside those of other sensors")
    args = parser.parse_args()
    size = SensorSize.parse(args.sensor_size)
    drives = [drive(size, seed) for seed in args.seeds]
    rows = [measured(args.weights, size, factor, drives) for factor in args.factors]
    print(f"{'downsample':>10}{'AP':>7}{'AP50':>7}{'uJ':>8}{'ms':>8}")
    for row in rows:
        print(f"{row['downsample']:>10}{row['ap']:7.1f}{row['ap50']:7.1f}{row['energy_uj']:8.1f}{row['latency_ms']:8.1f}")
    if args.json:
        conditions = {"weights": args.weights, "sensor_size": list(size), "seeds": args.seeds, **provenance()}
        before = json.loads(args.json.read_text()) if args.json.exists() else []
        args.json.write_text(json.dumps(with_record(before, {**conditions, "results": rows}), indent=1) + "\n")


if __name__ == "__main__":
    main()
