"""The quantised ANN of bench/int8_ann.py: nearly the float one's boxes, on one interface with other networks; its table."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from conftest import SAMPLE

from bench.int8_ann import QuantisedAnn, table
from evburst.data import readers
from evburst.data.representations.voxel_grid import voxel_batch
from evburst.models.bundle import Bundle
from evburst.models.detector import GridDetector
from evburst.models.detectors.postprocess import PostConfig


def test_its_boxes_are_nearly_those_of_the_float_network() -> None:
    for package in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    bundle, post, stream = Bundle.load("street"), PostConfig(score=0.4), readers.open_events(SAMPLE)
    windows = list(islice(stream.windows(bundle.voxel.window_us), 20, 29))
    grids = voxel_batch(windows, bundle.voxel, stream.sensor_size, bundle.stride)
    quantised = QuantisedAnn(bundle, grids[:-1], post)
    (found,), _ = quantised.detect(grids[-1:], stream.sensor_size, [0])
    (expected,), _ = GridDetector(bundle, post, ann=True).detect(grids[-1:], stream.sensor_size, [0])
    assert len(expected) == len(found) > 0
    assert found.labels.tolist() == expected.labels.tolist()
    np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=3)


def test_the_table() -> None:
    interval = {"ap": {"mean": 0.25, "low": -0.1, "high": 0.51, "resamples": 1000, "units": 9}}
    networks = {"ann": {"ap": 33.0, "ap50": 60.0}, "int8": {"ap": 32.75, "ap50": 59.0}, "snn": {"ap": 31.0, "ap50": 58.0}}
    one = {"windows": 9, "networks": networks, "int8_of_ann": interval, "snn_of_int8": interval}
    row = table({"weights": {"street": one}}).splitlines()[2]
    assert row == "| street | 9 | 33.0, 60.0 | 32.8, 59.0 | 31.0, 58.0 | 0.2 [-0.1, 0.5] | 0.2 [-0.1, 0.5] |"
