"""`evburst engines`: list the engines that run on this machine and measure their speed.

The measurements are stored, and `--engine auto` chooses the fastest engine by them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from evburst.app.console import LOG, run

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "samples" / "street_td.dat"
_WEIGHTS, _ROUNDS, _NOT_MEASURED = "street", 7, ("reference", "cuda")


def main(argv: Sequence[str] | None = None, prog: str = "evburst engines") -> int:
    """Run `evburst engines`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Show which engines can run a spiking network on this machine, and how fast they are.",
        epilog="example: %(prog)s --measure",
    )
    parser.add_argument("--measure", action="store_true", help="measure again; after a change of machine this is automatic")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")

    def show(args: argparse.Namespace) -> str:
        ensure_measured(again=args.measure)
        return json.dumps(engine_rows(), indent=1) if args.json else engines_table()

    return run(parser, show, argv)


def ensure_measured(again: bool = False) -> None:
    """Measure the engines once per machine if at least two are available; takes a few seconds and is announced on stderr."""
    from evburst.models.runtime import ENGINES, MEASURED_TIMESTEPS, measured, remember

    names = [name for name, engine in ENGINES.items() if name not in _NOT_MEASURED and not engine.available("cpu")]
    if len(names) < 2 or (measured() and not again):
        return
    LOG.info("measuring engines once on this machine: %s", ", ".join(names))
    remember({str(timesteps): measure(names, timesteps) for timesteps in MEASURED_TIMESTEPS})


def measure(names: Sequence[str], timesteps: int, rounds: int = _ROUNDS) -> dict[str, float]:
    """Measure the median time per window (ms) of each engine, with the bundled network, in integer form, and recording.

    The engines take turns, so that a change in the machine's load affects all of them.
    """
    import numpy as np
    import torch

    from evburst.data.readers import open_events
    from evburst.data.representations.voxel_grid import voxel_batch
    from evburst.models.bundle import DetectorBundle
    from evburst.models.runtime import open_engine
    from evburst.models.spiking.rounding import integer_form

    bundle = DetectorBundle.load(_WEIGHTS)
    stream = open_events(SAMPLE)
    window = next(islice(stream.windows(bundle.voxel.window_us), 1, None))
    grid = torch.from_numpy(voxel_batch([window], bundle.voxel, stream.sensor_size, bundle.stride))
    graph, parameters = integer_form(bundle.spiking, replace(bundle.parameters, timesteps=timesteps))
    built: dict[str, Callable[[torch.Tensor], Any]] = {
        name: open_engine(name, graph, parameters, bundle.voxel.max_count).run for name in names
    }
    times: dict[str, list[float]] = {name: [] for name in built}
    for count in range(rounds + 2):
        for name, network in built.items():
            started = time.perf_counter()
            network(grid)
            if count > 1:  # the first two runs plan and compile
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: round(float(np.median(times_ms)), 2) for name, times_ms in times.items()}


def engine_rows() -> list[dict[str, Any]]:
    """Return a row per engine: name, reason why it cannot run on this CPU, ms per window by T, and where `auto` chooses it."""
    from evburst.models.runtime import ENGINES, MEASURED_TIMESTEPS, choose, measured

    times, rows = measured(), []
    for name, engine in ENGINES.items():
        times_ms = {t: times.get(str(t), {}).get(name) for t in MEASURED_TIMESTEPS}
        auto = [t for t in MEASURED_TIMESTEPS if choose("auto", "cpu", t) == name]
        rows.append({"engine": name, "reason": engine.available("cpu"), "ms": times_ms, "auto": auto})
    return rows


def engines_table() -> str:
    """Return the rows of `engine_rows` as a table for the terminal."""
    rows = engine_rows()
    columns = list(rows[0]["ms"])
    lines = ["engine     " + "".join(f"{f'T={t}, ms':>10}" for t in columns) + "  "]
    for row in rows:
        times = "".join(f"{'-' if ms is None else f'{ms:.2f}':>10}" for ms in row["ms"].values())
        auto = f"auto for {' and '.join(f'T={t}' for t in row['auto'])}" if row["auto"] else ""
        lines.append(f"{row['engine']:<11}{times}  {row['reason'] or auto}".rstrip())
    lines.append(
        "measured with the bundled network street on one window of the bundled recording; every T > 1 uses the T=4 column"
    )
    return "\n".join(line.rstrip() for line in lines)
