"""Batches of a training: the same whoever prepares them, and new windows for every epoch."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evburst.app.train.batches import Batch, Batches
from evburst.app.train.config import ScheduleConfig, TrainConfig
from evburst.app.train.loss import ScheduledLoss
from evburst.app.train.windows import EpochWindows, open_split
from evburst.data.boxes import Detections
from evburst.data.classification import DETECTION
from evburst.data.datasets import SPECS, Dataset, LabelledWindow
from evburst.data.datasets.registry import DatasetConfig
from evburst.data.encoding import pack
from evburst.data.errors import ConfigError
from evburst.data.events import EventWindow
from evburst.models.activation_regulariser import round_and_measure
from tests.conftest import random_events
from tests.helpers.pictures import street_folder
from tests.helpers.simulation import simulated_here

SCHEDULE = ScheduleConfig(windows=4, epochs=3, batch=2, passes=2, fresh=True, workers=1)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    root = street_folder(tmp_path_factory.mktemp("pictures"))
    cache = tmp_path_factory.mktemp("cache")
    return TrainConfig(cache=str(cache), data=DatasetConfig(root=str(root)), schedule=SCHEDULE)


class Drawn(list[LabelledWindow]):
    """A Dataset in memory."""

    spec = SPECS["street"]


def drawn_windows(epoch: int) -> Dataset:
    """Opener of random windows, others for every epoch."""
    box = Detections(np.array([[9, 9, 60, 50]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64), 50_000)
    events = [random_events(300, Drawn.spec.sensor_size, 50_000, SCHEDULE.windows * epoch + i) for i in range(SCHEDULE.windows)]
    return cast(Dataset, Drawn(LabelledWindow(EventWindow(0, 50_000, pack(drawn)), box, "drawn") for drawn in events))


def all_batches(config: TrainConfig, first: int = 0) -> list[Batch]:
    begun: list[int] = []
    batches = Batches(drawn_windows, SCHEDULE.windows, config, DETECTION, 64, begin=begun.append)
    assert len(batches) == 4
    found = [batch for epoch in range(first, config.schedule.epochs) for batch in batches.of_epoch(epoch)]
    assert begun == list(range(first, config.schedule.epochs))
    return found


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x.float(), y.float()) for x, y in zip(a, b, strict=True))


def test_processes_and_a_resumed_run_prepare_the_same_batches() -> None:
    config = TrainConfig(schedule=SCHEDULE)
    expected, resumed = all_batches(config), all_batches(config, first=1)
    by_process = all_batches(replace(config, schedule=replace(SCHEDULE, loaders=1)))
    assert len(expected) == 12
    assert all(map(equal, expected, by_process))
    assert all(map(equal, expected[4:], resumed))
    assert not equal(expected[0], expected[2]), "two passes over the same windows are augmented in different ways"
    assert by_process[0].grids.dtype == torch.uint8


@pytest.mark.parametrize(
    ("windows", "passes", "batches"), [(20480, 0, 256), (0, 0, 256), (20, 0, 10), (20480, 1, 2), (4, 0, 2)]
)
def test_small_data_are_shown_several_times_in_an_epoch(windows: int, passes: int, batches: int) -> None:
    config = TrainConfig(schedule=ScheduleConfig(windows=windows, passes=passes, batch=2))
    assert len(Batches(drawn_windows, 4, config, DETECTION, 64)) == batches


def test_a_batch_has_a_window_for_every_process() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.batch 2: fewer windows than the 3 processes"):
        Batches(drawn_windows, SCHEDULE.windows, TrainConfig(schedule=SCHEDULE), DETECTION, 64, rank=0, world=3)


def test_fresh_windows_differ_between_epochs_and_old_ones_are_deleted(config: TrainConfig) -> None:
    with simulated_here():
        windows = EpochWindows(config, DETECTION, open_split(config, DETECTION, "train", SCHEDULE.windows, False))
        held = []
        for epoch in range(3):
            windows.begin(epoch)
            held.append(windows(epoch)[0].window.words.copy())
            assert windows(epoch) is windows(epoch)
            copied = pickle.loads(pickle.dumps(windows))
            assert np.array_equal(copied(epoch)[0].window.words, held[-1])
    assert not np.array_equal(held[0], held[1])
    assert len({len(words) for words in held}) == 3
    epochs_left = [path for path in Path(config.cache).iterdir() if '"train"' in (path / "config.json").read_text()]
    assert len(epochs_left) == 2


def test_only_simulated_windows_can_be_fresh(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.fresh: only simulated windows can be new, not those of data.kind 'gen1'"):
        EpochWindows(replace(config, data=DatasetConfig(kind="gen1")), DETECTION, drawn_windows(0))


class TwoLayers(nn.Module):
    """A network with two activations and no loss of its own."""

    loss_names = ("own",)

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.conv = nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1)

    def loss(self, x: Tensor, *_: object) -> Tensor:
        return 0 * self.relu(self.conv(self.relu(x))).mean()[None]


def test_dropout_depends_on_the_step_and_the_process_only() -> None:
    loss, drawn = ScheduledLoss(TwoLayers(), ScheduleConfig(), False), {}
    for step, rank in ((3, 0), (4, 0), (3, 1), (3, 0)):
        loss.begin(step, 0.5, rank)
        kept = torch.nn.functional.dropout(torch.ones(64), 0.5)
        assert torch.equal(drawn.setdefault((step, rank), kept), kept)
        torch.randn(step)  # whatever else is drawn in between
    masks = [tuple(mask.tolist()) for mask in drawn.values()]
    assert len(set(masks)) == 3


def test_layers_take_turns_in_the_sparsity_loss() -> None:
    torch.manual_seed(0)
    network, x, nothing = TwoLayers(), torch.randn(8, 4, 16, 16), torch.zeros(0)
    loss = ScheduledLoss(network, ScheduleConfig(sparsity=2.0), False)
    found = []
    for step in range(4):
        loss.begin(step, 0.5)
        found.append(float(loss(x, nothing, nothing, nothing)[1].detach()))
    activations = [network.relu(x), network.relu(network.conv(network.relu(x)))]
    costs = [a.numel() * a.shape[1] for a in activations]
    densities = [float(round_and_measure(a.detach(), 0.0)[1]) for a in activations]
    expected = len(x) * 0.5 * 2.0 * np.dot(densities, costs) / sum(costs)
    assert np.mean(found) == pytest.approx(expected, rel=1e-5)
    assert found[2] == found[3] == 0, "two layers, four turns"
