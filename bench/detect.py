"""Measure detect.py end to end: python bench/detect.py [--seconds 60] [--windows-ms 50 10] [--events RECORDING.dat ...]

Reports the real-time factor and peak memory of complete runs with `--no-video`, each in its own process, for every engine. The
recordings are: a Gen1-like one with 1.5 million events/s (bench/recording.py); the same with only noise in its middle two
thirds; the latter with the background-activity filter and windows of at most 100 events treated as idle; and those given.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.recording import HEADER, RATE_PER_S, write_recording  # noqa: E402

NOISE_KEPT = 0.005
QUIET = ["--set", "filters.background_us=5000", "--set", "idle_events=100"]


def write_still(source: Path, out: Path) -> None:
    """Write the recording with only a share of NOISE_KEPT of the events in its middle two thirds."""
    words = np.fromfile(source, "<u4", offset=len(HEADER)).reshape(-1, 2)
    sixth = (words[-1, 0] - words[0, 0]) // 6
    still = (words[:, 0] > words[0, 0] + sixth) & (words[:, 0] < words[-1, 0] - sixth)
    kept = ~still | (np.random.default_rng(0).random(len(words)) < NOISE_KEPT)
    out.write_bytes(HEADER + words[kept].tobytes())


def run(events: Path, window_ms: float, engine: str, flags: list[str]) -> dict[str, object]:
    """Run detect.py and return its summary."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(ROOT / "detect.py"), "--events", str(events), "--out", out, "--no-video", "--json"]
        command += ["--window-ms", str(window_ms), *flags]
        command += ["--ann"] if engine == "ann" else ["--engine", engine]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure detect.py end to end.")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the Gen1-like recording")
    parser.add_argument("--windows-ms", type=float, nargs="+", default=[50.0, 10.0])
    parser.add_argument("--engines", nargs="+", default=["ann", "reference", "int8"])
    parser.add_argument("--batches", nargs="+", default=["1", "auto"])
    parser.add_argument("--timesteps", type=int, default=1, help="T of the spiking network (default: 1)")
    parser.add_argument("--max-windows", type=int, help="maximum number of windows of each run")
    parser.add_argument("--events", type=Path, nargs="*", default=[], help="further recordings")
    args = parser.parse_args()
    print("| recording | window ms | network | batch | x real time | p50 ms | p99 ms | start-up s | peak MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        moving, still = Path(folder) / "moving.dat", Path(folder) / "still.dat"
        write_recording(moving, int(args.seconds * RATE_PER_S))
        write_still(moving, still)
        cases: list[tuple[str, Path, list[str]]] = [
            ("moving", moving, []),
            ("still", still, []),
            ("still, filtered, idle windows skipped", still, QUIET),
        ]
        for name, events, flags in [*cases, *((path.stem, path, []) for path in args.events)]:
            for window_ms in args.windows_ms:
                for engine in args.engines:
                    for batch in args.batches:
                        steps = [] if engine == "ann" else ["--timesteps", str(args.timesteps)]
                        limit = ["--max-windows", str(args.max_windows)] if args.max_windows else []
                        s = run(events, window_ms, engine, [*flags, *steps, *limit, "--batch", batch])
                        latency = s["latency_ms"]
                        print(
                            f"| {name} | {window_ms:g} | {engine} | {batch} | {s['real_time_factor']} | {latency['p50']} "  # type: ignore[index]
                            f"| {latency['p99']} | {s['startup_s']} | {s['peak_memory_mb']} |",  # type: ignore[index]
                            flush=True,
                        )


if __name__ == "__main__":
    main()
