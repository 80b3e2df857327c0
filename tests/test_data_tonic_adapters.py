"""Our events in tonic's transforms and back; our representations as transforms, equal to tonic's where both count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evburst.data.datasets.tonic import ToRepresentation, from_tonic, to_tonic
from evburst.data.errors import ConfigError, EventFileError
from evburst.data.events import EventArray, SensorSize
from evburst.data.representations import REPRESENTATIONS
from evburst.data.representations.voxel_grid import VoxelConfig
from tests.conftest import make_events, random_events

transforms = pytest.importorskip("tonic.transforms")
SIZE = SensorSize(13, 7)
TONIC_SIZE = (13, 7, 2)


@settings(deadline=None)
@given(n=st.integers(0, 50), seed=st.integers(0, 1000))
def test_there_and_back(n: int, seed: int) -> None:
    events = random_events(n, SIZE, 10**6, seed)
    assert from_tonic(to_tonic(events)).tolist() == events.tolist()


@pytest.mark.parametrize(("p", "expected"), [([False, True], [0, 1]), ([-1, 1], [0, 1]), ([0, 1], [0, 1])])
def test_polarities_of_every_kind_come_back(p: list[int], expected: list[int]) -> None:
    dtype = [("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "?" if p[0] is False else "i8")]
    assert from_tonic(np.array([(1, 2, 3, value) for value in p], dtype))["p"].tolist() == expected


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="x = 40000"):
        to_tonic(make_events([1], 40_000))
    with pytest.raises(EventFileError, match="tonic's events: t is float64"):
        from_tonic(np.array([(1, 2, 0.5, 1)], [("x", "<i2"), ("y", "<i2"), ("t", "<f8"), ("p", "i1")]))


def test_tonics_transforms_take_our_events_and_leave_them_alone() -> None:
    events = random_events(300, SIZE, 50_000)
    before = events.copy()
    chain = transforms.Compose([to_tonic, transforms.DropEvent(p=0.5), transforms.TimeJitter(std=10, clip_negative=True)])
    assert 0 < len(from_tonic(chain(events))) < 300
    signed = transforms.ToVoxelGrid(TONIC_SIZE, n_time_bins=1)(to_tonic(make_events([0, 1, 2, 4], 3, 2, [0, 1, 0, 0])))
    assert signed[0, 0, 2, 3] == pytest.approx(-1 + 0.75 - 0.5)
    assert np.array_equal(events, before)


def test_histograms_of_one_bin_are_tonics_frames() -> None:
    events = random_events(2000, SIZE, 50_000)
    frames = transforms.ToFrame(TONIC_SIZE, time_window=10_000, start_time=0, end_time=50_000)(to_tonic(events))
    grid = ToRepresentation(TONIC_SIZE, "voxel_histogram", VoxelConfig(bins=1, max_count=255))
    ours = [grid(to_tonic(window.words)) for window in EventArray(events, SIZE).windows(10_000)]
    np.testing.assert_array_equal(np.stack(ours), frames)


def test_time_bins_are_tonics_frames_in_another_order() -> None:
    events = random_events(2000, SIZE, 50_000)
    events["t"][[0, -1]] = 0, 49_999
    frames = transforms.ToFrame(TONIC_SIZE, time_window=10_000, start_time=0, end_time=50_000)(to_tonic(events))
    grid = ToRepresentation(TONIC_SIZE, config=VoxelConfig(bins=5, max_count=255))(to_tonic(events))
    np.testing.assert_array_equal(grid, frames.swapaxes(0, 1).reshape(10, 7, 13))


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_every_representation_is_a_transform(name: str) -> None:
    transform = ToRepresentation(TONIC_SIZE, name)
    full = transforms.Compose([to_tonic, transform])(random_events(200, SIZE, 50_000))
    empty = transform(to_tonic(make_events([])))
    assert full.shape == empty.shape == (len(full), 7, 13)
    assert full.sum() > empty.sum() == 0


def test_an_unknown_representation() -> None:
    with pytest.raises(ConfigError, match="'frames' is unknown"):
        ToRepresentation(TONIC_SIZE, "frames")(to_tonic(make_events([1])))
