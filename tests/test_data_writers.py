"""Writers: round trips, what a format cannot hold, nothing left behind after an error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evburst.data.errors import ConfigError, DataError
from evburst.data.events import EVENT_DTYPE, EventArray, Events, SensorSize
from evburst.data.files import part_of
from evburst.data.readers import open_events
from evburst.data.writers import WRITERS, Written, write_events
from tests.event_files import SAMPLE, SIZE, collect, rows

SUFFIXES = sorted(WRITERS)


def size_for(suffix: str) -> SensorSize | None:
    """Options needed to open the file again."""
    return SIZE if suffix == ".csv" else None


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "source", [SAMPLE, EventArray(SAMPLE, SIZE), [SAMPLE[:2], SAMPLE[2:2], SAMPLE[2:]]], ids=["array", "stream", "packets"]
)
def test_round_trip(tmp_path: Path, suffix: str, source: object) -> None:
    path = tmp_path / f"a{suffix}"
    assert write_events(path, source, SIZE) == Written(5, 0)
    stream = open_events(path, size_for(suffix))
    assert (stream.sensor_size, collect(stream).tolist()) == (SIZE, SAMPLE.tolist())
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 31), st.integers(0, 23), st.integers(0, 1)), min_size=1, max_size=30
    ),
    st.sampled_from(SUFFIXES),
)
def test_round_trip_of_any_events(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[int, int, int, int]], suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    expected = np.sort(rows(*events), order="t")
    expected["t"] -= expected["t"][0] if suffix == ".dat" else 0
    gaps = np.diff(expected["t"], prepend=0)
    expected["t"] = np.cumsum(np.minimum(gaps, 900_000)) if suffix == ".dat" else expected["t"]
    write_events(path, expected, SIZE)
    assert collect(open_events(path, size_for(suffix))).tolist() == expected.tolist()


def test_csv_text(tmp_path: Path) -> None:
    write_events(tmp_path / "a.csv", SAMPLE[:2], SIZE)
    assert (tmp_path / "a.csv").read_bytes() == b"# sensor_size 32x24\nt,x,y,p\n1000,3,4,1\n1000,31,0,0\n"


def test_dat_bytes(tmp_path: Path) -> None:
    write_events(tmp_path / "a.dat", SAMPLE[:1], SIZE)
    header = b"% Data file containing CD events.\n% Version 2\n% Height 24\n% Width 32\n\x0c\x08"
    assert (tmp_path / "a.dat").read_bytes() == header + bytes.fromhex("e8030000 03000110")


def test_npz_is_numpy_s_own(tmp_path: Path) -> None:
    write_events(tmp_path / "a.npz", SAMPLE, SIZE)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert sorted(archive) == ["events", "sensor_size"]
        assert archive["events"].dtype == EVENT_DTYPE
        assert archive["events"].tolist() == SAMPLE.tolist()
        assert archive["sensor_size"].tolist() == [32, 24]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_events_outside_the_sensor_are_left_out_and_counted(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    assert write_events(path, SAMPLE, SensorSize(31, 23)) == Written(3, 2)
    kept = collect(open_events(path, SensorSize(31, 23) if suffix == ".csv" else None))
    assert kept["x"].tolist() == [3, 7, 7]


@pytest.mark.parametrize("t", [-1, 1 << 32, 1_674_050_002_090_794])
def test_times_a_dat_cannot_hold(tmp_path: Path, t: int) -> None:
    path = tmp_path / "a.dat"
    with pytest.raises(DataError) as error:
        write_events(path, rows((t, 1, 1, 1)), SIZE)
    assert str(error.value) == (
        f"{path}: a DAT file holds times from 0 to 4294967295 µs, this recording has {t}: "
        "let it begin at 0 (--from-zero), leave single wrong times out (evburst events cut), or write .npz or .csv"
    )
    assert list(tmp_path.iterdir()) == []


def test_sensors_a_dat_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="coordinates below 16384, the sensor is 20000x10"):
        write_events(tmp_path / "a.dat", SAMPLE, SensorSize(20_000, 10))


@pytest.mark.parametrize(("name", "shown"), [("a.avi", "'.avi'"), ("a", "''")])
def test_endings_that_cannot_be_written(tmp_path: Path, name: str, shown: str) -> None:
    with pytest.raises(ConfigError) as error:
        write_events(tmp_path / name, SAMPLE, SIZE)
    assert str(error.value) == f"{tmp_path / name}: events cannot be written as {shown} (known: .csv, .dat, .npz)"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_that_is_not_there_is_made_if_possible(tmp_path: Path, suffix: str) -> None:
    assert write_events(tmp_path / "new" / f"a{suffix}", SAMPLE, SIZE).events == len(SAMPLE)
    with pytest.raises(DataError, match="cannot be written"):
        write_events(tmp_path / "new" / f"a{suffix}" / f"b{suffix}", SAMPLE, SIZE)


def broken(error: BaseException) -> Iterator[Events]:
    yield SAMPLE[:2]
    raise error


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text("old")
    with pytest.raises(DataError, match="corrupt"):
        write_events(path, broken(DataError("corrupt")), SIZE)
    assert [(item.name, item.read_text()) for item in tmp_path.iterdir()] == [(path.name, "old")]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_an_error_with_the_name_and_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    names = [part_of(path).name] + [part_of(path).name + ".events"] * (suffix == ".npz")
    for name in names:
        (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(DataError, match=rf"a{suffix}: cannot be written \(No space left on device\)"):
        write_events(path, SAMPLE, SIZE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_interruption_replaces_no_file_and_leaves_no_empty_one(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    for content in (None, "old"):
        if content:
            path.write_text(content)
        source = broken(KeyboardInterrupt())
        if not content:
            source = (packet[:0] for packet in source)
        with pytest.raises(KeyboardInterrupt) as caught:
            write_events(path, source, SIZE)
        assert getattr(caught.value, "__notes__", []) == ([f"{path} is unchanged"] if content else [])
        assert [item.read_text() for item in tmp_path.iterdir()] == ([content] if content else [])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_interruption_keeps_what_was_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with pytest.raises(KeyboardInterrupt) as caught:
        write_events(path, broken(KeyboardInterrupt()), SIZE)
    assert caught.value.__notes__ == [f"what was written to {path} so far is complete and readable"]
    assert collect(open_events(path, size_for(suffix))).tolist() == SAMPLE[:2].tolist()
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
