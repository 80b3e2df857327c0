"""Weights files: a round trip, and every way in which a file can be wrong."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from evburst.data.errors import CheckpointError, ConfigError
from evburst.data.events import SensorSize
from evburst.data.representations.voxel_grid import VoxelConfig
from evburst.models.architectures import NetworkConfig
from evburst.models.bundle import FORMAT, Bundle, TrainedBundle, load_tensors, save_tensors
from evburst.models.detector import GridDetector
from evburst.models.detectors.postprocess import HeadSpec, PostConfig
from evburst.models.spiking.convert.calibrate import Choice, calibrate, record_targets
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.network import spike_sizes
from evburst.models.spiking.rounding import input_sizes, rounded
from tests.conftest import EveryOperation, drawn, spiking
from tests.helpers.in_use import refuse_files_in_use
from tests.helpers.tiny import BINS, TinyNetwork


class TinyYolo(nn.Module):
    """One level of stride 2: a box map of 4 x 4 bins and a class map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, 2, 1)
        self.box, self.cls = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = torch.relu(self.stem(x))
        return [self.box(x), self.cls(x)]


class TwoLevels(EveryOperation):
    """Every operation, and a head of strides 4 and 2 that fits: boxes of 4 x 2 bins, one class."""

    def __init__(self) -> None:
        super().__init__()
        self.out_a, self.out_b = nn.Conv2d(24, 8, 1), nn.Conv2d(16, 8, 3, padding=1)
        self.cls_a, self.cls_b = nn.Conv2d(24, 1, 1), nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        a, b = self.features(x)
        return [self.out_a(a), self.out_b(b), self.cls_a(a), self.cls_b(b)]


@pytest.fixture
def bundle(grid: Tensor) -> Bundle:
    torch.manual_seed(0)
    graph = trace(TinyYolo().eval(), torch.zeros(1, 4, 16, 16)).in_float16()
    head = HeadSpec("yolo", (2,), 4, ("car", "pedestrian"))
    return Bundle(graph, graph, spiking(graph, grid, 2, 4), head, VoxelConfig(bins=2), {"note": "made by a test"})


@pytest.mark.parametrize("signed", [False, True])
def test_round_trip_gives_the_same_boxes_and_spikes(bundle: Bundle, tmp_path: Path, grid: Tensor, signed: bool) -> None:
    bundle = replace(bundle, parameters=spiking(bundle.graph, grid, 2, 4, signed=signed))
    bundle.save(tmp_path / "a.safetensors")
    again = Bundle.load(tmp_path / "a.safetensors")
    assert (again.head, again.voxel, again.record) == (bundle.head, bundle.voxel, bundle.record)
    results = [
        GridDetector(b, PostConfig(score=0.4)).detect(grid.to(torch.uint8).numpy(), SensorSize(20, 12), [5, 6])
        for b in (bundle, again)
    ]
    (first, stats), (second, stats_again) = results
    assert stats is not None
    assert stats_again is not None
    assert len(first[0]) > 0
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.boxes_xyxy, b.boxes_xyxy)
        assert a.t_us == b.t_us
    assert [layer.spikes.tolist() for layer in stats.layers] == [layer.spikes.tolist() for layer in stats_again.layers]


def test_ann_and_snn_of_one_file_are_both_there(bundle: Bundle, grid: Tensor) -> None:
    found, stats = GridDetector(bundle, PostConfig(score=0.4), ann=True).detect(
        grid.to(torch.uint8).numpy(), SensorSize(20, 12), [0, 0]
    )
    assert stats is None
    assert len(found) == 2


def test_an_unknown_name_lists_the_bundled_ones() -> None:
    with pytest.raises(CheckpointError, match=r"bundled: caltech101, caltech6, caltech6-ssd, dvs128-objects, nmnist, street"):
        Bundle.load("strete")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such weights file"):
        Bundle.load(tmp_path / "gone.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"not weights at all", "damaged"),
        (b"\x80\x02}q\x00.", "a pickled PyTorch file"),
        (b"PK\x03\x04 archive/data.pkl", r"ultralytics' best\.pt; only safetensors files of this project are read"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\x1f\x8b\x08", "unpack it first"),
    ],
)
def test_other_files_are_refused_by_what_they_are(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Bundle.load(path)


def test_folders_and_pipes_are_not_weights(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(CheckpointError, match="not a regular file"):
            Bundle.load(tmp_path / f"{name}.safetensors")


def test_truncated_file_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    bundle.save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="damaged"):
        Bundle.load(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ann/stem.weight", float("nan"), r"ann/stem\.weight.*NaN"),
        ("theta/stem.relu", 0.0, r"theta/stem\.relu.*outside 1e-08 to"),
    ],
)
def test_a_number_that_cannot_be_is_refused_by_name(
    name: str, value: float, message: str, bundle: Bundle, tmp_path: Path
) -> None:
    bundle.save(path := tmp_path / "a.safetensors")
    tensors, metadata = load_tensors(path, "detector")
    tensors[name].view(-1)[0] = value
    save_tensors(path, "detector", tensors, metadata)
    with pytest.raises(CheckpointError, match=message):
        Bundle.load(path)


def test_other_kinds_and_foreign_files_are_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / "ann.safetensors", "ann", {"a": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="network"):
        Bundle.load(tmp_path / "ann.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not weights of this project"):
        Bundle.load(tmp_path / "foreign.safetensors")


def test_missing_threshold_is_an_incomplete_file(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    bundle.save(path)
    tensors, metadata = load_tensors(path, "detector")
    del tensors["theta/stem.relu"]
    save_tensors(path, "detector", tensors, metadata)
    with pytest.raises(CheckpointError, match="incomplete"):
        Bundle.load(path)


def test_a_weights_file_that_is_in_use_can_be_replaced(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    bundle.save(path)
    refuse_files_in_use(monkeypatch)
    (tensors, metadata), loaded = load_tensors(path, "detector"), Bundle.load(path)
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    save_tensors(path, "detector", {name: torch.ones_like(tensor) for name, tensor in tensors.items()}, metadata)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in kept.items())
    assert torch.equal(loaded.parameters.neurons["stem.relu"].theta, kept["theta/stem.relu"])


def test_weights_are_stored_in_float16(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "a.safetensors")
    stored = load_file(tmp_path / "a.safetensors")
    assert stored["ann/stem.weight"].dtype == torch.float16
    assert stored["theta/stem.relu"].dtype == torch.float32
    assert FORMAT == "evburst-1"


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("timesteps", [1, 3])
def test_what_is_loaded_is_what_was_calibrated(
    bundle: Bundle, grid: Tensor, tmp_path: Path, timesteps: int, learned: bool
) -> None:
    """The spiking weights and biases, to the last bit. Weights derived from the ANN's are not stored. Saving again changes
    nothing."""
    ann, path = trace(drawn(TwoLevels), torch.zeros(1, 4, 16, 16)).in_float16(), tmp_path / "a.safetensors"
    spiking, parameters = calibrate(ann, record_targets(ann, grid), timesteps, Choice(3))
    if learned:  # as distil.py leaves weights: of 8 bits, but not the ANN's; those of a channel may all be 0
        theta = spike_sizes(spiking, parameters.neurons)
        for node in (node for node in spiking.nodes if node.op == "conv"):
            values, weight = input_sizes(spiking, node, theta), spiking.tensors[f"{node.name}.weight"]
            assert values is not None
            other = 0.8 * weight
            other[0] = 0
            spiking.tensors[f"{node.name}.weight"] = rounded(other, values, spiking.tensors.get(f"{node.name}.step"))
    head = HeadSpec("yolo", (4, 2), 2, ("car",))
    replace(bundle, graph=ann, spiking=spiking, parameters=parameters, head=head).save(path)
    loaded = Bundle.load(path)
    assert all(torch.equal(loaded.spiking.tensors[name], tensor) for name, tensor in spiking.tensors.items())
    assert all(torch.equal(loaded.graph.tensors[name], tensor) for name, tensor in ann.tensors.items())
    kinds = {name: tensor.dtype for name, tensor in load_file(path).items() if name.startswith("spiking/")}
    assert (torch.int8 in kinds.values()) == learned
    loaded.save(tmp_path / "b.safetensors")
    first, again = load_file(path), load_file(tmp_path / "b.safetensors")
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_bundled_street_weights_have_their_record() -> None:
    bundle = Bundle.load("street")
    assert bundle.head.classes == ("car", "pedestrian")
    assert bundle.voxel == VoxelConfig(bins=5, max_count=10, window_ms=50)
    assert {"training", "conversion", "check"} <= bundle.record.keys()
    assert all(layer.phi >= 1 for layer in bundle.parameters.neurons.values())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_refused(bundle: Bundle, value: float) -> None:
    """Also where infinities cancel out; large finite outputs whose sum overflows are not refused."""
    detector, grid = GridDetector(bundle, PostConfig(), ann=True), np.zeros((1, 4, 16, 16), np.uint8)
    bias = detector.bundle.graph.tensors["box.bias"]
    bias[:] = 3e38
    detector.detect(grid, SensorSize(16, 16), [0])
    bias[0], bias[1] = value, -value
    with pytest.raises(CheckpointError, match=r"output 'box' .* damaged"):
        detector.detect(grid, SensorSize(16, 16), [0])


@pytest.mark.parametrize("engine", ["reference", "int8"])
def test_maps_that_are_kept_do_not_change_with_later_windows(engine: str) -> None:
    bundle, random = Bundle.load("street"), np.random.default_rng(0)
    detector = GridDetector(bundle, PostConfig(), engine=engine)
    kept: list[dict[str, np.ndarray]] = [{}, {}]
    for maps in kept:
        grid = random.integers(0, 3, (1, 10, 64, 64), dtype=np.uint8)
        detector.detect(grid, SensorSize(64, 64), [0], readouts=maps, count=False)
    assert all(not np.array_equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_adaptive_timesteps_refuse_nan_and_several_grids(bundle: Bundle) -> None:
    detector, grid = GridDetector(bundle, PostConfig(), adaptive=0.9), np.zeros((2, 4, 16, 16), np.uint8)
    with pytest.raises(ConfigError, match="2 grids in one call"):
        detector.detect(grid, SensorSize(16, 16), [0, 0])
    bundle.parameters.readout_shift["box"] = torch.full((16,), torch.nan)
    with pytest.raises(CheckpointError, match="output 'box'"):
        GridDetector(bundle, PostConfig(), adaptive=0.9).detect(grid[:1], SensorSize(16, 16), [0])
    with pytest.raises(CheckpointError, match="output 'box'"):
        GridDetector(bundle, PostConfig()).step_by_step(grid[:1], SensorSize(16, 16))


def test_a_network_that_was_not_converted_can_be_shown_compared_and_replaced(bundle: Bundle, tmp_path: Path) -> None:
    trained = TrainedBundle(bundle.graph, bundle.head, bundle.voxel, {}, tmp_path)
    assert "TrainedBundle" in repr(trained)
    assert trained == trained  # it must not raise
    changed = replace(trained, record={"note": "another"})
    assert (changed.record, changed.graph) == ({"note": "another"}, trained.graph)
    for attribute in ("spiking", "parameters"):
        with pytest.raises(CheckpointError, match="was not converted; run `evburst convert"):
            getattr(changed, attribute)


@pytest.mark.parametrize(
    ("strides", "bins", "message"),
    [
        ((16, 32), BINS, "2 outputs, but a head with 2 strides has 4"),
        ((16,), 8, r"box map of stride 16 is \(64, 2, 3\)"),
        ((8,), BINS, "box map of stride 8 is"),
    ],
)
def test_a_trained_network_must_fit_its_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strides: tuple[int, ...], bins: int, message: str
) -> None:
    config = NetworkConfig("tiny", channels=4, classes=("car",))
    state = {name: tensor.clone() for name, tensor in TinyNetwork(config).state_dict().items()}
    metadata = {"network": asdict(config), "config": {"voxel": asdict(VoxelConfig(bins=2))}}
    save_tensors(tmp_path / "best.safetensors", "ann", state, metadata)
    assert not Bundle.load(tmp_path / "best.safetensors").converted
    monkeypatch.setattr(TinyNetwork, "head_spec", HeadSpec("yolo", strides, bins, config.classes))
    with pytest.raises(CheckpointError, match=rf"best\.safetensors: architecture 'tiny': .*{message}"):
        Bundle.load(tmp_path / "best.safetensors")


def test_files_have_the_mode_that_the_user_wants(bundle: Bundle, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        bundle.save(tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o600


def test_a_file_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    bundle = Bundle.load("nmnist")
    name, layer = next(iter(bundle.parameters.neurons.items()))
    neurons = bundle.parameters.neurons | {name: replace(layer, theta=torch.full_like(layer.theta, 1e-9))}
    with pytest.raises(CheckpointError, match=f"not written, because it could not be read: 'theta/{name}' holds"):
        replace(bundle, parameters=replace(bundle.parameters, neurons=neurons)).save(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
