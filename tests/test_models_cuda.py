"""The CUDA engine: its kernel against the specification, interpreted without a GPU; compiled, and as a whole, with one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from evburst.data.errors import ConfigError
from evburst.models.graph import Graph
from evburst.models.runtime import choose, open_engine
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters
from evburst.models.spiking.neurons import NeuronLayer, burst_scan, burst_scan_fused
from tests.conftest import in_new_process, spiking

KINDS = {"plain": {}, "signed": {"takes_back": True}, "leaky": {"negative_slope": 0.1}, "relu6": {"ceiling": 2.0}}


def kernel_equals_the_specification() -> None:
    """Every kind of neuron, T, constant currents or not; called by the test below in a process where Triton interprets."""
    from evburst.models.runtime.cuda import scan

    generator = torch.Generator().manual_seed(0)
    for timesteps in (1, 3):
        for length in {1, timesteps}:
            for name, kind in KINDS.items():
                current = 2 * torch.randn(length, 2, 3, 19, 23, generator=generator)
                fan_out = torch.randint(0, 500, (3, 19, 23), generator=generator).float()
                layer = NeuronLayer(torch.tensor([0.3, 0.7, 1.1]), torch.tensor([0.1, -0.2, 0.0]), 5, **kind)
                out, totals = scan(current, layer, timesteps, fan_out)
                assert torch.equal(out, burst_scan(current, layer, timesteps) * layer.theta[:, None, None]), name
                assert torch.equal(totals, burst_scan_fused(current, layer, timesteps, fan_out)[1]), name
                assert totals.min() > 0


def test_the_kernel_equals_the_specification() -> None:
    pytest.importorskip("triton")
    code = "from tests.test_models_cuda import kernel_equals_the_specification as test; test()"
    in_new_process(code, TRITON_INTERPRET="1")


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.filterwarnings("ignore:AnnAssign:DeprecationWarning")  # Triton's own, on Python 3.13
def test_the_kernel_compiles_and_rounds_as_the_specification_does(signed: bool, static: bool) -> None:
    """To machine code of a Hopper GPU, no GPU needed: divisions rounded, multiplication and subtraction not fused."""
    pytest.importorskip("triton")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from evburst.models.runtime.cuda import _scan_kernel  # private: its machine code is the subject

    pointers = dict.fromkeys(("current", "theta", "shift", "limits", "fan_out", "out"), "*fp32") | {"totals": "*fp64"}
    numbers = dict.fromkeys(("channels", "size", "step"), "i32") | {"slope": "fp32"}
    constants = {"timesteps": 2, "static": static, "signed": signed, "block": 1024}
    source = ASTSource(_scan_kernel, pointers | numbers | dict.fromkeys(constants, "constexpr"), constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
    assert "div.rn.f32" in compiled.asm["ptx"]
    assert "fma." not in compiled.asm["ptx"]
    assert len(compiled.asm["cubin"]) > 1000


def test_it_is_refused_without_a_gpu() -> None:
    with pytest.raises(ConfigError, match="--engine auto"):
        choose("cuda", "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("timesteps", [1, 2, 4])
def test_equal_to_the_reference_on_a_gpu(network: nn.Module, timesteps: int) -> None:
    graph = trace(network, torch.zeros(1, 4, 16, 16))
    grids = [torch.poisson(torch.full((2, 4, *size), 0.7)).to(torch.uint8) for size in ((12, 20), (12, 20), (20, 36))]
    own = spiking(graph, grids[0].float(), timesteps, 8)
    graph = Graph(graph.nodes, graph.outputs, {name: tensor.cuda() for name, tensor in graph.tensors.items()})
    neurons = {name: replace(layer, theta=layer.theta.cuda(), shift=layer.shift.cuda()) for name, layer in own.neurons.items()}
    parameters = SpikingParameters(timesteps, neurons, {name: shift.cuda() for name, shift in own.readout_shift.items()})
    fast, slow = open_engine("cuda", graph, parameters, 255, "cuda"), SpikingNetwork(graph, parameters)
    for grid in grids:
        (outputs, stats), (expected, reference) = fast.run(grid.cuda()), slow.run(grid.cuda())
        for a, b in zip(stats.layers, reference.layers, strict=True):
            assert (a.name, a.spikes.tolist(), a.synaptic_ops.tolist()) == (b.name, b.spikes.tolist(), b.synaptic_ops.tolist())
        for a, b in zip(outputs, expected, strict=True):
            torch.testing.assert_close(a, b)
