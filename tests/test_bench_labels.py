"""The data that detectors of one's own are trained and measured on: splits of time, and evenly spread labels."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from bench.labels import write_split
from evburst.data.events import SensorSize
from evburst.data.readers import open_events
from tests.conftest import random_events
from tests.event_files import aedat2_bytes


def rows_of(path: Path) -> list[int]:
    with path.open(newline="") as file:
        return [int(row["t_us"]) for row in csv.DictReader(file)]


def test_nothing_is_measured_that_was_learned_from(tmp_path: Path) -> None:
    data = tmp_path / "dvs128"
    data.mkdir()
    events = random_events(4000, SensorSize(128, 128), 4_000_000)
    events["t"] += 3_000_000
    (data / "mug_s1.aedat").write_bytes(aedat2_bytes(events, "DVS128", SensorSize(128, 128)))
    lines = [f"mug_s1.aedat,mug,{t - 50_000},{t},10,10,40,40" for t in range(50_000, 4_000_001, 50_000)]
    (data / "boxes_auto_50ms.csv").write_text("file,class,t0_us,t1_us,x0,y0,x1,y1\n" + "\n".join(lines) + "\n")
    assert write_split(tmp_path / "own", data, 5) == ["mug"]
    learned, measured = (rows_of(tmp_path / "own" / split / "mug_bbox.csv") for split in ("train", "val"))
    assert (learned[0], learned[-1], len(learned)) == (50_000, 2_400_000, 5)
    assert measured == list(range(3_050_000, 4_000_001, 50_000))
    for split, first, last in (("train", 0, 2_400_000), ("val", 3_000_000, 4_000_000)):
        times = np.concatenate([packet["t"] for packet in open_events(tmp_path / "own" / split / "mug.dat").packets()])
        assert first <= times.min() <= times.max() < last
