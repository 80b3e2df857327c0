"""N-Caltech101 .bin: bytes by hand, clocks that wrap, the kernel against its reference, a real recording."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evburst.data.errors import EventFileError
from evburst.data.events import SensorSize
from evburst.data.readers import bin as bin_reader
from evburst.data.readers import open_events
from evburst.data.readers.bin import WRAP_US, BinFile, decode_reference
from tests.event_files import bin_bytes, collect, digest, real

LAST = WRAP_US - 1


def decoded(path: Path, content: bytes) -> tuple[list[tuple[int, int, int, int]], dict[str, int]]:
    path.write_bytes(content)
    stream = BinFile(path)
    return collect(stream).tolist(), stream.faults.found()


def at(*times: int) -> bytes:
    return bin_bytes((t, 1, 2, 1) for t in times)


def test_bytes_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes([200, 179, 0x80, 0x00, 0x07, 5, 6, 0x01, 0x02, 0x03]))
    stream = open_events(path)
    assert collect(stream).tolist() == [(7, 200, 179, 1), (0x010203, 5, 6, 0)]
    assert stream.sensor_size == (240, 180)
    assert open_events(path, SensorSize(34, 34)).sensor_size == (34, 34)


@pytest.mark.parametrize(
    ("times", "expected", "faults"),
    [
        ([5], [5], {}),
        ([7, 7, 7], [7, 7, 7], {}),
        ([LAST, 0, 1], [LAST, WRAP_US, WRAP_US + 1], {"time_wraps": 1}),
        # The last event of the file has none to confirm it.
        ([LAST, 2], [LAST, WRAP_US + 2], {"time_wraps": 1}),
        # Disorder around a wrap: the event that came too early is late by a whole turn of the clock.
        ([LAST, 0, LAST, 1, 2], [LAST, 0, LAST, WRAP_US + 1, WRAP_US + 2], {"time_wraps": 1}),
        # Disorder is not a wrap.
        ([900, 800, 901], [900, 800, 901], {}),
        # One flipped bit upwards, one downwards.
        ([10, 8_000_000, 11], [10, 11], {"time_glitches": 1}),
        ([8_000_000, 3, 8_000_001], [8_000_000, 3, 8_000_001], {}),
        # A long silence.
        ([10, 8_000_000, 8_000_001], [10, 8_000_000, 8_000_001], {}),
        (
            [8_000_000, 10, 20, 8_000_000, 8_100_000, 10, 11],
            [
                8_000_000,
                WRAP_US + 10,
                WRAP_US + 20,
                WRAP_US + 8_000_000,
                WRAP_US + 8_100_000,
                2 * WRAP_US + 10,
                2 * WRAP_US + 11,
            ],
            {"time_wraps": 2},
        ),
    ],
)
def test_clock(tmp_path: Path, times: list[int], expected: list[int], faults: dict[str, int]) -> None:
    events, found = decoded(tmp_path / "a.bin", at(*times))
    assert [t for t, *_ in events] == expected
    assert found == faults


def test_overflow_events_add_to_the_clock_and_are_none(tmp_path: Path) -> None:
    content = at(10) + bin_bytes([(11, 0, 240, 0)]) + at(12)
    assert decoded(tmp_path / "a.bin", content) == ([(10, 1, 2, 1), (8192 + 12, 1, 2, 1)], {"time_wraps": 1})


def test_truncated(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(at(10, 20, 30)[:-2])
    stream = open_events(path)
    assert collect(stream)["t"].tolist() == [10, 20]
    assert stream.faults.found() == {"truncated_bytes": 3}


def test_less_than_an_event(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"1234")
    with pytest.raises(EventFileError, match="holds only 4 bytes; an event has 5"):
        open_events(tmp_path / "a.bin", format="bin")


def test_corrupt_content_is_not_recognised(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(EventFileError, match="not an event recording"):
        open_events(tmp_path / "a.bin")


def test_an_annotation_is_not_recognised(tmp_path: Path) -> None:
    outline = np.random.default_rng(1).integers(0, 180, 80)
    values = np.array([2, 5, 10, 20, 90, 20, 90, 80, 10, 80, 10, 20, 2, 40, *outline], "<i2")
    values.tofile(tmp_path / "annotation_0001.bin")
    with pytest.raises(EventFileError, match="not an event recording"):
        open_events(tmp_path / "annotation_0001.bin")


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, LAST), st.sampled_from([0, 1, 5, 1 << 22, (1 << 22) + 1, LAST - 1, LAST])),
            st.integers(0, 255),
            st.one_of(st.integers(0, 255), st.just(240)),
            st.integers(0, 1),
        ),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 7),
)
def test_the_kernel_equals_its_reference(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[int, int, int, int]], packet: int
) -> None:
    raw = np.frombuffer(bin_bytes(events), np.uint8).reshape(-1, 5)
    path = tmp_path_factory.getbasetemp() / "random.bin"
    path.write_bytes(raw.tobytes())
    expected, wraps, glitches = decode_reference(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bin_reader, "PACKET_EVENTS", packet)
        stream = BinFile(path)
        np.testing.assert_array_equal(collect(stream), expected)
    assert (stream.faults.time_wraps, stream.faults.time_glitches) == (wraps, glitches)


def test_no_events_decode_to_none() -> None:
    events, wraps, glitches = decode_reference(np.empty((0, 5), np.uint8))
    assert (events.tolist(), wraps, glitches) == ([], 0, 0)


@pytest.mark.shared
def test_a_real_recording() -> None:
    stream = open_events(real("ncaltech101_faces_easy_0001.bin"))
    events = collect(stream)
    assert (len(events), int(events["x"].max()), int(events["y"].max())) == (67_445, 150, 172)
    assert (int(events["t"][0]), int(events["t"][-1]), int(events["p"].sum())) == (6, 299_364, 33_770)
    assert stream.faults.found() == {}
    assert digest(events) == "317f9df00d2f248f"


@pytest.mark.shared
def test_a_real_recording_equals_the_peers_reading() -> None:
    io = pytest.importorskip("tonic.io")
    path = real("ncaltech101_faces_easy_0001.bin")
    theirs = io.read_mnist_file(str(path), dtype=np.dtype([("x", int), ("y", int), ("t", int), ("p", int)]))
    ours = collect(open_events(path))
    for name in "txyp":
        np.testing.assert_array_equal(ours[name], theirs[name])
