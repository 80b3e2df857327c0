"""Measure the simulator's speed relative to real time: python bench/simulator_speed.py

Simulates the drawn street scene at 346x260 px and 60 frames/s, rendered beforehand. The variants take turns for several rounds,
and the best round counts. Processor time is reported as well, because other load on the machine disturbs it less. "kernel" is
`EventSimulator.step` alone; "from grey" starts from 8-bit pictures; "along motion" also interpolates frames
(evburst.data.simulation.upsample), from 30 pictures per second as webcams deliver.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import evburst.app  # noqa: F401  (it sets how threads wait)

# isort: split
import numba

from evburst.app.live.frames import Frame, FrameSource
from evburst.data.events import SensorSize
from evburst.data.simulation.scenes.street import StreetScene
from evburst.data.simulation.sensor import EventSimulator, SimulatorConfig, grey_of, log_intensity

SIZE, RATE, SECONDS, ROUNDS = SensorSize(346, 260), 60, 2, 5


class Pictures:
    """A grabber that returns pictures from memory."""

    name, finite, ahead = "pictures", True, False

    def __init__(self, pictures: list[np.ndarray], rate: float) -> None:
        self._pictures, self._rate, self._next = pictures, rate, 0

    def open(self) -> None:
        self._next = 0

    def read(self) -> Frame | None:
        if self._next == len(self._pictures):
            raise EOFError
        self._next += 1
        return Frame(self._pictures[self._next - 1], round(self._next * 1e6 / self._rate), 0.0)

    def close(self) -> None:
        pass


def from_logs(logs: list[np.ndarray], parallel: bool) -> int:
    """Simulate frames of log intensity; return the number of events."""
    sensor = EventSimulator(SIZE, SimulatorConfig(), parallel=parallel)
    return sum(len(sensor.step(log, round(k * 1e6 / RATE))) for k, log in enumerate(logs))


def from_greys(greys: list[np.ndarray]) -> int:
    """Simulate 8-bit pictures; return the number of events."""
    sensor = EventSimulator(SIZE, SimulatorConfig(), parallel=False)
    return sum(len(sensor.step(log_intensity(grey), round(k * 1e6 / RATE))) for k, grey in enumerate(greys))


def along_motion(greys: list[np.ndarray]) -> int:
    """Simulate every other picture with interpolated frames; return the number of events."""
    source = FrameSource(Pictures(greys[::2], RATE / 2), SIZE, SimulatorConfig(), 50_000)
    source.open()
    events = 0
    while (packet := source.read()) is not None:
        events += len(packet.events)
    return events


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    scene = StreetScene(SIZE, 3)
    logs = [scene.render(round(k * 1e6 / RATE)) for k in range(RATE * SECONDS)]
    greys = [grey_of(log).round().astype(np.uint8) for log in logs]
    variants: dict[str, Callable[[], int]] = {
        f"kernel, {numba.get_num_threads()} threads": lambda: from_logs(logs, True),
        "kernel, 1 thread": lambda: from_logs(logs, False),
        "from grey, 1 thread": lambda: from_greys(greys),
        "along motion, 1 thread": lambda: along_motion(greys),
    }
    events = {name: run() for name, run in variants.items()}
    best, processor = dict.fromkeys(variants, float("inf")), dict.fromkeys(variants, float("inf"))
    for _ in range(ROUNDS):
        for name, run in variants.items():
            started, used = time.perf_counter(), time.process_time()
            run()
            best[name] = min(best[name], time.perf_counter() - started)
            processor[name] = min(processor[name], time.process_time() - used)
    figures = {
        name: {
            "times_real_time": round(SECONDS / best[name], 2),
            "processor_ms_per_frame": round(1000 * processor[name] / (RATE * SECONDS), 2),
            "events_per_s": round(events[name] / SECONDS),
        }
        for name in variants
    }
    if args.json:
        print(json.dumps({"sensor_size": list(SIZE), "frames_per_s": RATE, "ways": figures}, indent=1))
        return
    for name, row in figures.items():
        print(
            f"{name:24} {row['times_real_time']:6.1f} x real time   "
            f"{row['events_per_s'] / 1e6:.2f} million events per second of scene time"
        )


if __name__ == "__main__":
    main()
