"""What memory finds of objects that stand still, and what it costs.

    python bench/memory.py --weights street [FILE ...] [--hold street] [--pictures FOLDER] [--adl DIR] [--json FILE]
    python bench/memory.py --tables docs/results/memory.json

The second form prints the tables of docs/detect.md.

Sequences are those of bench/tracks.py, rendered every 10 ms: `parked`, a standing camera in whose view cars and people stop
and go, 12 s, and `drive`, a camera that drives, stands for 3 s while everything stands, and drives on, 8.5 s. Every object is
labelled in every window in which it is in view, whether it moves or not. Networks: the weights as they are, ANN and SNN;
weights named by `--hold` also with `--memory`; and the boxes of `--track`, which are held too.

With `--pictures`, also sequences of 32 windows that are simulated from photographs of the split "val", which stop and go
(SEQUENCES): AP of each network, and what the spiking one loses, over all windows and over the halves of the sequences.

Recall is compared at equal numbers of false boxes: the lowest score is the one at which the network has FALSE_BOXES wrong boxes
per window, over all windows. A label is found by a box of its class with an IoU of at least 0.5. An object that stands is found
in all its windows or in none, more or less, so that the interval of the recall of standing ones draws whole sequences.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.tracks import ADL_FPS, ADL_TRAINED, LENGTHS, SIZE, WINDOW_US, adl, scene_of, tracked
from evburst.app.dataset_runs import run_dataset
from evburst.app.inference import Inference, WindowResult
from evburst.app.provenance import provenance
from evburst.app.tracking import TrackConfig
from evburst.data.boxes import Detections, iou_matrix
from evburst.data.datasets.registry import DatasetConfig, Request, open_dataset
from evburst.data.datasets.simulated import SimulatedConfig
from evburst.data.events import EventArray, Events, SensorSize
from evburst.data.samples.make_street import CAMERA
from evburst.data.simulation.scenes import record
from evburst.data.simulation.scenes.stills import StillSceneConfig
from evburst.data.simulation.scenes.street import PERSON
from evburst.eval.bootstrap import RESAMPLES, ap_losses, interval_of
from evburst.eval.coco import coco_result, frames_of
from evburst.eval.report.tables import Table
from evburst.models.bundle import Bundle
from evburst.models.detector import GridDetector
from evburst.models.detectors.postprocess import SCORED, PostConfig
from evburst.models.detectors.remembering import remembering

CLASSES = ("car", "pedestrian")
FALSE_BOXES = (0.1, 0.3)
STOOD_S = 1.0
SEQUENCES = SimulatedConfig(
    val_sets=("camvid", "voc"),
    sequence=32,
    drive=StillSceneConfig(
        still=0.1, zoom=0.03, pan_px=4.0, roll_rad=0.006, shake_px=1.0, object_px=4.0, closest=2.0, stops=0.9
    ),
)
_STEP_US, _LOWEST, _TRACK_SCORE = 10_000, 0.02, 0.3


class Window(NamedTuple):
    """A window's labels and boxes.

    Attributes:
        truth, found: labels and boxes.
        stood_s: `(n,)` time that each labelled object has been standing.
        energy_pj: energy of the network.
    """

    truth: Detections
    found: Detections
    stood_s: NDArray[np.float64]
    energy_pj: float


def networks(weights: Sequence[str], held: Sequence[str]) -> Iterator[tuple[str, Bundle, bool]]:
    """Names and bundles, and whether the ANN is to run."""
    for name in weights:
        bundle = Bundle.load(name)
        for ann in (True, False) if bundle.converted else (True,):
            yield f"{Path(name).stem}, {'ANN' if ann else 'SNN'}", bundle, ann
    for name in held:
        bundle = remembering(Bundle.load(name))
        for ann in (True, False):
            yield f"{Path(name).stem}, --memory, {'ANN' if ann else 'SNN'}", bundle, ann


def results_of(bundle: Bundle, ann: bool, events: Events, size: SensorSize) -> list[WindowResult]:
    """Run a network over a recording, window by window."""
    inference = Inference(GridDetector(bundle, PostConfig(score=_LOWEST), ann), bundle.voxel, size, spiking=not ann)
    return [replace(one, grid=one.grid.copy()) for one in inference.stream(EventArray(events, size).windows(WINDOW_US))]


def found_labels(window: Window) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Whether each box is right, and the score with which each label is found (0: not), best boxes first."""
    truth, found = window.truth, window.found
    right, scores = np.zeros(len(found), bool), np.zeros(len(truth))
    same = iou_matrix(found.boxes_xyxy, truth.boxes_xyxy) * (found.labels[:, None] == truth.labels[None])
    for box in np.argsort(-found.scores, kind="stable"):
        free = np.where(scores == 0, same[box], 0) if len(truth) else np.zeros(0)
        if len(free) and free.max() >= 0.5:
            right[box], scores[int(free.argmax())] = True, found.scores[box]
    return right, scores


def figures(sequences: Sequence[Sequence[Window]]) -> dict[str, Any]:
    """AP of all labels, recall of moving and of standing ones at equal false boxes, and energy where all stand or move."""
    windows = [window for sequence in sequences for window in sequence]
    matched = [found_labels(window) for window in windows]
    scores = np.concatenate([scores for _, scores in matched])
    stood = np.concatenate([window.stood_s for window in windows])
    sequence_of = np.repeat(np.arange(len(sequences)), [sum(len(w.stood_s) for w in sequence) for sequence in sequences])
    wrong = [window.found.scores[~right] for window, (right, _) in zip(windows, matched, strict=True)]
    false = -np.sort(-np.concatenate(wrong))
    summary = coco_result(frames_of([w.truth for w in windows], [w.found for w in windows]), CLASSES).summary
    figures: dict[str, Any] = {"ap": round(summary.ap, 1), "ap50": round(summary.ap50, 1)}
    for rate in FALSE_BOXES:
        lowest = false[min(len(false) - 1, int(rate * len(windows)))] if len(false) else 0.0
        groups = {"moving": stood == 0, "standing": stood >= STOOD_S}
        figures[f"{rate:g}"] = {
            name: round(100 * float((scores[group] > lowest).mean()), 1) for name, group in groups.items() if group.any()
        } | {"score": round(float(lowest), 3)}
        is_found, of = scores[groups["standing"]] > lowest, sequence_of[groups["standing"]]
        figures[f"{rate:g}"]["standing_interval"] = bounds(is_found, of, len(sequences))
    still = [bool(len(window.truth)) and window.stood_s.min() >= STOOD_S for window in windows]
    for name, wanted in (("still_uj", True), ("moving_uj", False)):
        spent = [window.energy_pj for window, is_still in zip(windows, still, strict=True) if is_still == wanted]
        figures[name] = round(1e-6 * float(np.mean(spent)), 1) if spent else None
    return figures


def bounds(is_found: NDArray[np.bool_], sequence_of: NDArray[np.int64], sequences: int) -> list[float | None]:
    """The interval of a recall in percent, by resampling sequences: of each label whether it is found, and its sequence."""
    found, labels = (np.bincount(sequence_of, weights, sequences) for weights in (is_found, None))
    drawn = np.random.default_rng(0).integers(sequences, size=(RESAMPLES, sequences))
    recall = 100 * found[drawn].sum(1) / np.maximum(labels[drawn].sum(1), 1)
    around = interval_of(100 * found.sum() / max(labels.sum(), 1), recall, sequences)
    return [None if bound is None else round(bound, 1) for bound in (around.low, around.high)]


def table(results: dict[str, Any]) -> str:
    """AP, recall in percent of moving / standing objects, and µJ of still / moving windows, as a Markdown table.

    The recall of standing objects at the last number of false boxes has its interval.
    """
    rates = [f"{rate:g}" for rate in FALSE_BOXES]
    heads, lines = ["sequences", "network", "AP", "AP50", *(f"found at {rate} false boxes" for rate in rates), "µJ"], []
    for kind, rows in results["figures"].items():
        for network, row in rows.items():
            found = [f"{row[rate].get('moving', '-')} / {row[rate].get('standing', '-')}" for rate in rates]
            found[-1] += " [{:.0f}, {:.0f}]".format(*row[rates[-1]]["standing_interval"])
            energy = " / ".join("-" if row[name] is None else f"{row[name]:.1f}" for name in ("still_uj", "moving_uj"))
            lines.append([kind, network, str(row["ap"]), str(row["ap50"]), *found, energy])
    return Table(heads, lines, texts=2).markdown()


def adl_table(results: dict[str, Any]) -> str:
    """Pedestrian AP50 of every network on frames that nothing was trained on, as a Markdown table."""
    heads = ["network", f"adl_rundle, frames {ADL_TRAINED + 1} on: pedestrian AP50"]
    return Table(heads, [[network, str(value)] for network, value in results["adl"].items()], texts=2).markdown()


def on_pictures(root: Path, known: Sequence[tuple[str, Bundle, bool]], scenes: int, cache: Path) -> dict[str, Any]:
    """AP of every network on sequences of photographs, and of spiking ones [loss, low, high] to the ANN, by part."""
    data = DatasetConfig(root=str(root), simulated=SEQUENCES)
    length = SEQUENCES.sequence
    windows = open_dataset(data, Request("val", WINDOW_US, scenes * length, cache, spread=True))
    position = np.arange(len(windows)) % length
    parts = {"all": position >= 0, "first half": position < length // 2, "second half": position >= length // 2}
    scores: dict[str, dict[str, Any]] = {}
    for name, bundle, ann in known:
        inference = Inference(GridDetector(bundle, SCORED, ann), bundle.voxel, SIZE, spiking=not ann)
        done = run_dataset(inference, windows)
        scores[name] = {
            part: coco_result(
                frames_of([done.labels[i] for i in np.flatnonzero(own)], [done.predictions[i] for i in np.flatnonzero(own)]),
                CLASSES,
            )
            for part, own in parts.items()
        }
    found: dict[str, Any] = {"scenes": scenes, "windows": len(windows), "networks": {}}
    for name, by_part in scores.items():
        row = {part: [round(result.summary.ap, 1), round(result.summary.ap50, 1)] for part, result in by_part.items()}
        if name.endswith("SNN"):
            ann_parts = scores[f"{name.removesuffix('SNN')}ANN"]
            for part, own in parts.items():
                lost = ap_losses(ann_parts[part].matches, by_part[part].matches, np.flatnonzero(own) // length).ap
                row[part] += [round(value, 1) for value in (lost.mean, lost.low, lost.high) if value is not None]
        found["networks"][name] = row
    return found


def picture_table(results: dict[str, Any]) -> str:
    """AP and loss on sequences of photographs, as a Markdown table."""
    heads, lines = ["network", "AP", "AP50", "AP lost", "AP lost, first half", "second half"], []
    for network, row in results["pictures"]["networks"].items():
        lost = ["{:.1f} [{:.1f}, {:.1f}]".format(*row[part][2:]) if row[part][2:] else "-" for part in row]
        lines.append([network, str(row["all"][0]), str(row["all"][1]), *lost])
    return Table(heads, lines).markdown()


def pedestrians(results: Sequence[WindowResult], truth: dict[int, Detections]) -> float:
    """AP50 of pedestrians in windows after the frames that were trained on."""
    ends = [one for one in results if one.t1_us in truth and one.t1_us * 1e-6 * ADL_FPS >= ADL_TRAINED]
    found = [one.detections.take(one.detections.labels == PERSON) for one in ends]
    return round(coco_result(frames_of([truth[one.t1_us] for one in ends], found), CLASSES).summary.ap50, 1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", nargs="+", default=["street"], metavar="NAME")
    parser.add_argument("--hold", nargs="*", default=[], metavar="NAME", help="weights to run with --memory as well")
    parser.add_argument("--seeds", type=int, nargs="+", default=[40, 41, 42, 43])
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="folder of boxes.csv and images/ of streets")
    parser.add_argument("--scenes", type=int, default=40, help="number of photographs")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="folder of simulated sequences")
    parser.add_argument("--adl", type=Path, metavar="DIR", help="frames of adl_rundle")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--tables", type=Path, metavar="FILE", help="print docs/detect.md's tables from such a file")
    args = parser.parse_args()
    if args.tables:
        saved = json.loads(args.tables.read_text())
        print(table(saved), picture_table(saved), adl_table(saved), sep="\n\n")
        return
    summary: dict[str, Any] = {"seeds": args.seeds, "figures": {}, "adl": {}, "provenance": provenance()}
    known = list(networks(args.weights, args.hold))
    sequences: dict[str, dict[str, list[list[Window]]]] = {}
    standing = dict.fromkeys(LENGTHS, 0)
    for kind, seed in ((kind, seed) for kind in LENGTHS for seed in args.seeds):
        scene = scene_of(kind, seed)
        stood: set[int] = set()
        events = record(scene, CAMERA, 0, round(1e6 * LENGTHS[kind]), _STEP_US, seed)
        for name, bundle, ann in known:
            results = results_of(bundle, ann, events, SIZE)
            kept = {name: [one.detections for one in results]}
            if name == f"{Path(args.weights[0]).stem}, SNN":
                config = TrackConfig()
                seen = [replace(one, detections=one.detections.above(config.low_score)) for one in results]
                kept[f"{name}, --track"] = tracked(seen, config.hold_s, _TRACK_SCORE, SIZE)
            for how, boxes in kept.items():
                rows: list[Window] = []
                for one, found in zip(results, boxes, strict=True):
                    truth = scene.boxes(one.t1_us)
                    numbers: Any = truth.track_ids if truth.track_ids is not None else []
                    stood_s = np.array([scene.stood_s(int(number), one.t1_us * 1e-6) for number in numbers])
                    stood |= {int(number) for number, seconds in zip(numbers, stood_s, strict=True) if seconds >= STOOD_S}
                    rows.append(Window(truth, found, stood_s, one.energy_pj or 0.0))
                sequences.setdefault(kind, {}).setdefault(how, []).append(rows)
        standing[kind] += len(stood)
        print(f"{kind}, seed {seed}", file=sys.stderr, flush=True)
    summary["figures"] = {kind: {how: figures(rows) for how, rows in by.items()} for kind, by in sequences.items()}
    summary["standing"] = standing
    if args.adl:
        clip = adl(args.adl)
        summary["adl"] = {
            name: pedestrians(results_of(bundle, ann, clip.events, clip.sensor_size), clip.truth) for name, bundle, ann in known
        }
    if args.pictures:
        summary["pictures"] = on_pictures(args.pictures, known, args.scenes, args.cache)
        print(picture_table(summary), end="\n\n")
    print(table(summary), adl_table(summary), sep="\n\n")
    if args.json:
        args.json.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
