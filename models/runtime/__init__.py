"""Engines: ways of running a spiking network. `reference` is the specification; the others say what they lose.

    reference   models/spiking/network.py, float32, any device
    cuda        the reference as CUDA graphs, neurons as one Triton kernel; equal spikes (not yet run on a GPU: never chosen by auto)
    int8        exact sums of the 8-bit weights that conversion made (CPU with AVX2); spikes equal but for neurons within float32
                rounding of a threshold

A new engine is a function `(graph, parameters, max_count) -> SpikingNetwork` under @engine: a subclass overrides `run`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from evburst.data.errors import ConfigError
from evburst.models.graph import Graph
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters

Builder = Callable[[Graph, SpikingParameters, int], SpikingNetwork]

ENGINES: dict[str, Builder] = {}
"""By name; `auto` is the fastest of them that the machine can run."""


def engine(name: str) -> Callable[[Builder], Builder]:
    """Register an engine."""

    def register(build: Builder) -> Builder:
        ENGINES[name] = build
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
    return ENGINES[choose(name, device)](graph, parameters, max_count)


def choose(name: str, device: str = "cpu") -> str:
    """The engine meant by a name, which may be auto; raises ConfigError as `open_engine`."""
    from evburst.models.runtime.int8.simd import AVAILABLE

    integers = AVAILABLE and device == "cpu"
    if name == "auto":
        return "int8" if integers else "reference"
    if name not in ENGINES:
        raise ConfigError(f"engine {name!r}: known are auto, {', '.join(ENGINES)}")
    if name == "cuda" and (device != "cuda" or find_spec("triton") is None):
        raise ConfigError("engine 'cuda' needs --device cuda and the package triton; use --engine reference")
    if name == "int8" and not integers:
        raise ConfigError("engine 'int8' needs an x86-64 CPU with AVX2; use --engine reference")
    return name


@engine("reference")
def _reference(graph: Graph, parameters: SpikingParameters, max_count: int) -> SpikingNetwork:
    return SpikingNetwork(graph, parameters)


@engine("cuda")
def _cuda(graph: Graph, parameters: SpikingParameters, max_count: int) -> SpikingNetwork:
    from evburst.models.runtime.cuda import CudaNetwork

    return CudaNetwork(graph, parameters)


@engine("int8")
def _int8(graph: Graph, parameters: SpikingParameters, max_count: int) -> SpikingNetwork:
    from evburst.models.runtime.int8.network import IntegerNetwork

    return IntegerNetwork(graph, parameters, max_count)
