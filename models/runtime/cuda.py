"""The cuda engine: the reference network, captured once per input shape as a CUDA graph, with its neurons in one Triton kernel.

Spikes equal those of the reference engine on the same device, because the convolutions are the same and the kernel repeats
the neurons' arithmetic step by step (correctly rounded divisions, no fused multiply-add). Counts remain on the device until
the run has finished.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from evburst.data.stats import SpikeStats
from evburst.models.graph import Graph, Memory
from evburst.models.spiking.network import Counted, SpikingNetwork, SpikingParameters
from evburst.models.spiking.neurons import NeuronLayer

_BLOCK = 1024
_WARM_UPS = 3


@dataclass(frozen=True)
class _Captured:
    """Captured run for one input shape: replaying `graph` computes `outputs` and `counted` from the content of `grid`."""

    graph: torch.cuda.CUDAGraph
    grid: Tensor
    outputs: list[Tensor]
    counted: list[Counted]


class CudaNetwork(SpikingNetwork):
    """A spiking network as CUDA graphs; its graph and parameters must be on a CUDA device."""

    def __init__(self, graph: Graph, parameters: SpikingParameters) -> None:
        super().__init__(graph, parameters)
        self._graphs: dict[tuple[int, ...], _Captured] = {}

    @torch.inference_mode()
    def run(self, grid: Tensor, memory: Memory | None = None) -> tuple[list[Tensor], SpikeStats]:
        """Run the network on a batch; see SpikingNetwork.run. The outputs are valid until the next run.

        The run is not captured if a memory is given.
        """
        if memory is not None:
            return super().run(grid, memory)
        macs = self.begin(grid)
        captured = self._capture(grid)
        captured.grid.copy_(grid)
        captured.graph.replay()
        self._counted = captured.counted
        return captured.outputs, SpikeStats(tuple(self._layer_stats()), macs)

    @torch.inference_mode()
    def _capture(self, grid: Tensor) -> _Captured:
        key = tuple(grid.shape)
        if key not in self._graphs:
            static = grid.float()
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    self._counted.clear()
                    self(static)
            torch.cuda.current_stream().wait_stream(side)
            self._counted.clear()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = self(static)
            self._graphs[key] = _Captured(graph, static, outputs, self._counted)
        return self._graphs[key]

    def resting(self, grid: Tensor, timesteps: int) -> None:
        """See SpikingNetwork: this engine does not count differences from silence."""

    def _scan(
        self,
        current: Tensor,
        layer: NeuronLayer,
        timesteps: int,
        fan_out: Tensor,
        state: Tensor | None,
        resting: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        if state is not None:
            return super()._scan(current, layer, timesteps, fan_out, state, resting)
        return scan(current, layer, timesteps, fan_out)


def scan(current: Tensor, layer: NeuronLayer, timesteps: int, fan_out: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `burst_scan_fused` from rest, on the device of the arguments."""
    length, images, channels, height, width = current.shape
    size, planes = height * width, images * channels
    out = torch.empty((timesteps, *current.shape[1:]), device=current.device)
    totals = torch.zeros((images, 4), dtype=torch.float64, device=current.device)
    _scan_kernel[(planes, triton.cdiv(size, _BLOCK))](
        current.contiguous(), layer.theta, layer.shift, layer.burst_limits, fan_out.contiguous(), out, totals,
        channels, size, planes * size, layer.negative_slope,
        timesteps=timesteps, static=length == 1, signed=layer.signed, block=_BLOCK,
        enable_fp_fusion=False,
    )  # fmt: skip
    return out, totals


@triton.jit
def _scan_kernel(  # type: ignore[no-untyped-def]
    current, theta, shift, limits, fan_out, out, totals, channels, size, step, slope,
    timesteps: tl.constexpr, static: tl.constexpr, signed: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    plane, channel = tl.program_id(0), tl.program_id(0) % channels
    pixel = tl.program_id(1) * block + tl.arange(0, block)
    inside, place = pixel < size, plane.to(tl.int64) * size + pixel
    th, sh, limit = tl.load(theta + channel), tl.load(shift + channel), tl.load(limits + channel)
    rest = 0.0 if signed else 0.5
    v = tl.zeros((block,), tl.float32) + rest * th
    fired = tl.zeros((block,), tl.float32)
    spikes = tl.zeros((block,), tl.float32)
    bursts = tl.zeros((block,), tl.float32)
    source, to = current + place, out + place
    for _ in tl.static_range(timesteps):
        v += tl.load(source, mask=inside, other=0.0) + sh
        if signed:
            level = tl.floor(tl.math.div_rn(tl.where(v > 0, v, slope * v), tl.zeros_like(v) + th) + 0.5)
            n = tl.minimum(tl.maximum(level - fired, -limit), limit)
            fired += n
        else:
            n = tl.minimum(tl.maximum(tl.floor(tl.math.div_rn(v, tl.zeros_like(v) + th)), 0.0), limit)
            v -= n * th
        n = tl.where(inside, n, 0.0)
        tl.store(to, n * th, mask=inside)
        spikes += tl.abs(n)
        bursts += tl.where(n != 0, 1.0, 0.0)
        to += step
        if not static:
            source += step
    targets = tl.load(fan_out + channel * size + pixel, mask=inside, other=0.0)
    sums = totals + plane // channels * 4
    tl.atomic_add(sums, tl.sum(spikes.to(tl.float64)))
    tl.atomic_add(sums + 1, tl.sum((spikes * targets).to(tl.float64)))
    tl.atomic_add(sums + 2, tl.sum((bursts * targets).to(tl.float64)))
    tl.atomic_add(sums + 3, tl.sum(bursts.to(tl.float64)))
