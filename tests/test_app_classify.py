"""Classification end to end on tiny trees of the published layouts: train, convert, evaluate, classify, and the path a user
would type."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from evburst.app.classify import ClassifyConfig, classify_file, human_line
from evburst.app.cli import classify_main, detect_main
from evburst.app.config import load_config
from evburst.app.convert.cli import convert_main
from evburst.app.evaluate.cli import evaluate_main
from evburst.app.results import tables
from evburst.app.train.cli import train_main
from evburst.app.train.config import TrainConfig
from evburst.app.train.run import human_summary
from evburst.app.train.trainer import Trainer
from evburst.data.classification import CLASSIFICATION, DETECTION
from evburst.data.errors import ConfigError, EventFileError
from evburst.data.events import SensorSize
from evburst.data.writers import write_events
from evburst.eval.class_results import ClassResults
from evburst.eval.results import read_results
from evburst.models.bundle import Bundle, bundled_weights, load_tensors, save_tensors
from tests.event_files import bin_bytes
from tests.helpers import tiny  # noqa: F401  (registers the family)
from tests.helpers.simulation import simulated_here
from tests.test_data_classes import TREES

DIGITS = SensorSize(34, 34)
BUSY = SensorSize(48, 32)


def bars(rng: np.random.Generator, upright: bool, size: SensorSize, span_us: int = 95_000, n: int = 400) -> np.ndarray:
    """Events of a vertical or horizontal bar, which any classifier can learn to distinguish."""
    events = np.zeros(n, [("t", "<i8"), ("x", "<u2"), ("y", "<u2"), ("p", "u1")])
    events["t"] = np.sort(rng.integers(0, span_us, n))
    along, across = rng.integers(2, min(size) - 2, n), rng.integers(14, 18, n)
    events["x"], events["y"] = (across, along) if upright else (along, across)
    events["p"] = rng.integers(0, 2, n)
    return events


def digit_tree(root: Path) -> Path:
    """N-MNIST's layout with two digits: 1 is a vertical bar, 7 a horizontal one."""
    rng = np.random.default_rng(0)
    for split, count in (("Train", 24), ("Test", 6)):
        for digit in "17":
            folder = root / split / digit
            folder.mkdir(parents=True)
            for k in range(count):
                (folder / f"{k:05d}.bin").write_bytes(bin_bytes(bars(rng, digit == "1", DIGITS).tolist()))
    return root


def settings(**values: object) -> list[str]:
    return [part for name, value in values.items() for part in ("--set", f"{name.replace('__', '.')}={value}")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with N-MNIST's tree `digits`, a trained network `run/best.safetensors` and its conversion `digits.safetensors`."""
    root = tmp_path_factory.mktemp("classes")
    digit_tree(root / "digits")
    steps = settings(cache=root / "cache", architecture="little", schedule__epochs=6, schedule__batch=8,
                     schedule__warmup_steps=2,
                     schedule__ema=0.9, schedule__learning_rate=0.01, voxel__bins=2, voxel__window_ms=100,
                     augment__mirror=0)  # fmt: skip
    assert train_main(["--dataset", "nmnist", "--root", str(root / "digits"), "--out", str(root / "run"), *steps]) == 0
    weights = ["--weights", str(root / "run" / "best.safetensors"), "--out", str(root / "digits.safetensors")]
    assert convert_main([*weights, "--timesteps", "2", *settings(cache=root / "cache", calibration_windows=16)]) == 0
    return root


def test_training_records_the_split_used_for_selection(place: Path) -> None:
    record = Bundle.load(place / "digits.safetensors").record
    chosen = record["training"]["chosen_on"]
    assert (chosen["split"], "top-1" in chosen["chosen"]) == ("select", True)
    assert chosen["recordings"] == chosen["windows"] > 1
    assert not record["conversion"]["network_trained_on_select"]
    assert record["training"]["validation"]["top1"] == 100
    assert record["sensor_size"] == [34, 34]
    assert record["check"]["ann"]["top1"] == record["check"]["snn"]["top1"] == 100
    assert record["check"]["windows"] == 12
    assert 0 < record["conversion"]["adaptive"]["mean_timesteps"] <= 2
    with (place / "run" / "log.csv").open() as file:
        assert list(csv.DictReader(file))[-1]["top1"] == "100.0"


def test_the_next_command_measures_if_there_are_recordings_for_it(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "digits" / "Train", tmp_path / "digits" / "Train")
    best = place / "run" / "best.safetensors"
    assert human_summary(best).endswith("--out run.safetensors")
    tensors, record = load_tensors(best, "ann")
    record["config"]["data"]["root"] = str(tmp_path / "digits")
    save_tensors(tmp_path / "best.safetensors", "ann", tensors, record)
    assert human_summary(tmp_path / "best.safetensors").endswith(".safetensors --set check_windows=-1")


def test_an_unfinished_run_is_resumed(place: Path, tmp_path: Path) -> None:
    same = settings(cache=place / "cache", architecture="little", schedule__batch=8, voxel__bins=2, voxel__window_ms=100)
    run = ["--dataset", "nmnist", "--root", str(place / "digits"), "--out", str(tmp_path), *same]
    for epochs in (1, 2):
        assert train_main([*run, *settings(schedule__epochs=epochs)]) == 0
    with (tmp_path / "log.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]


def test_a_resumed_run_equals_an_uninterrupted_one(place: Path, tmp_path: Path) -> None:
    """Bit for bit, dropout included."""

    def trainer(out: str) -> Trainer:
        where = [f"data.root={place / 'digits'}", f"out={tmp_path / out}", f"cache={place / 'cache'}"]
        what = ["data.kind=nmnist", "architecture=little", "voxel.bins=2", "voxel.window_ms=100", "augment.mirror=0"]
        schedule = ["schedule.batch=8", "schedule.epochs=2", "schedule.plain_epochs=0"]
        return Trainer(load_config(TrainConfig, None, [*where, *what, *schedule]), False)

    whole, first = trainer("whole"), trainer("parts")
    whole.run()
    object.__setattr__(first.config.schedule, "epochs", 1)  # killed after the first epoch
    first.run()
    second = trainer("parts")
    assert second.epoch == 1
    second.run()
    for (name, a), b in zip(whole.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_evaluate_reports_classes(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["--weights", str(place / "digits.safetensors"), "--root", str(place / "digits"), "--split", "test", "--both"]
    more = ["--timesteps", "1,2,4,8", "--out", str(out), *settings(cache=place / "cache", latency_windows=2)]
    assert evaluate_main([*command, *more]) == 0
    text = capsys.readouterr().out
    assert "nmnist test: 12 recordings, 12 windows of 100 ms" in text
    assert all(f"SNN, T = {t}" in text for t in (1, 2, 4, 8))
    results = read_results(out / "results.json")
    assert isinstance(results, ClassResults)
    assert (results.task, results.recordings, results.classes) == ("classification", 12, tuple("0123456789"))
    ann, snn = results.results[0], results.main
    assert (ann.top1, ann.top5, snn.top1) == (100, 100, 100)
    assert snn.top1_loss is not None
    assert (snn.top1_loss.mean, snn.top1_loss.units, snn.top1_loss.unit) == (0, 12, "recording")
    assert snn.energy.snn_pj is not None
    assert 0 < snn.energy.snn_pj < snn.energy.ann_pj
    assert snn.details is not None
    assert snn.details.confusion[1][1] == snn.details.confusion[7][7] == 6
    assert results.results[0].per_class["1"].count == 6
    for name in ("report.html", "results.md", "confusion.svg"):
        assert "top-1" in (out / name).read_text() or name == "confusion.svg"
    assert "## Classification" in tables([out])


def test_files_that_do_not_state_their_size_are_read_at_that_of_the_weights(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not at that of N-Caltech101, which the reader of .bin files assumes; of another size evaluate warns, as classify does."""
    shutil.copytree(place / "digits" / "Test", tmp_path / "data" / "test")
    weights = ["--weights", str(place / "digits.safetensors"), *settings(latency_windows=2, cache=tmp_path / "cache")]
    command = [*weights, "--dataset", "folder", "--root", str(tmp_path / "data")]
    assert evaluate_main([*command, "--out", str(tmp_path / "out")]) == 0
    results = read_results(tmp_path / "out" / "results.json")
    assert isinstance(results, ClassResults)
    assert (results.split, results.sensor_size, results.main.top1) == ("test", (34, 34), 100)
    assert "was trained on" not in capsys.readouterr().err
    shutil.rmtree(tmp_path / "data")
    for name in "17":
        (tmp_path / "data" / "test" / name).mkdir(parents=True)
        write_events(tmp_path / "data" / "test" / name / "a.dat", bars(np.random.default_rng(4), name == "1", BUSY), BUSY)
    assert evaluate_main([*command, "--out", str(tmp_path / "other")]) == 0
    assert f"{tmp_path / 'data'}: a 48x32 sensor; the network was trained on 34x34" in capsys.readouterr().err


def test_data_of_classes_need_the_architecture_of_a_classifier(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of_bars(tmp_path / "table")
    shutil.copytree(place / "digits" / "Train", tmp_path / "folders" / "train")
    out, hint = (
        ["--out", str(tmp_path / "out")],
        "to train a classifier, set its architecture, e.g. --set architecture=resnet18",
    )
    for kind, root in (("nmnist", "digits"), ("folder", "folders"), ("folder", "table")):
        assert train_main(["--dataset", kind, "--root", str((place if root == "digits" else tmp_path) / root), *out]) == 1
        assert hint in capsys.readouterr().err
    table = ["--labels", str(tmp_path / "table" / "labels.csv")]
    assert train_main(["--dataset", "folder", "--root", str(tmp_path / "table"), *table, *out]) == 1
    assert f"data.labels (--labels) is for classifiers; {hint}" in capsys.readouterr().err


def test_protocols_are_for_detectors_only(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--weights", str(place / "digits.safetensors"), "--root", str(place / "digits"), "--protocol", "coco"]
    assert evaluate_main([*command, "--out", str(tmp_path)]) == 1
    assert "protocol coco is for detectors" in capsys.readouterr().err


def test_classify_prints_one_line_per_recording(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = ["--weights", str(place / "digits.safetensors")]
    files = [str(place / "digits" / "Test" / digit / "00000.bin") for digit in "17"]
    assert classify_main(["--events", *files, *weights]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["1/00000.bin", "1"], ["7/00000.bin", "7"]]
    assert all("uJ of arithmetic per window" in line and line.endswith(f"T 2, {weights[1]}") for line in lines)
    assert classify_main(["--events", files[0], *weights, "--windows", "--timesteps", "4", "--adaptive"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].split()[:5] == ["0.000", "to", "0.100", "s", "1"]


def test_columns_are_as_wide_as_their_longest_entry(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "a.bin", tmp_path / f"{'b' * 40}.bin"]
    for file in files:
        shutil.copy(place / "digits" / "Test" / "7" / "00001.bin", file)
    assert classify_main(["--events", *map(str, files), "--weights", str(place / "digits.safetensors"), "--windows"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.index(" 7 ") for line in lines} == {44}
    summary = classify_file(files[0], ClassifyConfig(weights=str(place / "digits.safetensors")))
    short, long = (human_line({**summary, "class": name}, widths=(0, 14)) for name in ("7", "written number"))
    assert short.index("uJ of") == long.index("uJ of")


def test_json_of_an_interrupted_run_has_the_recordings_before(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def classify_file(path: Path, *_: object) -> dict[str, Any]:
        if path.name == "b":
            raise KeyboardInterrupt
        return {"events_file": path.name}

    monkeypatch.setattr("evburst.app.classify.classify_file", classify_file)
    assert classify_main(["--events", "a", "b", "--weights", str(place / "digits.safetensors"), "--json"]) == 130
    assert json.loads(capsys.readouterr().out) == [{"events_file": "a"}]


def test_classify_as_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place / "digits" / "Test" / "7" / "00001.bin"
    assert classify_main(["--events", str(path), "--weights", str(place / "digits.safetensors"), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["class"] == "7"
    assert found["score"] == found["top5"][0]["score"] > 0.5
    assert len(found["top5"]) == 5
    assert found["windows"][0]["events"] == 400
    assert found["energy"]["windows"] == len(found["windows"]) == 1
    assert found["energy"]["snn_pj"] == pytest.approx(found["windows"][0]["energy_pj"], abs=0.1)
    assert found["sensor_size"] == [34, 34]


def test_one_damaged_recording_does_not_stop_the_others(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.bin").write_bytes(b"")
    good = place / "digits" / "Test" / "1" / "00002.bin"
    assert classify_main(["--events", str(tmp_path), str(good), "--weights", str(place / "digits.safetensors")]) == 1
    printed = capsys.readouterr()
    assert printed.out.split()[0].endswith("digits/Test/1/00002.bin")
    assert "1 of 2 recordings failed" in printed.err


def test_recordings_may_be_named_one_by_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(place / "digits" / "Test" / digit / "00002.bin") for digit in "17"]
    weights = ["--weights", str(place / "digits.safetensors")]
    assert classify_main(["--events", paths[0], *weights, "--events", paths[1]]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1/00002.bin", "7/00002.bin"]


def test_windows_unlike_those_of_training_are_warned_of(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place / "digits" / "Test" / "1" / "00002.bin"
    flags = ["--events", str(path), "--weights", str(place / "digits.safetensors")]
    assert classify_main([*flags, "--window-events", "3"]) == 0
    assert f"{path}: windows of " in capsys.readouterr().err


def test_json_has_the_recordings_before_and_after_a_damaged_one(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.bin").write_bytes(b"")
    good = [place / "digits" / "Test" / digit / "00002.bin" for digit in "17"]
    events = [str(path) for path in (good[0], tmp_path, good[1])]
    assert classify_main(["--events", *events, "--weights", str(place / "digits.safetensors"), "--json"]) == 1
    printed = capsys.readouterr()
    assert [result["events_path"] for result in json.loads(printed.out)] == [str(path.resolve()) for path in good]
    assert "1 of 3 recordings failed" in printed.err


def test_idle_windows_are_excluded(place: Path) -> None:
    path, weights = place / "digits" / "Test" / "7" / "00003.bin", str(place / "digits.safetensors")
    found = classify_file(path, ClassifyConfig(weights=weights, idle_events=1000))
    assert (found["class"], found["score"], found["top5"], found["idle_windows"]) == (None, None, [], 1)
    name, _, rest = human_line({**found, "weights": "digits"}, windows=True).partition("\n")
    assert name.split(maxsplit=1) == ["00003.bin", "idle              no energy: every window is idle  digits"]
    assert rest.split() == ["0.000", "to", "0.100", "s", "idle", "nothing", "computed"]
    as_ann = classify_file(path, ClassifyConfig(weights=weights, idle_events=1000, ann=True))
    assert human_line(as_ann).endswith(f"no energy: every window is idle  ANN, {weights}")
    with pytest.raises(EventFileError, match="contains no usable events after 10 s"):
        classify_file(path, ClassifyConfig(weights=weights, start_s=10))


def test_commands_reject_weights_of_the_other_task(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(place / "digits" / "Test" / "7" / "00003.bin")
    assert detect_main(["--events", path, "--weights", str(place / "digits.safetensors"), "--out", str(place / "no")]) == 1
    assert "use evburst classify" in capsys.readouterr().err
    assert classify_main(["--events", path, "--weights", "street"]) == 1
    assert "use evburst detect" in capsys.readouterr().err


def folder_of_bars(root: Path) -> None:
    """Files and a table of labels, without class folders; every fourth recording is held out."""
    rng = np.random.default_rng(1)
    rows = []
    root.mkdir()
    for k in range(32):
        upright = bool(k % 2)
        write_events(root / f"{k}.dat", bars(rng, upright, BUSY, 350_000, 1600), BUSY)
        rows.append(
            [f"{k}.dat", "upright" if upright else "lying", "select" if k % 8 > 5 else "train" if k % 8 > 1 else "test"]
        )
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "class", "split"], *rows])


def pictures(root: Path) -> None:
    """Class folders of pictures."""
    rng = np.random.default_rng(2)
    for name in ("upright", "lying"):
        (root / name).mkdir(parents=True)
        for k in range(24):
            image = rng.integers(100, 110, (60, 80), np.uint8)
            if name == "upright":
                image[5:55, 30:50] = 250
            else:
                image[20:40, 5:75] = 250
            cv2.imwrite(str(root / name / f"{k}.png"), image)


@pytest.mark.parametrize("kind", ["ncaltech101", "ncars", "cifar10dvs", "dvsgesture", "folder", "simulated", "tonic:NMNIST"])
def test_published_layouts_train_convert_and_evaluate(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others: dict[str, Callable[[Path], object]] = {"folder": folder_of_bars, "simulated": pictures}
    root = tmp_path / "data"
    if kind == "tonic:NMNIST":
        datasets = pytest.importorskip("tonic.datasets")
        monkeypatch.setattr(datasets.NMNIST, "_check_exists", lambda self: True)  # the files here are not the published ones
        digit_tree(root / "NMNIST")
    else:
        (others.get(kind) or TREES[kind][0])(root)
    short = settings(cache=tmp_path / "cache", architecture="little", schedule__epochs=1, schedule__batch=4,
                     schedule__windows=8,
                     schedule__val_windows=4, schedule__workers=1, voxel__bins=1, voxel__window_ms=100)  # fmt: skip
    sensor = settings(data__sensor_size="80x60") if kind == "simulated" else []
    weights = tmp_path / "net.safetensors"
    with simulated_here():
        assert train_main(["--dataset", kind, "--root", str(root), "--out", str(tmp_path / "run"), *short, *sensor]) == 0
        few = settings(cache=tmp_path / "cache", calibration_windows=4, check_windows=4)
        assert convert_main(["--weights", str(tmp_path / "run" / "best.safetensors"), "--out", str(weights), *few]) == 0
        few = settings(cache=tmp_path / "cache", latency_windows=1, limit=6)
        command = ["--weights", str(weights), "--dataset", kind, "--root", str(root), "--both", "--out", str(tmp_path / "out")]
        assert evaluate_main([*command, *few, *sensor]) == 0
    results = read_results(tmp_path / "out" / "results.json")
    assert isinstance(results, ClassResults)
    assert 1 <= results.recordings <= results.windows <= 6


def test_a_set_without_some_classes_is_evaluated_by_name(place: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for name, upright in (("7", False), ("nine", True)):
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "train" / name).mkdir(parents=True)
        write_events(tmp_path / "test" / name / "a.dat", bars(rng, upright, DIGITS), DIGITS)
    command = [
        "--weights",
        str(place / "digits.safetensors"),
        "--dataset",
        "folder",
        "--root",
        str(tmp_path),
        "--split",
        "test",
    ]
    assert evaluate_main([*command, "--out", str(tmp_path / "out"), *settings(latency_windows=1)]) == 0
    results = read_results(tmp_path / "out" / "results.json")
    assert isinstance(results, ClassResults)
    assert (results.recordings, results.main.top1, results.main.per_class["7"].count) == (1, 100, 1)


def test_from_python(place: Path) -> None:
    from evburst import Classifier, Detector

    path, weights = place / "digits" / "Test" / "7" / "00004.bin", place / "digits.safetensors"
    network = Classifier(weights)
    whole = network.classify(path)
    assert whole is not None
    assert network.classes[whole.label] == "7"
    (result,) = network.stream(path)
    assert result.classification is not None
    assert (result.detections.boxes_xyxy.shape, result.classification.label) == ((0, 4), 7)
    (again,) = network(bars(np.random.default_rng(5), True, DIGITS, 90_000))
    assert again.classification is not None
    assert network.classes[again.classification.label] == "1"
    by_count = list(Classifier(weights, window_events=150).stream(path))
    assert [result.events for result in by_count] == [150, 150, 100]
    with pytest.raises(ConfigError, match="track"):
        Classifier(weights, track=True)
    with pytest.raises(ConfigError, match="evburst classify"):
        list(Detector(weights).stream(place / "digits" / "Test" / "7" / "00004.bin"))


def test_bundled_weights_by_task() -> None:
    sensors = {"nmnist": [34, 34], "dvs128-objects": [128, 128], "caltech101": [240, 180]}
    assert set(bundled_weights(CLASSIFICATION)) == sensors.keys()
    assert set(bundled_weights(DETECTION)) == {"caltech6", "caltech6-ssd", "street"}
    for name, sensor_size in sensors.items():
        record = Bundle.load(name).record
        assert record["sensor_size"] == sensor_size
        chosen_on = record["training"]["chosen_on"]  # of older files the name of the split alone
        assert (chosen_on["split"] if isinstance(chosen_on, dict) else chosen_on) == "select"


def test_an_assumed_sensor_is_named_where_the_events_lie_outside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = np.arange(900) * 100, np.full(900, 150), np.full(900, 9), np.ones(900)
    np.save(tmp_path / "a.npy", np.column_stack(columns).astype(int))
    assert classify_main(["--events", str(tmp_path / "a.npy"), "--weights", "nmnist"]) == 1
    assert "34x34 is that of the weights nmnist, which --weights selects" in capsys.readouterr().err
    assert classify_main(["--events", str(tmp_path / "a.npy"), "--weights", "nmnist", "--sensor-size", "34x34"]) == 1
    assert "of the weights" not in capsys.readouterr().err
