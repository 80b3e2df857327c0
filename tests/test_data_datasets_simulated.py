"""Pictures by split, and processes that simulate windows."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from evburst.data.datasets import SPECS
from evburst.data.datasets.pictures import PictureFolder
from evburst.data.errors import DataError
from tests.conftest import ROOT

PARENT = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from evburst.data.datasets.simulated import end_with_parent
pool = ProcessPoolExecutor(1, get_context("spawn"), end_with_parent)
print(pool.submit(os.getpid).result(), flush=True)
time.sleep(100)
"""


def test_a_worker_ends_when_its_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    try:
        parent.communicate(timeout=30)  # the pipe is the worker's, too: it closes when both have ended
    except subprocess.TimeoutExpired:
        os.kill(worker, signal.SIGKILL)
        pytest.fail("the worker outlived its parent")


def table(root: Path, rows: list[tuple[str, str, str, str]]) -> Path:
    """boxes.csv with (set, file, split, frame)."""
    with (root / "boxes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["set", "file", "split", "frame", "class", "x0", "y0", "x1", "y1"])
        writer.writerows([[*row, "car", 0, 0, 9, 9] for row in rows])
    return root


def files(root: Path, split: str) -> dict[str, set[str]]:
    return {name: {file for file, _ in found} for name, found in PictureFolder(root, split, SPECS["street"]).sets.items()}


def test_an_eighth_of_every_set_is_held_out_to_choose_on(tmp_path: Path) -> None:
    """Whole pictures, whatever their number of boxes; "val" is left alone."""
    rows = [(kind, f"{k:03d}.jpg", "train", "") for kind, n in (("voc", 80), ("camvid", 16), ("coco", 1)) for k in range(n)]
    root = table(tmp_path, [*rows, *rows, ("voc", "v.jpg", "val", "")])
    train, select = files(root, "train"), files(root, "select")
    assert {name: (len(train[name]), len(select.get(name, ()))) for name in train} == {
        "voc": (70, 10),
        "camvid": (14, 2),
        "coco": (1, 0),
    }
    assert not any(train[name] & select[name] for name in select)
    assert files(root, "val") == {"voc": {"v.jpg"}}


def test_more_pictures_move_few_others(tmp_path: Path) -> None:
    """The choice hangs on names, so that what was held out stays held out, mostly."""
    rows = [("voc", f"{k:03d}.jpg", "train", "") for k in range(160)]
    before = files(table(tmp_path, rows[:152]), "select")["voc"]
    assert len(before - files(table(tmp_path, rows), "select")["voc"]) <= 2


def test_of_sequences_whole_stretches_are_held_out(tmp_path: Path) -> None:
    root = table(tmp_path, [("highway", f"{k:04d}.jpg", "train", f"{k}") for k in range(512)])
    held = sorted(int(name[:4]) for name in files(root, "select")["highway"])
    assert Counter(frame // 32 for frame in held) == dict.fromkeys({frame // 32 for frame in held}, 32)
    assert len(held) == 64


def test_a_split_of_that_name_is_kept(tmp_path: Path) -> None:
    root = table(tmp_path, [("voc", "a.jpg", "train", ""), ("voc", "b.jpg", "train", ""), ("voc", "c.jpg", "select", "")])
    assert (files(root, "train"), files(root, "select")) == ({"voc": {"a.jpg", "b.jpg"}}, {"voc": {"c.jpg"}})


def test_one_picture_is_too_few_to_hold_one_out(tmp_path: Path) -> None:
    root = table(tmp_path, [("voc", "a.jpg", "train", "")])
    assert files(root, "train") == {"voc": {"a.jpg"}}
    with pytest.raises(DataError, match="no picture of split 'select'"):
        files(root, "select")
