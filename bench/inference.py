"""Measure the time per window of each network and engine in bench/contenders.py.

    python bench/inference.py --events RECORDING.dat [--weights street]

The contenders take turns on the same window, round after round, so that other load on the machine affects all of them. Reports
medians, the fastest run, and ratios of medians to the fastest float32 runtime of the ANN of the same weights and to its 8-bit
form in OpenVINO. The process is pinned to --threads cores (2). `cpu` is the processor time of all threads, which other programs
disturb less than the clock. Peak memory is measured in a separate process.

After --minutes no more rounds begin; each contender's number of measured runs is in the results.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.contenders import PEER, TIMESTEPS, Contender, contenders

if TYPE_CHECKING:
    import torch

    from evburst.models.bundle import Bundle

FLOAT = ("ann", "ann channels-last", "onnxruntime", "openvino", "openvino fixed size")
"""Contenders in float32; the fastest is the reference for the ratios."""
QUANTISED = "openvino int8 fixed size"
"""The fastest 8-bit form of the ANN, for one size of grids like the spiking network: the second reference for the ratios."""
_REST_S = 0.05
"""Pause before a turn, because some libraries' threads keep spinning for a while and would slow down the next contender."""
_RUNS = 3
"""Measured runs per turn, after an unmeasured one, because a processor is slow while it wakes up."""


def window_grid(events: Path, bundle: Bundle, index: int) -> torch.Tensor:
    """Return the grid `(1, C, H, W)` of one window of a recording."""
    from itertools import islice

    import torch

    from evburst.data.readers import open_events
    from evburst.data.representations.voxel_grid import voxel_batch

    stream = open_events(events)
    window = next(islice(stream.windows(bundle.voxel.window_us), index, None))
    return torch.from_numpy(voxel_batch([window], bundle.voxel, stream.sensor_size, bundle.stride))


class Turns:
    """The turns of one contender: its times, and why it takes no more of them.

    Args:
        name: the contender.
        build: builds it.
        seconds: time after which it takes no more turns, building included; None: unlimited.
    """

    def __init__(self, name: str, build: Callable[[], Contender], seconds: float | None) -> None:
        self.name, self.ended = name, ""
        self._build, self._limit, self._left = build, seconds, seconds
        self._contender: Contender | None = None
        self._clock, self._processor = list[float](), list[float]()

    def start(self, grid: torch.Tensor) -> None:
        """Build the contender and run it twice."""
        with self._limited():
            self._contender = self._build()
            self._contender.run(grid)
            self._contender.run(grid)

    def turn(self, grid: torch.Tensor) -> None:
        """Run it once unmeasured, then measured."""
        if self._contender is None or self.ended:
            return
        time.sleep(_REST_S)
        with self._limited():
            self._contender.run(grid)
            for _ in range(_RUNS):
                started, used = time.perf_counter(), time.process_time()
                self._contender.run(grid)
                self._clock.append(1000 * (time.perf_counter() - started) / self._contender.windows)
                self._processor.append(1000 * (time.process_time() - used) / self._contender.windows)

    @contextmanager
    def _limited(self) -> Iterator[None]:
        """Interrupt what exceeds the time that is left; a library missing or a network rejected by a peer also ends it."""
        started = time.perf_counter()
        if self._left is not None:
            signal.signal(signal.SIGALRM, _interrupt)
            signal.setitimer(signal.ITIMER_REAL, max(self._left, 0.001))
        try:
            yield
        except ImportError as error:
            self.ended = f"skipped: {error}"
        except _TimeUpError:
            self.ended = f"stopped after {self._limit:g} s"
        except Exception as error:
            if self._left is None:
                raise
            self.ended = f"rejected: {type(error).__name__}: {str(error).splitlines()[0]}"
        finally:
            if self._left is not None:
                signal.setitimer(signal.ITIMER_REAL, 0)
                self._left -= time.perf_counter() - started

    def result(self) -> dict[str, Any]:
        """Medians and the fastest run in ms, number of measured runs, and why there are no more of them."""
        import numpy as np

        times = {}
        if self._clock:
            ms, cpu_ms = (round(float(np.median(values)), 2) for values in (self._clock, self._processor))
            times = {"ms": ms, "fastest_ms": round(min(self._clock), 2), "cpu_ms": cpu_ms, "runs": len(self._clock)}
        return {**times, **({"ended": self.ended} if self.ended else {})}


class _TimeUpError(Exception):
    """The time of a contender is up."""


def _interrupt(number: int, frame: object) -> None:
    raise _TimeUpError


def measure(
    names: list[str],
    build: dict[str, Callable[[], Contender]],
    grid: torch.Tensor,
    rounds: int,
    peer_s: float,
    total_s: float = float("inf"),
) -> dict[str, Any]:
    """Return the times of all contenders, over rounds in which each takes a turn; peers have `peer_s` seconds each.

    No round begins `total_s` seconds after the first one; at least one is run.
    """
    contenders = [Turns(name, build[name], peer_s if name.startswith(PEER) else None) for name in names]
    for contender in contenders:
        contender.start(grid)
    started = time.perf_counter()
    for number in range(rounds):
        if number and time.perf_counter() - started > total_s:
            print(f"stopped after {number} of {rounds} rounds ({total_s:g} s)", file=sys.stderr)
            break
        for contender in contenders:
            contender.turn(grid)
    return {contender.name: contender.result() for contender in contenders}


def peak_memory_mb(name: str, args: argparse.Namespace) -> float:
    """Return the peak memory of a process that runs only this contender."""
    command = [sys.executable, __file__, "--events", str(args.events), "--weights", args.weights, "--memory-of", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout) if done.returncode == 0 else float("nan")


def baseline(results: dict[str, Any]) -> str:
    """Return the name of the fastest float32 network."""
    return min((name for name in FLOAT if "ms" in results.get(name, {})), key=lambda name: results[name]["ms"])


def table(results: dict[str, Any]) -> str:
    """Return the results as a Markdown table, with ratios to the fastest float32 network and to OpenVINO's 8-bit ANN."""
    from evburst.eval.report.tables import Table

    base = baseline(results)
    columns = ["network", "ms", "fastest", f"ms / {base}", f"ms / {QUANTISED}", "cpu ms"]
    shown = ["peak_mb"] if any("peak_mb" in r for r in results.values()) else []
    columns += ["peak MB"] * len(shown) + ["note"]
    rows = []
    for name, r in results.items():
        cells: list[Any] = [name, *[""] * 5]
        if "ms" in r:
            ratios = [f"{r['ms'] / results[k]['ms']:.2f}" if "ms" in results.get(k, {}) else "" for k in (base, QUANTISED)]
            cells = [name, r["ms"], r["fastest_ms"], *ratios, r["cpu_ms"]]
        cells += [r.get(key, "") for key in shown] + [r.get("ended", "")]
        rows.append([str(cell) for cell in cells])
    return Table(columns, rows, len(columns)).markdown()


def chosen(bundle: Bundle) -> dict[str, dict[str, str]]:
    """Return the engines that `auto` chooses by T, for the weights as they are and in integer form."""
    from evburst.app.engines import ensure_measured
    from evburst.models.runtime import choose
    from evburst.models.spiking.integer_form import is_integer

    ensure_measured()
    forms = {"as bundled": is_integer(bundle.spiking, bundle.parameters), "in integer form": True}
    return {form: {f"T={t}": choose("auto", "cpu", t, integer) for t in TIMESTEPS} for form, integer in forms.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the time per window of each network and engine.")
    parser.add_argument("--events", type=Path, required=True, help="a recording to take a window from")
    parser.add_argument("--window", type=int, default=1, help="index of the window")
    parser.add_argument("--weights", default="street")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=10.0, help="time after which no more rounds begin")
    parser.add_argument("--peer-seconds", type=float, default=60.0, help="time after which a peer takes no more turns")
    parser.add_argument("--only", default="", help="comma-separated prefixes of the contenders' names")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory")
    parser.add_argument("--memory-of", default="", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = str(args.threads)

    import torch

    from evburst.app import totals
    from evburst.app.provenance import provenance
    from evburst.models.bundle import Bundle
    from evburst.models.runtime import machine

    torch.set_num_threads(args.threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    bundle = Bundle.load(args.weights)
    grid = window_grid(args.events, bundle, args.window)
    build = contenders(bundle, grid)
    if args.memory_of:
        build[args.memory_of]().run(grid)
        print(totals.peak_memory_mb())
        return
    names = [name for name in build if not args.only or name == "ann" or name.startswith(tuple(args.only.split(",")))]
    results = measure(names, build, grid, args.rounds, args.peer_seconds, 60 * args.minutes)
    if args.memory:
        for name in (name for name, result in results.items() if "ms" in result):
            results[name]["peak_mb"] = round(peak_memory_mb(name, args), 1)
    print(f"The fastest float32 network on this machine is {baseline(results)}.\n\n{table(results)}")
    if args.json:
        settings = {"weights": args.weights, "events": args.events.name, "window": args.window, "rounds": args.rounds}
        record = {**settings, "machine": machine(), "auto": chosen(bundle), "results": results, "provenance": provenance()}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
