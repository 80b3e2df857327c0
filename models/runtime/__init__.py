"""Engines: ways of running a spiking network. `reference` is the specification; the others say what they lose.

    reference   models/spiking/network.py, float32, any device
    int8        exact sums of the 8-bit weights that conversion made (CPU with AVX2); spikes equal but for neurons within float32
                rounding of a threshold, and all of them after `integer_form` (models/spiking/rounding.py)
    onnx        the network as ONNX in onnxruntime, any CPU; spikes equal after `integer_form`
    openvino    the same in OpenVINO
    cuda        the reference as CUDA graphs, neurons as one Triton kernel; equal spikes (not yet run on a GPU: never chosen by auto)

A new engine is a function `(graph, parameters, max_count) -> SpikingNetwork` under @engine: a subclass overrides `run`. Its
`available` says why it cannot run on a device, or "".
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from evburst.data.errors import ConfigError
from evburst.models.graph import Graph
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters
from evburst.models.spiking.rounding import is_integer

Builder = Callable[[Graph, SpikingParameters, int], SpikingNetwork]


@dataclass(frozen=True)
class Engine:
    """An engine.

    Attributes:
        build: makes a network ready to run.
        available: why it cannot run on a device (cpu, cuda); "" if it can.
        exact_only: it runs only networks in integer form (models/spiking/rounding.py): others would spike otherwise.
    """

    build: Builder
    available: Callable[[str], str]
    exact_only: bool = False


ENGINES: dict[str, Engine] = {}
"""By name; `auto` is the fastest of them that was measured on this machine."""

MEASURED_TIMESTEPS = (1, 4)
"""Numbers of timesteps at which engines are measured: their order differs."""


def engine(name: str, available: Callable[[str], str], exact_only: bool = False) -> Callable[[Builder], Builder]:
    """Register an engine."""

    def register(build: Builder) -> Builder:
        ENGINES[name] = Engine(build, available, exact_only)
        return build

    return register


def open_engine(
    name: str, graph: Graph, parameters: SpikingParameters, max_count: int = 255, device: str = "cpu"
) -> SpikingNetwork:
    """A network ready to run.

    Args:
        name: of ENGINES, or auto.
        graph, parameters: the network, on its device.
        max_count: largest count of its grids.
        device: cpu or cuda.

    Raises:
        ConfigError: no such engine, or not on this machine.
    """
    integer = is_integer(graph, parameters)
    return ENGINES[choose(name, device, parameters.timesteps, integer)].build(graph, parameters, max_count)


def choose(name: str, device: str = "cpu", timesteps: int = 1, integer: bool = True) -> str:
    """The engine meant by a name, which may be auto; raises ConfigError as `open_engine`.

    Args:
        name: of ENGINES, or auto.
        device: cpu or cuda.
        timesteps: T.
        integer: the network is in integer form.
    """
    if name == "auto":
        return _fastest(device, timesteps, integer)
    if name not in ENGINES:
        raise ConfigError(f"engine {name!r}: known are auto, {', '.join(ENGINES)}")
    if ENGINES[name].exact_only and not integer:
        raise ConfigError(
            f"engine {name!r} runs networks in integer form only: convert these weights anew, or use another engine"
        )
    if reason := ENGINES[name].available(device):
        raise ConfigError(f"engine {name!r} {reason}; or use --engine reference")
    return name


def _fastest(device: str, timesteps: int, integer: bool) -> str:
    """As measured; where nothing was measured: int8, or else onnx; on a GPU, or without either, reference."""
    if device != "cpu":
        return "reference"
    nearest = MEASURED_TIMESTEPS[timesteps > 1]
    for name in sorted(times := measured().get(str(nearest), {}), key=lambda name: times[name]):
        if name in ENGINES and _fits(name, device, integer):
            return name
    return next(name for name in ("int8", "onnx", "reference") if _fits(name, device, integer))


def _fits(name: str, device: str, integer: bool) -> bool:
    return not ENGINES[name].available(device) and (integer or not ENGINES[name].exact_only)


def machine() -> dict[str, str]:
    """What the speed of engines depends on: if it changes, what was measured no longer holds."""
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
    """Where measured times are remembered: in the user's cache folder, or in $EVBURST_CACHE."""
    if folder := os.environ.get("EVBURST_CACHE"):
        return Path(folder) / "engines.json"
    home = os.path.expanduser("~")
    base = {"win32": os.environ.get("LOCALAPPDATA", home), "darwin": f"{home}/Library/Caches"}.get(sys.platform)
    return Path(os.environ.get("XDG_CACHE_HOME") or base or f"{home}/.cache") / "evburst" / "engines.json"


def measured() -> dict[str, dict[str, float]]:
    """Milliseconds per window of each engine, by timesteps, as measured on this machine; empty if none were."""
    with suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
        found = json.loads(measurements_file().read_text())
        if found["machine"] == machine():
            return {t: {str(k): float(ms) for k, ms in times.items()} for t, times in found["ms"].items()}
    return {}


def remember(times: Mapping[str, Mapping[str, float]]) -> bool:
    """Keep what was measured (see `measured`); False where it cannot be written."""
    path = measurements_file()
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"machine": machine(), "ms": times}, indent=1))
        part.replace(path)
    except OSError:
        return False
    return True


def _anywhere(device: str) -> str:
    return ""


@engine("reference", _anywhere)
def _reference(graph: Graph, parameters: SpikingParameters, max_count: int) -> SpikingNetwork:
    return SpikingNetwork(graph, parameters)


def _int8_available(device: str) -> str:
    from evburst.models.runtime.int8.simd import AVAILABLE

    generic = os.environ.get("NUMBA_CPU_NAME", "") == "generic"  # numba then compiles without AVX2
    return (
        "" if AVAILABLE and device == "cpu" and not generic else "needs an x86-64 CPU with AVX2, and numba that compiles for it"
    )


@engine("int8", _int8_available)
def _int8(graph: Graph, parameters: SpikingParameters, max_count: int) -> SpikingNetwork:
    from evburst.models.runtime.int8.network import IntegerNetwork

    return IntegerNetwork(graph, parameters, max_count)


def _library_available(package: str) -> Callable[[str], str]:
    def available(device: str) -> str:
        if device != "cpu":
            return "runs on the CPU only"
        absent = [name for name in ("onnx", package) if find_spec(name) is None]
        return f"needs the package {' and '.join(absent)}: pip install -e '.[engines]'" if absent else ""

    return available


@engine("onnx", _library_available("onnxruntime"), exact_only=True)
def _onnx(graph: Graph, parameters: SpikingParameters, max_count: int) -> SpikingNetwork:
    from evburst.models.runtime.exported import ExportedNetwork, open_onnxruntime

    return ExportedNetwork(graph, parameters, max_count, open_onnxruntime)


@engine("openvino", _library_available("openvino"), exact_only=True)
def _openvino(graph: Graph, parameters: SpikingParameters, max_count: int) -> SpikingNetwork:
    from evburst.models.runtime.exported import ExportedNetwork, open_openvino

    return ExportedNetwork(graph, parameters, max_count, open_openvino)


def _cuda_available(device: str) -> str:
    return "" if device == "cuda" and find_spec("triton") is not None else "needs --device cuda and the package triton"


@engine("cuda", _cuda_available)
def _cuda(graph: Graph, parameters: SpikingParameters, max_count: int) -> SpikingNetwork:
    from evburst.models.runtime.cuda import CudaNetwork

    return CudaNetwork(graph, parameters)
