"""Training end to end on a tiny labelled folder: two steps, resume, conversion, and the path a user would type."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from app.cli import convert_main, detect_main, train_main
from app.config import load_config
from app.train import TrainConfig, Trainer, augment, pad
from data.boxes import Detections
from data.datasets.simulated import SimulatedConfig, SimulatedWindows
from data.errors import DataError
from data.representations.voxel_grid import VoxelConfig
from tests.conftest import ROOT

COLUMNS = ["set", "file", "width", "height", "split", "frame", "class", "x0", "y0", "x1", "y1", "flag"]
SMALL = ["model.width=p", "schedule.windows=4", "schedule.val_windows=2", "schedule.batch=2", "schedule.workers=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures with a bright car-sized block each, in the layout of boxes.csv and images/<set>/."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    rows = []
    for split in ("train", "val"):
        for k in range(2):
            image = rng.integers(60, 120, (240, 320), np.uint8)
            x, y = int(rng.integers(20, 180)), int(rng.integers(20, 120))
            image[y : y + 60, x : x + 90] = 230
            (root / "images" / "voc").mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / "images" / "voc" / f"{split}{k}.png"), image)
            rows.append(["voc", f"{split}{k}.png", 320, 240, split, "", "car", x, y, x + 90, y + 60, "ok"])
    with (root / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return root


def test_train_resume_convert_detect(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--config", str(ROOT / "configs" / "train_street.yaml"), "--root", str(folder), "--out", str(tmp_path / "run")]
    settings = [*SMALL, f"cache={tmp_path / 'cache'}"]
    sets = [part for setting in settings for part in ("--set", setting)]
    assert train_main([*flags, *sets, "--set", "schedule.epochs=1"]) == 0
    assert train_main([*flags, *sets, "--set", "schedule.epochs=2"]) == 0
    assert "resuming" in capsys.readouterr().err
    rows = list(csv.DictReader((tmp_path / "run" / "log.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(np.isfinite(float(row["box"])) for row in rows)
    weights = tmp_path / "tiny.safetensors"
    convert_sets = ["--set", "calibration_windows=2", "--set", "check_windows=2", "--set", f"cache={tmp_path / 'cache'}"]
    best = str(tmp_path / "run" / "best.safetensors")
    assert convert_main(["--weights", best, "--out", str(weights), "--timesteps", "1", *convert_sets]) == 0
    assert {"ann", "snn"} <= json.loads(capsys.readouterr().out).keys()
    sample = ROOT / "data" / "samples" / "street_td.dat"
    run = ["--events", str(sample), "--weights", str(weights), "--out", str(tmp_path / "o"), "--max-windows", "2", "--json"]
    assert detect_main(run) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["timesteps"] == 1
    assert str(folder) not in json.dumps(summary["weights_record"])


def test_resumed_run_equals_an_uninterrupted_one(folder: Path, tmp_path: Path) -> None:
    def config(out: str, epochs: int) -> TrainConfig:
        sets = [*SMALL, f"cache={tmp_path / 'cache'}", f"data.root={folder}", f"out={tmp_path / out}"]
        return load_config(TrainConfig, None, [*sets, f"schedule.epochs={epochs}", "schedule.amp=false"])

    whole = Trainer(config("whole", 2), False)
    whole.run()
    first = Trainer(config("parts", 2), False)
    first.config = config("parts", 2)
    object.__setattr__(first.config.schedule, "epochs", 1)  # killed after the first epoch
    first.run()
    second = Trainer(config("parts", 2), False)
    assert second.epoch == 1
    second.run()
    for (name, a), b in zip(whole.ema.state_dict().items(), second.ema.state_dict().values(), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


def test_windows_are_the_same_whenever_they_are_made(folder: Path, tmp_path: Path) -> None:
    config = SimulatedConfig(root=str(folder))
    first = SimulatedWindows(config, VoxelConfig(), "train", 3, tmp_path / "a", workers=1)
    second = SimulatedWindows(config, VoxelConfig(), "train", 3, tmp_path / "b", workers=1)
    for i in range(3):
        assert np.array_equal(first[i][0], second[i][0])
        assert np.array_equal(first[i][1].boxes_xyxy, second[i][1].boxes_xyxy)
    assert first[0][0].shape == (10, 240, 304)
    with pytest.raises(IndexError):
        first[3]


def test_splits_never_share_a_picture(folder: Path, tmp_path: Path) -> None:
    from data.datasets import SPECS
    from data.datasets.simulated import PictureFolder

    files = [
        {name for rows in PictureFolder(folder, split, SPECS["street"]).sets.values() for name, _ in rows}
        for split in ("train", "val")
    ]
    assert not files[0] & files[1]


@pytest.mark.parametrize(
    ("break_it", "message"), [("csv", "no such file"), ("split", "no picture of split"), ("column", "column")]
)
def test_bad_folders_say_why(tmp_path: Path, break_it: str, message: str) -> None:
    if break_it == "split":
        (tmp_path / "boxes.csv").write_text("set,file,split,class,x0,y0,x1,y1,flag\nvoc,a.png,test,car,0,0,1,1,ok\n")
    elif break_it == "column":
        (tmp_path / "boxes.csv").write_text("file,split\na.png,train\n")
    with pytest.raises(DataError, match=message):
        SimulatedWindows(SimulatedConfig(root=str(tmp_path)), VoxelConfig(), "train", 1, tmp_path / "cache")


def test_mirroring_moves_the_boxes_with_the_events() -> None:
    grid = np.zeros((10, 8, 12), np.uint8)
    grid[0, 2:5, 1:4] = 1
    boxes = Detections(np.array([[1, 2, 4, 5]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    for seed in range(40):
        moved, found = augment(grid, boxes, np.random.default_rng(seed))
        x0, y0, x1, y1 = found.boxes_xyxy[0].astype(int)
        inside = moved[:, y0:y1, x0:x1].sum()
        assert moved.sum() == inside <= 9
    assert pad([grid]).shape == (1, 10, 32, 32)
