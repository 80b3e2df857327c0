"""Prophesee RAW: byte fixtures, references in plain Python, random words, damaged files, real recordings."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evburst.data.errors import EventFileError, SensorSizeError
from evburst.data.events import EVENT_DTYPE, Events, SensorSize
from evburst.data.readers import evt_kernels, open_events
from evburst.data.readers.dat import DatFile
from evburst.data.readers.evt import RawFile
from evburst.data.readers.header import is_dat, is_raw
from evburst.data.representations.voxel_grid import VoxelConfig, voxel_histogram
from evburst.data.writers import write_events
from tests.event_files import (
    evt2_cd,
    evt2_high,
    evt3_base,
    evt3_high,
    evt3_low,
    evt3_vect,
    evt3_x,
    evt3_y,
    evt4_cd,
    evt4_high,
    evt21_cd,
    evt21_high,
)

REAL = Path(__file__).parents[2] / "shared" / "data" / "real"
SIZE = SensorSize(1280, 720)
EVT2 = "% evt 2.0\n% geometry 1280x720\n"
EVT21 = "% format EVT21;height=720;width=1280;endianness=little\n"
EVT21_LEGACY = "% format EVT21;height=720;width=1280;endianness=legacy\n"
EVT3 = "% evt 3.0\n% format EVT3;height=720;width=1280\n% end\n"
EVT4 = "% camera_integrator_name Prophesee\n% format EVT4;height=720;width=1280\n% end\n"
WORD_DTYPE = {EVT2: "<u4", EVT21: "<u8", EVT21_LEGACY: "<u8", EVT3: "<u2", EVT4: "<u4"}

Row = tuple[int, int, int, int]


def swapped(word: int) -> int:
    """A 64-bit word in the legacy order: the high half comes first."""
    return (word & 0xFFFFFFFF) << 32 | word >> 32


def write_raw(path: Path, header: str, words: list[int], tail: bytes = b"") -> Path:
    if header == EVT21_LEGACY:
        words = [swapped(word) for word in words]
    path.write_bytes(header.encode() + np.array(words, WORD_DTYPE.get(header, "<u2")).tobytes() + tail)
    return path


def decoded(recording: RawFile, max_events: int = 1 << 12) -> Events:
    packets = list(recording.packets(max_events))
    assert all(0 < len(packet) <= max_events and packet.dtype == EVENT_DTYPE for packet in packets)
    return np.concatenate([np.empty(0, EVENT_DTYPE), *packets])


def rows(events: Events) -> list[Row]:
    return [tuple(event) for event in events.tolist()]


# ---------------------------------------------------------------- reference decoders


class ReferenceClock:
    """Time words on a clock that does not wrap, with the rule for corrupt ones; `high` is None until one is believed."""

    def __init__(self, high_bits: int, low_bits: int) -> None:
        self.range = 2**high_bits
        self.second = 1_000_000 // 2**low_bits
        self.high: int | None = None
        self.contradicted = self.wraps = 0

    def read(self, new: int, following: list[int]) -> None:
        """Read a time word; `following` are those after it, as far as there are any."""
        if self.high is None:
            corrupt = len(following) > 1 and all((f - new) % self.range >= self.range // 2 for f in following[:2])
        else:
            ahead = [(word - self.high) % self.range for word in (new, *following[:1])]
            corrupt = len(ahead) == 2 and ahead[1] <= self.second and ahead[0] > max(ahead[1], 1)
        if corrupt:
            self.contradicted += 1
            return
        if self.high is None:
            self.high = new
            return
        wraps, before = divmod(self.high, self.range)
        if before - new > self.range // 2:
            wraps += 1
            self.wraps += 1
        self.high = wraps * self.range + new


def reference_evt2(words: list[int], vectors: bool) -> tuple[list[Row], dict[str, int], dict[int, int]]:
    """EVT2 (or, as 64-bit words, EVT2.1): events, faults, and unused words by type."""
    clock, events, useless, untimed = ReferenceClock(28, 6), [], {}, 0
    parts = [(w >> 32, w & 0xFFFFFFFF) if vectors else (w, 1) for w in words]
    for i, (word, valid) in enumerate(parts):
        kind = word >> 28
        if kind in (0, 1):
            xs = [(word >> 11 & 0x7FF) + k for k in range(32) if valid >> k & 1]
            if clock.high is None:
                untimed += len(xs)
            else:
                events += [(clock.high * 64 + (word >> 22 & 63), x, word & 0x7FF, kind) for x in xs]
        elif kind == 8:
            clock.read(word & 0xFFFFFFF, [w & 0xFFFFFFF for w, _ in parts[i + 1 :] if w >> 28 == 8])
        else:
            useless[kind] = useless.get(kind, 0) + 1
    return events, faults_of(clock, untimed, 0, useless, {0xA, 0xE, 0xF}), useless


def reference_evt3(words: list[int]) -> tuple[list[Row], dict[str, int], dict[int, int]]:
    """EVT3: events, faults, and unused words by type."""
    clock, events, useless, untimed, unplaced = ReferenceClock(12, 12), [], {}, 0, 0
    t = y = base = None
    p = 0
    for i, word in enumerate(words):
        kind, value = word >> 12, word & 0xFFF
        xs: list[int | None] = []
        polarity = p
        if kind == 0x0:
            y = value & 0x7FF
        elif kind == 0x2:
            xs, polarity = [value & 0x7FF], value >> 11
        elif kind == 0x3:
            base, p = value & 0x7FF, value >> 11
        elif kind in (0x4, 0x5):
            width = 12 if kind == 0x4 else 8
            xs = [None if base is None else base + k for k in range(width) if value >> k & 1]
            base = None if base is None else min(base + width, 32768)
        elif kind == 0x6:
            t = None if clock.high is None else clock.high * 4096 + value
        elif kind == 0x8:
            before = clock.high
            clock.read(value, [w & 0xFFF for w in words[i + 1 :] if w >> 12 == 8])
            if clock.high is not None and clock.high != before:
                t = clock.high * 4096
        else:
            useless[kind] = useless.get(kind, 0) + 1
        if t is None:
            untimed += len(xs)
        else:
            placed = [x for x in xs if x is not None and y is not None]
            unplaced += len(xs) - len(placed)
            events += [(t, x, y, polarity) for x in placed]
    return events, faults_of(clock, untimed, unplaced, useless, {0x7, 0xA, 0xE, 0xF}), useless


def reference_evt4(words: list[int]) -> tuple[list[Row], dict[str, int], dict[int, int]]:
    """EVT4: events, faults, and unused words by type."""
    clock, events, useless, untimed = ReferenceClock(28, 6), [], {}, 0
    parts: list[tuple[int, int | None]] = []  # words with a type, and what follows those that are vectors
    rest = list(words)
    while rest:
        word = rest.pop(0)
        parts.append((word, (rest.pop(0) if rest else None) if word >> 28 in (12, 13) else 1))
    for i, (word, valid) in enumerate(parts):
        kind = word >> 28
        if 10 <= kind <= 13 and valid is not None:
            xs = [(word >> 11 & 0x7FF) + k for k in range(32) if valid >> k & 1]
            if clock.high is None:
                untimed += len(xs)
            else:
                events += [(clock.high * 64 + (word >> 22 & 63), x, word & 0x7FF, kind % 2) for x in xs]
        elif kind == 14:
            clock.read(word & 0xFFFFFFF, [w & 0xFFFFFFF for w, _ in parts[i + 1 :] if w >> 28 == 14])
        else:
            useless[kind] = useless.get(kind, 0) + 1
    return events, faults_of(clock, untimed, 0, useless, {0x6, 0x7, 0x9, 0xF}), useless


def faults_of(clock: ReferenceClock, untimed: int, unplaced: int, useless: dict[int, int], sound: set[int]) -> dict[str, int]:
    faults = {
        "untimed_events": untimed,
        "unplaced_events": unplaced,
        "contradicted_times": clock.contradicted,
        "time_wraps": clock.wraps,
        "undefined_words": sum(count for kind, count in useless.items() if kind not in sound),
    }
    return {name: count for name, count in faults.items() if count}


def assert_equals_reference(path: Path, header: str, words: list[int], max_events: int) -> None:
    recording = RawFile(write_raw(path, header, words), SIZE)
    if header in (EVT3, EVT4):
        events, faults, useless = (reference_evt3 if header == EVT3 else reference_evt4)(words)
    else:
        events, faults, useless = reference_evt2(words, vectors=header != EVT2)
    assert rows(decoded(recording, max_events)) == events
    assert recording.faults.found() == faults
    assert sum(recording.skipped_words.values()) + recording.faults.undefined_words == sum(useless.values())


# ---------------------------------------------------------------- fixtures by hand


def test_evt2(tmp_path: Path) -> None:
    words = [
        evt2_high(1_000_000),
        evt2_cd(1, 1_000_005, 3, 4),
        evt2_cd(0, 1_000_063, 1279, 719),
        0xA0000001,  # EXT_TRIGGER
        evt2_high(1_000_064),
        0xE0000000,  # OTHERS
        0xF0000000,  # CONTINUED
        evt2_cd(1, 1_000_064, 0, 0),
        evt2_cd(1, 1_000_070, 2047, 2047),
    ]
    recording = open_events(write_raw(tmp_path / "a.raw", EVT2, words))
    assert isinstance(recording, RawFile)
    assert (recording.encoding, recording.sensor_size, recording.finite) == ("EVT2", SIZE, True)
    assert 1_000_000 % 64 == 0
    expected = [(1_000_005, 3, 4, 1), (1_000_063, 1279, 719, 0), (1_000_064, 0, 0, 1), (1_000_070, 2047, 2047, 1)]
    assert rows(decoded(recording)) == expected
    assert recording.faults.found() == {}
    assert recording.skipped_words == {"EXT_TRIGGER": 1, "OTHERS": 1, "CONTINUED": 1}


@pytest.mark.parametrize("header", [EVT21, EVT21_LEGACY])
def test_evt21(tmp_path: Path, header: str) -> None:
    words = [
        evt21_high(6400),
        evt21_cd(1, 6401, 32, 7, 0b1),
        evt21_cd(0, 6402, 64, 8, 1 << 31 | 0b101),
        evt21_cd(1, 6403, 2016, 9, 1 << 31),
        evt21_cd(1, 6403, 0, 9, 0),  # a vector without events
        0xE << 60 | 0x0014 << 32 | 1234,  # OTHERS: a counter of the sensor's rate control
    ]
    recording = open_events(write_raw(tmp_path / "a.raw", header, words))
    expected = [(6401, 32, 7, 1), (6402, 64, 8, 0), (6402, 66, 8, 0), (6402, 95, 8, 0), (6403, 2047, 9, 1)]
    assert rows(decoded(recording)) == expected
    assert recording.word_order == ("legacy" if header == EVT21_LEGACY else "little")
    assert recording.skipped_words["OTHERS"] == 1


def test_evt21_bytes_of_the_two_orders(tmp_path: Path) -> None:
    """The documentation's example: 0x0102030405060708 is sent as 08..01 (GenX320) or as 04 03 02 01 08 07 06 05 (IMX636)."""
    little = RawFile(write_raw(tmp_path / "a.raw", EVT21, [0x0102030405060708]))
    legacy = RawFile(write_raw(tmp_path / "b.raw", EVT21_LEGACY, [0x0102030405060708]))
    assert little.words.tobytes().hex() == "0807060504030201"
    assert legacy.words.tobytes().hex() == "0403020108070605"


@pytest.mark.parametrize("order", ["little", "legacy"])
def test_evt21_order_is_found_when_the_header_does_not_say_it(tmp_path: Path, order: str) -> None:
    words = [evt21_high(0), evt21_cd(1, 3, 8 << 5, 2, 0x80000001), evt21_high(64), evt21_cd(0, 64, 0, 0, 0x81234567)]
    named = EVT21 if order == "little" else EVT21_LEGACY
    path = write_raw(tmp_path / "a.raw", named, words)
    path.write_bytes(path.read_bytes().replace(named.encode(), b"% evt 2.1\n% geometry 1280x720\n"))
    recording = RawFile(path)
    assert recording.word_order == order
    assert rows(decoded(recording)) == reference_evt2(words, vectors=True)[0]


def test_evt21_order_from_its_own_header_line(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(b"% endianness legacy\n% evt 2.1\n% geometry 320x320\n" + bytes(8))
    assert RawFile(path).word_order == "legacy"


def test_evt3(tmp_path: Path) -> None:
    words = [
        evt3_high(0x500_000),
        evt3_low(0x500_000 + 7),
        evt3_y(100 | 1 << 11),  # bit 11: slave camera
        evt3_x(1, 20),
        evt3_base(0, 40),
        evt3_vect(0b1000_0000_0001, 12),
        evt3_vect(0b10, 12),
        evt3_vect(0b1000_0001, 8),
        evt3_vect(0xF00, 8),  # bits 8 to 11 mean nothing
        evt3_vect(0b1, 8),
        0x7001,  # CONTINUED_4
        0xA001,  # EXT_TRIGGER
        0xE016,  # OTHERS
        0xF123,  # CONTINUED_12
        evt3_low(0x500_000 + 9),
        evt3_x(0, 1),
    ]
    recording = open_events(write_raw(tmp_path / "a.raw", EVT3, words))
    t = 0x500_000
    vector = [(t + 7, x, 100, 0) for x in (40, 51, 53, 64, 71, 80)]
    assert rows(decoded(recording)) == [(t + 7, 20, 100, 1), *vector, (t + 9, 1, 100, 0)]
    assert recording.faults.found() == {}
    assert recording.skipped_words == {"CONTINUED_4": 1, "EXT_TRIGGER": 1, "OTHERS": 1, "CONTINUED_12": 1}


def test_evt3_low_bits_are_zero_between_a_new_high_and_the_next_low(tmp_path: Path) -> None:
    words = [evt3_high(0), evt3_low(4095), evt3_y(1), evt3_x(0, 1), evt3_high(4096), evt3_x(0, 2), evt3_low(5), evt3_x(0, 3)]
    events = decoded(RawFile(write_raw(tmp_path / "a.raw", EVT3, words)))
    assert events["t"].tolist() == [4095, 4096, 4101]


def test_evt3_repeated_high_keeps_the_low_bits(tmp_path: Path) -> None:
    words = [evt3_high(0), evt3_low(9), evt3_y(1), evt3_high(0), evt3_x(0, 1)]
    assert decoded(RawFile(write_raw(tmp_path / "a.raw", EVT3, words)))["t"].tolist() == [9]


def test_evt3_low_bits_may_fall(tmp_path: Path) -> None:
    """Readout sources are not in order with each other: a falling TIME_LOW is no new period, and times are not mended."""
    words = [evt3_high(0), evt3_y(1), evt3_low(811), evt3_x(0, 1), evt3_low(800), evt3_x(0, 2)]
    assert decoded(RawFile(write_raw(tmp_path / "a.raw", EVT3, words)))["t"].tolist() == [811, 800]


# ---------------------------------------------------------------- long and corrupt time


def test_evt3_time_is_extended_over_many_wraps(tmp_path: Path) -> None:
    """A minute of one event in 4 ms: the 24-bit clock wraps three times."""
    times = list(range(0, 60_000_000, 4096))
    words = [evt3_y(5)]
    for t in times:
        words += [evt3_high(t), evt3_low(t + 3), evt3_x(1, 6)]
    recording = RawFile(write_raw(tmp_path / "a.raw", EVT3, words))
    assert decoded(recording)["t"].tolist() == [t + 3 for t in times]
    assert recording.faults.found() == {"time_wraps": 3}


def test_evt2_time_is_extended_over_a_wrap(tmp_path: Path) -> None:
    times = [2**34 - 64, 2**34 - 1, 2**34, 2**34 + 70]
    words = [word for t in times for word in (evt2_high(t), evt2_cd(0, t, 1, 1))]
    recording = RawFile(write_raw(tmp_path / "a.raw", EVT2, words))
    assert decoded(recording)["t"].tolist() == times
    assert recording.faults.found() == {"time_wraps": 1}


@pytest.mark.parametrize("bit", range(24))
def test_evt3_one_flipped_bit_of_a_time_word_moves_no_later_event(tmp_path: Path, bit: int) -> None:
    """Time words are repeated: the next one gives a corrupt one away, unless it comes before or one step after its place."""
    steps = [100 * 4096 + 16 * k for k in range(600)]
    words, expected = [evt3_y(5)], []
    for t in steps:
        words += [evt3_high(t), evt3_low(t), evt3_x(0, 6)]
        expected.append(t)
    words[1 + 3 * 300 + (bit < 12)] ^= 1 << (bit % 12)
    events = decoded(RawFile(write_raw(tmp_path / "a.raw", EVT3, words)))
    wrong = np.flatnonzero(events["t"] != expected)
    assert wrong.tolist() in ([], [300])
    assert (np.abs(events["t"] - expected) <= 4096).all()


@pytest.mark.parametrize("bit", range(1, 28))
@pytest.mark.parametrize("corrupt", range(4))
def test_evt2_flipped_bit_of_a_time_word_is_ignored_and_counted(tmp_path: Path, corrupt: int, bit: int) -> None:
    """Bit 0 is left out: its flip is a step of one, which is believed. A first word two steps ahead delays the second word."""
    times = [2**26 + 64 * k for k in range(5)]
    words = []
    for k, t in enumerate(times):
        words += [evt2_high(t) ^ (k == corrupt) << bit, evt2_cd(0, 3, k, 1)]
    recording = RawFile(write_raw(tmp_path / "a.raw", EVT2, words))
    events = {x: t for t, x, _, _ in rows(decoded(recording))}
    delay_us = 64 if (corrupt, bit) == (0, 1) else 0
    assert [events[k] for k in range(5) if k != corrupt] == [
        times[k] + 3 + (k == 1) * delay_us for k in range(5) if k != corrupt
    ]
    if corrupt:
        assert times[corrupt - 1] + 3 <= events[corrupt] <= times[corrupt] + 64 * 4


def test_a_corrupt_first_time_word_is_not_the_start(tmp_path: Path) -> None:
    words = [evt2_high(2**32), evt2_cd(0, 1, 1, 1), evt2_high(6400), evt2_cd(0, 2, 2, 2), evt2_high(6464)]
    recording = RawFile(write_raw(tmp_path / "a.raw", EVT2, words))
    assert decoded(recording)["t"].tolist() == [6402]
    assert recording.faults.found() == {"contradicted_times": 1, "untimed_events": 1}


@pytest.mark.parametrize("gap_us", [64, 2_000_000, 500_000_000])
def test_evt2_gaps_are_believed(tmp_path: Path, gap_us: int) -> None:
    """A quiet scene, with time words only where events are: each is far from both neighbours, none is corrupt."""
    times = [gap_us * k for k in range(6)]
    words = [word for t in times for word in (evt2_high(t), evt2_cd(0, t, 1, 1))]
    recording = RawFile(write_raw(tmp_path / "a.raw", EVT2, words))
    assert decoded(recording)["t"].tolist() == times
    assert recording.faults.found() == {}


def test_time_that_runs_backwards_for_good_is_kept_and_windows_leave_it_out(tmp_path: Path) -> None:
    times = [6_400_000, 6_400_064, 0, 64, 128]
    words = [word for t in times for word in (evt2_high(t), evt2_cd(0, t, 1, 1))]
    recording = RawFile(write_raw(tmp_path / "a.raw", EVT2, words))
    assert decoded(recording)["t"].tolist() == times
    assert [len(w) for w in recording.windows(1000)] == [3]
    assert recording.faults.found() == {"time_glitches": 2}


# ---------------------------------------------------------------- events that cannot be used, or lie outside


def test_events_before_the_first_time_word_are_left_out(tmp_path: Path) -> None:
    early = [evt3_y(1), evt3_x(0, 1), evt3_low(5), evt3_base(0, 8), evt3_vect(0b111, 12), evt3_vect(0b11, 8)]
    recording = RawFile(write_raw(tmp_path / "a.raw", EVT3, [*early, evt3_high(4096), evt3_x(0, 2), evt3_vect(1, 8)]))
    # row and base sent before the time word hold: the base has grown by 12 + 8
    assert rows(decoded(recording)) == [(4096, 2, 1, 0), (4096, 28, 1, 0)]
    assert recording.faults.found() == {"untimed_events": 6}
    recording = RawFile(write_raw(tmp_path / "b.raw", EVT2, [evt2_cd(0, 1, 1, 1), evt2_high(64), evt2_cd(0, 2, 2, 2)]))
    assert rows(decoded(recording)) == [(66, 2, 2, 0)]
    assert recording.faults.found() == {"untimed_events": 1}
    recording = RawFile(write_raw(tmp_path / "c.raw", EVT21, [evt21_cd(0, 1, 0, 1, 0xFFFFFFFF), evt21_high(64)]))
    assert list(recording.packets()) == list(recording.windows(1000)) == []
    assert recording.faults.found() == {"untimed_events": 64}, "32 in each of two passes"


def test_evt3_events_without_a_row_or_a_base_are_left_out(tmp_path: Path) -> None:
    words = [evt3_high(0), evt3_x(0, 1), evt3_vect(0b11, 12), evt3_y(4), evt3_vect(0b111, 8), evt3_x(1, 9)]
    recording = RawFile(write_raw(tmp_path / "a.raw", EVT3, words))
    assert rows(decoded(recording)) == [(0, 9, 4, 1)]
    assert recording.faults.found() == {"unplaced_events": 6}


def test_vectors_without_a_new_base_do_not_overflow_x(tmp_path: Path) -> None:
    """70,000 pixels to the right of the base x stays outside of the sensor instead of coming back in on the left."""
    words = [evt3_high(0), evt3_y(0), evt3_base(1, 0), *[evt3_vect(0xFFF, 12)] * 6000]
    recording = RawFile(write_raw(tmp_path / "a.raw", EVT3, words))
    events = decoded(recording)
    assert len(events) == 72_000
    assert (events["x"][1280:] >= 1280).all()
    assert events["x"].max() == evt_kernels.FAR_X + 11
    grid = np.zeros((2, 720, 1280), np.uint8)
    binned = [voxel_histogram(w, VoxelConfig(bins=1), SIZE, grid) for w in recording.windows(1000)]
    assert binned == [(1280, 72_000 - 1280)]


def test_evt4(tmp_path: Path) -> None:
    """Vectors, padding, and words before the first time, as OpenEB reads them; the last vector lacks its bits."""
    words = [
        evt4_cd(0, 1, 3, 2),
        evt4_cd(1, 7, 9, 8, vector=True),
        0xE0000011,  # bits of the vector, no TIME_HIGH
        0xFFFFFFFF,
        evt4_high(192),
        evt4_cd(0, 193, 5, 4),
        evt4_cd(1, 194, 2047, 2047),
        0xFFFFFFFF,
        evt4_cd(0, 200, 5, 4, vector=True),
        1 << 31 | 1 << 7 | 1 << 3 | 1,
        evt4_cd(1, 201, 5, 4, vector=True),
        0,
        0x60000014,  # OTHERS
        0x70000001,  # CONTINUED
        0x90000000,  # EXT_TRIGGER
        0x30000000,  # undefined
        evt4_high(256),
        evt4_cd(1, 261, 5, 4),
        evt4_cd(1, 262, 5, 4, vector=True),
    ]
    recording = open_events(write_raw(tmp_path / "a.raw", EVT4, words))
    assert isinstance(recording, RawFile)
    assert (recording.encoding, recording.sensor_size) == ("EVT4", SIZE)
    expected = [(193, 5, 4, 0), (194, 2047, 2047, 1), (200, 5, 4, 0), (200, 8, 4, 0), (200, 12, 4, 0), (200, 36, 4, 0)]
    assert rows(decoded(recording)) == [*expected, (261, 5, 4, 1)]
    assert recording.faults.found() == {"untimed_events": 6, "undefined_words": 2}
    assert recording.skipped_words == {"OTHERS": 1, "CONTINUED": 1, "EXT_TRIGGER": 1, "PADDING": 2}


def test_undefined_words_are_ignored_and_counted(tmp_path: Path) -> None:
    words = [evt3_high(0), evt3_y(2), 0x1FFF, 0x9000, 0xB000, 0xC000, 0xD000, evt3_x(0, 1)]
    recording = RawFile(write_raw(tmp_path / "a.raw", EVT3, words))
    assert rows(decoded(recording)) == [(0, 1, 2, 0)]
    assert recording.faults.found() == {"undefined_words": 5}
    recording = RawFile(write_raw(tmp_path / "b.raw", EVT2, [evt2_high(0), 0x20000000, 0x70000000, evt2_cd(1, 1, 1, 1)]))
    assert rows(decoded(recording)) == [(1, 1, 1, 1)]
    assert recording.faults.found() == {"undefined_words": 2}


# ---------------------------------------------------------------- kernels against the references


def evt2_words() -> st.SearchStrategy[int]:
    kinds = st.sampled_from([0, 1, 0, 1, 0, 1, 8, 8, 2, 5, 10, 14, 15])
    bits = st.one_of(st.integers(0, 2**28 - 1), st.integers(0, 40), st.integers(2**28 - 40, 2**28 - 1))
    return st.builds(lambda kind, rest: kind << 28 | rest, kinds, bits)


def evt3_words() -> st.SearchStrategy[int]:
    kinds = st.sampled_from([0, 2, 2, 2, 3, 4, 4, 5, 6, 6, 8, 8, 1, 7, 9, 10, 14, 15])
    return st.builds(lambda kind, rest: kind << 12 | rest, kinds, st.one_of(st.integers(0, 4095), st.integers(4080, 4095)))


MAX_EVENTS = st.sampled_from([32, 33, 40, 64, 1000])


@settings(deadline=None)
@given(words=st.lists(evt2_words(), min_size=1, max_size=120), max_events=MAX_EVENTS)
def test_evt2_equals_the_reference(tmp_path_factory: pytest.TempPathFactory, words: list[int], max_events: int) -> None:
    assert_equals_reference(tmp_path_factory.mktemp("evt2") / "a.raw", EVT2, words, max_events)


@settings(deadline=None)
@given(
    header=st.sampled_from([EVT21, EVT21_LEGACY]),
    words=st.lists(st.builds(lambda a, b: a << 32 | b, evt2_words(), st.integers(0, 2**32 - 1)), min_size=1, max_size=60),
    max_events=MAX_EVENTS,
)
def test_evt21_equals_the_reference(
    tmp_path_factory: pytest.TempPathFactory, header: str, words: list[int], max_events: int
) -> None:
    assert_equals_reference(tmp_path_factory.mktemp("evt21") / "a.raw", header, words, max_events)


def evt4_words() -> st.SearchStrategy[int]:
    kinds = st.sampled_from([10, 11, 10, 11, 12, 13, 12, 13, 14, 14, 0, 3, 6, 7, 9, 15])
    bits = st.one_of(st.integers(0, 2**28 - 1), st.integers(0, 40), st.integers(2**28 - 40, 2**28 - 1))
    return st.builds(lambda kind, rest: kind << 28 | rest, kinds, bits)


@settings(deadline=None)
@given(words=st.lists(evt4_words(), min_size=1, max_size=120), max_events=MAX_EVENTS)
def test_evt4_equals_the_reference(tmp_path_factory: pytest.TempPathFactory, words: list[int], max_events: int) -> None:
    assert_equals_reference(tmp_path_factory.mktemp("evt4") / "a.raw", EVT4, words, max_events)


@settings(deadline=None)
@given(words=st.lists(evt3_words(), min_size=1, max_size=150), max_events=MAX_EVENTS)
def test_evt3_equals_the_reference(tmp_path_factory: pytest.TempPathFactory, words: list[int], max_events: int) -> None:
    assert_equals_reference(tmp_path_factory.mktemp("evt3") / "a.raw", EVT3, words, max_events)


@pytest.mark.parametrize("header", WORD_DTYPE)
@pytest.mark.parametrize("seed", range(3))
def test_uniformly_random_words_equal_the_reference(tmp_path: Path, header: str, seed: int) -> None:
    bits = 8 * np.dtype(WORD_DTYPE[header]).itemsize
    words = np.random.default_rng(seed).integers(0, 2**bits, 1500, dtype=np.uint64).tolist()
    for max_events in (32, 997, 1 << 20):
        assert_equals_reference(tmp_path / "a.raw", header, words, max_events)


@settings(deadline=None)
@given(body=st.binary(min_size=8, max_size=400), header=st.sampled_from([EVT2, EVT21, EVT21_LEGACY, EVT3]))
def test_arbitrary_bytes_never_crash(tmp_path_factory: pytest.TempPathFactory, body: bytes, header: str) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a.raw"
    # Without `% end`, a body that begins as a line of text would be header.
    path.write_bytes(header.removesuffix("% end\n").encode() + b"% end\n" + body)
    recording = RawFile(path)
    whole = decoded(recording)
    np.testing.assert_array_equal(whole, decoded(recording, 32))
    assert (whole["t"] >= 0).all()
    assert (whole["p"] <= 1).all()
    # 10 hours: random bytes leap through the whole range of the clock
    assert sum(len(w) for w in recording.windows(36_000_000_000)) <= len(whole)


# ---------------------------------------------------------------- headers


@pytest.mark.parametrize(
    ("header", "encoding", "size"),
    [
        ("% evt 2.0\n% geometry 640x480\n", "EVT2", (640, 480)),
        ("% evt 2.1\n% geometry 320x320\n% end\n", "EVT2.1", (320, 320)),
        ("% format EVT3;height=720;width=1280\n", "EVT3", (1280, 720)),
        ("% format EVT2;width=320;height=320\n% end\n", "EVT2", (320, 320)),
        ("% format EVT21;height=720;width=1280;endianness=legacy\n", "EVT2.1", (1280, 720)),
        # the format line goes first: the evt line is there for old readers
        ("% evt 2.0\n% format EVT3;height=4;width=6\n% geometry 6x4\n", "EVT3", (6, 4)),
        ("% Date 2020-09-25 07:48:29\r\n% evt 3.0\r\n% geometry 8x9\r\n", "EVT3", (8, 9)),
    ],
)
def test_header(tmp_path: Path, header: str, encoding: str, size: tuple[int, int]) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(header.encode() + bytes(16))
    recording = open_events(path)
    assert isinstance(recording, RawFile)
    assert (recording.encoding, recording.sensor_size) == (encoding, size)
    assert len(recording.words) * recording.words.itemsize * recording.words[0].size == 16


@pytest.mark.parametrize("first", [b"% ", b"%%", b"%\n", b"% \x01\n", b"%\x80 \n"])
def test_words_may_begin_with_the_byte_of_the_header(tmp_path: Path, first: bytes) -> None:
    """Without `% end`, data of 0x25 are no header line unless they read as text; with it they never are."""
    body = first + bytes(6)
    path = tmp_path / "a.raw"
    path.write_bytes(b"% evt 3.0\n% geometry 8x9\n% end\n" + body)
    assert RawFile(path).words.tobytes() == body[: len(body) // 2 * 2]
    if first not in (b"%\n",):
        path.write_bytes(b"% evt 3.0\n% geometry 8x9\n" + body)
        assert RawFile(path).words.tobytes() == body[: len(body) // 2 * 2]


def test_header_of_odd_length_leaves_the_words_unaligned(tmp_path: Path) -> None:
    words = [evt3_high(0), evt3_y(2), evt3_x(0, 1)]
    for comment in ("% a\n", "% ab\n"):
        path = write_raw(tmp_path / "a.raw", comment + EVT3, words)
        assert rows(decoded(RawFile(path))) == [(0, 1, 2, 0)]


def test_size_from_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(b"% evt 2.0\n" + bytes(4))
    with pytest.raises(SensorSizeError, match="does not say the sensor's size; pass --sensor-size WIDTHxHEIGHT"):
        open_events(path)
    assert open_events(path, SensorSize(640, 480)).sensor_size == (640, 480)
    path.write_bytes(b"% evt 2.0\n% geometry 320x320\n" + bytes(4))
    assert open_events(path, SensorSize(320, 320)).sensor_size == (320, 320)
    with pytest.raises(SensorSizeError, match=r"file says 320x320, --sensor-size says 640x480; leave the flag out, and"):
        open_events(path, SensorSize(640, 480))


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", EventFileError, "the file is empty"),
        (EVT3.encode(), EventFileError, f"no complete word after the header, which ends at byte {len(EVT3)}"),
        (EVT3.encode() + b"\x00", EventFileError, "no complete word after the header"),
        (EVT21.encode() + bytes(7), EventFileError, "no complete word after the header"),
        (b"% evt 4.0\n" + bytes(8), EventFileError, r"encoding '4.0' is not supported \(known: EVT2, EVT2.1, EVT3, EVT4\)"),
        (b"% format HISTO3D;height=320;width=320\n" + bytes(8), EventFileError, "encoding 'HISTO3D' is not supported"),
        (
            b"% format " + bytes(range(32, 127)) * 20 + b"\n" + bytes(8),
            EventFileError,
            r"encoding '[^~]{1,44}' is not supported",
        ),
        (b"% format EVT21;height=2;width=2;endianness=big\n" + bytes(8), EventFileError, "endianness 'big' are not supported"),
        (b"% evt 3.0\n% geometry 0x720\n" + bytes(8), SensorSizeError, "file's sensor size '0x720' is invalid"),
        (b"% evt 3.0\n% geometry wide\n" + bytes(8), SensorSizeError, "file's sensor size 'wide' is invalid"),
    ],
)
def test_unusable_files(tmp_path: Path, content: bytes, error: type[Exception], message: str) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(content)
    with pytest.raises(error, match=message):
        open_events(path)


def test_a_file_without_a_header_is_no_raw_file(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(64))
    with pytest.raises(EventFileError, match="no '%' header"):
        RawFile(path)


@pytest.mark.parametrize(("header", "tail"), [(EVT2, 3), (EVT21, 7), (EVT3, 1), (EVT4, 2)])
def test_truncated_in_mid_word(tmp_path: Path, header: str, tail: int) -> None:
    words = {EVT2: [evt2_high(0), evt2_cd(1, 1, 2, 3)], EVT21: [evt21_high(0), evt21_cd(1, 1, 2, 3, 1)]}
    words[EVT4] = [evt4_high(0), evt4_cd(1, 1, 2, 3)]
    evt3 = [evt3_high(0), evt3_low(1), evt3_y(3), evt3_x(1, 2)]
    recording = RawFile(write_raw(tmp_path / "a.raw", header, words.get(header, evt3), tail=b"\xff" * tail))
    assert rows(decoded(recording)) == [(1, 2, 3, 1)]
    assert recording.faults.found() == {"truncated_bytes": tail}


def test_max_events_must_hold_one_word(tmp_path: Path) -> None:
    recording = RawFile(write_raw(tmp_path / "a.raw", EVT3, [evt3_high(0)]))
    with pytest.raises(ValueError, match="max_events must be at least 32"):
        next(recording.packets(31))


DAT_HEADERS = [
    b"% Data file containing CD events.\n% Version 2\n% Height 240\n% Width 304\n\x0c\x08",
    b"% Data file containing N9Chronocam7Event2dE events.\n% Version 2\n% Date 2017-10-31 11:27:54\n\x00\x08",
    b"% Comment cut from an evt 3.0 format recording\n% Version 2\n\x0c\x08",
    b"% Data file of evt\n\x0c\x08",
]


@pytest.mark.parametrize("head", DAT_HEADERS)
def test_dat_headers_are_not_raw(head: bytes) -> None:
    assert (is_dat(head), is_raw(head)) == (True, False)


@pytest.mark.parametrize("head", [EVT2, EVT21, EVT3, "% Date 2020\n% evt 2.0\n", "% EVT 3.0\n", "% Version 2\n% evt 2.0\n"])
def test_raw_headers_are_not_dat(head: str) -> None:
    assert (is_dat(head.encode()), is_raw(head.encode())) == (False, True)


@given(
    head=st.one_of(st.binary(max_size=60), st.lists(st.sampled_from([b"% evt", b"% ", b"\n", b"2.0", b"format"])).map(b"".join))
)
def test_no_file_is_both(head: bytes) -> None:
    assert not (is_dat(head) and is_raw(head))


def test_open_events_still_opens_dat(tmp_path: Path) -> None:
    events = np.zeros(2, EVENT_DTYPE)
    write_events(tmp_path / "a.dat", events, SensorSize(10, 10))
    assert isinstance(open_events(tmp_path / "a.dat"), DatFile)


# ---------------------------------------------------------------- windows


def test_windows_equal_the_packets_cut_by_time(tmp_path: Path) -> None:
    times = sorted(np.random.default_rng(1).integers(0, 50_000, 3000).tolist())
    words, high = [], -1
    for i, t in enumerate(times):
        if t >> 6 != high:
            words.append(evt2_high(t))
            high = t >> 6
        words.append(evt2_cd(i & 1, t, i % 1280, i % 720))
    recording = RawFile(write_raw(tmp_path / "a.raw", EVT2, words))
    events = decoded(recording)
    windows = list(recording.windows(5000))
    assert [(w.t0_us, w.t1_us) for w in windows] == [(5000 * k, 5000 * (k + 1)) for k in range(10)]
    for window in windows:
        inside = (events["t"] >= window.t0_us) & (events["t"] < window.t1_us)
        np.testing.assert_array_equal(window.words, events[inside])
    assert recording.faults.found() == {}


# ---------------------------------------------------------------- real recordings


def sha(column: np.ndarray, dtype: str) -> str:
    return hashlib.sha256(np.ascontiguousarray(column).astype(dtype).tobytes()).hexdigest()[:16]


HASHES_EVT2 = {"t": "ecac3caf317a6737", "x": "dde6627c570eeaf1", "y": "4af0861c7c00428b", "p": "04394c7572ccb8f5"}
HASHES_EVT3 = {"t": "41a62d1aeed53a5b", "x": "1014ebcc18dcc912", "y": "81f935a5e5fb7398", "p": "a8c5419384b9b052"}


@pytest.mark.shared
@pytest.mark.skipif(not REAL.is_dir(), reason="../shared is not here")
@pytest.mark.parametrize(
    ("name", "size", "n_events", "span", "hashes"),
    [
        ("evt2_640x480.raw", SensorSize(640, 480), 521_252, (913_716_224, 913_812_095), HASHES_EVT2),
        ("evt3_1280x720.raw", SensorSize(1280, 720), 219_596, (11_718_656, 11_727_457), HASHES_EVT3),
    ],
)
def test_real_recordings(name: str, size: SensorSize, n_events: int, span: tuple[int, int], hashes: dict[str, str]) -> None:
    """Every field of every event; the same events as evlib 0.13.2 decodes (see the reader's notes on other decoders)."""
    recording = open_events(REAL / name, size)
    assert isinstance(recording, RawFile)
    events = decoded(recording, 1 << 20)
    assert (len(events), (int(events["t"][0]), int(events["t"][-1]))) == (n_events, span)
    assert {
        field: sha(events[field], dtype) for field, dtype in zip("txyp", ("<i8", "<u2", "<u2", "u1"), strict=True)
    } == hashes
    assert recording.faults.found() == {}
    np.testing.assert_array_equal(events, decoded(recording, 1000))
    np.testing.assert_array_equal(events, np.concatenate([w.words for w in recording.windows(1000)]))
