"""NumPy files: every layout and type of column, cut and broken files, PEDRo's recordings."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evburst.data.errors import EventFileError, SensorSizeError
from evburst.data.events import SensorSize
from evburst.data.readers import open_events, table
from tests.event_files import SAMPLE, SIZE, collect, digest, real

EPOCH_US = 1_674_050_002_090_794
PLAIN = np.stack([SAMPLE[name].astype(np.int64) for name in "txyp"], 1)


def structured(*fields: tuple[str, str, Any]) -> np.ndarray:
    """A structured array from (name, dtype, values)."""
    array = np.zeros(len(SAMPLE), [(name, dtype) for name, dtype, _ in fields])
    for name, _, values in fields:
        array[name] = values
    return array


LAYOUTS = {
    "fields in another order": structured(
        ("x", "<i2", SAMPLE["x"]), ("y", "<i2", SAMPLE["y"]), ("p", "i1", SAMPLE["p"]), ("t", "<i8", SAMPLE["t"])
    ),
    "bool p": structured(
        ("t", "<u4", SAMPLE["t"]), ("x", "u1", SAMPLE["x"]), ("y", "u1", SAMPLE["y"]), ("p", "?", SAMPLE["p"])
    ),
    "signed p": structured(
        ("t", "<i8", SAMPLE["t"]), ("x", "<u2", SAMPLE["x"]), ("y", "<u2", SAMPLE["y"]), ("p", "i1", SAMPLE["p"] * 2.0 - 1)
    ),
    "big-endian, other names, another field": structured(
        ("Timestamp", ">i8", SAMPLE["t"]),
        ("x", ">u2", SAMPLE["x"]),
        ("y", ">u2", SAMPLE["y"]),
        ("z", "f4", 0.5),
        ("polarity", "u1", SAMPLE["p"]),
    ),
    "plain": PLAIN,
    "plain, column after column": np.asfortranarray(PLAIN),
    "plain, 32 bits": PLAIN.astype(np.uint32),
}


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> np.ndarray:
    """SAMPLE in each layout."""
    return LAYOUTS[request.param]


def test_npy_layouts(tmp_path: Path, layout: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "PACKET_EVENTS", 2)
    np.save(tmp_path / "a.npy", layout)
    stream = open_events(tmp_path / "a.npy", SIZE)
    assert collect(stream).tolist() == SAMPLE.tolist()
    assert [len(packet) for packet in stream.packets()] == [2, 2, 1]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_layouts(tmp_path: Path, layout: np.ndarray, save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "PACKET_EVENTS", 2)
    save(tmp_path / "a.npz", layout)
    assert collect(open_events(tmp_path / "a.npz", SIZE)).tolist() == SAMPLE.tolist()


def test_npz_of_four_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "PACKET_EVENTS", 2)
    np.savez(tmp_path / "a.npz", ts=SAMPLE["t"], x=SAMPLE["x"], y=SAMPLE["y"], pol=SAMPLE["p"] == 1, note=np.array("park"))
    assert collect(open_events(tmp_path / "a.npz", SIZE)).tolist() == SAMPLE.tolist()


@pytest.mark.parametrize("other", [np.array([[10, 20, 30, 1], [40, 50, 60, 0]]), np.eye(3), SAMPLE[:1]])
def test_npz_of_four_arrays_beside_another_one(tmp_path: Path, other: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", boxes=other, **{name: SAMPLE[name] for name in "txyp"})
    assert collect(open_events(tmp_path / "a.npz", SIZE)).tolist() == SAMPLE.tolist()


def test_npz_says_the_size(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", events=SAMPLE, sensor_size=np.array([64, 48]))
    assert open_events(tmp_path / "a.npz").sensor_size == (64, 48)
    with pytest.raises(SensorSizeError, match="the file says 64x48, --sensor-size says 32x24"):
        open_events(tmp_path / "a.npz", SIZE)


def test_epoch_times_stay_64_bits_wide(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PLAIN + np.array([EPOCH_US, 0, 0, 0]))
    assert collect(open_events(tmp_path / "a.npy", SIZE))["t"].tolist() == (SAMPLE["t"] + EPOCH_US).tolist()


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_the_size_is_asked_for_with_a_suggestion(tmp_path: Path, name: str) -> None:
    (np.save if name == "a.npy" else np.savez)(tmp_path / name, SAMPLE)
    with pytest.raises(SensorSizeError) as error:
        open_events(tmp_path / name)
    assert str(error.value) == (
        f"{tmp_path / name}: the file does not say the sensor's size; its largest coordinates are x = 31, y = 23: "
        f"pass --sensor-size 32x24, or the sensor's true size if that is larger"
    )


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.empty((0, 4), np.int64), "an array of shape (0, 4): no event"),
        (SAMPLE[:0], "an array of shape (0,): no event"),
        (np.zeros((5, 3), np.int64), "int64 (5, 3); expected fields t, x, y, p, or numbers (n, 4) in columns t x y p"),
        (
            np.zeros((4, 5)),
            "float64 (4, 5); expected fields t, x, y, p, or numbers (n, 4) in columns t x y p, or --columns; transpose it",
        ),
        (np.full((5, 4), 1.5), "x is 1.5 at index 0 of these: pixels are whole numbers; round undistorted coordinates"),
        (np.zeros(4, np.int64), "int64 (4,); expected fields"),
        (np.array(5), "int64 (); expected fields"),
        (np.zeros(3, [("t", "<i8"), ("x", "<u2")]), "no column y, p; found t, x"),
        (PLAIN[:, [1, 2, 0, 3]] * [1, 1, 1, 2], "polarity 2 at index 0 of these; expected 0 and 1, or -1 and 1"),
        (PLAIN + np.array([2**62, 0, 0, 0]), "µs: too late for a recording; name the columns (--columns) if another one is t"),
        (np.array([[np.nan, 1, 2, 1], [5, 1, 2, 0]]), "a time is not a number (nan)"),
        (
            np.array([(1.0, 1, 2, 1), (np.inf, 1, 2, 0)], [("t", "<f8"), ("x", "u1"), ("y", "u1"), ("p", "u1")]),
            "from 1.0 to inf µs",
        ),
        (
            np.zeros(3, [("t", "<i8", (2,)), ("x", "u1"), ("y", "u1"), ("p", "u1")]),
            "t is (3, 2), expected one number per event",
        ),
        (-PLAIN, "a time of -62001 µs: negative; add an offset to all times"),
    ],
)
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_arrays_that_are_no_events(tmp_path: Path, array: np.ndarray, message: str, name: str) -> None:
    (np.save if name == "a.npy" else np.savez)(tmp_path / name, array)
    with pytest.raises(EventFileError) as error:
        collect(open_events(tmp_path / name, SIZE))
    if not (name == "a.npz" and array.ndim < 2 and not array.dtype.names):
        assert message in str(error.value)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_python_objects_are_never_unpickled(tmp_path: Path, name: str) -> None:
    array = np.array([{"t": 1}, None], object)
    (np.save if name == "a.npy" else np.savez)(tmp_path / name, array, allow_pickle=True)
    with pytest.raises(EventFileError):
        open_events(tmp_path / name, SIZE)


@pytest.mark.parametrize("cut", [1, 13, 60, 190])
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_truncated(tmp_path: Path, name: str, cut: int) -> None:
    (np.save if name == "a.npy" else np.savez)(tmp_path / name, SAMPLE)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-cut])
    with pytest.raises(EventFileError, match="not a complete"):
        open_events(tmp_path / name, SIZE)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_corrupt_archive_is_noticed(tmp_path: Path, compression: int) -> None:
    events = np.tile(SAMPLE, 2000)
    np.save(tmp_path / "events.npy", events)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
        archive.write(tmp_path / "events.npy", "events.npy")
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(EventFileError, match="corrupt"):
        collect(open_events(tmp_path / "a.npz", SIZE))


def test_bytes_behind_the_last_event_are_counted(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", SAMPLE)
    with (tmp_path / "a.npy").open("ab") as file:
        file.write(b"1234567")
    stream = open_events(tmp_path / "a.npy", SIZE)
    assert collect(stream).tolist() == SAMPLE.tolist()
    assert stream.faults.found() == {"truncated_bytes": 7}


def test_an_archive_whose_header_says_fewer_events_is_refused(tmp_path: Path) -> None:
    """Its checksum would never be looked at, because it stands behind the last byte."""
    np.save(tmp_path / "events.npy", SAMPLE)
    short = (tmp_path / "events.npy").read_bytes().replace(b"(5,)", b"(3,)")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("events.npy", short)
    with pytest.raises(EventFileError, match=r"events.npy has 257 bytes, .* \(3,\) needs 231"):
        open_events(tmp_path / "a.npz", SIZE)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@pytest.mark.parametrize("broken", [b"(5,), (", b"(5,),, ", b"(-5,) }", b"(5.,) }"])
def test_a_header_that_is_no_dictionary(tmp_path: Path, name: str, broken: bytes) -> None:
    """NumPy's parser raises ValueError, TokenError and others."""
    np.save(tmp_path / "a.npy", SAMPLE)
    content = (tmp_path / "a.npy").read_bytes().replace(b"(5,), }", broken)
    (tmp_path / "a.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("events.npy", content)
    with pytest.raises(EventFileError, match="not a complete") as error:
        open_events(tmp_path / name, SIZE)
    assert str(error.value).isprintable()


def test_arrays_of_different_lengths(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", t=SAMPLE["t"], x=SAMPLE["x"][:4], y=SAMPLE["y"], p=SAMPLE["p"])
    with pytest.raises(EventFileError, match=r"lengths are \{'t': 5, 'x': 4, 'y': 5, 'p': 5\}"):
        open_events(tmp_path / "a.npz", SIZE)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "count", "start", "hash_"),
    [
        ("pedro_frame0001566.npy", 17_691, 1_674_050_002_090_794, "daca09ceccdc7790"),
        ("pedro_frame0013230.npy", 38_416, 1_676_562_141_437_616, "c01a82dfa75cc78e"),
        ("pedro_frame0017525.npy", 2_498, 1_677_325_148_906_694, "e3b705a78935d550"),
    ],
)
def test_real_recordings(name: str, count: int, start: int, hash_: str) -> None:
    events = collect(open_events(real(name), SensorSize(346, 260)))
    assert (len(events), int(events["t"][0])) == (count, start)
    raw = np.load(real(name))
    for number, column in enumerate("txyp"):
        np.testing.assert_array_equal(events[column], raw[:, number])
    assert digest(events) == hash_


@pytest.mark.shared
def test_a_real_recording_suggests_its_size() -> None:
    with pytest.raises(SensorSizeError, match="--sensor-size 346x260"):
        open_events(real("pedro_frame0001566.npy"))


def test_arrays_of_another_shape_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{name: np.zeros((20, 1), np.int64) for name in "txyp"})
    with pytest.raises(EventFileError, match=r"t.npy is \(20, 1\), expected one number per event"):
        open_events(tmp_path / "a.npz", SIZE)


def test_several_tables_are_distinguished_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", left=SAMPLE, right=SAMPLE)
    with pytest.raises(EventFileError, match=r"several tables \(left, right\); call the one with the events 'events'"):
        open_events(tmp_path / "a.npz", SIZE)
    np.savez(tmp_path / "a.npz", left=SAMPLE, events=SAMPLE)
    assert collect(open_events(tmp_path / "a.npz", SIZE)).tolist() == SAMPLE.tolist()
