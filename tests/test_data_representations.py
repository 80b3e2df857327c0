"""What every registered representation keeps to, and what is particular to each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evburst.data.errors import ConfigError
from evburst.data.events import EventWindow, SensorSize
from evburst.data.representations import REPRESENTATIONS, represent
from evburst.data.representations.time_surface import TimeSurfaceConfig, time_surface
from evburst.data.representations.voxel_bilinear import voxel_bilinear
from evburst.data.representations.voxel_grid import VoxelConfig
from tests.conftest import make_events
from tests.test_data_representations_voxel_grid import SIZE, as_words, windows

EACH = pytest.mark.parametrize(
    ("name", "dtype"), [(name, dtype) for name, entry in REPRESENTATIONS.items() for dtype in entry.dtypes]
)


def filled(name: str, dtype: str, window: EventWindow, channels: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A padded buffer that held something else, filled with the default settings; what the kernel returned."""
    out = np.full((channels, SIZE.height + 3, SIZE.width + 5), 99, dtype)
    entry = REPRESENTATIONS[name]
    return out, entry.fill(window, entry.config(), SIZE, out)


@EACH
@settings(deadline=None)
@given(window=windows(), clock=st.sampled_from([0, 3 << 32, 1_670_000_000_000_000]))
def test_contract(name: str, dtype: str, window: EventWindow, clock: int) -> None:
    """From events and from words: the reference's array, an empty margin, and every event accounted for."""
    events = window.words.copy()
    events["t"] += clock
    window = EventWindow(window.t0_us + clock, window.t1_us + clock, events)
    entry = REPRESENTATIONS[name]
    expected = entry.reference(window, entry.config(), SIZE)
    outside = int(np.count_nonzero((events["x"] >= SIZE.width) | (events["y"] >= SIZE.height)))
    for encoded in (window, as_words(window, clock)):
        out, counted = filled(name, dtype, encoded, len(expected))
        assert counted == (len(events) - outside, outside)
        np.testing.assert_allclose(out[:, : SIZE.height, : SIZE.width], expected, rtol=1e-5, atol=1e-6)
        assert out[:, SIZE.height :].sum() == out[:, :, SIZE.width :].sum() == 0
    assert np.array_equal(window.words, events)


@EACH
@settings(deadline=None)
@given(
    version=st.integers(1, 2),
    epochs=st.integers(0, 3),
    drawn=st.lists(st.tuples(st.integers(0, 999), st.integers(0, 2**32 - 1), st.booleans()), max_size=200),
    size=st.builds(SensorSize, st.integers(1, 40), st.integers(1, 40)),
)
def test_any_words_stay_inside_the_array(
    name: str, dtype: str, version: int, epochs: int, drawn: list[tuple[int, int, bool]], size: SensorSize
) -> None:
    """Arbitrary DAT words, of which half are brought near the sensor, into an array between guard bands."""
    epoch = epochs << 32
    near = (63 | 63 << 9 | 1 << 17) if version == 1 else (63 | 63 << 14 | 1 << 28)
    words = np.array([(5000 + t, word & (near if close else 2**32 - 1)) for t, word, close in drawn], np.uint32).reshape(-1, 2)
    window = EventWindow(epoch + 5000, epoch + 6000, words, epoch, version)
    entry = REPRESENTATIONS[name]
    expected = entry.reference(window, entry.config(), size)
    guard, stop = 4096, 4096 + expected.size * np.dtype(dtype).itemsize
    buffer = np.full(stop + guard, 0xA5, np.uint8)
    out = buffer[guard:stop].view(dtype).reshape(expected.shape)
    assert sum(entry.fill(window, entry.config(), size, out)) == len(drawn)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    assert (buffer[:guard] == 0xA5).all()
    assert (buffer[stop:] == 0xA5).all()


@EACH
@pytest.mark.parametrize("n", [0, 1, 70_000])
def test_empty_single_and_very_many_events_of_one_time(name: str, dtype: str, n: int) -> None:
    """Enough events on one pixel that an 8-bit and a 16-bit count would have wrapped around."""
    window = EventWindow(0, 1, make_events([0] * n))
    expected = represent(window, name, SIZE)
    assert np.array_equal(represent(window, name, tuple(SIZE)), expected)
    assert np.count_nonzero(expected) == min(n, 1)
    out, _ = filled(name, dtype, window, len(expected))
    np.testing.assert_array_equal(out[:, : SIZE.height, : SIZE.width], expected)
    np.testing.assert_allclose(expected, REPRESENTATIONS[name].reference(window, REPRESENTATIONS[name].config(), SIZE))


@EACH
def test_buffers_that_cannot_be_used_are_refused(name: str, dtype: str) -> None:
    window = EventWindow(0, 9, make_events([1]))
    channels = len(represent(window, name, SIZE))
    wrong = [
        np.zeros((channels, SIZE.height - 1, SIZE.width), dtype),
        np.zeros((channels, SIZE.height, SIZE.width - 1), dtype),
        np.zeros((channels + 1, *SIZE[::-1]), dtype),
        np.zeros((channels, *SIZE[::-1]), np.int32),
        np.zeros((channels, SIZE.height, 2 * SIZE.width), dtype)[:, :, ::2],
    ]
    for out in wrong:
        with pytest.raises(ValueError, match=f"out: expected .*{dtype}"):
            REPRESENTATIONS[name].fill(window, REPRESENTATIONS[name].config(), SIZE, out)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'voxels' is unknown \(known: time_surface, voxel_bilinear, voxel_histogram\)"):
        represent(EventWindow(0, 1, make_events([])), "voxels", SIZE)


def bilinear(times: list[int], bins: int = 5, t1_us: int = 100) -> list[float]:
    """The ON bins of one pixel."""
    window = EventWindow(0, t1_us, make_events(times, 2, 3, 1))
    return represent(window, "voxel_bilinear", SIZE, VoxelConfig(bins))[bins:, 3, 2].tolist()


@pytest.mark.parametrize(
    ("t", "shares"),
    [
        (30, [0, 1, 0, 0, 0]),  # on the centre of bin 1
        (40, [0, 0.5, 0.5, 0, 0]),  # on the border of bins 1 and 2
        (35, [0, 0.75, 0.25, 0, 0]),
        (0, [1, 0, 0, 0, 0]),  # before the first centre
        (99, [0, 0, 0, 0, 1]),  # after the last centre
    ],
)
def test_bilinear_shares_by_the_distance_to_bin_centres(t: int, shares: list[float]) -> None:
    assert bilinear([t]) == pytest.approx(shares)


def test_one_bin_counts() -> None:
    assert bilinear([0, 50, 99], bins=1) == [3]


@settings(deadline=None)
@given(window=windows(), bins=st.integers(1, 9))
def test_every_event_adds_one_to_the_bilinear_grid(window: EventWindow, bins: int) -> None:
    out = np.empty((2 * bins, SIZE.height, SIZE.width), np.float32)
    placed, _ = voxel_bilinear(window, VoxelConfig(bins), SIZE, out)
    assert out.sum() == pytest.approx(placed)


def test_time_surface_is_the_decay_of_the_latest_event_of_pixel_and_polarity() -> None:
    events = make_events([1000, 9000, 4000, 9000], [2, 2, 2, 5], 3, [1, 1, 1, 0])
    surface = represent(EventWindow(0, 10_000, events), "time_surface", SIZE, TimeSurfaceConfig(tau_ms=2))
    assert surface[1, 3, 2] == pytest.approx(np.exp(-0.5))
    assert surface[0, 3, 5] == pytest.approx(np.exp(-0.5))
    assert np.count_nonzero(surface) == 2


def test_time_surface_in_the_order_of_time_not_of_the_file() -> None:
    events = make_events([70, 10, 90, 20])
    out, sorted_out = np.zeros((2, 2, 7, 13), np.float32)
    time_surface(EventWindow(0, 100, events), TimeSurfaceConfig(), SIZE, out)
    time_surface(EventWindow(0, 100, np.sort(events, order="t")), TimeSurfaceConfig(), SIZE, sorted_out)
    assert np.array_equal(out, sorted_out)


@pytest.mark.parametrize("tau_ms", [0, -1, float("nan")])
def test_tau_must_be_positive(tau_ms: float) -> None:
    with pytest.raises(ValueError, match="tau_ms must be positive"):
        TimeSurfaceConfig(tau_ms)


def test_sensor_sizes_are_width_height() -> None:
    assert represent(EventWindow(0, 1, make_events([0], 8, 2)), "voxel_histogram", SensorSize(9, 3)).shape == (10, 3, 9)
