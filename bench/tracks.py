"""HOTA, MOTA and IDF1 of `--track`.

    python bench/tracks.py [--seeds 0 1 2 3] [--hold 0 1 10] [--adl /path/to/street/images/adl_rundle] [--json FILE]
    python bench/tracks.py --tables docs/results/tracks_choice.json docs/results/tracks_check.json

The second form prints the tables of docs/detect.md.

Trackers on the same boxes of one network: none (every box is an object of its own), ByteTrack alone (`tracking.hold_s` 0),
and ours with other values of `tracking.hold_s`. Sequences, 50 ms windows:

- parked: the drawn street from a camera that stands; cars and people cross its view, stop for 1.5 to 4 s, and go on; 12 s;
- drive: the drawn street from a camera that drives 2.5 s, stands 3 s while everything stands, and drives on; 8.5 s;
- adl_rundle, if `--adl` names its frames: 350 frames at 30 fps, through the simulated sensor. boxes.csv beside `images/` has
  no identities: boxes of consecutive frames are linked by overlap (IoU 0.5, best first). `street` was trained on frames 1 to
  260, so the others are scored separately.

A box and a label of different classes never match. The figures are those of trackeval, over all sequences of a kind.
Differences to the default `hold_s` have 95 % intervals from a paired bootstrap over segments of 2 s; an object in two segments
counts as two there. The constants of app/tracking.py were chosen on seeds 100 and 101.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from evburst.app.inference import WindowResult  # noqa: E402
from evburst.app.library import Detector  # noqa: E402
from evburst.app.provenance import provenance  # noqa: E402
from evburst.app.tracking import TrackConfig, Tracker  # noqa: E402
from evburst.data.boxes import Detections, iou_matrix  # noqa: E402
from evburst.data.events import EventArray, Events, SensorSize  # noqa: E402
from evburst.data.samples.make_street import CAMERA  # noqa: E402
from evburst.data.simulation.scenes import record  # noqa: E402
from evburst.data.simulation.scenes.stops import RAMP_S, Stops, clock  # noqa: E402
from evburst.data.simulation.scenes.street import (  # noqa: E402
    CAR,
    CAR_SIZE,
    PERSON,
    PERSON_SIZE,
    Shape,
    StreetObject,
    StreetScene,
    car_shape,
    person_shape,
)
from evburst.data.simulation.sensor import EventSimulator, log_intensity  # noqa: E402
from evburst.data.simulation.upsample import MotionUpsampler  # noqa: E402
from evburst.eval.report.tables import Table  # noqa: E402

WINDOW_US, STEP_US = 50_000, 5_000
SIZE = SensorSize(304, 240)
ADL_FPS, ADL_TRAINED, LINK_IOU = 30.0, 260, 0.5
SEGMENT_US, RESAMPLES = 2_000_000, 300
LENGTHS = {"parked": 12.0, "drive": 8.5}
"""Kinds of drawn sequences, and their lengths in s."""
METRICS = ("HOTA", "MOTA", "IDF1")
Pairs = list[tuple[Detections, Detections]]


@dataclass(frozen=True)
class Clip:
    """A recording, and what is to be found at the end of each of its windows, by time."""

    kind: str
    events: Events
    sensor_size: SensorSize
    truth: dict[int, Detections]


@dataclass(frozen=True)
class StoppingObject(StreetObject):
    """An object that stands still at times."""

    stops: Stops = ()

    def at(self, t_s: float) -> tuple[float, float]:
        """See StreetObject."""
        return super().at(clock(t_s, self.stops))


class ParkedScene(StreetScene):
    """The street from a camera that stands still, with its own traffic."""

    def __init__(self, seed: int) -> None:
        super().__init__(SIZE, seed, speed=0.0)
        self._shake = np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 3))
        rng = np.random.default_rng(1000 + seed)
        self._objects = []
        for side, speed, z in ((1.9, 3.5, 5.0), (-2.0, -4.0, 38.0), (-2.0, -4.5, 70.0)):
            self._add(rng, CAR, side, z, 0.0, speed * rng.uniform(0.8, 1.2))
        for _ in range(5):
            side = rng.choice([-1, 1])
            z, speed = rng.uniform(8, 18), rng.uniform(0.9, 1.5)
            self._add(rng, PERSON, side * rng.uniform(2, 7), z, -side * speed, rng.uniform(-0.3, 0.3))

    def stood_s(self, number: int, t_s: float) -> float:
        """How long the object with this number in `boxes` has been standing at a time, 0 if it moves."""
        item = self._objects[number - 1]
        return _stood(item.stops if isinstance(item, StoppingObject) else (), t_s)

    def _add(self, rng: np.random.Generator, label: int, x: float, z: float, vx: float, vz: float) -> None:
        first = rng.uniform(1.5, 4.5)
        stops: Stops = ((first, first + rng.uniform(1.5, 4)),)
        if rng.random() < 0.5:
            second = stops[0][1] + 2 * RAMP_S + rng.uniform(0.5, 2)
            stops = (*stops, (second, second + rng.uniform(1.5, 3)))
        look = person_shape(int(rng.integers(20, 90)), int(rng.integers(15, 60)), rng.uniform(0.8, 1.1), rng.uniform(0, 6))
        body = int(rng.integers(30, 190)) if label == CAR else 0
        shape: Callable[[float], Shape] = car_shape(body) if label == CAR else lambda t: look(clock(t, stops))
        size = CAR_SIZE if label == CAR else PERSON_SIZE
        self._objects.append(StoppingObject(label, x, z, vx, vz, size, shape, stops))


class StoppedDrive(StreetScene):
    """The drive through the street, which stands still for a while, all that moves in it included."""

    stops: Stops = ((2.5, 5.5),)

    def render(self, t_us: int) -> NDArray[np.float32]:
        """See Scene.render."""
        return super().render(round(1e6 * clock(t_us * 1e-6, self.stops)))

    def boxes(self, t_us: int) -> Detections:
        """See Scene.boxes."""
        return replace(super().boxes(round(1e6 * clock(t_us * 1e-6, self.stops))), t_us=t_us)

    def stood_s(self, number: int, t_s: float) -> float:
        """See ParkedScene.stood_s: all objects stand at the same time."""
        return _stood(self.stops, t_s)


def _stood(stops: Stops, t_s: float) -> float:
    return max((t_s - start for start, stop in stops if start <= t_s <= stop), default=0.0)


def scene_of(kind: str, seed: int) -> ParkedScene | StoppedDrive:
    """The scene of a drawn sequence, a key of LENGTHS."""
    return ParkedScene(seed) if kind == "parked" else StoppedDrive(SIZE, 500 + seed)


def drawn(kind: str, seed: int) -> Clip:
    """A drawn sequence."""
    scene, stop_us = scene_of(kind, seed), round(1e6 * LENGTHS[kind])
    events = record(scene, CAMERA, 0, stop_us, STEP_US, seed)
    truth = {t: scene.boxes(t) for t in range(WINDOW_US, stop_us + 1, WINDOW_US)}
    return Clip(kind, events, SIZE, truth)


def adl(images: Path) -> Clip:
    """The frames of adl_rundle as events; truth at a window's end is that of the nearest frame."""
    with (images.parent.parent / "boxes.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["set"] == "adl_rundle" and row["class"] == "person"]
    size = SensorSize(int(rows[0]["width"]), int(rows[0]["height"]))
    frames = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted(images.glob("*.jpg"))]
    by_frame: dict[int, list[list[float]]] = {}
    for row in rows:
        by_frame.setdefault(int(row["frame"]), []).append([float(row[side]) for side in ("x0", "y0", "x1", "y1")])
    labels = _linked([np.array(by_frame.get(number + 1, []), np.float32).reshape(-1, 4) for number in range(len(frames))])
    sensor, upsampler, parts = EventSimulator(size, CAMERA, 0), MotionUpsampler(), list[Events]()
    before, before_us = frames[0], 0
    sensor.step(log_intensity(before), -1)
    for number, frame in enumerate(frames):
        t_us = round(1e6 * number / ADL_FPS)
        between = upsampler.between(before, frame, 6) if number else []
        steps: list[Any] = [*between, frame]
        for k, step in enumerate(steps):
            parts.append(sensor.step(log_intensity(step), before_us + (t_us - before_us) * (k + 1) // len(steps)))
        before, before_us = frame, t_us
    last = round(1e6 * (len(frames) - 1) / ADL_FPS)
    ends = range(WINDOW_US, last + 1, WINDOW_US)
    return Clip("adl", np.concatenate(parts), size, {t: labels[round(t * 1e-6 * ADL_FPS)] for t in ends})


def _linked(frames: Sequence[NDArray[np.float32]]) -> list[Detections]:
    """Boxes frame by frame with identities: the best overlaps of consecutive frames first, at least LINK_IOU."""
    out, ids, count = list[Detections](), np.zeros(0, np.int64), 0
    for number, boxes in enumerate(frames):
        overlap = iou_matrix(out[-1].boxes_xyxy, boxes) if number else np.zeros((0, len(boxes)), np.float32)
        now = np.zeros(len(boxes), np.int64)
        for flat in np.argsort(-overlap, axis=None):
            old, new = np.unravel_index(flat, overlap.shape)
            if overlap[old, new] >= LINK_IOU and not now[new] and ids[old] not in now:
                now[new] = ids[old]
        fresh = now == 0
        now[fresh] = count + 1 + np.arange(fresh.sum())
        count, ids = count + int(fresh.sum()), now
        labels = np.full(len(boxes), PERSON)
        out.append(Detections(boxes, np.ones(len(boxes), np.float32), labels, number, ids))
    return out


def tracked(results: Sequence[WindowResult], hold_s: float | None, score: float, size: SensorSize) -> list[Detections]:
    """The boxes of each window with the numbers that a tracker gives them, without those on no track; None: no tracker."""
    if hold_s is None:
        kept = [result.detections.above(score) for result in results]
        starts = np.cumsum([0, *map(len, kept)])
        return [replace(found, track_ids=start + 1 + np.arange(len(found))) for found, start in zip(kept, starts, strict=False)]
    tracker = Tracker(TrackConfig(hold_s=hold_s), size, score, WINDOW_US)
    found = [tracker.update(result).detections for result in results]
    return [one.take(one.track_ids > 0) for one in found]  # type: ignore[operator]


def evaluated(pairs: Sequence[tuple[Detections, Detections]]) -> dict[str, Any]:
    """(truth, found) of consecutive windows as trackeval takes a sequence."""
    gt_ids = sorted({int(n) for truth, _ in pairs for n in truth.track_ids})  # type: ignore[union-attr]
    ids = sorted({int(n) for _, found in pairs for n in found.track_ids})  # type: ignore[union-attr]
    similarity = [
        iou_matrix(truth.boxes_xyxy, found.boxes_xyxy) * (truth.labels[:, None] == found.labels[None]) for truth, found in pairs
    ]
    return {
        "num_timesteps": len(pairs),
        "num_gt_ids": len(gt_ids),
        "num_tracker_ids": len(ids),
        "num_gt_dets": sum(len(truth) for truth, _ in pairs),
        "num_tracker_dets": sum(len(found) for _, found in pairs),
        "gt_ids": [np.searchsorted(gt_ids, truth.track_ids) for truth, _ in pairs],  # type: ignore[arg-type]
        "tracker_ids": [np.searchsorted(ids, found.track_ids) for _, found in pairs],  # type: ignore[arg-type]
        "similarity_scores": [values.astype(float) for values in similarity],
    }


def measured(pairs: Pairs) -> dict[str, Any]:
    """trackeval's results of one sequence, by metric."""
    from trackeval.metrics import CLEAR, HOTA, Identity

    metrics = (HOTA(), CLEAR({"PRINT_CONFIG": False}), Identity({"PRINT_CONFIG": False}))
    data = evaluated(pairs)
    return {type(metric).__name__: (metric, metric.eval_sequence(data)) for metric in metrics}


def combined(sequences: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """trackeval's figures over sequences that have been `measured`."""
    merged: dict[str, Any] = {}
    for name, (metric, _) in sequences[0].items():
        merged.update(metric.combine_sequences({str(i): one[name][1] for i, one in enumerate(sequences)}))
    return merged


def figures(sequences: Sequence[Pairs]) -> dict[str, float]:
    """HOTA, its two halves, MOTA, IDF1 in percent and identity switches over some sequences."""
    merged = combined([measured(pairs) for pairs in sequences])
    held = sum(int(found.held.sum()) for pairs in sequences for _, found in pairs if found.held is not None)
    return {
        **{name: round(100 * float(np.mean(merged[name])), 1) for name in ("HOTA", "DetA", "AssA", "MOTA", "IDF1")},
        "switches": int(merged["IDSW"]),
        "held boxes": held,
    }


def segments(sequences: Sequence[Pairs]) -> list[dict[str, Any]]:
    """The sequences cut into segments of SEGMENT_US, `measured`; segments without a label are left out."""
    cut: dict[tuple[int, int], Pairs] = {}
    for number, pairs in enumerate(sequences):
        for truth, found in pairs:
            cut.setdefault((number, (found.t_us - 1) // SEGMENT_US), []).append((truth, found))
    return [measured(pairs) for pairs in cut.values() if any(len(truth) for truth, _ in pairs)]


def differences(kinds: dict[str, dict[str, list[Pairs]]], reference: str) -> dict[str, dict[str, dict[str, list[float]]]]:
    """[difference, low, high] to a tracker, by tracker, kind and metric, in points."""
    rng = np.random.default_rng(0)
    samples: dict[str, dict[str, list[NDArray[np.float64]]]] = {}
    for kind, rows in kinds.items():
        measures = {how: segments(sequences) for how, sequences in rows.items()}
        n = len(measures[reference])
        picks = [np.arange(n), *rng.integers(0, n, (RESAMPLES, n))]
        values = {how: np.array([_percent([one[k] for k in pick]) for pick in picks]) for how, one in measures.items()}
        for how in rows:
            samples.setdefault(how, {})[kind] = values[how] - values[reference]  # type: ignore[assignment]
    return {
        how: {
            kind: {
                name: [round(float(v), 1) for v in (all_[0, m], *np.quantile(all_[1:, m], (0.025, 0.975)))]  # type: ignore[call-overload]
                for m, name in enumerate(METRICS)
            }
            for kind, all_ in by_kind.items()
        }
        for how, by_kind in samples.items()
        if how != reference
    }


def _percent(sequences: Sequence[dict[str, Any]]) -> list[float]:
    merged = combined(sequences)
    return [100 * float(np.mean(merged[name])) for name in METRICS]


def figures_table(*results: dict[str, Any]) -> str:
    """HOTA / MOTA / IDF1 of every tracker (rows) on every kind of sequence (columns), as a Markdown table."""
    columns = {_label(one, kind): rows for one in results for kind, rows in one["figures"].items()}
    cells = {
        kind: {how: " / ".join(str(row[name]) for name in METRICS) for how, row in rows.items()}
        for kind, rows in columns.items()
    }
    return _markdown(cells, list(next(iter(columns.values()))))


def differences_table(*results: dict[str, Any]) -> str:
    """Difference of every tracker's HOTA to that of the default, with its 95 % interval, as a Markdown table."""
    cells: dict[str, dict[str, str]] = {}
    for one in results:
        for how, kinds in one["differences"].items():
            for kind, metrics in kinds.items():
                cells.setdefault(_label(one, kind), {})[how] = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*metrics["HOTA"])
    return _markdown(cells, list(results[0]["differences"]))


def document_tables(choice: dict[str, Any], check: dict[str, Any]) -> tuple[str, str]:
    """The two tables of docs/detect.md: differences on the sequences on which the default was chosen, figures on the others."""
    unseen = f"adl, frames {ADL_TRAINED + 1} on"
    chosen = {how: {kind: row for kind, row in kinds.items() if kind != unseen} for how, kinds in choice["differences"].items()}
    others = {**choice, "figures": {unseen: choice["figures"][unseen]}}
    return differences_table({**choice, "differences": chosen}), figures_table(check, others)


def _label(results: dict[str, Any], kind: str) -> str:
    return kind if kind.startswith("adl") else f"{kind}, seeds {_words(results['seeds'])}"


def _words(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:g}" for number in numbers)


def _markdown(columns: dict[str, dict[str, str]], rows: Sequence[str]) -> str:
    lines = [[how, *(cells[how] for cells in columns.values())] for how in rows]
    return Table(["tracker", *columns], lines, texts=1 + len(columns)).markdown()


def name_of(hold_s: float | None) -> str:
    """Name of a tracker in tables."""
    return "none" if hold_s is None else f"held up to {hold_s:g} s" if hold_s else "ByteTrack alone"


def main() -> None:
    parser = argparse.ArgumentParser(description="HOTA, MOTA and IDF1 of --track.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--hold", type=float, nargs="+", default=[0.0], metavar="S", help="values of hold_s, with the default")
    parser.add_argument("--adl", type=Path, metavar="DIR", help="frames of adl_rundle")
    parser.add_argument("--weights", default="street")
    parser.add_argument("--score", type=float, default=0.3, help="lowest score of a box on no track")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument(
        "--tables", type=Path, nargs=2, metavar="FILE", help="print docs/detect.md's tables from two such files"
    )
    args = parser.parse_args()
    if args.tables:
        print(*document_tables(*(json.loads(path.read_text()) for path in args.tables)), sep="\n\n")
        return
    default, started = TrackConfig(), provenance()
    trackers = [None, *sorted({*args.hold, default.hold_s})]
    found: dict[str, dict[str, list[Pairs]]] = {}
    sequences = [(kind, lambda kind=kind, seed=seed: drawn(kind, seed)) for seed in args.seeds for kind in LENGTHS]
    for kind, make in [*sequences, *([("adl", lambda: adl(args.adl))] if args.adl else [])]:
        sequence = make()
        detector = Detector(args.weights, score=default.low_score, sensor_size=sequence.sensor_size)
        results = list(detector.stream(EventArray(sequence.events, sequence.sensor_size)))
        for hold_s in trackers:
            boxes = tracked(results, hold_s, args.score, sequence.sensor_size)
            pairs = [(sequence.truth[one.t_us], one) for one in boxes if one.t_us in sequence.truth]
            if kind != "adl":
                found.setdefault(kind, {}).setdefault(name_of(hold_s), []).append(pairs)
                continue
            pairs = [(truth, one.take(one.labels == PERSON)) for truth, one in pairs]
            trained = [one.t_us * 1e-6 * ADL_FPS < ADL_TRAINED for _, one in pairs]
            for part, wanted in ((f"adl, frames 1 to {ADL_TRAINED}", True), (f"adl, frames {ADL_TRAINED + 1} on", False)):
                half = [pair for pair, is_trained in zip(pairs, trained, strict=True) if is_trained == wanted]
                found.setdefault(part, {}).setdefault(name_of(hold_s), []).append(half)
        print(f"{kind}: {len(results)} windows", file=sys.stderr, flush=True)
    summary = {
        "command": f"python bench/tracks.py --seeds {_words(args.seeds)} --hold {_words(args.hold)}"
        + (" --adl DIR" if args.adl else ""),
        "seeds": args.seeds,
        "reference": name_of(default.hold_s),
        "figures": {kind: {how: figures(pairs) for how, pairs in rows.items()} for kind, rows in found.items()},
        "differences": differences(found, name_of(default.hold_s)),
        "provenance": started,
    }
    print(f"HOTA / MOTA / IDF1\n\n{figures_table(summary)}\n\nHOTA less that of `{summary['reference']}`\n")
    print(differences_table(summary))
    if args.json:
        args.json.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
