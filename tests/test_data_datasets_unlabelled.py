"""Windows of recordings without labels: those of a pass, in two splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evburst.data.datasets import DatasetSpec
from evburst.data.datasets.recorded import Reading, RecordedWindows, unlabelled_windows
from evburst.data.errors import DataError
from evburst.data.events import SensorSize
from evburst.data.readers import open_events
from evburst.data.writers import write_events
from tests.conftest import random_events

SIZE, WINDOW_US = SensorSize(64, 48), 50_000
SPEC = DatasetSpec("own", ("a",), SIZE, "", {})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two recordings of one name, of two formats, with 8 windows each."""
    root = tmp_path_factory.mktemp("own")
    paths = [root / "a" / "x.dat", root / "b" / "x.npz"]
    for k, path in enumerate(paths):
        path.parent.mkdir()
        write_events(path, random_events(4000, SIZE, 8 * WINDOW_US, k), SIZE)
    return paths


def opened(files: list[Path], split: str, n: int = 0) -> RecordedWindows:
    return unlabelled_windows(files, SPEC, Reading(WINDOW_US, SIZE), split, n)


def keys(data: RecordedWindows) -> set[tuple[bytes, int]]:
    """Windows by content and time."""
    return {(data[i].window.words.tobytes(), data[i].window.t0_us) for i in range(len(data))}


def test_an_eighth_is_held_out_and_nothing_is_in_both(files: list[Path]) -> None:
    learned, held = keys(opened(files, "train")), keys(opened(files, "select"))
    assert not learned & held
    assert (len(learned), len(held)) == (14, 2)
    whole = {(w.words.tobytes(), w.t0_us) for path in files for w in open_events(path, SIZE).windows(WINDOW_US)}
    assert learned | held == whole


def test_windows_are_chosen_evenly_and_have_no_boxes(files: list[Path]) -> None:
    data = opened(files, "train", 5)
    assert len(data) == 5
    assert all(len(data[i].boxes.labels) == 0 for i in range(5))


def test_silence_is_left_out_and_one_window_is_too_few(tmp_path: Path) -> None:
    events = random_events(900, SIZE, 2 * WINDOW_US, 3)
    late = events.copy()
    late["t"] += 40 * WINDOW_US
    write_events(tmp_path / "gap.dat", np.concatenate([events, late]), SIZE)
    gap = [tmp_path / "gap.dat"]
    assert len(opened(gap, "train")) + len(opened(gap, "select")) == 4
    write_events(tmp_path / "one.dat", random_events(50, SIZE, WINDOW_US, 4), SIZE)
    with pytest.raises(DataError, match="1 window with events in these recordings; at least two are needed"):
        opened([tmp_path / "one.dat"], "train")
