"""Measure the speed of reading and gridding recordings, compared with other libraries and the machine's limits.

    python bench/events.py

Each contender runs in its own process, pinned to its cores. First its events, or the counts of its first 40 windows, are
compared with ours. Then the contenders take turns for several rounds, so that other load on the machine affects all of them.
The table gives the median of all runs. Libraries that are not installed are listed as such.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import peers
from bench.recording import write_as, write_recording
from bench.repeat_recording import repeat

ROOT = Path(__file__).resolve().parent.parent
AEDAT4_SAMPLE = ROOT.parent / "shared" / "data" / "real" / "davis_sample.aedat4"
OURS, OURS_2 = "evburst, 1 worker", "evburst, 2 workers"
PEER, PEER_2 = "expelliarmus + tonic ToVoxelGrid", "expelliarmus + tonic ToVoxelGrid, 2 cores"
CACHE = "limit: page cache to array"
QUICK_GRIDS = (OURS, OURS_2, PEER, CACHE)
QUICK_READING = ("dat", "evt2", "evt3")
QUICK_EVENTS, MAX_EVENTS = 2_000_000, 5_000_000
"""Number of events for reading, in a quick run and at most."""

LIBRARIES = ("numpy", "numba", "expelliarmus", "tonic", "faery", "evlib", "aedat", "dv-processing")
ROUNDS, TURN_S = 3, 0.3
MISSING, FAILED = "not installed", "failed"

_spawn = multiprocessing.get_context("spawn")


@dataclass
class Result:
    """Result of a contender: the duration of each run, or the reason why there are none.

    Attributes:
        cores: number of cores the contender may use.
        note: empty, or "not installed: ..." or "failed: ...".
        items: number of events or windows in the check.
        digests: SHA-256 of the checked output, by field ("t", "x", "y", "p", or "counts").
        seconds: duration of every run.
        peak_mb: peak resident memory of the process, including libraries and pages of mapped files.
    """

    cores: int
    note: str = ""
    items: int = 0
    digests: dict[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    peak_mb: float = 0.0

    @property
    def median_s(self) -> float:
        """Median of all runs; NaN without runs."""
        return statistics.median(self.seconds) if self.seconds else float("nan")

    def differs_from(self, ours: Result) -> str:
        """Return the fields that differ from ours, separated by spaces; limits have no fields."""
        return " ".join(name for name, digest in self.digests.items() if digest != ours.digests.get(name))

    def report(self, ours: Result, events: int) -> dict[str, Any]:
        """Return the figures for `--json`."""
        if self.note:
            return {"note": self.note}
        figures: dict[str, Any] = {"median_s": self.median_s, "min_s": min(self.seconds), "runs": len(self.seconds)}
        figures |= {"cores": self.cores, "events_per_s": events / self.median_s, "peak_mb": self.peak_mb}
        figures["times_ours"] = self.median_s / ours.median_s
        return figures | ({"differs": self.differs_from(ours)} if self.digests else {})


# ---------------------------------------------------------------- a contender's process


def serve(pipe: Connection, run: peers.Run, path: Path, check: Any) -> None:
    """Send the check's result, then run for a turn per true message; after None send the peak memory in MB and end."""
    try:
        pipe.send(check(run(path)))
    except ImportError as error:
        pipe.send(f"{MISSING}: {error.name or error}")
        return
    except Exception as error:
        pipe.send(f"{FAILED}: {error}")
        return
    while pipe.recv():
        seconds: list[float] = []
        while sum(seconds) < TURN_S:
            start = time.perf_counter()
            for _ in run(path):
                pass
            seconds.append(time.perf_counter() - start)
        pipe.send(seconds)
    pipe.send(status_mb("VmHWM"))


def status_mb(name: str) -> float:
    """Return a value of /proc/self/status in MB (VmHWM: peak memory; RssAnon, RssFile), or NaN if it is missing."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name + ":")), float("nan"))


# ---------------------------------------------------------------- the run


def compare(path: Path, contenders: dict[str, tuple[peers.Run, int]], check: Any, rounds: int) -> dict[str, Result]:
    """Check every contender (run, cores), then let the working ones take turns; return the results by name."""
    results, pipes, processes = {}, {}, []
    for name, (run, cores) in contenders.items():
        result = results[name] = Result(cores)
        ours, theirs = _spawn.Pipe()
        with pinned(cores) as available:
            if not available:
                result.note = f"{FAILED}: needs {cores} cores"
                continue
            process = _spawn.Process(target=serve, args=(theirs, run, path, check))
            process.start()
        theirs.close()
        processes.append(process)
        answer = _ask(ours)
        if isinstance(answer, str):
            result.note = answer
        else:
            pipes[name] = ours
            result.items, result.digests = answer
    for _ in range(rounds):
        for name, pipe in list(pipes.items()):
            answer = _ask(pipe, True)
            if isinstance(answer, str):
                results[name].note = answer
                del pipes[name]
            else:
                results[name].seconds += answer
    for name, pipe in pipes.items():
        results[name].peak_mb = _ask(pipe, None)
    for process in processes:
        process.join()
    return results


@contextmanager
def pinned(cores: int) -> Iterator[bool]:
    """Pin this process and those started in the context to `cores` cores; yield whether there are enough."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[-cores:])
    yield len(allowed) >= cores
    os.sched_setaffinity(0, allowed)


def _ask(pipe: Connection, *message: bool | None) -> Any:
    """Send the message if there is one, and wait for the answer."""
    try:
        for part in message:
            pipe.send(part)
        return pipe.recv()
    except (EOFError, BrokenPipeError):
        return f"{FAILED}: its process ended unexpectedly"


def file_to_grid(folder: Path, events: int, quick: bool) -> tuple[dict[str, Any], dict[str, Result]]:
    """Measure file to grid for one recording length; return the figures for `--json` and the results by contender."""
    path = folder / "grids.dat"
    write_recording(path, events)
    contenders = {name: value for name, value in peers.GRIDS.items() if name in QUICK_GRIDS or not quick}
    results = compare(path, contenders, peers.check_counts, ROUNDS)
    one, two, peer, cache = (results[name].median_s for name in (OURS, OURS_2, PEER, CACHE))
    # The peer is single-threaded, so a quick run omits its row with two cores.
    peer_on_two = min(peer, results[PEER_2].median_s) if PEER_2 in results else peer
    figures = {
        "events": events,
        "bytes": path.stat().st_size,
        "ours_1_s": one,
        "ours_2_s": two,
        "expelliarmus_tonic_s": peer,
        "ratio_vs_expelliarmus_tonic": peer / one,
        "ratio_vs_expelliarmus_tonic_2": peer_on_two / two,
        "page_cache_s": cache,
        "share_of_page_cache_rate": cache / one,
        "first_window_s": first_window_s(path),
        "contenders": {name: result.report(results[OURS], events) for name, result in results.items()},
    }
    return figures, results


def reading(folder: Path, events: int, quick: bool) -> Iterator[tuple[str, int, dict[str, Result]]]:
    """Yield (format, events, results) for each format; AEDAT4 only if the developers' sample file is available."""
    from evburst.data.readers import open_events

    dat = folder / "reading.dat"
    write_recording(dat, events)
    for name, contenders in peers.READING.items():
        if (quick and name not in QUICK_READING) or (name == "aedat4" and not AEDAT4_SAMPLE.is_file()):
            continue
        path = {"dat": dat, "aedat4": AEDAT4_SAMPLE}.get(name, folder / f"reading.{'bin' if name == 'bin' else 'raw'}")
        if path not in (dat, AEDAT4_SAMPLE):
            write_as(name, path, open_events(dat).packets())
        single_core = {library: (run, 1) for library, run in contenders.items()}
        results = compare(path, single_core, peers.check_columns, 1 if quick else ROUNDS)
        yield name, results["evburst"].items, results


def first_window_s(path: Path) -> float:
    """Return the median time in s from the start of Python to the first grid, of three processes with cached kernels."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; from bench.peers import evburst_grids; "
        f"next(evburst_grids(Path({str(path)!r}), 1)); print('grid', flush=True)"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


# ---------------------------------------------------------------- memory


def memory(folder: Path, size_bytes: int) -> list[dict[str, Any]]:
    """Stream a DAT file of `size_bytes` into grids with one and two workers, each in its own process; return the figures."""
    part, path = folder / "part.dat", folder / "large.dat"
    write_recording(part, 20_000_000)
    repeat(part, path, size_bytes)
    reports = []
    for workers in (1, 2):
        ours, theirs = _spawn.Pipe()
        process = _spawn.Process(target=_stream, args=(theirs, path, workers))
        process.start()
        theirs.close()
        reports.append({"bytes": path.stat().st_size, "workers": workers} | ours.recv())
        process.join()
    return reports


def _stream(pipe: Connection, path: Path, workers: int) -> None:
    start, windows = time.perf_counter(), 0
    peak = {"RssAnon": 0.0, "RssFile": 0.0}
    for windows, _ in enumerate(peers.evburst_grids(path, workers), 1):
        if windows % 20 == 0:
            peak = {name: max(value, status_mb(name)) for name, value in peak.items()}
    seconds = time.perf_counter() - start
    figures = {"windows": windows, "seconds": seconds, "peak_rss_mb": status_mb("VmHWM")}
    pipe.send(figures | {f"peak_{name.lower()}_mb": value for name, value in peak.items()} | {"torch": "torch" in sys.modules})


# ---------------------------------------------------------------- output


def machine() -> dict[str, Any]:
    """Return the machine and the versions that were measured."""
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    git = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_1min": os.getloadavg()[0],
        "python": platform.python_version(),
        "commit": git.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: _version(name) for name in LIBRARIES},
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def table(title: str, results: dict[str, Result], ours: str, events: int) -> str:
    """Return a table with a row for every contender."""
    lines = [f"\n{title}", f"{'':42}{'median ms':>10}{'min ms':>9}{'Mev/s':>8}{'x ours':>8}{'peak MB':>9}  as ours"]
    for name, result in results.items():
        if result.note:
            lines.append(f"{name:42}{result.note}")
            continue
        ratio, rate = result.median_s / results[ours].median_s, events / result.median_s / 1e6
        differs = result.differs_from(results[ours])
        equal = f"no: {differs}" if differs else "yes" if result.digests else "-"
        times = f"{result.median_s * 1e3:10.1f}{min(result.seconds) * 1e3:9.1f}{rate:8.1f}{ratio:8.2f}"
        lines.append(f"{name:42}{times}{result.peak_mb:9.0f}  {equal}")
    return "\n".join(lines)


def grids_table(report: dict[str, Any]) -> str:
    """Return file to grid as a table for docs/benchmarks.md, of a report printed with `--json`."""
    lines = [
        "| contender | the same counts | median | fastest | events/s | relative to evburst | peak memory |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, r in report["file_to_grid"]["contenders"].items():
        if "note" not in r:
            equal = "-" if "differs" not in r else "no" if r["differs"] else "yes"
            times = f"{1e3 * r['median_s']:.0f} ms | {1e3 * r['min_s']:.0f} ms | {r['events_per_s'] / 1e6:.0f} M"
            lines.append(f"| {name} | {equal} | {times} | {r['times_ours']:.3g} | {r['peak_mb']:.0f} MB |")
    return "\n".join(lines)


def reading_table(report: dict[str, Any]) -> str:
    """Return reading as a table for docs/benchmarks.md: median and fastest run in ms by format; * where events differ."""
    formats, versions = report["reading"], report["machine"]["versions"]
    names = list(dict.fromkeys(name for one in formats.values() for name in one["contenders"]))
    heads = [name if name == "evburst" else f"{name} {versions[name]}" for name in names]
    lines = [f"| format, events | {' | '.join(heads)} |", "|---" * (len(names) + 1) + "|"]
    for encoding, one in formats.items():
        runs = {name: r for name, r in one["contenders"].items() if "note" not in r}
        shortest = min(r["median_s"] for r in runs.values())
        cells = []
        for name in names:
            if (r := runs.get(name)) is None:
                cells.append("-")
                continue
            mark = "**" if r["median_s"] == shortest else ""
            star = " *" if r["differs"] else ""
            median, fastest = (f"{1e3 * r[key]:,.{0 if r[key] >= 0.1 else 1}f}" for key in ("median_s", "min_s"))
            cells.append(f"{mark}{median}{mark} ({fastest}){star}")
        lines.append(f"| {encoding}, {one['events'] / 1e6:.2g} M | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--events", type=float, nargs="+", default=[20e6], metavar="N", help="numbers of events (default: 20e6)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer contenders and rounds: under a minute")
    parser.add_argument(
        "--memory", type=float, metavar="BYTES", help="measure only the memory needed for a DAT file of this size, e.g. 4e9"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = parser.parse_args()
    log = partial(print, file=sys.stderr if args.json else sys.stdout, flush=True)
    report: dict[str, Any] = {"machine": machine()}
    log(" ".join(f"{name} {value}" for name, value in report["machine"].items() if name != "versions"))
    with tempfile.TemporaryDirectory(prefix="evburst-bench-") as name:
        folder = Path(name)
        if args.memory:
            report["memory"] = memory(folder, int(args.memory))
            for figures in report["memory"]:
                log(" ".join(f"{key} {value:,.0f}" for key, value in figures.items()))
        else:
            _measure(report, folder, [int(events) for events in args.events], args.quick, log)
    if args.json:
        # Missing peers give NaN, which JSON does not allow.
        print(json.dumps(report, indent=1).replace(": NaN", ": null"))


def _measure(report: dict[str, Any], folder: Path, sizes: list[int], quick: bool, log: Callable[[str], None]) -> None:
    report["sizes"], report["reading"] = [], {}
    for events in sizes:
        figures, results = file_to_grid(folder, events, quick)
        log(table(f"File to grid: {events:,} events, windows of 50 ms, 5 bins x 2 polarities", results, OURS, events))
        log(
            f"{figures['ratio_vs_expelliarmus_tonic']:.1f} times as fast as {PEER} on one core, "
            f"{figures['ratio_vs_expelliarmus_tonic_2']:.1f} times on two; "
            f"{figures['share_of_page_cache_rate']:.2f} of the page cache's rate on one core; "
            f"first grid {figures['first_window_s']:.2f} s after the start of Python"
        )
        report["sizes"].append(figures)
    report["file_to_grid"] = report["sizes"][-1]
    report["first_window_s"] = report["file_to_grid"]["first_window_s"]
    for name, events, results in reading(folder, QUICK_EVENTS if quick else min(sizes[-1], MAX_EVENTS), quick):
        contenders = {library: result.report(results["evburst"], events) for library, result in results.items()}
        report["reading"][name] = {"events": events, "contenders": contenders}
        log(table(f"Reading {name}: {events:,} events", results, "evburst", events))


if __name__ == "__main__":
    main()
