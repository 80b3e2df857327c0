"""Memory: features are held where no events are, in the ANN and in every engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from evburst.data.errors import CheckpointError, ConfigError
from evburst.data.events import SensorSize
from evburst.data.representations.voxel_grid import VoxelConfig
from evburst.data.stats import COUNTS, OPTIONAL_COUNTS
from evburst.models.activity import ActivityRunner
from evburst.models.bundle import Bundle
from evburst.models.detector import GridDetector
from evburst.models.detectors.postprocess import HeadSpec, PostConfig
from evburst.models.detectors.remembering import with_memory
from evburst.models.graph import Graph, Memory, Node, Runner, is_active
from evburst.models.runtime import ENGINES, open_engine
from evburst.models.runtime.int8.hold import active_cells
from evburst.models.spiking.convert.calibrate import Choice, calibrate, record_targets
from evburst.models.spiking.convert.distil import Descent, Distillation
from evburst.models.spiking.convert.sensitivity import _Prefix  # private: only there can one candidate follow another
from evburst.models.spiking.integer_form import integer_form
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters
from tests.test_models_spiking_convert_distil import SPEC, Detects, traced

CELLS = (16, 24)
"""Height and width of the grids, px; the head's stride is 4."""


def window(seed: int, active: bool | slice = True, images: int = 2) -> Tensor:
    """Grids with many events in the given columns, and none elsewhere."""
    rng = np.random.default_rng(seed)
    grid = np.zeros((images, 4, *CELLS), np.uint8)
    columns = slice(None) if active is True else slice(0) if active is False else active
    grid[..., columns] = rng.poisson(0.7, grid[..., columns].shape)
    return torch.from_numpy(grid)


SEQUENCE = [window(0), window(1, slice(0, 10)), window(2, False), window(3, slice(14, None)), window(4)]


@pytest.fixture(scope="module")
def ann() -> Graph:
    return with_memory(traced(Detects), SPEC)


@pytest.fixture(scope="module")
def converted(ann: Graph) -> tuple[Graph, SpikingParameters]:
    grids = window(9, images=8).float()
    targets = record_targets(ann, grids, None)
    graph, parameters = calibrate(ann, targets, 1, Choice(8))
    return integer_form(graph, parameters)


def run(network: SpikingNetwork, sequence: list[Tensor]) -> list[tuple[list[Tensor], dict[str, np.ndarray]]]:
    """Outputs, and all counts by layer, of windows that follow each other."""
    memory: Memory = {}
    found = []
    for grid in sequence:
        outputs, stats = network.run(grid, memory)
        counts = {
            layer.name: np.array([own for name in (*COUNTS, *OPTIONAL_COUNTS) if (own := getattr(layer, name)) is not None])
            for layer in stats.layers
        }
        found.append(([output.clone() for output in outputs], counts))
    return found


@pytest.mark.parametrize("around", [0, 4])
def test_where_events_are(around: int) -> None:
    """The integers of the int8 engine against the definition, at thresholds around counts that occur; as `with_memory` counts,
    and with pixels around each cell."""
    hold = with_memory(traced(Detects), SPEC).memories[0]
    side = 4 + 2 * around
    attrs = hold.attrs if not around else {**hold.attrs, "kernel": [side, side], "padding": [around, around]}
    assert (attrs["kernel"], attrs["stride"]) == ([side, side], [4, 4])
    grid = torch.from_numpy(np.random.default_rng(0).poisson(0.04, (3, 4, *CELLS)).astype(np.uint8))
    padded = torch.nn.functional.pad(grid.long().sum(1), (around,) * 4)
    for events in (1, 2, 15, 22, 30):
        by_hand = [
            [[int(m[4 * y : 4 * y + side, 4 * x : 4 * x + side].sum()) >= events for x in range(6)] for y in range(4)]
            for m in padded
        ]
        assert active_cells(grid.numpy(), **{**attrs, "events": events}).tolist() == by_hand
        node = type(hold)(hold.name, "hold", hold.inputs, {**attrs, "events": events})
        assert is_active(node, grid)[:, 0].tolist() == by_hand


def test_sides_of_grids_stay_multiples_of_the_same(ann: Graph) -> None:
    assert ann.stride == traced(Detects).stride == 4


def test_the_first_window_is_that_of_the_network_without_memory(ann: Graph) -> None:
    plain, x = traced(Detects), window(0).float()
    for memory in (None, {}):
        assert all(torch.equal(a, b) for a, b in zip(Runner(ann)(x, memory), Runner(plain)(x), strict=True))


def test_what_is_silent_is_held(ann: Graph) -> None:
    """Windows without events repeat the outputs of the one before; where events are, nothing is held."""
    runner, memory = Runner(ann), Memory()
    first = [output.clone() for output in runner(SEQUENCE[0].float(), memory)]
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(runner(window(0, False).float(), memory), first, strict=True))
    partly = runner(window(7, slice(0, 8)).float(), memory)
    assert torch.equal(partly[0][..., 5:], first[0][..., 5:])
    assert not torch.equal(partly[0][..., :2], first[0][..., :2])
    again = runner(SEQUENCE[4].float(), memory)
    assert all(torch.equal(a, b) for a, b in zip(again, runner(SEQUENCE[4].float()), strict=True))


@pytest.mark.parametrize("name", ["int8", "onnx", "openvino"])
def test_engines_hold_what_the_reference_holds(converted: tuple[Graph, SpikingParameters], name: str) -> None:
    if reason := ENGINES[name].available("cpu"):
        pytest.skip(reason)
    expected = run(open_engine("reference", *converted), SEQUENCE)
    for (outputs, counts), (right, right_counts) in zip(run(open_engine(name, *converted), SEQUENCE), expected, strict=True):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(outputs, right, strict=True))
        assert counts.keys() == right_counts.keys()
        assert all(np.array_equal(counts[layer], right_counts[layer]) for layer in counts)


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_counted_windows_share_the_memory_of_the_others(converted: tuple[Graph, SpikingParameters], name: str) -> None:
    """Of these engines, another engine may run the windows in which spikes are counted."""
    if reason := ENGINES[name].available("cpu"):
        pytest.skip(reason)
    expected = run(open_engine("reference", *converted), SEQUENCE)
    network, memory = open_engine(name, *converted), Memory()
    for t, (grid, (right, _)) in enumerate(zip(SEQUENCE, expected, strict=True)):
        outputs = network.run_uncounted(grid, memory) if t % 2 else network.run(grid, memory)[0]
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(outputs, right, strict=True))


def test_held_spikes_reach_their_fan_out(converted: tuple[Graph, SpikingParameters]) -> None:
    """In a silent window the hold emits what it emitted before, and the neurons before it have no weights to reach."""
    network = SpikingNetwork(*converted)
    (_, before), (_, silent) = run(network, [SEQUENCE[0], window(0, False)])
    hold = converted[0].memories[0]
    assert np.array_equal(before[hold.name][:3], silent[hold.name][:3])
    assert silent[hold.name][1].min() > 0
    assert not before[hold.inputs[0]][1].any()


def test_the_ann_counts_what_it_holds(ann: Graph) -> None:
    runner, memory = ActivityRunner(ann), Memory()
    macs = [runner.run(grid.float(), memory)[1].effective_macs["boxes"] for grid in (SEQUENCE[0], window(0, False))]
    assert np.array_equal(*macs)
    assert macs[0].min() > 0


def test_weights_files_keep_memory(ann: Graph, converted: tuple[Graph, SpikingParameters], tmp_path: Path) -> None:
    bundle = Bundle(ann.in_float16(), *converted, SPEC, VoxelConfig(bins=2), {})
    bundle.save(tmp_path / "a.safetensors")
    loaded = Bundle.load(tmp_path / "a.safetensors")
    assert loaded.spiking.memories == converted[0].memories
    pairs = zip(
        run(SpikingNetwork(loaded.spiking, loaded.parameters), SEQUENCE), run(SpikingNetwork(*converted), SEQUENCE), strict=True
    )
    assert all(torch.equal(x, y) for (a, _), (b, _) in pairs for x, y in zip(a, b, strict=True))
    detector = GridDetector(loaded, PostConfig(), engine="reference")
    assert detector.has_memory
    memory = Memory()
    found = [detector.detect(grid.numpy(), SensorSize(24, 16), [0, 0], memory=memory)[1] for grid in SEQUENCE[:2]]
    assert memory
    assert all(stats is not None for stats in found)
    with pytest.raises(ConfigError, match="one timestep per window"):
        GridDetector(loaded, PostConfig(), timesteps=2)
    replace(bundle, parameters=replace(converted[1], timesteps=2)).save(tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="a network with memory has one"):
        Bundle.load(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": ("stem.conv", "input")}, "takes the value of a ReLU"),
        ({"inputs": ("last.act", "last.act")}, "takes the value of a ReLU"),
        ({"attrs": {"kernel": [12, 12], "stride": [8, 8], "padding": [4, 4], "events": 22}}, "cannot be held"),
        ({"attrs": {"kernel": [12, 12], "stride": [4, 4], "padding": [4, 4], "events": 0}}, "events"),
    ],
)
def test_graphs_that_hold_something_else(ann: Graph, change: dict[str, object], message: str) -> None:
    hold = ann.memories[0]
    names = {
        "last.act": hold.inputs[0],
        "input": ann.nodes[0].name,
        "stem.conv": next(n.name for n in ann.nodes if n.op == "conv"),
    }
    if "inputs" in change:
        change = {"inputs": tuple(names[name] for name in change["inputs"])}  # type: ignore[attr-defined]
    nodes = [type(hold)(**{**vars(node), **change}) if node is hold else node for node in ann.nodes]  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=message):
        Graph.from_json(Graph(nodes, ann.outputs, ann.tensors).to_json(), ann.tensors).shapes(4, *CELLS)


def test_only_detectors_without_memory_get_one(ann: Graph) -> None:
    for graph, head in ((ann, SPEC), (traced(Detects), HeadSpec("classes", (4,), 0, ("a",)))):
        with pytest.raises(ConfigError, match="YOLO detector without memory only"):
            with_memory(graph, head)


def test_memory_is_not_distilled(ann: Graph, converted: tuple[Graph, SpikingParameters]) -> None:
    with pytest.raises(ConfigError, match="a network with memory cannot be calibrated by gradient descent"):
        Distillation(ann, *converted, SPEC, Descent(steps=1))


def test_a_value_computed_again_holds_nothing_from_the_one_before() -> None:
    nodes = [
        Node("input", "input", ()),
        Node("conv", "conv", ("input",), {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}),
        Node("relu", "relu", ("conv",)),
        Node("hold", "hold", ("relu", "input"), {"kernel": [1, 1], "stride": [1, 1], "padding": [0, 0], "events": 1}),
    ]
    prefix = _Prefix(Graph(nodes, ["hold"], {"conv.weight": torch.ones(1, 1, 1, 1), "conv.bias": torch.zeros(1)}))
    prefix(torch.zeros(1, 1, 2, 2))
    for value in (5.0, 7.0):
        assert prefix.rerun("relu", torch.full((1, 1, 2, 2), value))[0].unique().tolist() == [value]
