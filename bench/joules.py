"""Measured energy of the ANN and of the spiking network on this machine, beside the modelled one: joules per window.

    python bench/joules.py                                   the bundled recording, processor counters (RAPL)
    python bench/joules.py --events rec_td.dat --device cuda  a GPU's own counter (NVML)

Counters: Linux' powercap files (Intel and AMD processors: package, and memory where there is a counter for it), and NVML's total
energy of a GPU (Volta and later). They cover the whole package or card, whoever uses it, so an idle machine is needed; what the
machine draws anyway is measured before and after, and taken off for the figure "above idle". Both networks run on ordinary
multiply hardware here: this says what software on this machine costs, not what the modelled accelerator would.
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

from evburst.app.inference import pick_device
from evburst.app.provenance import provenance
from evburst.data.errors import ConfigError, EvburstError
from evburst.data.readers import open_events
from evburst.data.representations.voxel_grid import padded_size, voxel_histogram
from evburst.data.stats import SpikeStats
from evburst.eval.energy import EnergyTotals, energy_figures
from evburst.models.bundle import DetectorBundle
from evburst.models.detector import Detector
from evburst.models.detectors.postprocess import PostConfig

POWERCAP = Path("/sys/class/powercap")
SAMPLE = Path(__file__).resolve().parents[1] / "data" / "samples" / "street_td.dat"


@dataclass(frozen=True)
class Counter:
    """An energy counter: `read` gives joules since some moment; it starts again at 0 after `wraps_j` (0: never)."""

    name: str
    read: Callable[[], float]
    wraps_j: float = 0.0

    def since(self, before: float) -> float:
        """Joules since an earlier reading."""
        spent = self.read() - before
        return spent + self.wraps_j if spent < 0 else spent


def powercap_counters(root: Path = POWERCAP) -> tuple[list[Counter], str]:
    """Processor packages and their memory; or none, and why."""
    zones = sorted(root.glob("*/energy_uj")) if root.is_dir() else []
    if not zones:
        return (
            [],
            f"{root} has no energy counters (virtual machines usually hide them; modprobe intel_rapl_msr where it is hardware)",
        )
    found = []
    for path in zones:
        zone = path.parent
        try:
            name = (zone / "name").read_text().strip()
            wraps = int((zone / "max_energy_range_uj").read_text()) * 1e-6
            path.read_text()
        except OSError as error:
            return [], f"{path}: cannot be read ({error.strerror}): run as root, or chmod o+r {root}/*/energy_uj"
        if name.startswith(("package", "dram", "psys")):
            found.append(Counter(name, lambda path=path: int(path.read_text()) * 1e-6, wraps))  # type: ignore[misc]
    return [c for c in found if not c.name.startswith("psys")] or found, ""


def nvml_counters(library: str = "libnvidia-ml.so.1") -> tuple[list[Counter], str]:
    """The first GPU; or none, and why."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return [], "NVML: the NVIDIA driver's library is not installed"
    handle, energy = ctypes.c_void_p(), ctypes.c_ulonglong()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)):
        return [], "NVML: no NVIDIA GPU answers"
    if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(energy)):
        return [], "NVML: this GPU does not count energy (Volta and later do)"

    def read() -> float:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(energy))
        return energy.value * 1e-3

    return [Counter("gpu", read)], ""


def counters(device: str) -> list[Counter]:
    """What can be read of the device.

    Raises:
        ConfigError: nothing; says why.
    """
    found, why = nvml_counters() if device == "cuda" else powercap_counters()
    if not found:
        raise ConfigError(f"no measured energy here: {why}")
    return found


def measure(meters: Sequence[Counter], work: Callable[[], int], seconds: float) -> tuple[dict[str, float], int, float]:
    """(joules by counter, windows, seconds) of `work` repeated for at least so long; `work` returns the windows it did."""
    windows, started, before = 0, time.perf_counter(), [meter.read() for meter in meters]
    while time.perf_counter() - started < seconds:
        windows += work()
    spent = {meter.name: meter.since(value) for meter, value in zip(meters, before, strict=True)}
    return spent, windows, time.perf_counter() - started


def idle() -> int:
    """No work, for a while."""
    time.sleep(0.05)
    return 0


def load_grids(bundle: DetectorBundle, path: Path, most: int) -> tuple[NDArray[np.uint8], Any]:
    """Windows of a recording that hold events, `(N, 2 * bins, H, W)` uint8, and the sensor's size."""
    stream = open_events(path, None, None)
    size, grids = stream.sensor_size, []
    width, height = padded_size(size, bundle.stride)
    for window in stream.windows(bundle.voxel.window_us):
        grid = np.zeros((bundle.voxel.channels, height, width), np.uint8)
        if voxel_histogram(window, bundle.voxel, size, grid)[0]:
            grids.append(grid)
        if len(grids) == most:
            break
    if not grids:
        raise ConfigError(f"{path}: holds no event")
    return np.stack(grids), size


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Rounds of idling, ANN and SNN in turn; joules per window of each, and the modelled energies of the same windows."""
    device = pick_device(args.device)
    meters = counters(device)
    bundle = DetectorBundle.load(args.weights)
    grids, size = load_grids(bundle, args.events, args.windows)
    networks = {
        "ANN": Detector(bundle, PostConfig(), ann=True, device=device),
        "SNN": Detector(bundle, PostConfig(), device=device, engine=args.engine),
    }
    totals = EnergyTotals(networks["ANN"].dense_macs(*grids.shape[2:]))

    def run(network: Detector) -> int:
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
    """Per window over all rounds, and between which figures single rounds lie."""
    windows, seconds = (sum(row[key] for row in rows) for key in ("windows", "seconds"))
    joules = sum(row["joules"] for row in rows)
    each = [row["joules"] / row["windows"] for row in rows]
    return {
        "mj_per_window": 1e3 * joules / windows,
        "mj_per_window_above_idle": 1e3 * (joules - idle_watts * seconds) / windows,
        "mj_lowest_round": 1e3 * min(each),
        "mj_highest_round": 1e3 * max(each),
        "ms_per_window": 1e3 * seconds / windows,
        "watts": joules / seconds,
    }


def human(found: dict[str, Any]) -> str:
    """A table, and the modelled energies below it."""
    head = f"{'':6}{'mJ/window':>12}{'above idle':>12}{'rounds':>18}{'ms':>8}{'W':>8}"
    lines = [f"counters {', '.join(found['counters'])}; idle {found['idle_watts']:.1f} W; {found['windows']} windows", head]
    for name, row in found["measured"].items():
        span = f"{row['mj_lowest_round']:.2f} to {row['mj_highest_round']:.2f}"
        figures = f"{row['mj_per_window']:12.2f}{row['mj_per_window_above_idle']:12.2f}{span:>18}"
        lines.append(f"{name:6}{figures}{row['ms_per_window']:8.1f}{row['watts']:8.1f}")
    e = found["modelled"]
    lines.append(
        f"modelled (45 nm, {e['table']}): dense ANN {e['ann_pj'] / 1e9:.3f} mJ, QNN {e['qnn_pj'] / 1e9:.3f} mJ, SNN {e['snn_pj'] / 1e9:.3f} mJ"
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=Path, default=SAMPLE, metavar="FILE", help="a recording (default: the bundled one)")
    parser.add_argument("--weights", default="street", metavar="NAME|FILE", help="default: street")
    parser.add_argument("--engine", default="auto", metavar="NAME", help="of the spiking network (default: auto)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--windows", type=int, default=20, metavar="N", help="first windows of the recording (default: 20)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of idling, ANN, SNN (default: 5)")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="of each in a round (default: 4)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    args = parser.parse_args(argv)
    try:
        found = compare(args)
    except EvburstError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=1) if args.json else human(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
