"""bench/voting.py: boxes of each setting are those of a detector with it; its table."""

from __future__ import annotations

from itertools import islice

import numpy as np
from conftest import SAMPLE

from bench.voting import found_with, table
from evburst.data import readers
from evburst.data.representations.voxel_grid import voxel_batch
from evburst.models.bundle import Bundle
from evburst.models.detector import GridDetector
from evburst.models.detectors.postprocess import PostConfig


def test_boxes_are_those_of_a_detector_with_the_setting() -> None:
    bundle, stream = Bundle.load("street"), readers.open_events(SAMPLE)
    (window,) = islice(stream.windows(bundle.voxel.window_us), 25, 26)
    grid, size = voxel_batch([window], bundle.voxel, stream.sensor_size, bundle.stride), stream.sensor_size
    posts = [PostConfig(score=0.3, vote_iou=overlap) for overlap in (1.0, 0.6)]
    found = found_with(GridDetector(bundle, PostConfig()), grid, size, posts)
    for one, post in zip(found, posts, strict=True):
        (expected,), _ = GridDetector(bundle, post).detect(grid, size, [0])
        assert len(expected) > 0
        np.testing.assert_allclose(one.boxes_xyxy, expected.boxes_xyxy, atol=1e-3)
        np.testing.assert_allclose(one.scores, expected.scores, atol=1e-5)
    assert not np.allclose(found[0].boxes_xyxy, found[1].boxes_xyxy, atol=1e-2)
    assert [len(one) for one in found_with(GridDetector(bundle, PostConfig()), np.zeros_like(grid), size, posts)] == [0, 0]


def test_the_table() -> None:
    loss = {"mean": 0.81, "low": -0.2, "high": 1.5, "resamples": 1000, "units": 9}
    rows = [
        {"vote_iou": k, "ann": {"ap": 66.29, "ap50": 94.2}, "snn": {"ap": 65.5, "ap50": 93.9}, "ap_loss": loss}
        for k in (1, 0.6)
    ]
    splits = {split: {"windows": 1024, "rows": rows} for split in ("select", "val")}
    lines = table({"weights": {"caltech6": splits}}).splitlines()
    assert lines[2] == "| `caltech6` | `select` | 1,024 | no voting | 66.3, 94.2 | 65.5, 93.9 | 0.81 [-0.20, 1.50] |"
    assert [line.split(" | ")[3] for line in lines[2:]] == ["no voting", "0.6"] * 2
