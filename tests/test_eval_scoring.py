"""Scoring of box files: which files belong together, and labels that cannot be scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evburst.data.boxes import BBOX_DTYPE
from evburst.data.errors import ConfigError, DataError
from evburst.data.events import SensorSize
from evburst.eval.protocol import RecordingBoxes
from evburst.eval.scoring import find_protocol, pair_files, score


def test_files_of_which_only_some_match_by_name_are_refused() -> None:
    predictions, labels = [Path("a_bbox.npy"), Path("b_bbox.npy")], [Path("b_bbox.npy"), Path("c_bbox.npy")]
    with pytest.raises(ConfigError, match="same name: a, c"):
        pair_files(predictions, labels)


def test_labels_of_other_classes_alone_are_refused() -> None:
    boxes = np.zeros(1, BBOX_DTYPE)
    boxes["t"], boxes["w"], boxes["h"], boxes["class_id"] = 1_000_000, 50, 50, 5
    with pytest.raises(DataError, match=r"other classes than car, pedestrian.*--classes"):
        score([RecordingBoxes(boxes, boxes[:0])], find_protocol("coco"), SensorSize(304, 240), ("car", "pedestrian"))
