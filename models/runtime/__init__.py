"""Engines: implementations that run a spiking network.

    reference   models/spiking/network.py: float32, any device; defines the correct result
    int8        integer arithmetic with the 8-bit weights of the conversion, on CPUs with AVX2
    onnx        the network as ONNX in onnxruntime, on any CPU
    openvino    the network as ONNX in OpenVINO, on any CPU
    cuda        the reference as CUDA graphs with the neurons in one Triton kernel, on a GPU

All engines fire the same spikes as the reference where layers are in integer form (models/spiking/integer_form.py). Networks
that are not are refused by onnx and openvino; with int8, neurons within float32 rounding of their threshold can differ. The few
layers that have no integer form are computed in float32, so that there engines can differ, too (bench/spikes.py).

To add an engine, decorate a function `(graph, parameters, max_count) -> SpikingNetwork` with @engine. It returns a subclass
that overrides `run`. Its `available` returns why the engine cannot run on a device, or "".
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from evburst.data.errors import ConfigError, DataError
from evburst.data.extensions import refuse_taken
from evburst.data.extras import pip_install
from evburst.data.files import replacing
from evburst.models.graph import Graph
from evburst.models.spiking.integer_form import is_integer
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters

Builder = Callable[[Graph, SpikingParameters, int], SpikingNetwork]


@dataclass(frozen=True)
class Engine:
    """A registered engine.

    Attributes:
        build: (graph, parameters, max_count) -> network ready to run.
        available: device ("cpu", "cuda") -> reason why the engine cannot run on it, "" if it can.
        exact_only: it only runs networks in integer form (models/spiking/integer_form.py), as others would spike differently.
        count_every: by default, spikes are counted in every N-th window; more than 1 where counting takes additional time.
        counted_by: engine that runs the windows in which spikes are counted, where it is available; "": this one.
    """

    build: Builder
    available: Callable[[str], str]
    exact_only: bool = False
    count_every: int = 1
    counted_by: str = ""


class Times(NamedTuple):
    """Measured ms per window of an engine: with spikes counted, and without."""

    counted: float
    uncounted: float

    def mean(self, count_every: int) -> float:
        """Return the mean over windows of which every N-th is counted."""
        return self.uncounted + (self.counted - self.uncounted) / count_every


ENGINES: dict[str, Engine] = {}
"""Engines by name. `auto` stands for the one that was measured to be the fastest on this machine."""

MEASURED_TIMESTEPS = (1, 4)
"""Numbers of timesteps at which engines are measured, since their order depends on it."""


_SAMPLING_MARGIN = 1.15
"""How many times faster an engine must be for `auto` to choose it over one that counts every window.

Measurements of some seconds differ by less, and the engine that counts is also the one that is faster in quiet windows."""

SAMPLED = 10
"""`Engine.count_every` where counting takes additional time."""


def engine(
    name: str, available: Callable[[str], str], exact_only: bool = False, count_every: int = 1, counted_by: str = ""
) -> Callable[[Builder], Builder]:
    """Register an engine; the parameters are described in `Engine`. Raises ConfigError if another one has the name."""

    def register(build: Builder) -> Builder:
        refuse_taken("engine", name, build, {known: one.build for known, one in ENGINES.items()})
        ENGINES[name] = Engine(build, available, exact_only, count_every, counted_by)
        return build

    return register


def open_engine(
    name: str, graph: Graph, parameters: SpikingParameters, max_count: int = 255, device: str = "cpu"
) -> SpikingNetwork:
    """Prepare a network to run on an engine.

    Args:
        name: a key of ENGINES, or auto.
        graph, parameters: the network, on its device.
        max_count: largest count of its grids.
        device: cpu or cuda.

    Raises:
        ConfigError: the engine is unknown, or cannot run this network on this machine.
    """
    integer = is_integer(graph, parameters)
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # a mantissa of ten bits would decide spikes otherwise than on a CPU
    return ENGINES[choose(name, device, parameters.timesteps, integer)].build(graph, parameters, max_count)


def choose(name: str, device: str = "cpu", timesteps: int = 1, integer: bool = True, count_every: int | None = None) -> str:
    """Resolve the name of an engine, which may be auto; raises ConfigError like `open_engine`.

    Args:
        name: a key of ENGINES, or auto.
        device: cpu or cuda.
        timesteps: T.
        integer: whether the network is in integer form.
        count_every: spikes will be counted in every N-th window; None: as is the default of the engine.
    """
    check_engine(name)
    if name == "auto":
        return _fastest(device, timesteps, integer, count_every)
    if ENGINES[name].exact_only and not integer:
        raise ConfigError(
            f"engine {name!r} only runs networks in integer form: convert these weights again, or use another engine"
        )
    if reason := ENGINES[name].available(device):
        raise ConfigError(f"engine {name!r} {reason}; or use --engine auto")
    return name


def counting_engine(name: str, device: str = "cpu") -> str:
    """Return the engine that runs the windows in which spikes are counted, if that is another one than `name`; else ""."""
    other = ENGINES[name].counted_by if name in ENGINES else ""
    return other if other in ENGINES and not ENGINES[other].available(device) else ""


def check_engine(name: str) -> None:
    """Raise ConfigError if `name` is neither an engine's nor auto."""
    if name not in ("auto", *ENGINES):
        raise ConfigError(f"engine {name!r} is unknown (known: auto, {', '.join(ENGINES)})")


def _fastest(device: str, timesteps: int, integer: bool, count_every: int | None) -> str:
    """Name of the engine measured to be the fastest, by a margin if it counts in a sample only.

    Without measurements it is int8, onnx or reference, in order of preference; on a GPU, cuda.
    """
    if device != "cpu":
        return "cuda" if _fits("cuda", device, integer) else "reference"
    nearest = MEASURED_TIMESTEPS[timesteps > 1]
    times = measured().get(str(nearest), {})
    costs = {}
    for name, own in times.items():
        if name in ENGINES and _fits(name, device, integer) and not (count_every == 1 and counting_engine(name, device)):
            every = ENGINES[name].count_every
            is_sampled = every > 1 and count_every is None
            costs[name] = own.mean(count_every or every) * (_SAMPLING_MARGIN if is_sampled else 1)
    if costs:
        return min(costs, key=lambda name: costs[name])
    return next(name for name in ("int8", "onnx", "reference") if _fits(name, device, integer))


def _fits(name: str, device: str, integer: bool) -> bool:
    return not ENGINES[name].available(device) and (integer or not ENGINES[name].exact_only)


def machine() -> dict[str, str]:
    """Describe what the speed of engines depends on; measurements are valid as long as it does not change."""
    packages = {}
    for name in ("torch", "numba", "onnxruntime", "openvino"):
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    processor = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {"processor": processor, "threads": str(torch.get_num_threads()), **packages}


def measurements_file() -> Path:
    """Path of the file with measured times, in the user's cache folder or in $EVBURST_CACHE."""
    if folder := os.environ.get("EVBURST_CACHE"):
        return Path(folder) / "engines.json"
    home = os.path.expanduser("~")
    base = {"win32": os.environ.get("LOCALAPPDATA", home), "darwin": f"{home}/Library/Caches"}.get(sys.platform)
    return Path(os.environ.get("XDG_CACHE_HOME") or base or f"{home}/.cache") / "evburst" / "engines.json"


def measured() -> dict[str, dict[str, Times]]:
    """Load the times of each engine by number of timesteps; empty if none were measured on this machine."""
    with suppress(OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        saved = json.loads(measurements_file().read_text())
        times = {t: {str(k): Times(*map(float, own)) for k, own in rows.items()} for t, rows in saved["ms"].items()}
        if saved["machine"] == machine() and all(
            0 < ms < math.inf for rows in times.values() for own in rows.values() for ms in own
        ):
            return times
    return {}


def remember(times: Mapping[str, Mapping[str, Times]]) -> bool:
    """Save measured times (see `measured`); returns False if the file cannot be written."""
    try:
        with replacing(measurements_file()) as part:
            part.write_text(json.dumps({"machine": machine(), "ms": times}, indent=1))
    except DataError:
        return False
    return True


def _anywhere(device: str) -> str:
    return ""


@engine("reference", _anywhere)
def _reference(graph: Graph, parameters: SpikingParameters, max_count: int) -> SpikingNetwork:
    return SpikingNetwork(graph, parameters)


def _int8_available(device: str) -> str:
    from evburst.models.runtime.int8.simd.emit import AVAILABLE

    generic = os.environ.get("NUMBA_CPU_NAME", "") == "generic"  # makes numba compile without AVX2
    if AVAILABLE and device == "cpu" and not generic:
        return ""
    return "needs --device cpu, an x86-64 processor with AVX2, NUMBA_CPU_NAME not to be generic, and no NUMBA_DISABLE_JIT"


@engine("int8", _int8_available)
def _int8(graph: Graph, parameters: SpikingParameters, max_count: int) -> SpikingNetwork:
    from evburst.models.runtime.int8.network import IntegerNetwork

    return IntegerNetwork(graph, parameters, max_count)


def _library_available(package: str) -> Callable[[str], str]:
    def available(device: str) -> str:
        if device != "cpu":
            return "runs on the CPU only"
        absent = [name for name in ("onnx", package) if find_spec(name) is None]
        return f"needs the package {' and '.join(absent)}: {pip_install('engines')}" if absent else ""

    return available


def _counting(name: str, graph: Graph, parameters: SpikingParameters, max_count: int) -> SpikingNetwork | None:
    """Network of the engine that counts spikes for a library's, with the same spikes."""
    other = counting_engine(name)
    return ENGINES[other].build(graph, parameters, max_count) if other else None


@engine("onnx", _library_available("onnxruntime"), exact_only=True, count_every=SAMPLED, counted_by="int8")
def _onnx(graph: Graph, parameters: SpikingParameters, max_count: int) -> SpikingNetwork:
    from evburst.models.runtime.exported import ExportedNetwork, open_onnxruntime

    return ExportedNetwork(graph, parameters, open_onnxruntime, _counting("onnx", graph, parameters, max_count))


@engine("openvino", _library_available("openvino"), exact_only=True, count_every=SAMPLED, counted_by="int8")
def _openvino(graph: Graph, parameters: SpikingParameters, max_count: int) -> SpikingNetwork:
    from evburst.models.runtime.exported import ExportedNetwork, open_openvino

    counting = _counting("openvino", graph, parameters, max_count)
    return ExportedNetwork(graph, parameters, open_openvino, counting, clip_first=True)


def _cuda_available(device: str) -> str:
    return "" if device == "cuda" and find_spec("triton") is not None else "needs --device cuda and the package triton"


@engine("cuda", _cuda_available)
def _cuda(graph: Graph, parameters: SpikingParameters, max_count: int) -> SpikingNetwork:
    from evburst.models.runtime.cuda import CudaNetwork

    return CudaNetwork(graph, parameters)
