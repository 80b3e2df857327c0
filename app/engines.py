"""`evburst engines`: list the engines that run on this machine and measure their speed.

The measurements are stored, and `--engine auto` chooses the fastest engine by them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from evburst.app.console import LOG, run
from evburst.app.flags import Parser
from evburst.data.samples import STREET

if TYPE_CHECKING:
    from evburst.models.runtime import Times

_WEIGHTS, _ROUNDS = "street", 4
_REST_S, _RUNS = 0.05, 3
"""Pause before a turn, as threads of the engine before keep spinning for a while, and measured runs per turn."""


def main(argv: Sequence[str] | None = None, prog: str = "evburst engines") -> int:
    """Run `evburst engines`."""
    parser = Parser(
        prog=prog,
        description="Show which engines can run a spiking network on this machine, and how fast they are.",
        epilog="example: %(prog)s --measure",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="measure again; after a change of machine or of the number of threads this is automatic",
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON")

    def show(args: argparse.Namespace) -> str:
        rows = engine_rows(ensure_measured(again=args.measure))
        return json.dumps(rows, indent=1) if args.json else engines_table(rows)

    return run(parser, show, argv)


def ensure_measured(again: bool = False) -> dict[str, dict[str, Times]]:
    """Return the times of the engines that run on this CPU, by number of timesteps.

    They are measured once per machine and number of threads, which takes some seconds and is announced on stderr.
    """
    from evburst.models.runtime import ENGINES, MEASURED_TIMESTEPS, measured, measurements_file, remember

    if not again and (known := measured()):
        return known
    names = [name for name, engine in ENGINES.items() if not engine.available("cpu")]
    LOG.info("measuring engines once on this machine: %s", ", ".join(names))
    times = {str(timesteps): measure(names, timesteps) for timesteps in MEASURED_TIMESTEPS}
    if not remember(times):
        LOG.warning("%s cannot be written, so that `auto` does not know these times: set EVBURST_CACHE", measurements_file())
    return times


def measure(names: Sequence[str], timesteps: int, rounds: int = _ROUNDS) -> dict[str, Times]:
    """Measure the time per window (ms) of each engine, with the bundled network, in integer form, and recording.

    It is that of the fastest run, which other programs disturb least. The engines take turns, so that a change in the machine's
    load affects all of them; the first run of a turn is not measured.
    Only engines in which counting takes additional time also run without it.
    """
    import torch

    from evburst.data.readers import open_events
    from evburst.data.representations.voxel_grid import voxel_batch
    from evburst.models.bundle import Bundle
    from evburst.models.runtime import ENGINES, Times, open_engine
    from evburst.models.spiking.integer_form import integer_form

    bundle = Bundle.load(_WEIGHTS)
    stream = open_events(STREET)
    window = next(islice(stream.windows(bundle.voxel.window_us), 1, None))
    grid = torch.from_numpy(voxel_batch([window], bundle.voxel, stream.sensor_size, bundle.stride))
    graph, parameters = integer_form(bundle.spiking, replace(bundle.parameters, timesteps=timesteps))
    runs: dict[tuple[str, bool], Callable[[torch.Tensor], Any]] = {}
    for name in names:
        network = open_engine(name, graph, parameters, bundle.voxel.max_count)
        runs[name, True] = network.run
        if ENGINES[name].count_every > 1:
            runs[name, False] = network.run_uncounted
    times: dict[tuple[str, bool], list[float]] = {key: [] for key in runs}
    for run_once in runs.values():  # plans and compiles
        run_once(grid)
    for _ in range(rounds):
        for key, run_once in runs.items():
            time.sleep(_REST_S)
            run_once(grid)
            for _ in range(_RUNS):
                started = time.perf_counter()
                run_once(grid)
                times[key].append(1000 * (time.perf_counter() - started))
    fastest = {key: round(min(times_ms), 2) for key, times_ms in times.items()}
    return {name: Times(fastest[name, True], fastest.get((name, False), fastest[name, True])) for name in names}


def engine_rows(times: Mapping[str, Mapping[str, Times]]) -> list[dict[str, Any]]:
    """Return a row per engine in JSON types, from times by number of timesteps.

    engine is its name, reason why it cannot run on this CPU ("": it can), ms its times per window by T (counted, uncounted, and
    mean with every count_every-th window counted; None: not measured), and auto the T for which `auto` chooses it.
    """
    from evburst.models.runtime import ENGINES, MEASURED_TIMESTEPS, choose

    rows = []
    for name, engine in ENGINES.items():
        ms = {t: _as_row(times.get(str(t), {}).get(name), engine.count_every) for t in MEASURED_TIMESTEPS}
        auto = [t for t in MEASURED_TIMESTEPS if choose("auto", "cpu", t) == name]
        reason = engine.available("cpu")
        rows.append({"engine": name, "reason": reason, "count_every": engine.count_every, "ms": ms, "auto": auto})
    return rows


def _as_row(times: Times | None, count_every: int) -> dict[str, float] | None:
    return None if times is None else {**times._asdict(), "mean": round(times.mean(count_every), 2)}


def engines_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows of `engine_rows` as a table for the terminal."""
    columns = [(t, kind) for t in rows[0]["ms"] for kind in ("mean", "counted", "uncounted")]
    lines = [f"{'ms per window':<18}" + "".join(f"{f'T={t}':<30}" for t in rows[0]["ms"])]
    lines.append(f"{'engine':<11}" + "".join(f"{kind:>10}" for _, kind in columns))
    for row in rows:
        cells = ["-" if row["ms"][t] is None else f"{row['ms'][t][kind]:.2f}" for t, kind in columns]
        lines.append(f"{row['engine']:<11}" + "".join(f"{cell:>10}" for cell in cells) + f"  {_remark(row)}")
    if any(any(row["ms"].values()) for row in rows):
        sampling = [f"{row['engine']} {row['count_every']}" for row in rows if row["count_every"] > 1]
        lines.append(
            "mean: with the engine's default of windows in which spikes are counted, which is all of them, or one of "
            f"({', '.join(sampling)}); auto compares it; their counted windows are run by int8 where it is available"
        )
        lines.append(
            f"measured with the bundled network {_WEIGHTS} on one window of the bundled recording; every T > 1 uses the "
            "columns of T=4"
        )
    return "\n".join(line.rstrip() for line in lines)


def _remark(row: dict[str, Any]) -> str:
    """Return why an engine has no times, and where `auto` chooses it."""
    missing = "not measured" if None in row["ms"].values() else ""
    auto = f"auto for {' and '.join(f'T={t}' for t in row['auto'])}" if row["auto"] else ""
    return row["reason"] or ", ".join(filter(None, (missing, auto)))
