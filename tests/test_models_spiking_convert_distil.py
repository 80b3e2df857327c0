"""Advanced calibration: it is the network itself that learns, it comes nearer to its ANN, and what must stay stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import evburst.models.spiking.convert.distil as distil_module
import evburst.models.spiking.convert.fire as fire_module
import evburst.models.spiking.rounding as rounding_module
from evburst.data.boxes import iou_matrix
from evburst.data.errors import CheckpointError
from evburst.data.events import SensorSize
from evburst.eval.energy import synaptic_ops
from evburst.models.detectors.postprocess import HeadSpec, PostConfig, decode
from evburst.models.graph import Graph, Runner
from evburst.models.spiking.convert.calibrate import Choice, best_thresholds, calibrate, record_targets
from evburst.models.spiking.convert.distil import Descent, Distillation, Progress
from evburst.models.spiking.convert.fire import fire
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.convert.noise import KINDS, noise_grids, relative_cost
from evburst.models.spiking.convert.student import Student
from evburst.models.spiking.integer_form import is_integer
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters, spike_sizes
from evburst.models.spiking.neurons import NeuronLayer, burst_scan_fused
from evburst.models.spiking.rounding import input_sizes, rounded
from evburst.models.tasks import divergence, task_of
from tests.conftest import Block, Grouped, Residual, drawn

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
    return traced(Detects)


def traced(kind: type[nn.Module]) -> Graph:
    graph = trace(drawn(kind), torch.zeros(1, 4, 16, 16))
    for name in ("boxes.weight", "scores.weight"):  # as confident as a trained network
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


def distil(
    ann: Graph,
    spiking: Graph,
    parameters: SpikingParameters,
    spec: HeadSpec,
    batches: Sequence[Tensor],
    descent: Descent,
    progress: Callable[[Progress], object] = lambda _: None,
) -> tuple[Graph, SpikingParameters]:
    """Learn from every batch once."""
    learning = Distillation(ann, spiking, parameters, spec, descent)
    for grids in batches:
        progress(learning.learn(grids))
    return learning.network()


def mean_divergence(graph: Graph, converted: tuple[Graph, SpikingParameters], grids: Tensor) -> float:
    return float(divergence(Runner(graph)(grids), SpikingNetwork(*converted).run(grids)[0], SPEC, everywhere=True))


def test_it_comes_nearer_on_grids_it_has_not_seen(
    graph: Graph, batches: list[Tensor], calibrated: tuple[Graph, SpikingParameters]
) -> None:
    """And leaves alone what it was given."""
    before = {name: tensor.clone() for name, tensor in graph.tensors.items()}
    seen: list[Progress] = []
    learned = distil(graph, *calibrated, SPEC, batches[:40] * 4, Descent(160), seen.append)
    unseen = batches[40]
    assert len(seen) == 160
    assert mean_divergence(graph, learned, unseen) < 0.95 * mean_divergence(
        graph, calibrated, unseen
    )  # a part of it is linear in the error
    assert all(torch.equal(graph.tensors[name], tensor) for name, tensor in before.items())


def test_what_learns_is_the_network_that_runs(
    graph: Graph, batches: list[Tensor], calibrated: tuple[Graph, SpikingParameters]
) -> None:
    """The first divergence is the reference engine's; with one timestep for all nearly: there bursts are never cut short."""
    first: list[Progress] = []
    distil(graph, *calibrated, SPEC, batches[:1], Descent(1), first.append)
    folds = all(layer.signed for layer in calibrated[1].neurons.values())
    assert first[0].divergence == pytest.approx(mean_divergence(graph, calibrated, batches[0]), rel=0.1 if folds else 1e-4)


@pytest.mark.parametrize(
    "case",
    ["T1", "signed T3", *(pytest.param(case, marks=pytest.mark.slow) for case in CASES if case not in ("T1", "signed T3"))],
)
def test_other_activations_and_pools_learn_too(batches: list[Tensor], case: str) -> None:
    """Where one has a ceiling signed neurons do not fold: what learns runs all timesteps."""
    other, (timesteps, choice) = traced(DetectsOtherwise), CASES[case]
    start = calibrate(other, record_targets(other, torch.cat(batches[:4])), timesteps, choice)
    seen: list[Progress] = []
    learned = distil(other, *start, SPEC, batches[:40] * 8, Descent(320), seen.append)
    assert seen[0].divergence == pytest.approx(mean_divergence(other, start, batches[0]), rel=1e-4)
    assert mean_divergence(other, learned, batches[40]) < 0.97 * mean_divergence(other, start, batches[40])


class DetectsResidually(Residual):
    """A residual network with what a detector reads out."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes, self.scores = nn.Conv2d(24, 16, 1), nn.Conv2d(24, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.features(x)
        return [self.boxes(x), self.scores(x)]


class DetectsInGroups(Grouped):
    """Grouped convolutions with what a detector reads out."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes, self.scores = nn.Conv2d(32, 16, 1), nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.features(x)
        return [self.boxes(x), self.scores(x)]


@pytest.mark.parametrize("kind", [DetectsResidually, DetectsInGroups])
@pytest.mark.parametrize("case", ["T1", *(pytest.param(case, marks=pytest.mark.slow) for case in CASES if case != "T1")])
def test_neurons_driven_by_sums_learn_as_integers(kind: type[nn.Module], batches: list[Tensor], case: str) -> None:
    """The network that learns is the one that runs: thresholds follow those of the spikes that are added."""
    network, (timesteps, choice) = traced(kind), CASES[case]
    start = calibrate(network, record_targets(network, torch.cat(batches[:4])), timesteps, choice)
    first: list[Progress] = []
    distil(network, *start, SPEC, batches[:1], Descent(1), first.append)
    folds = all(layer.signed for layer in start[1].neurons.values())
    assert folds or first[0].divergence == pytest.approx(mean_divergence(network, start, batches[0]), rel=1e-4)
    learned = distil(network, *start, SPEC, batches[:40] * 8, Descent(320))
    assert is_integer(*learned)
    assert mean_divergence(network, learned, batches[40]) < mean_divergence(network, start, batches[40])


def test_nothing_learned_is_nothing_changed(graph: Graph, calibrated: tuple[Graph, SpikingParameters]) -> None:
    spiking, parameters = distil(graph, *calibrated, SPEC, [], Descent(1))
    for name, layer in calibrated[1].neurons.items():
        assert torch.allclose(parameters.neurons[name].theta, layer.theta, rtol=1e-6)
        assert torch.equal(parameters.neurons[name].shift, layer.shift)
        assert parameters.neurons[name].phi == layer.phi
    theta = spike_sizes(spiking, parameters.neurons)
    for node in (node for node in spiking.nodes if node.op == "conv"):
        before, after = (graph.tensors[f"{node.name}.weight"] for graph in (calibrated[0], spiking))
        values = input_sizes(spiking, node, theta)
        assert values is not None
        products = after * values[:, None, None]  # another step may have been chosen: then weights are rounded again
        assert torch.allclose(before * values[:, None, None], products, atol=float(products.abs().max()) / 127)
    assert parameters.timesteps == calibrated[1].timesteps


def test_weights_have_8_bits_and_spikes_that_are_added_a_common_unit(
    graph: Graph, batches: list[Tensor], calibrated: tuple[Graph, SpikingParameters]
) -> None:
    spiking, parameters = distil(graph, *calibrated, SPEC, batches[:20], Descent(20))
    theta = spike_sizes(spiking, parameters.neurons)
    assert is_integer(spiking, parameters)
    changed = 0
    for node in spiking.nodes:
        if node.op == "conv":
            values, weight = input_sizes(spiking, node, theta), spiking.tensors[f"{node.name}.weight"]
            assert values is not None
            assert torch.equal(rounded(weight, values, spiking.tensors.get(f"{node.name}.step")), weight)
            changed += not torch.equal(weight, calibrated[0].tensors[f"{node.name}.weight"])
    assert changed
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
    learned = distil(graph, *calibrated, SPEC, batches[:40] * 4, Descent(160, wanted))
    assert operations(learned) == pytest.approx(wanted, rel=0.1)


def test_it_learns_to_do_with_shorter_bursts(graph: Graph, batches: list[Tensor]) -> None:
    """And spends no more operations than it may."""
    start = calibrate(graph, record_targets(graph, torch.cat(batches[:4])), 1, Choice(8))

    def spent(converted: tuple[Graph, SpikingParameters]) -> tuple[float, float]:
        layers = SpikingNetwork(*converted).run(batches[40])[1].layers
        total = sum(float(layer.synaptic_ops.mean()) for layer in layers)
        return total, total / sum(float(layer.graded_ops.mean()) for layer in layers)

    operations, burst = spent(start)
    seen: list[Progress] = []
    descent = Descent(320, operations, 1 + 0.75 * (burst - 1))
    assert descent.burst is not None
    learned = distil(graph, *start, SPEC, batches[:40] * 8, descent, seen.append)
    assert spent(learned)[0] < 1.04 * operations
    assert spent(learned)[1] == pytest.approx(descent.burst, rel=0.06)
    assert seen[0].burst == pytest.approx(spent_on(start, batches[0]), rel=1e-4)


def zeros_of(graph: Graph) -> float:
    weights = [tensor for name, tensor in graph.tensors.items() if name.endswith(".weight")]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def test_it_learns_to_do_with_fewer_synapses(
    graph: Graph, batches: list[Tensor], calibrated: tuple[Graph, SpikingParameters]
) -> None:
    """Half of the weights are zero, which costs less than it loses, and stay so when it learns on."""
    unseen = batches[40]

    def operations(converted: tuple[Graph, SpikingParameters]) -> float:
        return float(synaptic_ops(SpikingNetwork(*converted).run(unseen)[1]).mean())

    learned = distil(graph, *calibrated, SPEC, batches[:40] * 4, Descent(160, prune=0.5))
    assert 0.5 <= zeros_of(learned[0]) < 0.55
    assert operations(learned) < 0.65 * operations(calibrated)
    student = Student(*calibrated, torch.device("cpu"))
    student.leave_out(0.5)
    at_once = Graph(graph.nodes, graph.outputs, student.tensors_now()), student.parameters_now()
    assert mean_divergence(graph, learned, unseen) < 0.7 * mean_divergence(graph, at_once, unseen)
    further = distil(graph, *learned, SPEC, batches[:5], Descent(5))
    for name, tensor in learned[0].tensors.items():
        assert not name.endswith(".weight") or bool((further[0].tensors[name][tensor == 0] == 0).all())
    first: list[Progress] = []
    distil(graph, *learned, SPEC, batches[:1], Descent(1, 1e9), first.append)
    counted = float(synaptic_ops(SpikingNetwork(*learned).run(batches[0])[1]).mean())
    assert first[0].operations == pytest.approx(counted, rel=1e-4)


def test_most_weights_are_left_out_early() -> None:
    descent = Descent(100, prune=0.6)
    shares = [descent.pruned_at(step, 0.1) for step in (0, 10, 25, 50, 99)]
    assert shares == pytest.approx([0.1, 0.344, 0.5375, 0.6, 0.6])
    assert Descent(100, prune=0.2).pruned_at(50, 0.3) == 0.3


def spent_on(converted: tuple[Graph, SpikingParameters], grids: Tensor) -> float:
    """Mean burst as the reference engine counts it."""
    layers = SpikingNetwork(*converted).run(grids)[1].layers
    return sum(float(x.synaptic_ops.sum()) for x in layers) / sum(float(x.graded_ops.sum()) for x in layers)


def test_scattered_events_cost_what_the_reference_engine_counts(
    graph: Graph, calibrated: tuple[Graph, SpikingParameters]
) -> None:
    student, grids = Student(*calibrated, torch.device("cpu")), noise_grids(4, 32, 3)
    student.outputs(grids)
    before = student.operations
    layers = SpikingNetwork(*calibrated).run(grids)[1].layers
    expected = np.sum([layer.synaptic_ops_beyond_silence for layer in layers], 0)
    assert expected.min() > 0
    assert student.beyond_silence(grids).tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert student.operations is before


def test_it_learns_that_scattered_events_mean_nothing(graph: Graph, batches: list[Tensor]) -> None:
    """They cost half, and what is learned otherwise still comes nearer to the ANN."""
    start = calibrate(graph, record_targets(graph, torch.cat(batches[:4])), 1, Choice(8))
    seen: list[Progress] = []
    distil(graph, *start, SPEC, batches[:1], Descent(1, noise=1.0), seen.append)
    before = seen[0].noise
    learned = distil(graph, *start, SPEC, batches[:40] * 4, Descent(160, noise=0.5 * before))

    def cost(converted: tuple[Graph, SpikingParameters]) -> float:
        grids = torch.cat([noise_grids(4, 32, 1000 + k) for k in range(4)])
        layers = SpikingNetwork(*converted).run(grids)[1].layers
        return float(sum(layer.synaptic_ops_beyond_silence.sum() for layer in layers))

    assert cost(learned) < 0.65 * cost(start)
    assert mean_divergence(graph, learned, batches[40]) < mean_divergence(graph, start, batches[40])


def test_scattered_events_are_as_many_as_stated() -> None:
    grids = torch.stack([noise_grids(10, 32, seed) for seed in range(40)])
    found = grids.sum((2, 3, 4)).mean(0)
    assert found.tolist() == pytest.approx([grids[0, 0, 0].numel() / kind.pixels for kind in KINDS], rel=0.1)
    assert torch.equal(grids[7], noise_grids(10, 32, 7))
    assert not torch.equal(grids[7], grids[8])
    assert noise_grids(10, 64, 0).shape == (len(KINDS), 10, 128, 192)
    assert float(relative_cost(torch.tensor([1000 * kind.share for kind in KINDS]))) == pytest.approx(1000)


def test_interrupted_and_resumed_is_uninterrupted(
    graph: Graph, batches: list[Tensor], calibrated: tuple[Graph, SpikingParameters], monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin() -> Distillation:
        return Distillation(graph, *calibrated, SPEC, Descent(6, 5000.0, 1.2, 0.5, prune=0.4))

    monkeypatch.setattr(distil_module, "PRUNINGS", (1, 2))
    whole, first, second = begin(), begin(), begin()
    for grids in batches[:6]:
        whole.learn(grids)
    for grids in batches[:3]:
        first.learn(grids)
    tensors, numbers = first.state()
    second.resume(tensors, json.loads(json.dumps(numbers)))
    for grids in batches[3:6]:
        second.learn(grids)
    for mine, other in zip(whole.network()[0].tensors.values(), second.network()[0].tensors.values(), strict=True):
        assert torch.equal(mine, other)
    for name, layer in whole.network()[1].neurons.items():
        assert torch.equal(layer.theta, second.network()[1].neurons[name].theta)
        assert torch.equal(layer.shift, second.network()[1].neurons[name].shift)


def test_a_state_of_another_network_is_refused(graph: Graph, calibrated: tuple[Graph, SpikingParameters]) -> None:
    learning = Distillation(graph, *calibrated, SPEC, Descent(2))
    tensors, numbers = learning.state()
    tensors["value/weight/stem.conv.weight"] = torch.zeros(1, 1, 3, 3)
    with pytest.raises(CheckpointError, match="another network"):
        learning.resume(tensors, numbers)


def test_divergence_sees_edges_that_move(graph: Graph, batches: list[Tensor]) -> None:
    """1 minus the overlap of decoded boxes, weighted by confidence, cell by cell."""
    ann = Runner(graph)(batches[0])
    other = [ann[0] + 0.5 * torch.randn(ann[0].shape, generator=torch.Generator().manual_seed(1)), ann[1]]
    parts = [task_of(SPEC).divergence(ann, other, SPEC, everywhere=True, overlap=weight) for weight in (1.0, 0.0)]
    sides = [boxes.reshape(4, 4, 4, *boxes.shape[2:]).softmax(2) for boxes in (ann[0], other[0])]
    lengths = [(side * torch.arange(4.0)[:, None, None]).sum(2) for side in sides]  # left, top, right, bottom from the centre
    boxes = [torch.stack([-x[:, 0], -x[:, 1], x[:, 2], x[:, 3]], -1).reshape(-1, 4).double().numpy() for x in lengths]
    overlap = np.array([iou_matrix(a[None], b[None])[0, 0] for a, b in zip(*boxes, strict=True)])
    confidence = torch.sigmoid(ann[1]).amax(1).flatten().numpy()
    assert float(parts[0] - parts[1]) == pytest.approx(float((confidence * (1 - overlap)).sum()) / 4, rel=1e-4)


def test_boxes_of_an_ssd_overlap_as_they_are_decoded() -> None:
    """Two default boxes far inside the sensor, of which nothing is clipped."""
    spec = HeadSpec("ssd", (64,), 0, ("a",), (((10.0, 20.0), (16.0, 8.0)),))
    generator = torch.Generator().manual_seed(4)
    scores = torch.full((1, 4, 1, 1), 3.0) * torch.tensor([-1.0, 1.0, -1.0, 0.5])[:, None, None]
    maps = [[torch.randn(1, 8, 1, 1, generator=generator), scores] for _ in range(2)]
    found = [decode(m, spec, PostConfig(0.0, 1.0), SensorSize(64, 64), [0])[0] for m in maps]
    overlap = np.diag(iou_matrix(found[0].boxes_xyxy, found[1].boxes_xyxy))
    parts = [task_of(spec).divergence(*maps, spec, everywhere=True, overlap=weight) for weight in (1.0, 0.0)]
    assert float(parts[0] - parts[1]) == pytest.approx(float((found[0].scores * (1 - overlap)).sum()), rel=1e-3)
    assert float(divergence(maps[0], maps[0], spec, everywhere=True)) == pytest.approx(0, abs=1e-5)


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
            out, *_ = fire(activation[None], theta, torch.zeros(1), layer, 1, torch.ones(1, 64, 64))
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
    out, operations, bursts = fire(current, theta, shift, layer, timesteps, fan_out)
    assert torch.equal(out, burst_scan_fused(current.detach(), layer, timesteps, fan_out)[0])

    mean, step = current.mean(0) + shift[:, None, None], theta[:, None, None]
    wanted = torch.where(mean > 0, mean, layer.negative_slope * mean)
    within = (wanted.abs() < (step * layer.burst_limits[:, None, None])).detach()
    per_step = current + shift[:, None, None]  # each timestep's output follows its own current, where it is not clipped
    follows = torch.where(mean > 0, per_step, layer.negative_slope * per_step) * within
    levels = (out.detach() - (wanted * within).detach()) / step.detach()
    surrogate = follows - follows.detach() + levels * (step - step.detach()) + out.detach()
    counted = (surrogate.abs() / step * fan_out).sum() / 2
    assert torch.allclose(operations, counted)
    n = surrogate.abs() / step
    assert torch.allclose(bursts, ((n > 0.5) * fan_out).sum() / 2)
    ending = (n > 0.5) & (wanted.abs() < step)  # less current would end the burst
    begun = (n * ending * fan_out).sum() / 2

    weights = torch.randn(out.shape, generator=generator)
    inputs_of = current, theta, shift
    fast = torch.autograd.grad((out * weights).sum() + 0.05 * operations - 0.08 * bursts, inputs_of)
    slow = torch.autograd.grad((surrogate * weights).sum() + 0.05 * counted - 0.08 * begun, inputs_of)
    for mine, other in zip(fast, slow, strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-4)


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it to compute on the CPU as on any other device. Private, since a network's own device decides."""

    def switch() -> None:
        for module in (fire_module, rounding_module):
            monkeypatch.setattr(module, "has_kernels", lambda tensor: False)

    return switch


@pytest.mark.parametrize("neurons", NEURONS)
@pytest.mark.parametrize(("timesteps", "inputs"), [(1, 1), (3, 1), (3, 3)])
def test_neurons_of_other_devices_fire_and_learn_as_those_of_the_kernels(
    neurons: str, timesteps: int, inputs: int, without_kernels: Callable[[], None]
) -> None:
    generator = torch.Generator().manual_seed(4)
    current = torch.randn(inputs, 3, 5, 6, 7, generator=generator).mul_(2)
    current[:, 1] = 0
    theta = torch.rand(5, generator=generator).add_(0.3)
    shift = torch.randn(5, generator=generator).mul_(0.1)
    fan_out = torch.randint(1, 9, (5, 6, 7), generator=generator).float()
    weights = torch.randn(timesteps, 3, 5, 6, 7, generator=generator)
    layer = NeuronLayer(theta, shift, 3, **NEURONS[neurons])

    def computed() -> tuple[Tensor, ...]:
        learned = [tensor.clone().requires_grad_() for tensor in (current, theta, shift)]
        fired = fire(*learned, layer, timesteps, fan_out)
        loss = (fired.out * weights).sum() + 0.05 * fired.operations - 0.08 * fired.bursts
        return (*fired, *torch.autograd.grad(loss, learned))

    kernels = computed()
    without_kernels()
    operations = computed()
    assert torch.equal(kernels[0], operations[0])
    for mine, other in zip(operations, kernels, strict=True):
        assert torch.allclose(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [*CASES, "otherwise"])
def test_other_devices_learn_the_same_network(
    graph: Graph, batches: list[Tensor], case: str, without_kernels: Callable[[], None]
) -> None:
    """Two steps with both limits, interrupted after the first; kinds of neurons and pools as above."""
    ann = graph if case in CASES else traced(DetectsOtherwise)
    timesteps, choice = CASES.get(case, (3, Choice(3)))
    start = calibrate(ann, record_targets(ann, torch.cat(batches[:4])), timesteps, choice)

    def learned() -> tuple[list[Progress], tuple[Graph, SpikingParameters]]:
        first, second = (Distillation(ann, *start, SPEC, Descent(2, 5000.0, 1.2)) for _ in range(2))
        seen = [first.learn(batches[0])]
        second.resume(*first.state())
        return [*seen, second.learn(batches[1].to(torch.uint8))], second.network()

    kernels, network = learned()
    without_kernels()
    operations, other = learned()
    for mine, its in zip(operations, kernels, strict=True):
        assert (mine.divergence, mine.operations, mine.burst) == pytest.approx(
            (its.divergence, its.operations, its.burst), rel=1e-3
        )
    assert (operations[0].operations, operations[0].burst) == pytest.approx((kernels[0].operations, kernels[0].burst), rel=1e-6)
    assert is_integer(*other) == is_integer(*network)
    for name, layer in other[1].neurons.items():
        assert torch.allclose(layer.theta, network[1].neurons[name].theta, rtol=1e-3)


@pytest.mark.parametrize("own", [(), (9,)], ids=["plain", "grouped"])
def test_weights_are_rounded_the_same_on_other_devices(own: tuple[int, ...], without_kernels: Callable[[], None]) -> None:
    generator = torch.Generator().manual_seed(6)
    weight, values = torch.randn(9, 7, 3, 3, generator=generator), torch.rand(*own, 7, generator=generator) + 0.1
    weight[2] = 0
    step = (weight * values[..., None, None]).abs().flatten(1).amax(1).clamp_min(1e-3) / 100
    kernels = [rounded(weight, values, given) for given in (None, step)]
    without_kernels()
    assert all(torch.equal(rounded(weight, values, given), other) for given, other in zip((None, step), kernels, strict=True))


def test_without_its_weights_it_learns_thresholds_and_shifts(
    graph: Graph, batches: list[Tensor], calibrated: tuple[Graph, SpikingParameters]
) -> None:
    """The weights are the ANN's, rounded to the size of a spike after learning."""
    spiking, parameters = distil(graph, *calibrated, SPEC, batches[:40], Descent(40, weights=False))
    sizes = spike_sizes(spiking, parameters.neurons)
    for node in spiking.nodes:
        if node.op == "conv":
            read, name = input_sizes(spiking, node, sizes), f"{node.name}.weight"
            assert read is not None
            step = spiking.tensors.get(f"{node.name}.step")
            assert torch.equal(spiking.tensors[name], rounded(graph.tensors[name], read, step))
    biases = [name for name in spiking.tensors if name.endswith(".bias") and f"{name[:-5]}.step" in spiking.tensors]
    assert biases  # which hold the shifts
    assert all(not torch.equal(spiking.tensors[name], calibrated[0].tensors[name]) for name in biases)


def test_without_its_weights_it_starts_as_the_network_that_runs(
    graph: Graph, batches: list[Tensor], calibrated: tuple[Graph, SpikingParameters]
) -> None:
    first: list[Progress] = []
    distil(graph, *calibrated, SPEC, batches[:1], Descent(1, weights=False), first.append)
    assert first[0].divergence == pytest.approx(
        mean_divergence(graph, calibrated, batches[0]), rel=0.1
    )  # rounded once, not twice
