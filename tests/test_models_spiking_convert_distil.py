"""Advanced calibration: it is the network itself that learns, it comes nearer to its ANN, and what must stay stays."""

from __future__ import annotations

import pytest
import torch
from evburst.eval.energy import synaptic_ops
from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.graph import Graph, Runner
from evburst.models.spiking.convert.calibrate import Choice, best_thresholds, calibrate, record_targets
from evburst.models.spiking.convert.distil import _Fire, distil
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.convert.sensitivity import divergence
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters, signal_thresholds
from evburst.models.spiking.neurons import NeuronLayer
from evburst.models.spiking.rounding import rounded, spike_values
from torch import Tensor, nn

from tests.conftest import Block, drawn

SPEC = HeadSpec("yolo", (4,), 4, ("a", "b"))
CASES = {"T1": (1, Choice(3)), "T3": (3, Choice(2)), "signed T3": (3, Choice(8, signed=True)), "raised": (1, Choice(8, 2.0))}


class Detects(nn.Module):
    """A shortcut, a max-pool, and what a detector reads out: distributions of four sides, scores of two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep, self.down, self.last = Block(4, 8, 3, 2), Block(8, 8), Block(8, 8, 3, 2), Block(16, 8)
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.boxes, self.scores = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        stem = self.stem(x)
        down = self.down(stem + self.deep(stem))
        last = self.last(torch.cat([down, self.pool(down)], 1))
        return [self.boxes(last), self.scores(last)]


class DetectsOtherwise(Detects):
    """With the other activations and the other pool."""

    def __init__(self) -> None:
        super().__init__()
        self.deep.act, self.down.act = nn.LeakyReLU(0.1), nn.ReLU6()
        self.pool = nn.AvgPool2d(3, 1, 1)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return _traced(Detects)


def _traced(kind: type[nn.Module]) -> Graph:
    graph = trace(drawn(kind), torch.zeros(1, 4, 16, 16))
    for name in ("boxes.weight", "scores.weight"):  # as sure of itself as a trained one
        graph.tensors[name] *= 4
    return graph.in_float16()


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    """Forty of four grids, and a large one of others."""
    counts = torch.poisson(torch.full((224, 4, 16, 16), 0.7), generator=torch.Generator().manual_seed(5))
    return [*counts[:160].split(4), counts[160:]]


@pytest.fixture(params=CASES)
def calibrated(graph: Graph, batches: list[Tensor], request: pytest.FixtureRequest) -> tuple[Graph, SpikingParameters]:
    timesteps, choice = CASES[request.param]
    return calibrate(graph, record_targets(graph, torch.cat(batches[:4])), timesteps, choice)


def moved(graph: Graph, converted: tuple[Graph, SpikingParameters], grids: Tensor) -> float:
    return float(divergence(Runner(graph)(grids), SpikingNetwork(*converted).run(grids)[0], SPEC, everywhere=True))


def test_it_comes_nearer_on_grids_it_has_not_seen(
    graph: Graph, batches: list[Tensor], calibrated: tuple[Graph, SpikingParameters]
) -> None:
    """And leaves alone what it was given."""
    before = {name: tensor.clone() for name, tensor in graph.tensors.items()}
    divergences: list[float] = []
    learned = distil(graph, *calibrated, SPEC, batches[:40] * 4, 160, None, divergences.append)
    unseen = batches[40]
    assert len(divergences) == 160
    assert moved(graph, learned, unseen) < 0.9 * moved(graph, calibrated, unseen)
    assert all(torch.equal(graph.tensors[name], tensor) for name, tensor in before.items())


def test_what_learns_is_the_network_that_runs(
    graph: Graph, batches: list[Tensor], calibrated: tuple[Graph, SpikingParameters]
) -> None:
    """Its first divergence is that of the reference engine; in one timestep for all, nearly: there a burst is never cut short."""
    first: list[float] = []
    distil(graph, *calibrated, SPEC, batches[:1], 1, None, first.append)
    folds = all(layer.signed for layer in calibrated[1].neurons.values())
    assert first[0] == pytest.approx(moved(graph, calibrated, batches[0]), rel=0.1 if folds else 1e-4)


@pytest.mark.parametrize("case", CASES)
def test_other_activations_and_pools_learn_too(batches: list[Tensor], case: str) -> None:
    """Where one has a ceiling signed neurons do not fold: what learns runs all timesteps."""
    other, (timesteps, choice) = _traced(DetectsOtherwise), CASES[case]
    start = calibrate(other, record_targets(other, torch.cat(batches[:4])), timesteps, choice)
    divergences: list[float] = []
    learned = distil(other, *start, SPEC, batches[:40] * 8, 320, None, divergences.append)
    assert divergences[0] == pytest.approx(moved(other, start, batches[0]), rel=1e-4)
    assert moved(other, learned, batches[40]) < 0.97 * moved(other, start, batches[40])


def test_nothing_learned_is_nothing_changed(graph: Graph, calibrated: tuple[Graph, SpikingParameters]) -> None:
    spiking, parameters = distil(graph, *calibrated, SPEC, [], 1)
    for name, layer in calibrated[1].neurons.items():
        assert torch.allclose(parameters.neurons[name].theta, layer.theta, rtol=1e-6)
        assert torch.equal(parameters.neurons[name].shift, layer.shift)
        assert parameters.neurons[name].phi == layer.phi
    for name, tensor in calibrated[0].tensors.items():
        assert torch.allclose(spiking.tensors[name], tensor, atol=1e-2 * float(tensor.abs().max()))
    assert parameters.timesteps == calibrated[1].timesteps


def test_weights_have_8_bits_and_spikes_that_are_added_a_common_unit(
    graph: Graph, batches: list[Tensor], calibrated: tuple[Graph, SpikingParameters]
) -> None:
    spiking, parameters = distil(graph, *calibrated, SPEC, batches[:20], 20)
    theta = signal_thresholds(spiking, parameters.neurons)
    for node in spiking.nodes:
        if node.op == "conv":
            values, weight = spike_values(spiking, node, theta), spiking.tensors[f"{node.name}.weight"]
            assert values is not None
            assert torch.equal(rounded(weight, values), weight)
            assert not torch.equal(weight, calibrated[0].tensors[f"{node.name}.weight"])
    for name, layer in calibrated[1].neurons.items():
        same = torch.allclose(parameters.neurons[name].theta, layer.theta, rtol=1e-6)
        assert same == (name in ("stem.conv.relu", "deep.conv.relu"))


def test_it_learns_to_do_with_fewer_operations(
    graph: Graph, batches: list[Tensor], calibrated: tuple[Graph, SpikingParameters]
) -> None:
    """With about those asked for, on grids it has not seen, as the reference engine counts them."""

    def operations(converted: tuple[Graph, SpikingParameters]) -> float:
        return float(synaptic_ops(SpikingNetwork(*converted).run(batches[40])[1]).mean())

    wanted = 0.85 * operations(calibrated)
    learned = distil(graph, *calibrated, SPEC, batches[:40] * 4, 160, wanted)
    assert operations(learned) == pytest.approx(wanted, rel=0.08)


@pytest.mark.parametrize("signed", [False, True])
def test_thresholds_follow_the_error_of_the_steps(signed: bool) -> None:
    """Gradient descent on a layer's own squared error finds about the threshold that the search finds."""
    activation = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(2)).relu()
    best, _ = best_thresholds(activation, activation, torch.ones(1, 1, 64, 64), 1, 4)
    for start in (0.5, 2.0):
        log_theta = (best * start).log().requires_grad_()
        optimizer = torch.optim.Adam([log_theta], lr=0.03)
        for _ in range(120):
            theta = log_theta.exp()
            layer = NeuronLayer(theta.detach(), torch.zeros(1), 4, takes_back=signed)
            out, _ = _Fire.apply(activation[None], theta, torch.zeros(1), layer, 1, torch.ones(1, 64, 64))  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            (out[0] - activation).square().mean().backward()
            optimizer.step()
        assert float(log_theta.detach().exp() / best) == pytest.approx(1, abs=0.15)


NEURONS = {"relu": {}, "relu6": {"ceiling": 2.5}, "leaky": {"negative_slope": 0.1}, "takes back": {"takes_back": True}}


@pytest.mark.parametrize("neurons", NEURONS)
@pytest.mark.parametrize(("timesteps", "inputs"), [(1, 1), (3, 1), (3, 3)])
def test_gradient_is_that_of_single_operations(neurons: str, timesteps: int, inputs: int) -> None:
    generator = torch.Generator().manual_seed(3)
    current = torch.randn(inputs, 2, 5, 6, 7, generator=generator).mul_(2).requires_grad_()
    theta = torch.rand(5, generator=generator).add_(0.3).requires_grad_()
    shift = torch.randn(5, generator=generator).mul_(0.1).requires_grad_()
    fan_out = torch.randint(1, 9, (5, 6, 7), generator=generator).float()
    layer = NeuronLayer(theta.detach(), shift.detach(), 3, **NEURONS[neurons])
    out, operations = _Fire.apply(current, theta, shift, layer, timesteps, fan_out)  # type: ignore[no-untyped-call]

    mean, step = current.mean(0) + shift[:, None, None], theta[:, None, None]
    wanted = torch.where(mean > 0, mean, layer.negative_slope * mean)
    within = (wanted.abs() < (step * layer.burst_limits[:, None, None])).detach()
    per_step = current + shift[:, None, None]  # each timestep's output follows its own current, where it is not clipped
    follows = torch.where(mean > 0, per_step, layer.negative_slope * per_step) * within
    levels = (out.detach() - (wanted * within).detach()) / step.detach()
    surrogate = follows - follows.detach() + levels * (step - step.detach()) + out.detach()
    counted = (surrogate.abs() / step * fan_out).sum() / 2
    assert torch.allclose(operations, counted)

    weights = torch.randn(out.shape, generator=generator)
    inputs_of = current, theta, shift
    fast = torch.autograd.grad((out * weights).sum() + 0.05 * operations, inputs_of)
    slow = torch.autograd.grad((surrogate * weights).sum() + 0.05 * counted, inputs_of)
    for mine, other in zip(fast, slow, strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-4)
