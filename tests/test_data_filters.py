"""Filters: each rule by hand, the kernel against its slow reference, and streams cut anywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evburst.data.encoding import unpack
from evburst.data.events import EVENT_DTYPE, EventArray, Events, SensorSize
from evburst.data.filters import EventFilter, FilteredStream, FiltersConfig, Removed, keep_reference
from evburst.data.readers.dat import DatFile
from evburst.data.writers import write_events
from tests.conftest import make_events, random_events

SIZE = SensorSize(9, 7)


def kept(config: FiltersConfig, *events: tuple[int, int, int]) -> list[int]:
    """Times of the events (t, x, y) that are kept."""
    t, x, y = (np.array(column) for column in zip(*events, strict=True))
    return t[EventFilter(config, SIZE).keep(t, x, y)].tolist()


def test_refractory_counts_from_the_last_kept_event_of_the_pixel() -> None:
    config = FiltersConfig(refractory_us=10)
    # 9 is removed, so that 10 is judged from 0; another pixel has its own clock
    assert kept(config, (0, 1, 1), (9, 1, 1), (9, 2, 1), (10, 1, 1), (19, 1, 1), (20, 1, 1)) == [0, 9, 10, 20]


def test_a_corrupt_time_does_not_block_its_pixel() -> None:
    assert kept(FiltersConfig(refractory_us=10), (0, 1, 1), (10**12, 1, 1), (20, 1, 1)) == [0, 10**12, 20]


@pytest.mark.parametrize(
    ("x", "y", "t", "supported"),
    [
        (4, 4, 10, True),  # a corner of the 3x3
        (3, 4, 10, True),
        (3, 4, 11, False),  # later than 10 µs
        (3, 3, 5, False),  # the pixel itself
        (5, 3, 5, False),  # two pixels away
    ],
)
def test_background_activity_needs_one_of_eight_neighbours_in_time(x: int, y: int, t: int, supported: bool) -> None:
    assert kept(FiltersConfig(background_us=10), (0, 3, 3), (t, x, y)) == [t] * supported


def test_background_activity_at_the_borders_does_not_look_around_them() -> None:
    config = FiltersConfig(background_us=10)
    assert kept(config, (0, 0, 0), (1, 8, 0), (2, 0, 6), (3, 8, 6)) == []
    assert kept(config, (0, 0, 0), (1, 1, 1), (2, 8, 6), (3, 7, 6)) == [1, 3]


def test_hot_pixels_are_those_of_the_100_ms_before() -> None:
    config = FiltersConfig(hot_pixel_hz=20)  # 2 events in 100 ms
    hot = [(t, 1, 1) for t in (0, 10, 20, 100_000, 200_000)]
    calm = [(t, 5, 5) for t in (30, 40, 100_001)]
    assert kept(config, *sorted(hot + calm)) == [0, 10, 20, 30, 40, 100_001, 200_000]
    # after a silence nothing is known
    assert kept(config, *[(t, 1, 1) for t in (0, 10, 20, 200_000)]) == [0, 10, 20, 200_000]


def test_events_outside_the_sensor_pass() -> None:
    config = FiltersConfig(1, 10, 10)
    assert kept(config, (0, 9, 0), (1, 9, 0), (2, 0, 7)) == [0, 1, 2]


configs = st.builds(FiltersConfig, st.sampled_from([0, 10, 30]), st.sampled_from([0, 1, 3000]), st.sampled_from([0, 1, 5000]))


@st.composite
def recordings(draw: st.DrawFn) -> Events:
    """Events on few pixels, some outside, mostly in order, with leaps and falls of time."""
    n = draw(st.integers(0, 80))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    steps = rng.choice(
        [0, 1, 300, 4000, 90_000, 250_000, -1, -4000, -300_000], n, p=[0.2, 0.2, 0.2, 0.2, 0.08, 0.02, 0.05, 0.04, 0.01]
    )
    return make_events(np.cumsum(steps), rng.integers(0, 10, n), rng.integers(0, 3, n), rng.integers(0, 2, n))


@settings(deadline=None)
@given(events=recordings(), config=configs, cuts=st.lists(st.integers(0, 80), max_size=4))
def test_kernel_equals_reference_however_the_stream_is_cut(events: Events, config: FiltersConfig, cuts: list[int]) -> None:
    parts = np.split(events, sorted(min(cut, len(events)) for cut in cuts))
    kernel = EventFilter(config, SIZE)
    keep = np.concatenate([kernel.keep(part["t"], part["x"], part["y"]) for part in parts])
    expected, removed = keep_reference(events, config, SIZE)
    np.testing.assert_array_equal(keep, expected)
    assert kernel.removed == removed
    assert sum(vars(removed).values()) == np.count_nonzero(~keep)


@pytest.mark.parametrize("config", [FiltersConfig(), FiltersConfig(20, 2000, 1000)])
@pytest.mark.parametrize("as_file", [False, True])
def test_filtered_streams(tmp_path: Path, config: FiltersConfig, as_file: bool) -> None:
    """Windows (words or events) and packets hold what the reference keeps; empty windows stay; passes begin anew."""
    events = random_events(3000, SIZE, 400_000, seed=1)
    events["t"] += np.where(events["t"] > 200_000, 50_000, 0)
    source: EventArray | DatFile = EventArray(events, SIZE)
    if as_file:
        write_events(tmp_path / "a.dat", events, SIZE)
        source = DatFile(tmp_path / "a.dat")
    keep, removed = keep_reference(events, config, SIZE)
    assert all(vars(removed).values()) == config.any_on
    stream = FilteredStream(source, config)
    for _ in range(2):
        windows = list(stream.windows(7000))
        assert [w.t0_us for w in windows] == [w.t0_us for w in source.windows(7000)]
        np.testing.assert_array_equal(np.concatenate([unpack(w) for w in windows]), events[keep])
        assert stream.removed == removed
    packets = list(stream.packets())
    np.testing.assert_array_equal(np.concatenate(packets), events[keep])
    assert stream.removed == removed
    assert all(map(len, packets))


def test_nothing_left_is_no_packet() -> None:
    stream = FilteredStream(EventArray(make_events([1, 2], 3, 3), SIZE), FiltersConfig(background_us=5))
    assert list(stream.packets()) == []
    assert [len(window) for window in stream.windows(10)] == [0]
    assert stream.removed == Removed(background=2)


def test_without_a_filter_words_are_the_files_own() -> None:
    source = EventArray(random_events(50, SIZE, 1000), SIZE)
    for window, own in zip(FilteredStream(source, FiltersConfig()).windows(100), source.windows(100), strict=True):
        assert window.words.dtype == EVENT_DTYPE
        assert np.array_equal(window.words, own.words)


@pytest.mark.parametrize("setting", ["hot_pixel_hz", "refractory_us", "background_us"])
def test_negative_settings_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=rf"{setting}\b.* must not be negative"):
        FiltersConfig(**{setting: -1})
