"""Training end to end on a tiny labelled folder: two steps, resume, conversion, and the path a user would type."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from evburst.app.cli import detect_main
from evburst.app.config import load_config
from evburst.app.convert.checkpoints import blended, chosen_on_select
from evburst.app.convert.cli import convert_main
from evburst.app.convert.config import ConvertConfig
from evburst.app.convert.conversion import Conversion
from evburst.app.convert.data import ConversionData
from evburst.app.detect import DetectConfig, detect_file
from evburst.app.train.cli import train_main
from evburst.app.train.config import TrainConfig
from evburst.app.train.run import human_summary
from evburst.app.train.trainer import Trainer
from evburst.data.boxes import BBOX_DTYPE
from evburst.data.datasets import SPECS
from evburst.data.datasets.pictures import PictureFolder, class_spec
from evburst.data.datasets.simulated import SimulatedConfig, SimulatedWindows
from evburst.data.errors import CheckpointError, ConfigError, DataError
from evburst.data.events import SensorSize
from evburst.data.files import only_writer, part_of
from evburst.data.writers import write_events
from evburst.models.activity import footprint
from evburst.models.bundle import Bundle, load_tensors, save_tensors
from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.detectors.remembering import remembering
from evburst.models.graph import Graph
from evburst.models.spiking.convert.distil import Descent, Distillation
from evburst.models.spiking.convert.scales import without_unused_scales
from evburst.models.spiking.network import SpikingParameters
from evburst.models.spiking.neurons import NeuronLayer
from tests.conftest import ROOT, needs_fork, random_events
from tests.helpers import tiny  # noqa: F401  (registers the family)
from tests.helpers.pictures import COLUMNS, street_folder
from tests.helpers.simulation import simulated_here

SMALL = ["architecture=tiny", "schedule.windows=4", "schedule.val_windows=2", "schedule.batch=2"]
SMALL += ["schedule.workers=1", "schedule.loaders=0"]


@pytest.fixture(scope="module", autouse=True)
def few_processes() -> Iterator[None]:
    """Windows are simulated here."""
    with simulated_here():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures with a bright car-sized block each, as boxes.csv and images/<set>/; one is held out for selection."""
    return street_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated windows, made once for all tests."""
    return tmp_path_factory.mktemp("cache")


def sets(*settings: str) -> list[str]:
    """`--set` arguments."""
    return [part for setting in settings for part in ("--set", setting)]


def train_flags(folder: Path, cache: Path, out: Path) -> list[str]:
    """Arguments of a small training."""
    flags = ["--config", str(ROOT / "configs" / "train_street.yaml"), "--root", str(folder), "--out", str(out)]
    return [*flags, *sets(*SMALL, f"cache={cache}")]


def trained_by_command(folder: Path, cache: Path, out: Path, *settings: str) -> Path:
    """best.safetensors of two epochs, the second one of a run that was resumed."""
    flags = [*train_flags(folder, cache, out), *sets(*settings)]
    for epochs in (1, 2):
        assert train_main([*flags, "--set", f"schedule.epochs={epochs}"]) == 0
    return out / "best.safetensors"


@pytest.fixture(scope="module")
def best(folder: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained checkpoint of the tiny family."""
    return trained_by_command(folder, cache, tmp_path_factory.mktemp("run"))


class Command:
    """convert.py on the tiny checkpoint, with few windows."""

    def __init__(self, best: Path, cache: Path, out: Path) -> None:
        self.best, self.weights = best, out / "tiny.safetensors"
        self._flags = ["--weights", str(best), "--out", str(self.weights), "--timesteps", "1"]
        self._flags += sets("calibration_windows=2", "check_windows=2", "sensitivity_windows=2", f"cache={cache}")

    def __call__(self, *flags: str) -> int:
        return convert_main([*self._flags, *flags])

    @property
    def record(self) -> dict[str, Any]:
        """What the weights file says of its conversion."""
        record: dict[str, Any] = load_tensors(self.weights, "detector")[1]["record"]["conversion"]
        return record


@pytest.fixture
def convert(best: Path, cache: Path, tmp_path: Path) -> Command:
    return Command(best, cache, tmp_path)


ADVANCED = ["--level", "advanced", "--set", "advanced_windows=10"]


def test_training_says_what_it_came_to_and_what_is_next(best: Path) -> None:
    written, following = human_summary(best).splitlines()
    assert written.startswith(f"written   {best}: ap ")
    where = "on the split 'select' (2 windows, 1 picture), epoch"
    assert written.endswith((f"{where} 1 (the best)", f"{where} 2 (the best)"))
    assert following == f"next      evburst convert --weights {best} --out {best.parent.name}.safetensors"


def test_the_next_command_does_not_measure_on_a_split_that_is_missing(best: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, other := tmp_path / "pictures")
    table = (folder / "boxes.csv").read_text()
    assert ",val," in table
    (other / "boxes.csv").write_text(table.replace(",val,", ",test,"))
    tensors, record = load_tensors(best, "ann")
    record["config"]["data"]["root"] = str(other)
    save_tensors(tmp_path / "best.safetensors", "ann", tensors, record)
    assert human_summary(tmp_path / "best.safetensors").endswith(".safetensors --set check_windows=-1")


def test_training_resumes_and_logs_every_epoch(best: Path) -> None:
    rows = list(csv.DictReader((best.parent / "log.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(np.isfinite(float(row["box"])) for row in rows)


def test_an_epoch_that_is_repeated_replaces_its_row_of_the_log(folder: Path, cache: Path, tmp_path: Path) -> None:
    """A run that is killed after it has logged an epoch, or while it does, and before it has saved it, repeats the epoch."""
    flags = [*train_flags(folder, cache, tmp_path), *sets("schedule.warmup_steps=0")]
    assert train_main([*flags, "--set", "schedule.epochs=1"]) == 0
    log, first = tmp_path / "log.csv", (tmp_path / "log.csv").read_text()
    edited = first + first.splitlines()[1].replace("1,", "2,", 1) + "\n2,0."
    log.write_bytes(b"\xef\xbb\xbf" + edited.replace("\n", ",\xb5s\n").encode("latin-1"))  # as a spreadsheet may leave it
    assert train_main([*flags, "--set", "schedule.epochs=2"]) == 0
    assert log.read_text().startswith(first)
    assert [row["epoch"] for row in csv.DictReader(log.read_text().splitlines())] == ["1", "2"]


def test_a_budget_searches_the_frontier_and_leaves_its_files(
    convert: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert("--budget", "0.5") == 0
    frontier = list(csv.DictReader((tmp_path / "tiny_frontier.csv").read_text().splitlines()))
    assert convert("--budget", "0.0001") == 1
    assert "of the dense ANN's energy (INT8); give a higher budget" in capsys.readouterr().err
    costs = [float(row["synaptic_ops"]) for row in frontier]
    assert costs == sorted(costs)
    assert all((tmp_path / f"tiny_{name}").stat().st_size > 500 for name in ("frontier.png", "report.png", "report.json"))


@pytest.mark.parametrize("name", ["report.json", "report.png", "frontier.csv", "frontier.png", "sensitivity.npz"])
def test_a_conversion_replaces_only_its_own_files_beside_the_weights(
    convert: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Before it begins, whether or not the weights file is there; those of an earlier conversion are replaced."""
    file = tmp_path / f"tiny_{name}"
    file.write_text("precious")
    assert convert("--budget", "0.5") == 1
    assert f"tiny_{name}: exists already and was not written by evburst" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in tmp_path.glob("tiny*")] == [(file.name, "precious")]
    for content in (b"", b"PK\x03\x04 damaged"):
        file.write_bytes(content)
        assert convert("--budget", "0.5") == 1
        assert "was not written by evburst" in capsys.readouterr().err
    file.unlink()
    assert [convert("--budget", "0.5"), convert("--budget", "0.5")] == [0, 0]
    if name == "sensitivity.npz":  # measured again if it is damaged
        content = file.read_bytes()
        file.write_bytes(content.replace(b"<f", b"<u", 1))
        assert convert("--budget", "0.5") == 0
        assert file.read_bytes() == content


@pytest.mark.parametrize("name", ["report.json", "report.png", "frontier.csv", "frontier.png"])
def test_a_conversion_on_a_full_disk_names_the_file_and_does_not_stand_in_the_way_of_the_next(
    convert: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """A file of half its length would not be known as one of evburst's."""
    file = tmp_path / f"tiny_{name}"
    part_of(file).symlink_to("/dev/full")
    assert convert("--budget", "0.5") == 1
    assert f"error: {file}: cannot be written (No space left on device)\n" in capsys.readouterr().err
    assert not file.exists()
    assert convert("--budget", "0.5") == 0


def test_a_complete_run_and_other_data_are_reported(best: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second training into the folder of a complete one trains nothing."""
    run = tmp_path / "run"
    shutil.copytree(best.parent, run)
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**settings, "data": {**settings["data"], "root": "elsewhere"}}))
    before = (run / "best.safetensors").read_bytes()
    root, cache = settings["data"]["root"], settings["cache"]
    epochs = sets(f"schedule.epochs={settings['schedule']['epochs']}")
    assert train_main([*train_flags(Path(root), Path(cache), run), *epochs]) == 0
    err = capsys.readouterr().err
    assert "begun with the data in 'elsewhere', continued with those in" in err
    assert "the run is complete: nothing is trained" in err
    assert (run / "best.safetensors").read_bytes() == before


def test_a_run_that_is_resumed_with_changed_labels_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = SensorSize(32, 32)
    for k in range(4):
        write_events(tmp_path / f"{k}.dat", random_events(400, size, 60_000), size)
        boxes = np.zeros(1, BBOX_DTYPE)
        boxes["t"], boxes["w"], boxes["h"] = 50_000, 20, 20
        np.save(tmp_path / f"{k}_bbox.npy", boxes)
    flags = ["--dataset", "folder", "--root", str(tmp_path), "--out", str(tmp_path / "run")]
    flags += sets("architecture=tiny", "schedule.batch=2", "schedule.warmup_steps=1", f"cache={tmp_path / 'cache'}")
    warned = []
    for epochs in (1, 2, 3, 4):
        if epochs == 3:
            boxes["w"] = 10
            np.save(tmp_path / "0_bbox.npy", boxes)
        assert train_main([*flags, *sets(f"schedule.epochs={epochs}")]) == 0
        warned.append("recordings or labels in" in capsys.readouterr().err)
    assert warned == [False, False, True, False]


def test_a_run_is_not_resumed_with_data_of_other_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither if their number differs, nor if it is the same."""
    size = SensorSize(32, 32)
    for name in ("left", "right"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(12):
            write_events(tmp_path / "data" / name / f"{k}.dat", random_events(400, size, 60_000), size)
    flags = ["--dataset", "folder", "--root", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    flags += sets("architecture=little", "schedule.batch=2", "schedule.warmup_steps=1", f"cache={tmp_path / 'cache'}")
    assert train_main([*flags, *sets("schedule.epochs=1")]) == 0
    shutil.copytree(tmp_path / "data" / "left", tmp_path / "data" / "up")
    for _ in range(2):
        assert train_main([*flags, *sets("schedule.epochs=2")]) == 1
        assert "classes was ['left', 'right'], now ['" in capsys.readouterr().err
        shutil.rmtree(tmp_path / "data" / "left", ignore_errors=True)


def test_only_a_weights_file_is_replaced_and_a_budget_is_a_share(
    convert: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.safetensors").write_text("precious")
    assert convert() == 1
    assert "exists already and was not written by evburst" in capsys.readouterr().err
    assert (tmp_path / "tiny.safetensors").read_text() == "precious"
    (tmp_path / "tiny.safetensors").unlink()
    for budget in ("7", "0", "-1"):
        assert convert("--budget", budget) == 1
        assert "budget must be a share above 0 and up to 1" in capsys.readouterr().err


def test_a_network_with_memory_is_not_distilled(
    convert: Command, folder: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It can be calibrated otherwise, and keeps its memory."""
    assert convert() == 0
    held = tmp_path / "held.safetensors"
    remembering(Bundle.load(convert.weights)).save(held)
    again = Command(held, cache, tmp_path)
    assert again(*ADVANCED) == 1
    assert "leave out --level advanced and --continue" in capsys.readouterr().err
    assert again("--calibration", str(folder)) == 0
    assert Bundle.load(again.weights).spiking.memories


def test_two_runs_do_not_write_the_same_outputs(
    convert: Command, best: Path, folder: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with only_writer(tmp_path, convert.weights.name):
        assert convert() == 1
    assert "tiny.safetensors: another process is writing" in capsys.readouterr().err
    with only_writer(best.parent):
        assert train_main(train_flags(folder, cache, best.parent)) == 1
    assert f"{best.parent}: another process is writing" in capsys.readouterr().err


def test_own_recordings_calibrate_without_labels(convert: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own"
    own.mkdir()
    write_events(own / "a.dat", random_events(4000, SensorSize(96, 64), 300_000), SensorSize(96, 64))
    np.save(own / "b.npy", random_events(3000, SensorSize(96, 64), 200_000, seed=1))
    assert convert("--calibration", str(own)) == 1
    assert f"must contain boxes.csv and images/; to use the recordings in {own} without labels, pass --unlabelled" in (
        capsys.readouterr().err
    )
    assert convert("--calibration", str(tmp_path / "none")) == 1
    assert "--unlabelled" not in capsys.readouterr().err
    flags = ["--calibration", str(own), "--unlabelled", "--timesteps", "2"]
    assert convert(*flags) == 1
    assert "b.npy: the file does not say the sensor's size" in capsys.readouterr().err
    assert convert(*flags, "--sensor-size", "96x64", "--budget", "0.6", "--set", "calibration_windows=5") == 0
    shown = capsys.readouterr().out
    assert re.search(r"T = 2; divergence from the ANN [\d.e-]+ on \d+ windows held out, at \d+\.\d % of the dense ANN's", shown)
    assert "the loss is unknown, because there are no labels" in shown
    assert convert.record["chosen_on"] == "recordings without labels"
    assert 0 < convert.record["divergence"]["energy_of_ann"] < 1
    assert convert(*flags, "--sensor-size", "96x64", *ADVANCED, "--set", "tuning_every=4") == 0
    assert [row["windows"] for row in convert.record["descent"]] == [0, 4, 8, 10]
    assert all(row["select_divergence"] > 0 and "select_lost" not in row for row in convert.record["descent"])
    assert Bundle.load(convert.weights).record["sensor_size"] == [96, 64]
    assert convert(*flags, "--max-loss", "1") == 1
    assert "max_loss needs labels" in capsys.readouterr().err
    (own / "c.csv").write_text("t,x,y,p\n")
    assert convert(*flags, "--sensor-size", "96x64") == 1
    assert "c.csv" in capsys.readouterr().err


def test_large_sensors_are_seen_in_the_same_blocks_when_calibrated_and_when_used(convert: Command, tmp_path: Path) -> None:
    """Calibrated in blocks if the network learned from a smaller sensor, and not if it learned from one as large."""
    large = SensorSize(1280, 40)
    write_events(tmp_path / "a.dat", random_events(20_000, large, 300_000), large)
    flags = ["--calibration", str(tmp_path / "a.dat"), "--unlabelled"]
    for trained, block in (([304, 240], 2), ([1280, 40], 1)):
        tensors, record = load_tensors(convert.best, "ann")
        assert record["sensor_size"] == [304, 240]
        save_tensors(tmp_path / "ann.safetensors", "ann", tensors, {**record, "sensor_size": trained})
        assert convert("--weights", str(tmp_path / "ann.safetensors"), *flags) == 0
        bundle = Bundle.load(convert.weights)
        assert (bundle.sensor_size, bundle.trained_size) == (tuple(large), tuple(trained))
        config = DetectConfig(weights=str(convert.weights), sinks=("jsonl",))
        assert detect_file(tmp_path / "a.dat", tmp_path / f"out{block}", config)["downsample"] == block
        again = ["unlabelled=true", "timesteps=1", f"root={tmp_path / 'a.dat'}", f"out={tmp_path / 'again'}"]
        where = [f"weights={convert.weights}", f"cache={tmp_path / 'c'}"]
        data = Conversion(load_config(ConvertConfig, None, [*again, *where]))
        assert data.grids.shape[2:] == (-(-40 // block // 16) * 16, 1280 // block)


def test_weights_record_on_what_their_epoch_was_chosen(best: Path) -> None:
    chosen = load_tensors(best, "ann")[1]["chosen_on"]
    assert (chosen["split"], chosen["windows"], chosen["pictures"]) == ("select", 2, 1)
    assert chosen["chosen"].startswith("the epoch with the highest AP")
    assert chosen_on_select({"chosen_on": chosen})
    assert chosen_on_select({"chosen_on": "select"})
    assert not chosen_on_select({})


def test_without_an_object_to_find_the_last_epoch_is_kept(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images" / "voc").mkdir(parents=True)
    rows = []
    for k in range(4):
        cv2.imwrite(str(tmp_path / "images" / "voc" / f"{k}.png"), np.full((240, 320), 90, np.uint8))
        rows.append(["voc", f"{k}.png", 320, 240, "train" if k else "select", "", "car" if k else "bus", 20, 20, 110, 80, "ok"])
    with (tmp_path / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    run = [*train_flags(tmp_path, cache, tmp_path / "run"), "--set", "schedule.epochs=1"]
    assert train_main(run) == 0
    assert np.isnan(load_tensors(tmp_path / "run" / "best.safetensors", "ann")[1]["validation"]["ap"])
    assert "'select' has no object to find" in capsys.readouterr().err


def test_a_network_is_averaged_with_a_converted_one(convert: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unused scales, which a converted file lacks, are left out of both."""
    assert convert() == 0
    before = (tmp_path / "tiny.safetensors").rename(tmp_path / "before.safetensors")
    reduced = []

    def recorded(graph: Graph, head: HeadSpec, grids: torch.Tensor) -> tuple[Graph, HeadSpec]:
        reduced.append(graph)
        return without_unused_scales(graph, head, grids)

    monkeypatch.setattr("evburst.app.convert.conversion.without_unused_scales", recorded)
    assert convert("--set", f"blend_with={before}", "--set", "blend=0.25") == 0
    assert len(reduced) == 2
    one, other = (Bundle.load(path).graph for path in (before, tmp_path / "tiny.safetensors"))
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
    five = replace(one, tensors={name: 5 * tensor for name, tensor in one.tensors.items()})
    mean = blended(one, five, 0.25)
    assert all(torch.allclose(mean.tensors[name], 4 * tensor, rtol=2e-3) for name, tensor in one.tensors.items())
    with pytest.raises(CheckpointError, match="different networks"):
        blended(one, replace(one, outputs=one.outputs[:1]), 0.5)


def test_another_point_is_picked_without_measuring_again(
    convert: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert("--budget", "0.5") == 0
    measured = (tmp_path / "tiny_sensitivity.npz").stat().st_mtime_ns
    assert convert("--pick", "0") == 0
    assert (tmp_path / "tiny_sensitivity.npz").stat().st_mtime_ns == measured
    assert convert("--pick", "0", "--set", "seed=1") == 1  # other windows have another frontier
    assert "were measured on other windows or another network: pass the settings" in capsys.readouterr().err
    assert (tmp_path / "tiny_sensitivity.npz").stat().st_mtime_ns == measured
    assert convert("--budget", "0.5", "--set", "seed=1") == 0
    assert (tmp_path / "tiny_sensitivity.npz").stat().st_mtime_ns != measured
    assert convert("--pick", "0", "--set", "seed=1") == 0
    assert convert("--pick", "99999", "--set", "seed=1") == 1
    assert "frontier has points 0 to" in capsys.readouterr().err


def test_the_chosen_network_keeps_its_budget(convert: Command) -> None:
    assert convert("--budget", "0.3") == 0
    tried = convert.record["tried"]
    assert tried[-1]["point"] == convert.record["point"]
    assert all(measured["share"] > 0.3 for measured in tried[:-1])
    assert 0 < tried[-1]["share"] <= 0.3


def test_a_budget_that_no_network_keeps_is_an_error(convert: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("--pick", "0", "--set", "check_windows=-1") == 0
    cheapest = convert.record["expected_share"]
    assert convert("--budget", f"{cheapest + 1e-4:.4f}") == 1
    assert "the cheapest network measured takes" in capsys.readouterr().err


def test_a_continued_network_keeps_its_settings(convert: Command, folder: Path, tmp_path: Path) -> None:
    assert convert("--phi-max", "16", "--level", "none", "--thresholds", "typical") == 0
    flags = ["--weights", str(convert.weights), "--continue", "--calibration", str(folder), "--set", "advanced_windows=0"]
    assert convert(*flags, "--out", str(tmp_path / "second.safetensors")) == 0
    record = load_tensors(tmp_path / "second.safetensors", "detector")[1]["record"]["conversion"]
    assert (record["phi_max"], record["level"], record["thresholds"]) == (16, "none", "typical")


def test_a_tolerance_takes_the_cheapest_within_it(convert: Command) -> None:
    assert convert("--compress", "1e9") == 0
    assert convert.record["point"] == 0


def test_a_loss_is_kept_on_the_held_out_pictures(convert: Command) -> None:
    assert convert("--max-loss", "100", "--set", "tuning_windows=2") == 0
    assert convert.record["chosen_on"] == "select"
    points = [measured["point"] for measured in convert.record["tried"]]
    assert len(points) == len(set(points))


def test_a_loss_that_no_point_keeps_is_an_error(convert: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("--max-loss=-1000", "--set", "tuning_windows=2") == 1
    assert "max_loss -1000: the smallest loss measured is" in capsys.readouterr().err
    assert not convert.weights.exists()


def test_typical_thresholds(convert: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("--budget", "0.5", "--thresholds", "typical") == 0
    assert convert.record["thresholds"] == "typical"
    assert convert("--set", "thresholds=best") == 1
    assert "expected error or typical" in capsys.readouterr().err


def out_of_memory(learning: Distillation, grids: torch.Tensor) -> Any:
    raise torch.OutOfMemoryError("tried to allocate 8 GiB")


def test_advanced_calibration_and_its_continuation(
    convert: Command,
    best: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert convert("--budget", "0.5", *ADVANCED) == 0
    assert any(name.startswith("spiking/") for name in load_tensors(convert.weights, "detector")[0])
    second = tmp_path / "second.safetensors"
    onward = ["--weights", str(convert.weights), "--out", str(second), "--continue", "--calibration", str(folder)]
    onward += sets("advanced_windows=4", "tuning_every=2")
    assert convert(*onward, "--set", "advanced_batch=3") == 1
    assert "tuning_every must be at least advanced_batch" in capsys.readouterr().err
    with monkeypatch.context() as patched:
        patched.setattr(Distillation, "learn", out_of_memory)
        assert convert(*onward) == 1
    assert "advanced_batch: 2 windows per step do not fit into the memory" in capsys.readouterr().err
    assert convert(*onward, *sets("advanced_batch=1", "prune=0.4")) == 0
    assert 0.4 <= footprint(Bundle.load(second).spiking)[1] < 0.45
    record = load_tensors(second, "detector")[1]["record"]["conversion"]
    assert record["prune"] == 0.4
    third = ["--weights", str(second), "--out", str(tmp_path / "third.safetensors"), "--continue", "--calibration", str(folder)]
    assert convert(*third, *sets("advanced_windows=4", "tuning_every=2", "advanced_weights=false")) == 1
    assert "advanced_weights=false takes the ANN's weights" in capsys.readouterr().err
    assert (record["chosen_on"], record["network_trained_on_select"]) == ("select", False)
    assert [row["windows"] for row in record["descent"]] == [0, 2, 4]
    assert record["continued_from"]["budget"] == 0.5
    assert record["level"] == "advanced"
    assert all((tmp_path / f"second_descent.{ending}").stat().st_size > 100 for ending in ("csv", "png"))
    assert not (tmp_path / "second_descent.safetensors").exists()
    assert convert(*onward, "--max-loss", "1") == 1
    assert convert(*onward, "--weights", str(best)) == 1
    assert "has not been converted yet" in capsys.readouterr().err


def test_a_conversion_that_ends_before_it_is_saved_keeps_its_descent(
    convert: Command, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise DataError("the disk is full")

    state = tmp_path / "tiny_descent.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(Bundle, "save", fails)
        assert convert(*ADVANCED) == 1
    assert state.exists()
    assert "the disk is full" in capsys.readouterr().err
    assert convert(*ADVANCED) == 0
    assert "resuming after 10 windows" in capsys.readouterr().err
    assert not state.exists()
    assert not list(cache.glob("descent-*"))  # where its windows were


def test_conversions_with_one_cache_learn_from_windows_of_their_own(best: Path, cache: Path, tmp_path: Path) -> None:
    def opened(name: str) -> SimulatedWindows:
        config = ConvertConfig(str(best), str(tmp_path / name), cache=str(cache))
        data = Conversion(config).data
        windows = data.windows("train", 2, 1000, once=True)
        assert isinstance(windows, SimulatedWindows)
        folders.append(data)
        return windows

    folders: list[ConversionData] = []
    first, second = opened("a.safetensors"), opened("b.safetensors")
    words = np.array(second[1].window.words)
    folders[0].discard(first)
    folders[0].discard_all()
    assert np.array_equal(second[1].window.words, words)
    assert len(list(cache.glob("descent-*/*"))) == 1
    folders[1].discard_all()


def test_the_state_of_a_descent_belongs_to_all_that_shapes_it(tmp_path: Path) -> None:
    at_rest, shifted = {"out": torch.zeros(1)}, {"out": torch.ones(1)}
    signed = {"a": NeuronLayer(torch.ones(1), torch.zeros(1), 4, takes_back=True)}
    plain = {"a": replace(signed["a"], takes_back=False)}
    parameters = [
        SpikingParameters(*own) for own in ((1, plain, at_rest), (2, plain, at_rest), (1, signed, at_rest), (1, plain, shifted))
    ]
    bundles: list[Any] = [SimpleNamespace(spiking=SimpleNamespace(tensors={}), parameters=own) for own in parameters]
    config = ConvertConfig("a", "b", root="c", continues=True)
    changes: tuple[dict[str, Any], ...] = ({}, {"tuning_every": 20}, {"unlabelled": True}, {"sensor_size": "34x34"})
    teachers: list[Any] = [SimpleNamespace(tensors={"a": torch.full((1,), value)}) for value in (0.0, 1.0)]
    found = {
        Conversion._identity(SimpleNamespace(config=replace(config, **change), graph=graph), bundle, Descent(10, 1e6))
        for graph in teachers
        for change in changes
        for bundle in bundles
    }
    assert len(found) == len(teachers) * len(changes) * len(bundles)


def test_converted_weights_detect_and_say_where_they_come_from(
    convert: Command, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert convert("--json") == 0
    measured = json.loads(capsys.readouterr().out)
    assert {"ann", "snn", "loss"} <= measured.keys()
    assert measured["loss"]["mean"] == pytest.approx(measured["ann"]["ap"] - measured["snn"]["ap"], abs=0.011)
    assert set(measured["snn"]["energy_of_ann"]) == {"int8", "fp16", "fp32"}
    assert convert() == 0
    output = capsys.readouterr().out
    share = 100 * measured["snn"]["energy_of_ann"]["int8"]
    assert f"written   {convert.weights}: T = 1; loses {measured['loss']['mean']:.2f} [" in output
    assert f"AP on 2 windows of the split 'val', at {share:.1f} % of the dense ANN's energy (INT8)" in output
    assert convert.record["score_calibration"]["car"].keys() == {"scale", "bias", "ece_before", "ece_after", "boxes"}
    assert convert.record["score_calibration"]["car"]["scale"] == 1, "too few boxes to calibrate scores"
    assert convert("--set", "check_windows=-1", "--set", "calibrate_scores=false") == 0
    assert "score_calibration" not in convert.record
    assert "T = 1; its loss was not measured" in capsys.readouterr().out
    sample = ROOT / "data" / "samples" / "street_td.dat"
    run = ["--events", str(sample), "--weights", str(convert.weights), "--out", str(tmp_path / "o"), "--max-windows", "2"]
    assert detect_main([*run, "--json", "--no-video"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["timesteps"] == 1
    assert str(folder) not in json.dumps(summary["weights_record"])


def test_missing_windows_for_the_scores_are_reported(
    convert: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = ConversionData.windows

    def without_select(data: ConversionData, split: str, n: int, showing: int = 0) -> Any:
        if split == "select":
            raise DataError("split 'select': no picture")
        return opened(data, split, n, showing)

    monkeypatch.setattr(ConversionData, "windows", without_select)
    assert convert() == 1
    wanted = "split 'select': no picture; scores are calibrated on this split; --set calibrate_scores=false skips that"
    assert wanted in capsys.readouterr().err
    assert convert("--set", "calibrate_scores=false") == 0


def test_weights_without_a_record_cannot_be_converted_anew(
    convert: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert() == 0
    replace(Bundle.load(convert.weights), record={}).save(tmp_path / "bare.safetensors")
    assert convert("--weights", str(tmp_path / "bare.safetensors")) == 1
    assert "has no training record" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--ann"], []], ids=["ann", "snn"])
def test_a_trained_checkpoint_detects_as_ann_only(
    best: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    sample = ROOT / "data" / "samples" / "street_td.dat"
    run = ["--events", str(sample), "--weights", str(best), "--out", str(tmp_path / "o"), "--max-windows", "2", "--no-video"]
    assert detect_main([*run, *flags]) == (0 if flags else 1)
    if not flags:
        assert "run `evburst convert --weights" in capsys.readouterr().err


@pytest.mark.slow
def test_yolo_trains_converts_and_detects(folder: Path, cache: Path, tmp_path: Path) -> None:
    """The same path through a real architecture."""
    best = trained_by_command(folder, cache, tmp_path / "yolo", "architecture=yolov8p")
    convert = Command(best, cache, tmp_path)
    assert convert("--budget", "0.5", *ADVANCED) == 0
    sample = ROOT / "data" / "samples" / "street_td.dat"
    run = ["--events", str(sample), "--weights", str(convert.weights), "--out", str(tmp_path / "o"), "--max-windows", "2"]
    assert detect_main([*run, "--no-video"]) == 0


def test_a_training_that_diverges_stops_and_is_not_kept(
    folder: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = train_flags(folder, cache, tmp_path / "other")
    assert train_main([*other, "--schedule.learning-rate", "1e30", "--set", "schedule.epochs=2"]) == 1
    assert "diverged (its loss or weights are not finite) and is not kept; set a learning rate below 1e+30" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "other" / "last.safetensors").exists()


def test_converted_weights_do_not_replace_a_trained_network(
    best: Path, convert: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    before = best.read_bytes()
    for name in ("best", "last"):
        assert convert("--out", str(best.with_name(f"{name}.safetensors")), "--weights", "street") == 1
        assert "checkpoint, not converted weights: choose another file with --out" in capsys.readouterr().err
    assert best.read_bytes() == before


def test_resumed_run_equals_an_uninterrupted_one(folder: Path, cache: Path, tmp_path: Path) -> None:
    def config(out: str, epochs: int) -> TrainConfig:
        common = [*SMALL, f"cache={cache}", f"data.root={folder}", f"out={tmp_path / out}"]
        return load_config(
            TrainConfig, None, [*common, f"schedule.epochs={epochs}", "schedule.amp=false", "schedule.plain_epochs=0"]
        )

    whole = Trainer(config("whole", 2), False)
    whole.run()
    first = Trainer(config("parts", 2), False)
    first.config = config("parts", 2)
    object.__setattr__(first.config.schedule, "epochs", 1)  # killed after the first epoch
    first.run()
    second = Trainer(config("parts", 2), False)
    assert (second.epoch, second.best) == (1, first.best)
    assert first.best >= 0
    second.run()
    for (name, a), b in zip(whole.ema.state_dict().items(), second.ema.state_dict().values(), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_run_is_not_resumed_with_other_settings(
    best: Path, folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--config", str(ROOT / "configs" / "train_street.yaml"), "--root", str(folder), "--out", str(best.parent)]
    before = best.read_bytes()
    assert train_main([*flags, *sets(*SMALL, f"cache={cache}", "schedule.epochs=3", "schedule.learning_rate=0.5")]) == 1
    assert "schedule.learning_rate was 0.003, now 0.5" in capsys.readouterr().err
    small = [*flags, *sets(*SMALL, f"cache={cache}", "schedule.epochs=3")]
    for mapping, message in (
        ("data.classes={van: ignore}", "data.classes was {}"),
        ("data.simulated.sets={voc: 1}", "sets was"),
    ):
        assert train_main([*small, "--set", mapping]) == 1
        assert message in capsys.readouterr().err
    assert best.read_bytes() == before


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors", "log.csv", "curves.png", "config.json"])
def test_files_of_others_stop_a_training_before_it_begins(
    folder: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / name).write_text("precious")
    assert train_main(train_flags(folder, cache, tmp_path)) == 1
    assert f"{name}: exists already and was not written by evburst" in capsys.readouterr().err
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "precious")]
    assert train_main([*train_flags(folder, cache, tmp_path), "--out", ""]) == 1
    assert "out is empty" in capsys.readouterr().err


def test_a_run_whose_settings_are_unknown_is_not_resumed(
    best: Path, folder: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "last.safetensors").write_bytes((best.parent / "last.safetensors").read_bytes())
    (tmp_path / "config.json").write_text('{"name": "str')
    assert train_main(train_flags(folder, cache, tmp_path)) == 1
    assert "config.json: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("schedule.optimizer=adam", "expected adamw or sgd"),
        ("schedule.epochs=0", "epochs and batch must be positive"),
        ("schedule.learning_rate=-1", "learning_rate and clip must be positive"),
        ("schedule.ema=1", "ema must be"),
        ("schedule.workers=-1", "must not be negative"),
    ],
)
def test_impossible_schedules_are_refused(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(TrainConfig, None, [assignment])


def test_fewer_windows_than_a_batch_are_an_error(
    folder: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train_main([*train_flags(folder, cache, out), "--set", "schedule.batch=5"]) == 1
    assert "schedule.batch 5: there are only 4 windows to learn from" in capsys.readouterr().err
    assert not (out / "best.safetensors").exists()


def test_the_rate_may_start_at_its_peak(folder: Path, cache: Path, tmp_path: Path) -> None:
    assert train_main([*train_flags(folder, cache, tmp_path), *sets("schedule.epochs=1", "schedule.warmup_steps=0")]) == 0


@pytest.mark.slow
@needs_fork
def test_two_processes_learn_as_one_does(folder: Path, cache: Path, tmp_path: Path) -> None:
    def losses(out: str) -> list[float]:
        flags = sets(*SMALL, f"cache={cache}", "schedule.amp=false", "schedule.epochs=2", "schedule.warmup_steps=1")
        flags += sets(
            "schedule.batch=8", "schedule.windows=16", "schedule.passes=2", "schedule.learning_rate=0.002", "schedule.clip=10"
        )
        flags += ["--config", str(ROOT / "configs" / "train_street.yaml"), "--root", str(folder), "--out", str(tmp_path / out)]
        if out == "two":
            command = [sys.executable, str(ROOT / "tests" / "helpers" / "two.py"), "train", *flags]
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, env=env)
            assert done.stdout.count("written ") == done.stdout.count("next ") == 1  # the first process prints
        else:
            assert train_main(flags) == 0
        rows = list(csv.DictReader((tmp_path / out / "log.csv").read_text().splitlines()))
        return [sum(float(row[name]) for name in ("box", "cls", "dfl")) for row in rows]

    one, two = losses("one"), losses("two")
    assert len(one) == len(two) == 2
    np.testing.assert_allclose(two, one, rtol=0.15)  # batch norm sees half of each batch


def test_starting_from_another_run_copies_what_fits(folder: Path, cache: Path, tmp_path: Path) -> None:
    common = [*SMALL, f"cache={cache}", f"data.root={folder}", "schedule.epochs=1"]
    silu = Trainer(load_config(TrainConfig, None, [*common, f"out={tmp_path / 'silu'}", "activation=silu"]), False)
    silu.run()
    best = tmp_path / "silu" / "best.safetensors"
    relu = Trainer(load_config(TrainConfig, None, [*common, f"out={tmp_path / 'relu'}", f"init={best}"]), False)
    trained = load_tensors(best, "ann")[0]
    for name, tensor in relu.model.state_dict().items():
        assert torch.equal(tensor, trained[name]), name
    assert any(isinstance(module, torch.nn.ReLU) for module in relu.model.modules())
    with pytest.raises(CheckpointError, match="another architecture"):
        Trainer(
            load_config(TrainConfig, None, [*common, f"init={best}", f"out={tmp_path / 'x'}", "architecture=yolov8p"]), False
        )


def test_windows_are_the_same_whenever_they_are_made(folder: Path, tmp_path: Path) -> None:
    made: list[int] = []

    def make(cache: str) -> SimulatedWindows:
        made.clear()
        return SimulatedWindows(
            folder, SPECS["street"], SimulatedConfig(), 50_000, "train", 3, tmp_path / cache, workers=1, progress=made.append
        )

    first, second = make("a"), make("b")
    for i in range(3):
        assert np.array_equal(first[i].window.words, second[i].window.words)
        assert np.array_equal(first[i].boxes.boxes_xyxy, second[i].boxes.boxes_xyxy)
    assert first[0].window.words[:, 0].max() < 50_000
    with pytest.raises(IndexError):
        first[3]
    assert made
    make("a")
    assert not made


def test_validation_shows_every_picture_once(folder: Path, tmp_path: Path) -> None:
    windows = SimulatedWindows(folder, SPECS["street"], SimulatedConfig(), 50_000, "val", 0, cache=tmp_path, workers=1)
    assert [item.name for item in windows] == ["voc/val0.png", "voc/val1.png"]


def test_splits_never_share_a_picture(folder: Path) -> None:
    files = [
        {name for rows in PictureFolder(folder, split, SPECS["street"]).sets.values() for name, _ in rows}
        for split in ("train", "val")
    ]
    assert not files[0] & files[1]


_HEADER = "set,file,split,class,x0,y0,x1,y1,flag\n"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "no such file"),
        (_HEADER + "voc,a.png,test,car,0,0,1,1,ok\n", r"no picture of split 'train' \(splits with pictures: test\)"),
        ("file,split\na.png,train\n", "column 'class' is missing"),
        ("file,split,class\na.png,train,car\n", "column 'x0' is missing"),
        (_HEADER + "voc,a.png,train,car,0,0,one,1,ok\n", "line 2: x1 'one' is not a number"),
        (_HEADER + "voc,a.png,train,car,5,0,1,1,ok\n", "line 2: the box is -4 px wide and 1 px high: negative"),
        (
            _HEADER + "voc,a.png,train,car,0,0,1,1,ok\nvoc,a.png,val,none,,,,,ok\n",
            "line 3: a.png is in the splits 'train' and 'val'",
        ),
        (_HEADER + "voc,a.png,train,car,0,0\n", "line 2: x1 '' is not a number"),
        (_HEADER + "voc,\udcff.png,train,car,0,0,1,1,ok\n", "not a table of labels"),
    ],
)
def test_bad_folders_say_why(tmp_path: Path, table: str | None, message: str) -> None:
    if table is not None:
        (tmp_path / "boxes.csv").write_text(table, errors="surrogateescape")
    with pytest.raises(DataError, match=message):
        SimulatedWindows(tmp_path, SPECS["street"], SimulatedConfig(), 50_000, "train", 1, cache=tmp_path / "cache")


@pytest.mark.parametrize("box", ["4,0,9,3", "0,4,4,9", "-9,0,0,3", "0,-9,4,0"])
def test_a_box_outside_its_picture_is_an_error(tmp_path: Path, box: str) -> None:
    """The boxes of a picture that its EXIF data turn are those of the turned picture, as it is read."""
    (tmp_path / "images" / "voc").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "images" / "voc" / "a.png"), np.zeros((4, 4), np.uint8))
    (tmp_path / "boxes.csv").write_text(f"{_HEADER}voc,a.png,val,car,-1,-1,3,5,ok\n")
    boxes = PictureFolder(tmp_path, "val", SPECS["street"]).get("voc", 0).boxes_xyxy
    assert boxes.tolist() == [[-1, -1, 3, 5]]
    (tmp_path / "boxes.csv").write_text(f"{_HEADER}voc,a.png,val,car,0,0,4,4,ok\nvoc,a.png,val,car,{box},ok\n")
    with pytest.raises(DataError, match=rf"a\.png: the box {box.replace(',', ', ')} .* outside the picture of 4x4 px"):
        PictureFolder(tmp_path, "val", SPECS["street"]).get("voc", 0)


def test_only_pictures_are_taken_from_folders_without_objects(tmp_path: Path) -> None:
    """boxes.csv begins with a byte-order mark, as Excel writes it."""
    (tmp_path / "boxes.csv").write_text("file,split,class,x0,y0,x1,y1\na.png,train,car,0,0,9,9\n", encoding="utf-8-sig")
    for folder, files in {"sky": ["b.png", ".DS_Store", "notes.txt"], "empty": [], ".hidden": ["c.png"]}.items():
        (tmp_path / "images" / folder).mkdir(parents=True)
        for name in files:
            (tmp_path / "images" / folder / name).touch()
    sets = PictureFolder(tmp_path, "train", SPECS["street"]).sets
    assert sets.get("sky") == [("b.png", [])]
    assert set(sets) <= {"sky", "car"}


@pytest.mark.skipif(sys.platform != "linux", reason="file names elsewhere are text")
def test_names_of_pictures_may_be_any_bytes(tmp_path: Path) -> None:
    picture = tmp_path / "root" / "train" / "one" / "\udcff.png"
    picture.parent.mkdir(parents=True)
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", np.zeros((20, 20), np.uint8))[1].tobytes())
    (tmp_path / "a.png").rename(picture)
    spec = class_spec(tmp_path / "root", frozenset(), (), None)
    assert [name for files in PictureFolder(tmp_path / "root", "train", spec).sets.values() for name, _ in files] == [
        picture.name
    ]
