"""AP of boxes that are used later than their window's end, with and without --lead-ms, for several --stride-ms.

    python bench/late.py [--seeds 6 7 8 9] [--strides 50 25 10] [--json FILE]

Recordings are drawn streets (data/simulation/scenes/street.py), whose boxes are known at any time: `drive` from a camera that
drives, 3 s, and `parked` from one that stands still while cars and people pass and stop (bench/tracks.py), 5 s. Windows are
50 ms long. Two kinds of delay:

- fixed: every window's boxes are used 50 ms after its end, whatever computed or sent them; predicted 50 ms ahead;
- measured: one window at a time, each busy for the median time of this machine, the newest finished boxes are used
  (eval/streaming.py), and windows that end in the meantime are skipped; predicted ahead by the mean age of the boxes.

The constants of app/lead.py were chosen on seeds 0 to 5 of `drive` and seed 20 of `parked`. Differences have 95 % intervals
from a paired bootstrap over recordings.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.tracks import SIZE, STEP_US, WINDOW_US, ParkedScene
from evburst import Detector
from evburst.app.inference import WindowResult
from evburst.app.lead import LeadPredictor
from evburst.app.provenance import provenance
from evburst.data.boxes import Detections
from evburst.data.events import EventArray
from evburst.data.samples.make_street import CAMERA
from evburst.data.simulation.scenes import record
from evburst.data.simulation.scenes.street import StreetScene
from evburst.eval.bootstrap import ap_losses
from evburst.eval.coco import CocoResult, coco_result, frames_of
from evburst.eval.report.tables import Table
from evburst.eval.streaming import NOTHING_YET, newest_results, processed_windows
from evburst.models.detectors.postprocess import SCORED

FIXED_US, LABEL_US = 50_000, 15_000
NO_GRID = np.zeros((0, 0, 0), np.uint8)
KINDS = {"drive": (StreetScene, 3_000_000), "parked": (ParkedScene, 5_000_000)}
Moments = list[tuple[int, int]]


@dataclass(frozen=True)
class Recording:
    """The results of a recording's windows by their end, and the scene."""

    scene: StreetScene
    stop_us: int
    results: dict[int, WindowResult]

    def every(self, step_us: int) -> list[WindowResult]:
        """The results of windows that end every `step_us`."""
        return [result for end, result in self.results.items() if end % step_us == 0]


Used = tuple[Recording, list[WindowResult], Moments]
"""A recording, the windows that are processed, and (time, end of the window whose boxes are used at that time)."""


def recorded(kind: str, seed: int, weights: str) -> Recording:
    """Draw a street, and run a window through the network every STEP_US."""
    make, stop_us = KINDS[kind]
    scene = StreetScene(SIZE, seed) if make is StreetScene else ParkedScene(seed)
    events = EventArray(record(scene, CAMERA, 0, stop_us, STEP_US, seed), SIZE)
    detector = Detector(weights, score=SCORED.score, stride_ms=STEP_US / 1000)
    results = (replace(one, grid=NO_GRID) for one in detector.stream(events) if one.t1_us >= WINDOW_US)
    return Recording(scene, stop_us, {one.t1_us: one for one in results})


def boxes_by_end(results: Sequence[WindowResult], step_us: int, lead_us: int) -> dict[int, Detections]:
    """The boxes of consecutive windows, predicted `lead_us` ahead, by the end of their window."""
    ahead = LeadPredictor(lead_us, SIZE, WINDOW_US, step_us)
    return {one.t1_us: (ahead.update(one) if lead_us else one).detections for one in results}


def scored(used: Sequence[Used], step_us: int, lead_us: int) -> CocoResult:
    """Score, at each (time, end of a window), the boxes of that window against the scene at that time."""
    labels, found = list[Detections](), list[Detections]()
    for recording, processed, pairs in used:
        boxes = boxes_by_end(processed, step_us, lead_us)
        labels += [recording.scene.boxes(t_us) for t_us, _ in pairs]
        found += [boxes[end] for _, end in pairs]
    return coco_result(frames_of(labels, found), ("car", "pedestrian"))


def compared(used: Sequence[Used], step_us: int, lead_us: int) -> dict[str, Any]:
    """AP and AP50 of late boxes and of boxes predicted ahead, and the difference in AP with its interval."""
    late, ahead = (scored(used, step_us, us) for us in (0, lead_us))
    units = np.repeat(np.arange(len(used)), [len(pairs) for _, _, pairs in used])
    gain = ap_losses(ahead.matches, late.matches, units).ap
    return {
        "lead_ms": lead_us / 1000,
        "late": [round(late.summary.ap, 1), round(late.summary.ap50, 1)],
        "ahead": [round(ahead.summary.ap, 1), round(ahead.summary.ap50, 1)],
        "gain": [round(value, 1) for value in (gain.mean, gain.low, gain.high) if value is not None],
    }


def measured(recordings: Sequence[Recording], step_us: int) -> dict[str, Any]:
    """Figures of one stride."""
    results = [result for recording in recordings for result in recording.every(step_us)]
    started = time.perf_counter()
    for recording in recordings:
        boxes_by_end(recording.every(step_us), step_us, FIXED_US)
    predicting_ms = 1000 * (time.perf_counter() - started) / len(results)
    busy_us = round(1000 * (float(np.median([result.latency_ms for result in results])) + predicting_ms))
    times = [range(WINDOW_US + FIXED_US, one.stop_us + 1, WINDOW_US) for one in recordings]
    fixed = [(one, one.every(step_us), [(t, t - FIXED_US) for t in at]) for one, at in zip(recordings, times, strict=True)]
    offline = scored([(one, found, [(t, t) for t, _ in pairs]) for one, found, pairs in fixed], step_us, 0).summary
    clocked = [clocked_windows(one, busy_us, step_us) for one in recordings]
    age_us = float(np.mean([t - end for _, _, pairs in clocked for t, end in pairs]))
    energy_pj = sum(result.energy_pj for _, processed, _ in clocked for result in processed)
    return {
        "ms_per_window": round(busy_us / 1000, 1),
        "predicting_ms": round(predicting_ms, 2),
        "mj_per_s": round(energy_pj * 1e-9 / sum(one.stop_us * 1e-6 for one in recordings), 2),
        "offline": [round(offline.ap, 1), round(offline.ap50, 1)],
        "fixed": compared(fixed, step_us, FIXED_US),
        "mean_age_ms": round(age_us / 1000, 1),
        "measured": compared(clocked, step_us, 1000 * round(age_us / 1000)),
    }


def clocked_windows(recording: Recording, busy_us: int, step_us: int) -> Used:
    """The windows that are processed one at a time, and those whose boxes are in force at times every LABEL_US."""
    ends, finished = processed_windows(recording.stop_us, 0, WINDOW_US, busy_us, step_us)
    return recording, [recording.results[end] for end in ends.tolist()], in_force(recording.stop_us, ends, finished)


def in_force(stop_us: int, ends: NDArray[np.int64], finished: NDArray[np.int64]) -> Moments:
    """Times every LABEL_US, and the end of the window whose boxes are in force then."""
    times = np.arange(2 * WINDOW_US + LABEL_US, stop_us + 1, LABEL_US)
    newest = newest_results(times, ends, finished)
    return [(t, end) for t, end in zip(times.tolist(), newest.tolist(), strict=True) if end != NOTHING_YET]


def fixed_table(results: dict[str, Any]) -> str:
    """AP of boxes used 50 ms after their window's end, as a Markdown table."""
    head, rows = ["scene", "a window every", "at the window's end", "50 ms later", "predicted", "gain, AP"], []
    for kind, strides in results["figures"].items():
        for stride, row in strides.items():
            cells = [_both(row["offline"]), _both(row["fixed"]["late"]), _both(row["fixed"]["ahead"]), _gain(row["fixed"])]
            rows.append([kind, f"{stride} ms", *cells])
    return Table(head, rows, len(head)).markdown()


def measured_table(results: dict[str, Any]) -> str:
    """AP of the boxes in force if one window is processed at a time, with energy and time, as a Markdown table."""
    head = ["scene", "a window every", "ms per window", "mJ per second", "mean age, ms", "in force", "`--lead-ms`", "predicted"]
    head, rows = [*head, "gain, AP"], []
    for kind, strides in results["figures"].items():
        for stride, row in strides.items():
            cost = [f"{row[name]}" for name in ("ms_per_window", "mj_per_s", "mean_age_ms")]
            one = row["measured"]
            cells = [*cost, _both(one["late"]), f"{one['lead_ms']:g}", _both(one["ahead"]), _gain(one)]
            rows.append([kind, f"{stride} ms", *cells])
    return Table(head, rows, len(head)).markdown()


def _both(figures: Sequence[float]) -> str:
    return f"{figures[0]} / {figures[1]}"


def _gain(row: dict[str, Any]) -> str:
    gain, *interval = row["gain"]
    return f"{gain:+.1f}" + (" [{:+.1f}, {:+.1f}]".format(*interval) if interval else "")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", default="street")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(6, 16)), help="of `drive`")
    parser.add_argument("--parked", type=int, nargs="+", default=[21, 22, 23, 24], metavar="SEED", help="seeds of `parked`")
    parser.add_argument("--strides", type=int, nargs="+", default=[50, 25, 10], metavar="MS", help="multiples of 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args()
    started, figures = provenance(), dict[str, Any]()
    for kind, seeds in (("drive", args.seeds), ("parked", args.parked)):
        recordings = [recorded(kind, seed, args.weights) for seed in seeds]
        figures[kind] = {str(stride): measured(recordings, 1000 * stride) for stride in args.strides}
        print(f"{kind}: {len(recordings)} recordings", file=sys.stderr, flush=True)
    summary = {
        "weights": args.weights,
        "seeds": {"drive": args.seeds, "parked": args.parked},
        "figures": figures,
        "provenance": started,
    }
    print(fixed_table(summary), measured_table(summary), sep="\n\n")
    if args.json:
        args.json.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
