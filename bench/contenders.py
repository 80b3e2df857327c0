"""The networks and runtimes that bench/inference.py times.

    ann                      float32, as detect.py --ann runs it
    ann channels-last        the same in channels-last layout, the fastest on this machine
    onnxruntime, openvino    the same ANN, exported, in float32 and in 8 bits (onnxruntime's static quantisation, calibrated on
                             the window)
    ... fixed size           the same, compiled for grids of this size only
    snn ...                  the spiking network in those engines of models/runtime that count every spike on the way
    snn ... uncounted        the spiking network in the libraries, which cannot count; as a network in integer form
    snn auto ...             as detect.py runs it by default: the engine that auto chooses, spikes counted in the sample of
                             windows that is its default; mean per window
    spikingjelly             SpikingJelly's converter and neurons, if installed (extra `bench`); if it rejects the network, the
                             table gives the reason. After --peer-seconds it takes no more turns, which the table says

torch is imported where it is used, after the number of threads is set.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from evburst.models.bundle import Bundle

PEER = "spikingjelly"
TIMESTEPS = (1, 2, 4)
PEER_TIMESTEPS = (1, 4, 16)


@dataclass(frozen=True)
class Contender:
    """A network that takes a grid `(1, C, H, W)` uint8.

    Attributes:
        run: runs it once, or on as many windows as `windows`.
        windows: number of windows of a run.
    """

    run: Callable[[torch.Tensor], Any]
    windows: int = 1


def contenders(bundle: Bundle, grid: torch.Tensor) -> dict[str, Callable[[], Contender]]:
    """Return functions that build the contenders, by name."""
    builders: dict[str, Callable[[], Contender]] = {
        "ann": lambda: _ann(bundle),
        "ann channels-last": lambda: _ann(bundle, channels_last=True),
        "onnxruntime": lambda: _onnxruntime(bundle),
        "onnxruntime int8": lambda: _onnxruntime(bundle, grid),
        "openvino": lambda: _openvino(bundle),
        "openvino int8": lambda: _openvino(bundle, grid),
        "openvino fixed size": lambda: _openvino(bundle, size=tuple(grid.shape)),
        "openvino int8 fixed size": lambda: _openvino(bundle, grid, tuple(grid.shape)),
    }
    for name in ("reference", "int8"):
        for timesteps in TIMESTEPS:
            builders[f"snn {name} T={timesteps}"] = lambda n=name, t=timesteps: _engine(bundle, n, t)
    for name in ("onnx", "openvino"):
        for timesteps in TIMESTEPS:
            builders[f"snn {name} T={timesteps} uncounted"] = lambda n=name, t=timesteps: _engine(bundle, n, t, counted=False)
    for timesteps in (1, 4):
        builders[f"snn auto T={timesteps}"] = lambda t=timesteps: _auto(bundle, t)
    for timesteps in PEER_TIMESTEPS:
        builders[f"{PEER} T={timesteps}"] = lambda t=timesteps: _spikingjelly(bundle, grid, t)
    return builders


def _ann(bundle: Bundle, channels_last: bool = False) -> Contender:
    import torch

    from evburst.models.graph import Runner

    layout = torch.channels_last if channels_last else torch.contiguous_format
    runner = Runner(bundle.graph.channels_last() if channels_last else bundle.graph)
    return Contender(lambda grid: runner(grid.float().contiguous(memory_format=layout)))


def _exported(bundle: Bundle, folder: str, calibration: torch.Tensor | None) -> Path:
    """Write the ANN as an ONNX file, quantised if a calibration grid is given; return its path."""
    from evburst.models.export.onnx import write_onnx

    path = Path(folder) / "ann.onnx"
    write_onnx(bundle, path)
    if calibration is None:
        return path
    import numpy as np

    from evburst.models.runtime.exported import import_onnxruntime

    import_onnxruntime()
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            name = bundle.graph.nodes[0].name
            self.grids = iter([{name: part.numpy().astype(np.float32)} for part in calibration.split(8)])

        def get_next(self) -> Any:
            return next(self.grids, None)

    quantised = path.with_name("int8.onnx")
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(path, quantised, Reader(), per_channel=True, **types)
    return quantised


def _onnxruntime(bundle: Bundle, calibration: torch.Tensor | None = None) -> Contender:
    import numpy as np
    import torch

    from evburst.models.runtime.exported import import_onnxruntime

    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        session = onnxruntime.InferenceSession(_exported(bundle, folder, calibration), options)
    name = bundle.graph.nodes[0].name
    return Contender(lambda grid: session.run(None, {name: grid.numpy().astype(np.float32)}))


def _openvino(bundle: Bundle, calibration: torch.Tensor | None = None, size: tuple[int, ...] | None = None) -> Contender:
    import numpy as np
    import torch

    from evburst.models.runtime.exported import import_openvino

    core = import_openvino().Core()
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    with tempfile.TemporaryDirectory() as folder:
        model = core.read_model(_exported(bundle, folder, calibration))
    if size is not None:
        model.reshape(list(size))
    compiled = core.compile_model(model, "CPU", settings)
    return Contender(lambda grid: compiled(grid.numpy().astype(np.float32)))


def _engine(bundle: Bundle, name: str, timesteps: int, counted: bool = True) -> Contender:
    from evburst.models.runtime import ENGINES, open_engine
    from evburst.models.spiking.integer_form import integer_form

    parameters = replace(bundle.parameters, timesteps=timesteps)
    graph = bundle.spiking
    if ENGINES[name].exact_only:
        graph, parameters = integer_form(graph, parameters)
    network = open_engine(name, graph, parameters, bundle.voxel.max_count)
    run: Callable[[torch.Tensor], Any] = network.run if counted else network.run_uncounted
    return Contender(run)


def _auto(bundle: Bundle, timesteps: int) -> Contender:
    """The engine that `auto` chooses for these weights, counting in the windows in which it does by default."""
    from evburst.app.engines import ensure_measured
    from evburst.models.runtime import ENGINES, choose, open_engine
    from evburst.models.spiking.integer_form import is_integer

    ensure_measured()
    parameters = replace(bundle.parameters, timesteps=timesteps)
    name = choose("auto", "cpu", timesteps, is_integer(bundle.spiking, parameters))
    network, every = open_engine(name, bundle.spiking, parameters, bundle.voxel.max_count), ENGINES[name].count_every

    def run(grid: torch.Tensor) -> None:
        network.run(grid)
        for _ in range(every - 1):
            network.run_uncounted(grid)

    return Contender(run, every)


def _spikingjelly(bundle: Bundle, grid: torch.Tensor, timesteps: int) -> Contender:
    """SpikingJelly's conversion of the ANN, with the largest activations as thresholds; the state is reset before each run."""
    import torch
    from spikingjelly.activation_based import ann2snn, functional

    from bench.torch_graph import TorchGraph

    data = [(grid.float(), torch.zeros(1))]
    snn = ann2snn.Converter(ann2snn.RateCodingRecipe(dataloader=data), device="cpu").convert(TorchGraph(bundle.graph).eval())

    @torch.inference_mode()
    def run(grid: torch.Tensor) -> list[torch.Tensor]:
        functional.reset_net(snn)
        x = grid.float()
        total = [out.clone() for out in snn(x)]
        for _ in range(timesteps - 1):
            total = [a.add_(b) for a, b in zip(total, snn(x), strict=True)]
        return [out / timesteps for out in total]

    return Contender(run)
