"""The cuda engine on a GPU: python bench/gpu.py --weights street --json docs/results/gpu_street.json

Compares the outputs of the cuda engine with those of the reference network on the same device, and times both, the ANN run node
by node in float32 and float16, and the ANN in float16 as one CUDA graph, which is the fastest float baseline here. Median of 50
runs on random grids of the size of a 304x240 sensor; binning, decoding and NMS are not included.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from evburst.app.provenance import provenance
from evburst.eval.report.tables import Table
from evburst.models.bundle import Bundle
from evburst.models.graph import Graph, Runner
from evburst.models.runtime import open_engine
from evburst.models.spiking.network import SpikingNetwork

BATCHES, TIMESTEPS, RUNS, WARM_UP = (1, 32, 256), (1, 2, 4), 50, 10
HEIGHT, WIDTH = 256, 320


def on_gpu(graph: Graph, dtype: torch.dtype = torch.float32) -> Graph:
    """Copy a graph to the GPU."""
    return Graph(graph.nodes, graph.outputs, {name: tensor.to("cuda", dtype) for name, tensor in graph.tensors.items()})


def median_ms(run: Callable[[], object]) -> float:
    """Time a function that works on the GPU."""
    for _ in range(WARM_UP):
        run()
    seconds = []
    for _ in range(RUNS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return round(1000 * float(np.median(seconds)), 3)


@torch.inference_mode()
def as_graph(runner: Runner, grids: Tensor) -> torch.cuda.CUDAGraph:
    """Capture a run."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            runner(grids)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        runner(grids)
    return graph


def measure(bundle: Bundle, batch: int) -> dict[str, Any]:
    """Compare and time all networks on one batch."""
    x = torch.randint(0, 3, (batch, bundle.voxel.channels, HEIGHT, WIDTH), dtype=torch.uint8, device="cuda")
    found: dict[str, Any] = {"batch": batch}
    for t in TIMESTEPS:
        graph, own = on_gpu(bundle.spiking), replace(bundle.parameters.on(x.device), timesteps=t)
        fast, slow = open_engine("cuda", graph, own, 255, "cuda"), SpikingNetwork(graph, own)
        if batch < max(BATCHES):  # the reference keeps every layer of every timestep
            pairs = zip(fast.run(x)[0], slow.run(x)[0], strict=True)
            found[f"equal, T = {t}"] = all(torch.equal(a, b) for a, b in pairs)
        found[f"cuda, T = {t}"] = median_ms(lambda fast=fast: fast.run(x))  # type: ignore[misc]
        if batch == 1:
            found[f"reference, T = {t}"] = median_ms(lambda slow=slow: slow.run(x))  # type: ignore[misc]
    single, half = x.float(), x.half()
    runners = Runner(on_gpu(bundle.graph)), Runner(on_gpu(bundle.graph, torch.float16))
    found["ANN, float32"] = median_ms(lambda: runners[0](single))
    found["ANN, float16"] = median_ms(lambda: runners[1](half))
    found["ANN, float16, CUDA graph"] = median_ms(as_graph(runners[1], half).replay)
    return found


def table(report: dict[str, Any]) -> str:
    """Return a report as a table for docs/benchmarks.md: ms per batch, one column per batch size.

    A `note` in a report says what was measured otherwise than the program measures today.
    """
    rows = report["ms"]
    names = [name for name in rows[0] if name != "batch" and not name.startswith("equal")]
    what = ", ".join([report["card"], report["weights"], *([report["note"]] if "note" in report else []), "ms"])
    cells = [[name, *(f"{row[name]:.2f}" if name in row else "-" for row in rows)] for name in names]
    return Table([what, *(f"batch {row['batch']}" for row in rows)], cells, 1 + len(rows)).markdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="street")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    bundle = Bundle.load(args.weights)
    torch.backends.cudnn.benchmark = True
    rows = [measure(bundle, batch) for batch in BATCHES]
    report = {"weights": Path(args.weights).stem, "card": torch.cuda.get_device_name(), "ms": rows, **provenance()}
    print(json.dumps(report, indent=1))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
