"""Measure the time per window of each network and engine.

    python bench/inference.py --events RECORDING.dat [--weights street] [--root DIR]

The contenders take turns on the same window, round after round, so that other load on the machine affects all of them. Reports
medians, and ratios to the fastest float32 runtime of the ANN of the same weights. The process is pinned to --threads cores (2).
`cpu` is the processor time of all threads, which other programs disturb less than the clock. Peak memory is measured in a
separate process. With --root, AP is measured on the validation windows of the weights' training data.

    ann                      float32, as detect.py --ann runs it
    ann channels-last        the same in channels-last layout, the fastest on this machine
    onnxruntime, openvino    the same ANN, exported, in float32 and in 8 bits (onnxruntime's static quantisation, calibrated on
                             the window)
    snn ...                  the spiking network in the engines of models/runtime, every spike counted
    spikingjelly             SpikingJelly's converter and neurons, if installed (extra `bench`); if it rejects the network, the
                             table gives the reason
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if TYPE_CHECKING:
    import torch

    from evburst.models.bundle import DetectorBundle

PEER = "spikingjelly"
FLOAT = ("ann", "ann channels-last", "onnxruntime", "openvino")
"""Contenders in float32; the fastest is the reference for the ratios."""
TIMESTEPS = (1, 2, 4)
PEER_TIMESTEPS = (1, 2, 4, 16, 32)
_REST_S = 0.05
"""Pause before a turn, because some libraries' threads keep spinning for a while and would slow down the next contender."""
_RUNS = 3
"""Measured runs per turn, after an unmeasured one, because a processor is slow while it wakes up."""


@dataclass(frozen=True)
class Contender:
    """A network that takes a grid `(1, C, H, W)` uint8; for AP, `bundle` and `options` are passed to `score`."""

    run: Callable[[torch.Tensor], Any]
    bundle: DetectorBundle | None = None
    options: dict[str, Any] | None = None


def contenders(bundle: DetectorBundle, grid: torch.Tensor) -> dict[str, Callable[[], Contender]]:
    """Return functions that build the contenders, by name."""
    builders: dict[str, Callable[[], Contender]] = {
        "ann": lambda: _ann(bundle),
        "ann channels-last": lambda: _ann(bundle, channels_last=True),
        "onnxruntime": lambda: _onnxruntime(bundle),
        "onnxruntime int8": lambda: _onnxruntime(bundle, grid),
        "openvino": lambda: _openvino(bundle),
        "openvino int8": lambda: _openvino(bundle, grid),
    }
    for name in ("reference", "int8", "onnx", "openvino"):
        for timesteps in TIMESTEPS:
            builders[f"snn {name} T={timesteps}"] = lambda n=name, t=timesteps: _engine(bundle, n, t)
    for timesteps in PEER_TIMESTEPS:
        builders[f"{PEER} T={timesteps}"] = lambda t=timesteps: _spikingjelly(bundle, grid, t)
    return builders


def _ann(bundle: DetectorBundle, channels_last: bool = False) -> Contender:
    import torch

    from evburst.models.graph import Runner

    layout = torch.channels_last if channels_last else torch.contiguous_format
    runner = Runner(bundle.graph.channels_last() if channels_last else bundle.graph)
    return Contender(lambda grid: runner(grid.float().contiguous(memory_format=layout)), bundle, {"ann": True})


def _exported(bundle: DetectorBundle, folder: str, calibration: torch.Tensor | None) -> Path:
    """Write the ANN as an ONNX file, quantised if a calibration grid is given; return its path."""
    from evburst.models.export.onnx import write_onnx

    path = Path(folder) / "ann.onnx"
    write_onnx(bundle, path)
    if calibration is None:
        return path
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.grids = iter([{bundle.graph.nodes[0].name: calibration.numpy().astype(np.float32)}])

        def get_next(self) -> Any:
            return next(self.grids, None)

    quantised = path.with_name("int8.onnx")
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(path, quantised, Reader(), per_channel=True, reduce_range=True, **types)
    return quantised


def _onnxruntime(bundle: DetectorBundle, calibration: torch.Tensor | None = None) -> Contender:
    import numpy as np
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        session = onnxruntime.InferenceSession(_exported(bundle, folder, calibration), options)
    name = bundle.graph.nodes[0].name
    return Contender(lambda grid: session.run(None, {name: grid.numpy().astype(np.float32)}))


def _openvino(bundle: DetectorBundle, calibration: torch.Tensor | None = None) -> Contender:
    import numpy as np
    import openvino
    import torch

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    with tempfile.TemporaryDirectory() as folder:
        model = core.read_model(_exported(bundle, folder, calibration))
    compiled = core.compile_model(model, "CPU", settings)
    return Contender(lambda grid: compiled(grid.numpy().astype(np.float32)))


def _engine(bundle: DetectorBundle, name: str, timesteps: int) -> Contender:
    from evburst.models.runtime import ENGINES, open_engine
    from evburst.models.spiking.rounding import integer_form

    parameters = replace(bundle.parameters, timesteps=timesteps)
    graph = bundle.spiking
    if ENGINES[name].exact_only:
        graph, parameters = integer_form(graph, parameters)
    network = open_engine(name, graph, parameters, bundle.voxel.max_count)
    return Contender(network.run, bundle, {"timesteps": timesteps, "engine": name})


def _spikingjelly(bundle: DetectorBundle, grid: torch.Tensor, timesteps: int) -> Contender:
    """SpikingJelly's conversion of the ANN, with the largest activations as thresholds; the state is reset before each run."""
    import torch
    from spikingjelly.activation_based import ann2snn, functional

    data = [(grid.float(), torch.zeros(1))]
    snn = ann2snn.Converter(ann2snn.RateCodingRecipe(dataloader=data), device="cpu").convert(_as_module(bundle))

    @torch.inference_mode()
    def run(grid: torch.Tensor) -> list[torch.Tensor]:
        functional.reset_net(snn)
        x = grid.float()
        total = [out.clone() for out in snn(x)]
        for _ in range(timesteps - 1):
            total = [a.add_(b) for a, b in zip(total, snn(x), strict=True)]
        return [out / timesteps for out in total]

    return Contender(run)


def _as_module(bundle: DetectorBundle) -> torch.nn.Module:
    """Return the folded ANN as a module that torch.fx can trace, with torch layers for convolutions, relus and pools."""
    from torch import nn

    from evburst.models.graph import Node, Runner

    def conv(node: Node) -> nn.Module:
        weight, a = bundle.graph.tensors[f"{node.name}.weight"], node.attrs
        size = weight.shape[1] * a["groups"], len(weight), tuple(weight.shape[2:])
        layer = nn.Conv2d(*size, tuple(a["stride"]), tuple(a["padding"]), tuple(a["dilation"]), a["groups"])
        layer.load_state_dict({"weight": weight, "bias": bundle.graph.tensors[f"{node.name}.bias"]})
        return layer

    makers: dict[str, Callable[[Node], nn.Module]] = {
        "conv": conv,
        "relu": lambda node: nn.ReLU(),
        "max_pool": lambda node: nn.MaxPool2d(node.attrs["kernel"], node.attrs["stride"], node.attrs["padding"]),
        "upsample": lambda node: nn.Upsample(scale_factor=node.attrs["factor"]),
    }

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = {node.name.replace(".", "_"): makers[node.op](node) for node in bundle.graph.nodes if node.op in makers}
            self.layers = nn.ModuleDict(layers)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            values: dict[str, torch.Tensor] = {}
            runner = Runner(bundle.graph)
            for node in bundle.graph.nodes:
                args = [values[name] for name in node.inputs]
                if node.op in makers:
                    values[node.name] = self.layers[node.name.replace(".", "_")](*args)
                else:
                    values[node.name] = x if node.op == "input" else getattr(runner, node.op)(node, *args)
            return [values[name] for name in bundle.graph.outputs]

    return Module().eval()


def window_grid(events: Path, bundle: DetectorBundle, index: int) -> torch.Tensor:
    """Return the grid `(1, C, H, W)` of one window of a recording."""
    from itertools import islice

    import torch

    from evburst.data.readers import open_events
    from evburst.data.representations.voxel_grid import voxel_batch

    stream = open_events(events)
    window = next(islice(stream.windows(bundle.voxel.window_us), index, None))
    return torch.from_numpy(voxel_batch([window], bundle.voxel, stream.sensor_size, bundle.stride))


def measure(names: list[str], build: dict[str, Callable[[], Contender]], grid: torch.Tensor, rounds: int) -> dict[str, Any]:
    """Return the median wall-clock and processor times in ms, over rounds in which every contender takes a turn."""
    import numpy as np

    built: dict[str, Contender] = {}
    refused: dict[str, str] = {}
    for name in names:
        try:
            built[name] = build[name]()
            built[name].run(grid)
            built[name].run(grid)
        except ImportError as error:
            built.pop(name, None)
            print(f"skipped: {name} ({error})", file=sys.stderr)
        except Exception as error:
            if not name.startswith(PEER):
                raise
            built.pop(name, None)  # the peer rejects some networks, for example with a layer that is silent in calibration
            refused[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    clock: dict[str, list[float]] = {name: [] for name in built}
    processor: dict[str, list[float]] = {name: [] for name in built}
    for _ in range(rounds):
        for name, contender in built.items():
            time.sleep(_REST_S)
            contender.run(grid)
            for _ in range(_RUNS):
                started, used = time.perf_counter(), time.process_time()
                contender.run(grid)
                clock[name].append(1000 * (time.perf_counter() - started))
                processor[name].append(1000 * (time.process_time() - used))
    times = {
        name: {"ms": round(float(np.median(clock[name])), 2), "cpu_ms": round(float(np.median(processor[name])), 2)}
        for name in built
    }
    return {
        name: times[name] if name in times else {"refused": refused[name]} for name in names if name in {**times, **refused}
    }


def average_precisions(names: list[str], build: dict[str, Callable[[], Contender]], root: str, n: int) -> dict[str, float]:
    """Return the AP by contender, on the validation windows of the training data; the peer's outputs are not decoded."""
    from evburst.app.config import build as build_config
    from evburst.app.convert.scores import score
    from evburst.data.datasets.registry import DatasetConfig, Request, open_dataset

    precisions: dict[str, float] = {}
    windows = None
    for name in names:
        contender = build[name]() if not name.startswith(PEER) else None
        if contender is None or contender.bundle is None:
            continue
        if windows is None:
            trained = contender.bundle.record["training"]["config"]
            config = build_config(DatasetConfig, {**trained["data"], "root": root})
            request = Request("val", contender.bundle.voxel.window_us, n, Path("runs/cache"), trained["schedule"]["seed"])
            windows = open_dataset(config, request)
        precisions[name] = round(score(contender.bundle, windows, **(contender.options or {}))[0].ap, 2)
    return precisions


def peak_memory_mb(name: str, args: argparse.Namespace) -> float:
    """Return the peak memory of a process that runs only this contender."""
    command = [sys.executable, __file__, "--events", str(args.events), "--weights", args.weights, "--memory-of", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout) if done.returncode == 0 else float("nan")


def table(results: dict[str, Any]) -> str:
    """Return the results as a Markdown table; ratios are to the fastest float32 network."""
    base = min((name for name in FLOAT if name in results), key=lambda name: results[name]["ms"])
    reference = results[base]
    lines = [
        f"Ratios are to {base}, the fastest float32 network on this machine.",
        "",
        "| network | ms | ratio | cpu ms | ratio | windows/s | peak MB | AP |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        if "refused" in r:
            lines.append(f"| {name} | rejected: {r['refused']} | | | | | | |")
            continue
        lines.append(
            f"| {name} | {r['ms']} | {r['ms'] / reference['ms']:.2f} | {r['cpu_ms']} | {r['cpu_ms'] / reference['cpu_ms']:.2f} "
            f"| {1000 / r['ms']:.1f} | {r.get('peak_mb', '')} | {r.get('ap', '')} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the time per window of each network and engine.")
    parser.add_argument("--events", type=Path, required=True, help="a recording to take a window from")
    parser.add_argument("--window", type=int, default=1, help="index of the window")
    parser.add_argument("--weights", default="street")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="comma-separated prefixes of the contenders' names")
    parser.add_argument("--root", default="", help="training data of the weights: also measure AP")
    parser.add_argument("--limit", type=int, default=0, help="number of windows for AP (0: all)")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory")
    parser.add_argument("--memory-of", default="", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = str(args.threads)

    import torch

    from evburst.app import detect
    from evburst.models.bundle import DetectorBundle

    torch.set_num_threads(args.threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    bundle = DetectorBundle.load(args.weights)
    grid = window_grid(args.events, bundle, args.window)
    build = contenders(bundle, grid)
    if args.memory_of:
        build[args.memory_of]().run(grid)
        print(detect.peak_memory_mb())
        return
    names = [name for name in build if not args.only or name == "ann" or name.startswith(tuple(args.only.split(",")))]
    results = measure(names, build, grid, args.rounds)
    if args.root:
        for name, ap in average_precisions(list(results), build, args.root, args.limit).items():
            results[name]["ap"] = ap
    if args.memory:
        for name in (name for name, result in results.items() if "refused" not in result):
            results[name]["peak_mb"] = round(peak_memory_mb(name, args), 1)
    print(table(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
