"""Measure the energy per window of the ANN and the spiking network on this machine, and report the modelled energy with it.

    python bench/joules.py                                    the bundled recording, processor counters (RAPL)
    python bench/joules.py --events rec_td.dat --device cuda  a GPU's energy counter (NVML)

The counters are Linux's powercap files (Intel and AMD processors: package, and memory if it has a counter) and NVML's total
energy of a GPU (Volta and later). They cover the whole package or card and all its users, so the machine must be idle. Idle
power is measured in every round and subtracted for the figure "above idle". Both networks run on conventional multiply
hardware here, so the figures are the cost of this software on this machine, not of the modelled accelerator.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray

from evburst.app.provenance import provenance
from evburst.app.runs import pick_device
from evburst.data.errors import ConfigError, EvburstError
from evburst.data.readers import open_events
from evburst.data.representations.voxel_grid import padded_size, voxel_histogram
from evburst.data.samples import STREET
from evburst.data.stats import SpikeStats
from evburst.eval.energy import EnergyTotals, energy_figures
from evburst.models.bundle import Bundle
from evburst.models.detector import GridDetector
from evburst.models.detectors.postprocess import PostConfig

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Counter:
    """An energy counter: `read` returns joules since an arbitrary time and wraps to 0 after `wraps_j` (0: never)."""

    name: str
    read: Callable[[], float]
    wraps_j: float = 0.0

    def since(self, earlier_j: float) -> float:
        """Return the joules since an earlier reading."""
        spent = self.read() - earlier_j
        return spent + self.wraps_j if spent < 0 else spent


def powercap_counters(root: Path = POWERCAP) -> tuple[list[Counter], str]:
    """Return the counters of the processor packages and their memory, or [] and the reason why there are none."""
    zones = sorted(root.glob("*/energy_uj")) if root.is_dir() else []
    if not zones:
        hint = "virtual machines usually hide them; on hardware, try modprobe intel_rapl_msr"
        return [], f"{root} has no energy counters ({hint})"
    available = []
    for path in zones:
        zone = path.parent
        try:
            name = (zone / "name").read_text().strip()
            wraps = int((zone / "max_energy_range_uj").read_text()) * 1e-6
            path.read_text()
        except OSError as error:
            return [], f"{path}: cannot be read ({error.strerror}): run as root, or chmod o+r {root}/*/energy_uj"
        if name.startswith(("package", "dram", "psys")):
            available.append(Counter(name, lambda path=path: int(path.read_text()) * 1e-6, wraps))  # type: ignore[misc]
    return [c for c in available if not c.name.startswith("psys")] or available, ""


def nvml_counters(library: str = "libnvidia-ml.so.1") -> tuple[list[Counter], str]:
    """Return the counter of the first GPU, or [] and the reason why there is none."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return [], "NVML: the NVIDIA driver's library is not installed"
    handle, energy = ctypes.c_void_p(), ctypes.c_ulonglong()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)):
        return [], "NVML: no NVIDIA GPU found"
    if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(energy)):
        return [], "NVML: this GPU has no energy counter (Volta and later have one)"

    def read() -> float:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(energy))
        return energy.value * 1e-3

    return [Counter("gpu", read)], ""


def counters(device: str) -> list[Counter]:
    """Return the energy counters of a device.

    Raises:
        ConfigError: there are none; the message gives the reason.
    """
    available, reason = nvml_counters() if device == "cuda" else powercap_counters()
    if not available:
        raise ConfigError(f"energy cannot be measured: {reason}")
    return available


def measure(meters: Sequence[Counter], work: Callable[[], int], seconds: float) -> tuple[dict[str, float], int, float]:
    """Repeat `work` for at least `seconds` and return (joules by counter, windows, seconds).

    `work` returns the number of windows it processed.
    """
    windows, started, first_readings = 0, time.perf_counter(), [meter.read() for meter in meters]
    while time.perf_counter() - started < seconds:
        windows += work()
    spent = {meter.name: meter.since(value) for meter, value in zip(meters, first_readings, strict=True)}
    return spent, windows, time.perf_counter() - started


def idle() -> int:
    """Sleep briefly and return 0 windows."""
    time.sleep(0.05)
    return 0


def load_grids(bundle: Bundle, path: Path, limit: int) -> tuple[NDArray[np.uint8], Any]:
    """Return the grids of a recording's first non-empty windows, `(N, 2 * bins, H, W)` uint8, and the sensor size."""
    stream = open_events(path, None, None)
    size, grids = stream.sensor_size, []
    width, height = padded_size(size, bundle.stride)
    for window in stream.windows(bundle.voxel.window_us):
        grid = np.zeros((bundle.voxel.channels, height, width), np.uint8)
        if voxel_histogram(window, bundle.voxel, size, grid)[0]:
            grids.append(grid)
        if len(grids) == limit:
            break
    if not grids:
        raise ConfigError(f"{path}: contains no events")
    return np.stack(grids), size


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Measure rounds of idling, ANN and SNN in turn; return joules per window and the modelled energies of the same windows."""
    device = pick_device(args.device)
    meters = counters(device)
    bundle = Bundle.load(args.weights)
    grids, size = load_grids(bundle, args.events, args.windows)
    networks = {
        "ANN": GridDetector(bundle, PostConfig(), ann=True, device=device),
        "SNN": GridDetector(bundle, PostConfig(), device=device, engine=args.engine),
    }
    totals = EnergyTotals(networks["ANN"].dense_macs(*grids.shape[2:]))

    def run(network: GridDetector) -> int:
        for grid in grids:
            network.detect(grid[None], size, [0])
        return len(grids)

    for network in networks.values():
        run(network)
    for grid in grids:
        stats = networks["SNN"].detect(grid[None], size, [0])[1]
        if isinstance(stats, SpikeStats):
            totals.add(stats)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ("idle", *networks)}
    for _ in range(args.rounds):
        for name in rows:
            work = idle if name == "idle" else lambda name=name: run(networks[name])  # type: ignore[misc]
            spent, windows, seconds = measure(meters, work, args.seconds)
            rows[name].append({"joules": sum(spent.values()), "windows": windows, "seconds": seconds, **spent})
    watts = sum(row["joules"] for row in rows["idle"]) / sum(row["seconds"] for row in rows["idle"])
    return {
        "counters": [meter.name for meter in meters],
        "device": device,
        "weights": args.weights,
        "events_file": args.events.name,
        "windows": len(grids),
        "idle_watts": watts,
        "measured": {name: summed(rows[name], watts) for name in networks},
        "modelled": energy_figures(totals.report()),
        "rounds": rows,
        "provenance": provenance(),
    }


def summed(rows: Sequence[dict[str, float]], idle_watts: float) -> dict[str, float]:
    """Return the energy per window over all rounds, with the lowest and highest round."""
    windows, seconds = (sum(row[key] for row in rows) for key in ("windows", "seconds"))
    joules = sum(row["joules"] for row in rows)
    by_round = [row["joules"] / row["windows"] for row in rows]
    return {
        "mj_per_window": 1e3 * joules / windows,
        "mj_per_window_above_idle": 1e3 * (joules - idle_watts * seconds) / windows,
        "mj_lowest_round": 1e3 * min(by_round),
        "mj_highest_round": 1e3 * max(by_round),
        "ms_per_window": 1e3 * seconds / windows,
        "watts": joules / seconds,
    }


def human(report: dict[str, Any]) -> str:
    """Format the report as a table followed by the modelled energies."""
    head = f"{'':6}{'mJ/window':>12}{'above idle':>12}{'rounds':>18}{'ms':>8}{'W':>8}"
    lines = [f"counters {', '.join(report['counters'])}; idle {report['idle_watts']:.1f} W; {report['windows']} windows", head]
    for name, row in report["measured"].items():
        span = f"{row['mj_lowest_round']:.2f} to {row['mj_highest_round']:.2f}"
        figures = f"{row['mj_per_window']:12.2f}{row['mj_per_window_above_idle']:12.2f}{span:>18}"
        lines.append(f"{name:6}{figures}{row['ms_per_window']:8.1f}{row['watts']:8.1f}")
    energy = report["modelled"]
    ann_mj, qnn_mj, snn_mj = (energy[f"{name}_pj"] / 1e9 for name in ("ann", "qnn", "snn"))
    lines.append(f"modelled (45 nm, {energy['table']}): dense ANN {ann_mj:.3f} mJ, QNN {qnn_mj:.3f} mJ, SNN {snn_mj:.3f} mJ")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=Path, default=STREET, metavar="FILE", help="a recording (default: the bundled one)")
    parser.add_argument("--weights", default="street", metavar="NAME|FILE", help="default: street")
    parser.add_argument("--engine", default="auto", metavar="NAME", help="engine of the spiking network (default: auto)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--windows", type=int, default=20, metavar="N", help="number of non-empty windows to use (default: 20)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of idling, ANN and SNN (default: 5)")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="duration of each in a round (default: 4)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    args = parser.parse_args(argv)
    try:
        report = compare(args)
    except EvburstError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report, indent=1) if args.json else human(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
