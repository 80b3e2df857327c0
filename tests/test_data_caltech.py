"""N-Caltech101's annotations: bytes by hand, negative corners, files cut short."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evburst.data.datasets.caltech import read_caltech_box
from evburst.data.errors import LabelError
from evburst.data.events import SensorSize

BOX = [2, 5, 10, 20, 90, 20, 90, 80, 10, 80, 10, 20]
OUTLINE = [2, 3, 15, 25, 80, 30, 50, 75]


def write(path: Path, values: list[int], extra: bytes = b"") -> Path:
    path.write_bytes(np.array(values, "<i2").tobytes() + extra)
    return path


def test_bytes_by_hand(tmp_path: Path) -> None:
    found = read_caltech_box(write(tmp_path / "annotation_0001.bin", BOX + OUTLINE))
    assert found.dtype == np.float32
    assert found.tolist() == [10, 20, 90, 80]


def test_corners_are_clipped_to_the_sensor(tmp_path: Path) -> None:
    values = [2, 4, -7, -3, 250, -3, 250, 190, -7, 190, 2, 0]
    path = write(tmp_path / "a.bin", values)
    assert read_caltech_box(path).tolist() == [0, 0, 240, 180]
    assert read_caltech_box(path, SensorSize(100, 90)).tolist() == [0, 0, 100, 90]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "rows and columns at byte 0 are [], expected [2, n]: not an annotation"),
        (BOX, "rows and columns at byte 24 are [], expected [2, n]: not an annotation"),
        (BOX[:-1], "truncated: 5 points need 24 bytes, the file has 22"),
        (BOX + OUTLINE[:-1], "truncated: 3 points need 40 bytes, the file has 38"),
        ([3, 5, *BOX[2:]], "rows and columns at byte 0 are [3, 5], expected [2, n]: not an annotation"),
        ([2, -5, *BOX[2:]], "rows and columns at byte 0 are [2, -5], expected [2, n]: not an annotation"),
        ([2, 2, 1, 2, 3, 4, 2, 0], "the box has 2 corners, expected at least 4"),
        ([2, 4, -9, 1, -2, 1, -2, 5, -9, 5, 2, 0], "the box [-9, 1, -2, 5] covers no pixel of the 240x180 sensor"),
    ],
)
def test_files_that_are_none(tmp_path: Path, values: list[int], message: str) -> None:
    path = write(tmp_path / "a.bin", values)
    with pytest.raises(LabelError) as error:
        read_caltech_box(path)
    assert str(error.value) == f"{path}: {message}"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="no such annotation"):
        read_caltech_box(tmp_path / "a.bin")
