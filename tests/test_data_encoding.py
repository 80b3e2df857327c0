"""Packed events: against bit patterns by hand, there and back, and the kernels' helpers against the columns."""

from __future__ import annotations

import re
from pathlib import Path

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from evburst.data.encoding import (
    columns,
    p_of,
    pack,
    pack_columns,
    pack_relative,
    time_of,
    unpack,
    word_fields,
    word_of,
    words_64,
    x_of,
    y_of,
)  # fmt: skip
from evburst.data.events import EVENT_DTYPE, Events, EventWindow
from tests.conftest import ROOT

HELD = np.array([(0, 0, 0, 0), (1, 303, 239, 1), (2**32 - 1, 2**14 - 1, 2**14 - 1, 1)], EVENT_DTYPE)


def random_events(n: int, seed: int = 0, t0: int = 0) -> Events:
    rng = np.random.default_rng(seed)
    events = np.zeros(n, EVENT_DTYPE)
    events["t"] = np.sort(rng.integers(0, 50_000, n)) + t0
    events["x"], events["y"], events["p"] = rng.integers(0, 512, n), rng.integers(0, 256, n), rng.integers(0, 2, n)
    return events


def test_bits_by_hand() -> None:
    assert pack(HELD).tolist() == [[0, 0], [1, 303 | 239 << 14 | 1 << 28], [2**32 - 1, 2**29 - 1]]
    assert pack(HELD).dtype == np.dtype("<u4")
    old = np.array([[7, 300 | 200 << 9 | 1 << 17]], np.uint32)
    assert unpack(EventWindow(0, 10, old, 5, 1)).tolist() == [(12, 300, 200, 1)]


@pytest.mark.parametrize("n", [0, 1, 1000])
@pytest.mark.parametrize("epoch", [0, 3 << 32])
def test_there_and_back(n: int, epoch: int) -> None:
    events = random_events(n)
    window = EventWindow(epoch, epoch + 50_000, pack(events), epoch)
    events["t"] += epoch
    assert np.array_equal(unpack(window), events)
    for column, name in zip(columns(window), "txyp", strict=True):
        assert np.array_equal(column, events[name])
        assert column.dtype == EVENT_DTYPE[name]


def test_structured_events_are_copied_or_viewed() -> None:
    events = random_events(10)
    window = EventWindow(0, 50_000, events)
    assert not np.shares_memory(unpack(window), events)
    assert all(np.shares_memory(column, events) for column in columns(window))


@numba.njit
def _by_helpers(words, version, out):  # type: ignore[no-untyped-def]
    fields = word_fields(version)
    for i, word in enumerate(words):
        out[i] = word_of(time_of(word), x_of(word, fields), y_of(word, fields), p_of(word, fields))


@pytest.mark.parametrize("version", [1, 2])
def test_the_kernels_helpers_see_the_same_fields(version: int) -> None:
    rng = np.random.default_rng(1)
    words: NDArray[np.uint32] = rng.integers(0, 1 << 32, (500, 2), np.uint64).astype(np.uint32)
    out = np.empty(500, np.uint64)
    _by_helpers(words_64(words), version, out)
    t, x, y, p = columns(EventWindow(0, 1, words, 0, version))
    assert np.array_equal(out, words_64(pack_columns(t, x, y, p)))


@pytest.mark.parametrize("t0", [0, 200_000, (1 << 32) - 10_000, 5 << 32])
@pytest.mark.parametrize("how", ["structured", "packed", "old"])
def test_times_are_made_relative_to_the_windows_start(t0: int, how: str) -> None:
    events = random_events(200, 3, t0)
    expected = events.copy()
    expected["t"] -= t0
    window = EventWindow(t0, t0 + 50_000, events)
    if how != "structured":
        epoch = t0 - 7
        shifted = events.copy()
        shifted["t"] -= epoch
        words = pack(shifted)
        if how == "old":
            x, y, p = (events[name].astype(np.uint32) for name in "xyp")
            words[:, 1] = x | y << 9 | p << 17
        window = EventWindow(t0, t0 + 50_000, words, epoch, 1 if how == "old" else 2)
    relative = pack_relative(window)
    assert np.array_equal(unpack(EventWindow(0, 50_000, relative)), expected)
    assert pack_relative(EventWindow(t0, t0 + 50_000, relative, t0)) is relative


def test_no_bit_of_an_event_is_masked_elsewhere() -> None:
    """In data and app, but for the readers of other encodings, which have bits of their own."""
    masks = re.compile(r"16383|0x3FFF|<< 14|>> 14|<< 28|>> 28", re.IGNORECASE)
    allowed = {"data/encoding.py", "data/events.py", "data/random_access.py", "data/writers.py"}
    allowed |= {f"data/readers/{name}.py" for name in ("aedat2", "evt", "evt_kernels", "hdf5_items")}
    found = {
        str(path.relative_to(ROOT))
        for folder in ("app", "data", "eval")
        for path in Path(ROOT / folder).rglob("*.py")
        if masks.search(path.read_text())
    }
    assert found <= allowed
