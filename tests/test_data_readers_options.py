"""Units of time, order of columns and the kinds of text that other tools write: read right, or an error that says how."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evburst.data import notices
from evburst.data.errors import ConfigError, EventFileError, SensorSizeError
from evburst.data.events import EVENT_DTYPE, Events, SensorSize
from evburst.data.readers import ReadOptions, columns, open_events
from evburst.data.readers.columns import unit_in_name
from evburst.data.writers import write_events
from tests.event_files import SAMPLE, SIZE, collect, dat_bytes

UNITS = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
BUSY = np.zeros(20_000, EVENT_DTYPE)
"""100,000 events per second of 300x200 pixels, as an ordinary recording has them."""
BUSY["t"], BUSY["x"], BUSY["y"] = np.arange(20_000) * 10 + 3, np.arange(20_000) * 7 % 300, np.arange(20_000) * 11 % 200
BUSY["p"] = np.arange(20_000) % 2
BUSY_SIZE = SensorSize(304, 240)


@pytest.fixture(autouse=True)
def forget_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each warning is given once in a process; the private set holds those that were."""
    monkeypatch.setattr(notices, "_warned", set())


def table(events: Events, t: np.ndarray, order: str = "txyp") -> np.ndarray:
    """(n, 4), of floats if t is."""
    return np.stack([t if name == "t" else events[name].astype(t.dtype) for name in order], 1)


def save_csv(path: Path, rows: np.ndarray) -> None:
    np.savetxt(path, rows, "%.9f" if rows.dtype.kind == "f" else "%d", ",")


def save_npz(path: Path, rows: np.ndarray) -> None:
    np.savez(path, **dict(zip("txyp", rows.T, strict=True)))


def save_hdf5(path: Path, rows: np.ndarray) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file["events"] = rows


SAVE: dict[str, Callable[[Path, np.ndarray], None]] = {
    "a.csv": save_csv,
    "a.npy": np.save,
    "a.npz": save_npz,
    "a.h5": save_hdf5,
}
FILES = pytest.mark.parametrize("name", SAVE)


def read(path: Path, **options: object) -> list[tuple[int, int, int, int]]:
    return collect(open_events(path, BUSY_SIZE, options=ReadOptions(**options))).tolist()  # type: ignore[arg-type,no-any-return]


@FILES
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", [np.int64, np.float64])
def test_a_unit_that_is_stated(tmp_path: Path, name: str, unit: str, kind: type) -> None:
    t = BUSY["t"] / UNITS[unit]
    SAVE[name](tmp_path / name, table(BUSY, np.rint(t).astype(np.int64) if kind is np.int64 else t))
    found = [t for t, *_ in read(tmp_path / name, time_unit=unit)]
    step = UNITS[unit] / 2 if kind is np.int64 else 0
    assert np.abs(np.array(found) - BUSY["t"]).max() <= step


@FILES
def test_whole_numbers_written_as_floats_are_microseconds(tmp_path: Path, name: str) -> None:
    SAVE[name](tmp_path / name, table(BUSY, BUSY["t"].astype(np.float64)))
    assert read(tmp_path / name) == BUSY.tolist()


@FILES
def test_fractions_are_seconds(tmp_path: Path, name: str) -> None:
    SAVE[name](tmp_path / name, table(BUSY, BUSY["t"] * 1e-6))
    stream = open_events(tmp_path / name, BUSY_SIZE)
    assert collect(stream).tolist() == BUSY.tolist()
    assert getattr(stream, "time_unit", None) == "s"


@FILES
@pytest.mark.parametrize(
    ("t", "message"),
    [
        (BUSY["t"] // 1_000_000, None),  # whole seconds, all the same
        (BUSY["t"] // 10_000, "e+09 per second, which no sensor records"),
        (BUSY["t"] * 10_000_000, "0.01 per second, which no sensor records"),  # picoseconds
        (BUSY["t"] + 0.5, "which no sensor records"),  # µs with fractions are no seconds
        (BUSY["t"] * 1000 + 1_700_000_000 * 10**9, "which in us is 53968 years"),  # ns since 1970
    ],
)
def test_what_no_sensor_records_is_refused(tmp_path: Path, name: str, t: np.ndarray, message: str | None) -> None:
    SAVE[name](tmp_path / name, table(BUSY, t))
    if message is None:
        assert len(read(tmp_path / name)) == len(BUSY)
        return
    with pytest.raises(EventFileError, match="pass --time-unit s, ms, us or ns") as error:
        read(tmp_path / name)
    assert message in str(error.value)


@FILES
@pytest.mark.parametrize(
    ("t", "message"),
    [
        (BUSY["t"] // 1000, "e+08 per second, are unusually many"),
        (BUSY["t"] * 1000 + 1, "100 per second, are unusually few"),
        (BUSY["t"] // 100 * 1000, "every time is a multiple of 1000"),
    ],
    ids=["ms", "ns", "steps of 1000"],
)
def test_what_is_odd_is_a_warning(
    tmp_path: Path, name: str, t: np.ndarray, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    SAVE[name](tmp_path / name, table(BUSY, t))
    with caplog.at_level(logging.WARNING, "evburst"):
        read(tmp_path / name)
        read(tmp_path / name)
    (record,) = [record for record in caplog.records if record.name.startswith("evburst.")]
    assert message in record.getMessage()
    assert "if the times are not µs, pass --time-unit s, ms, us or ns" in record.getMessage()
    caplog.clear()
    read(tmp_path / name, time_unit="us")
    assert not caplog.records


@pytest.mark.parametrize(("start_us", "warned"), [(0, False), (3_252_000_000, True)])
def test_times_of_few_digits_are_warned_of(
    tmp_path: Path, start_us: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    columns = {name: BUSY[name] for name in "xyp"} | {"t": (BUSY["t"] + start_us).astype(np.float32)}
    np.savez(tmp_path / "a.npz", **columns)
    with caplog.at_level(logging.WARNING, "evburst"):
        read(tmp_path / "a.npz", time_unit="us")
    assert ("times are float32, which rounds them to multiples of 256 us here" in caplog.text) == warned


def test_an_ordinary_recording_is_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.save(tmp_path / "a.npy", BUSY)
    read(tmp_path / "a.npy")
    assert not caplog.records


@FILES
def test_fractions_after_whole_numbers_are_refused(tmp_path: Path, name: str) -> None:
    n = columns.SAMPLE_EVENTS + 2000
    events = np.zeros(n, EVENT_DTYPE)
    events["t"] = np.arange(n) * 10
    t = events["t"].astype(np.float64)
    t[-1] += 0.25
    SAVE[name](tmp_path / name, table(events, t))
    with pytest.raises(EventFileError, match=r"times have fractions, unlike the preceding ones; .* --time-unit"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("t", None),
        ("t_ns", "ns"),
        ("Timestamp [us]", "us"),
        ("time (s)", "s"),
        ("ts_ms", "ms"),
        ("timestamp_µs", "us"),
        ("x_s", None),
    ],
)
def test_a_name_may_say_the_unit(name: str, unit: str | None) -> None:
    assert unit_in_name(name) == unit


def test_a_unit_in_the_name_is_believed(tmp_path: Path) -> None:
    events = BUSY.astype([("timestamp_ns", "i8"), ("x", "u2"), ("y", "u2"), ("p", "u1")])
    events["timestamp_ns"] = BUSY["t"] * 1000
    np.save(tmp_path / "a.npy", events)
    lines = [f"{t / 1000:.3f},{x},{y},{p}" for t, x, y, p in BUSY.tolist()]
    (tmp_path / "a.csv").write_text("\n".join(["time [ms],x,y,p", *lines]))
    assert read(tmp_path / "a.npy") == read(tmp_path / "a.csv") == BUSY.tolist()


def test_a_unit_in_the_name_that_cannot_be_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A name outlives a conversion of the times; the caller's own word is believed, with a warning."""
    lines = [f"{1000 * t},{x},{y},{p}" for t, x, y, p in BUSY.tolist()]
    (tmp_path / "a.csv").write_text("\n".join(["Time (s),x,y,p", *lines]))
    with pytest.raises(
        EventFileError, match=r"0.0001 per second, which no sensor records; if the times are not s, pass --time-unit"
    ):
        read(tmp_path / "a.csv")
    assert read(tmp_path / "a.csv", time_unit="ns") == BUSY.tolist()
    assert not caplog.messages
    assert len(read(tmp_path / "a.csv", time_unit="s")) == len(BUSY)
    assert "which no sensor records" in caplog.text


@FILES
def test_recordings_one_behind_the_other_are_named(tmp_path: Path, name: str) -> None:
    """A clock that falls by hours is no other unit."""
    part = BUSY[:1500]
    later = np.concatenate([part["t"].astype(np.int64) + 80_000_000_000, part["t"].astype(np.int64)])
    SAVE[name](tmp_path / name, table(np.concatenate([part, part]), later))
    with pytest.raises(
        EventFileError, match=r"the times fall from 80000014993(\.0)? to 3(\.0)? at event 1500: were recordings put"
    ):
        read(tmp_path / name)


@pytest.mark.parametrize("names", ["t,x,y,p,t", "t,x,X,y,p", "t,x,y,p, Y"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, names: str) -> None:
    (tmp_path / "a.csv").write_text("\n".join([names, *["100,5,6,1,1"] * 3]))
    with pytest.raises(EventFileError, match=r"line 1: two columns are called \w; rename one of them"):
        read(tmp_path / "a.csv")


def test_five_columns_without_names(tmp_path: Path) -> None:
    """pandas writes its index first."""
    save_csv(tmp_path / "a.csv", np.insert(table(BUSY, BUSY["t"]), 0, np.arange(len(BUSY)), axis=1))
    with pytest.raises(EventFileError, match="5 columns without names, the fourth of which is no polarity: pass --columns"):
        read(tmp_path / "a.csv")
    assert read(tmp_path / "a.csv", columns="-,t,x,y,p") == BUSY.tolist()


@FILES
@pytest.mark.parametrize("order", ["xypt", "xytp", "ptxy", "pxyt"])
def test_other_orders_are_refused_with_the_right_one(tmp_path: Path, name: str, order: str) -> None:
    if name == "a.npz":
        pytest.skip("has names")
    SAVE[name](tmp_path / name, table(BUSY, BUSY["t"].astype(np.int64), order))
    with pytest.raises(EventFileError, match=f"look like {','.join(order)}: pass --columns {','.join(order)}"):
        read(tmp_path / name)
    assert read(tmp_path / name, columns=",".join(order)) == BUSY.tolist()


def test_columns_to_pass_over(tmp_path: Path) -> None:
    save_csv(tmp_path / "a.csv", np.insert(table(BUSY, BUSY["t"]), 1, 9, axis=1))
    np.save(tmp_path / "a.npy", np.insert(table(BUSY, BUSY["t"]), 1, 9, axis=1))
    for name in ("a.csv", "a.npy"):
        assert read(tmp_path / name, columns="t,-,x,y,p") == BUSY.tolist()


@pytest.mark.parametrize("value", ["x,y,p", "t,x,y,p,t", "t x y p", "a,b,c,d", ","])
def test_columns_that_are_none(value: str) -> None:
    with pytest.raises(ConfigError, match="name t, x, y and p once each"):
        ReadOptions(columns=value)


def test_a_unit_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"--time-unit 'h' is unknown \(known: auto, s, ms, us, ns\)"):
        ReadOptions(time_unit="h")  # type: ignore[arg-type]


def test_options_that_contradict_the_format(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(dat_bytes(SAMPLE))
    np.save(tmp_path / "a.npy", SAMPLE)
    assert len(collect(open_events(tmp_path / "a.dat", options=ReadOptions(time_unit="us")))) == 5
    for name, options, message in [
        ("a.dat", ReadOptions(time_unit="ns"), "the times of dat recordings are microseconds; leave --time-unit ns out"),
        ("a.dat", ReadOptions(columns="t,x,y,p"), "dat recordings have no columns; leave --columns out"),
        ("a.npy", ReadOptions(columns="t,x,y,p"), "the columns have names; leave --columns t,x,y,p out"),
    ]:
        with pytest.raises(ConfigError, match=message):
            open_events(tmp_path / name, SIZE, options=options)


METAVISION = ["5,6,1,100", "7,8,0,110"]
TWO = [(100, 5, 6, 1), (110, 7, 8, 0)]


@pytest.mark.parametrize(
    "text",
    [
        "%geometry:304,240\n5,6,1,100\n7,8,0,110\n",
        "%geometry:304,240\nx,y,p,t\n5,6,1,100\n7,8,0,110\n",
        "# sensor_size 304x240\nt,x,y,p\n100,5,6,1\n110,7,8,0\n",
        "304 240\n0.000100 5 6 1\n0.000110 7 8 0\n",
        "304,240\n100,5,6,1\n110,7,8,0\n",
        "# resolution = 304 x 240\n100\t5\t6\t1\n110\t7\t8\t0\n",
    ],
)
def test_texts_that_say_the_size(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    stream = open_events(tmp_path / "a.csv")
    assert (stream.sensor_size, collect(stream).tolist()) == (BUSY_SIZE, TWO)


@pytest.mark.parametrize(
    "text",
    [
        "t,x,y,p\n100.0,5.0,6.0,1.0\n110.0,7.0,8.0,0.0\n",
        "x,y,p,t\n5,6,True,100\n7,8,False,110\n",
        "x,y,polarity,timestamp\n5,6,ON,100\n7,8,off,110\n",
        "polarity,timestamp,y,x\n1,100,6,5\n-1,110,8,7\n",
        ",t,x,y,p\n0,100,5,6,1\n1,110,7,8,0\n",
        '"t","x","y","p"\n"100","5","6","1"\n"110","7","8","0"\n',
        "t;x;y;p\n0,000100;5;6;1\n0,000110;7;8;0\n",
        "0,000100;5,0;6,0;1,0\n0,000110;7,0;8,0;0,0\n",
        "0,000100\t5\t6\t1\n0,000110\t7\t8\t0\n",
        "0,000100 5 6 1\n0,000110 7 8 0\n",
        "1e-4 5 6 1\n1.1e-4 7 8 0\n",
        ".000100,5,6,1\n.000110,7,8,0\n",
        "\ufefft,x,y,p\n100,5,6,1\n110,7,8,0\n",
        "t,x,y,p\r100,5,6,1\r110,7,8,0\r",
        "% made by hand\n100 5 6 1\n110 7 8 0",
        "100 5 6 true\n110 7 8 false\n",
        "timestamp [us]\tx\ty\ton/off\n100\t5\t6\t1\n110\t7\t8\t0\n",
    ],
)
def test_texts_of_other_tools(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode())
    stream = open_events(tmp_path / "a.txt", BUSY_SIZE)
    assert collect(stream).tolist() == TWO
    assert stream.faults.found() == {}


def test_a_csv_of_metavision_without_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\n".join(METAVISION))
    with pytest.raises(EventFileError, match="pass --columns x,y,p,t"):
        open_events(tmp_path / "a.csv", BUSY_SIZE)
    assert read(tmp_path / "a.csv", columns="x,y,p,t") == TWO


@pytest.mark.parametrize("encoding", [f"utf-{bits}{order}" for bits in (16, 32) for order in ("", "-le", "-be")])
def test_other_encodings_of_unicode_are_named(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.csv").write_bytes("t,x,y,p\n100,5,6,1\n".encode(encoding))
    with pytest.raises(EventFileError, match=f"text in {encoding[:6].upper()}: save it as UTF-8"):
        open_events(tmp_path / "a.csv", SIZE)


@pytest.mark.parametrize("content", [bytes(5000), b"t,x\0,y,p\n100,5,6,1\n"])
def test_zero_bytes_are_no_text(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(EventFileError, match="not text: its first line holds zero bytes; was the file written to its end"):
        open_events(tmp_path / "a.csv", SIZE)


@pytest.mark.parametrize("line", ["%geometry:{},240", "# sensor_size 304x{}", "{} 240"])
def test_a_size_of_thousands_of_digits(tmp_path: Path, line: str) -> None:
    """Python converts at most 4300 digits to a number."""
    (tmp_path / "a.csv").write_text(line.format("9" * 5000) + "\n100,5,6,1\n")
    with pytest.raises(SensorSizeError, match=r"sensor size '[0-9x]{1,40}' is invalid"):
        open_events(tmp_path / "a.csv")


@pytest.mark.parametrize("start", [0, 100])
def test_an_endless_line_is_refused(tmp_path: Path, start: int) -> None:
    (tmp_path / "a.csv").write_bytes(b"1,2,3,1\n" * start + b"1," * (5 << 20))
    with pytest.raises(EventFileError, match=f"line {start + 1} is longer than 65536 bytes: not a text file of events"):
        collect(open_events(tmp_path / "a.csv", SIZE))


def test_our_own_csv_keeps_the_size(tmp_path: Path) -> None:
    write_events(tmp_path / "a.csv", SAMPLE, SIZE)
    stream = open_events(tmp_path / "a.csv")
    assert (stream.sensor_size, collect(stream).tolist()) == (SIZE, SAMPLE.tolist())


@given(
    st.lists(st.integers(0, 10**12), min_size=1, max_size=20).map(sorted),
    st.sampled_from(sorted(UNITS)),
    st.sampled_from(["i8", "u8", "f8"]),
)
def test_to_microseconds_is_the_product(times: list[int], unit: str, kind: str) -> None:
    found = columns.to_microseconds(np.array(times, kind), columns.Unit(unit), "a")
    whole = {"s": 10**6, "ms": 1000, "us": 1}.get(unit)
    wanted = [t * whole for t in times] if whole else [t // 1000 if kind != "f8" else round(t / 1000) for t in times]
    rounded = np.maximum(1, np.spacing(np.array(wanted, np.float64))) if kind == "f8" else 0
    assert (np.abs(np.array(found, np.int64) - np.array(wanted)) <= rounded).all()


def test_a_first_time_without_a_fraction_is_explained(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("0 2 3 1\n0.5 6 7 0\n1.5 6 7 0\n")
    with pytest.raises(EventFileError, match=r"line 2 .*a time is not a whole number; pass --time-unit if it is not in µs"):
        collect(open_events(tmp_path / "a.txt", SIZE))
    found = collect(open_events(tmp_path / "a.txt", SIZE, options=ReadOptions("s")))
    assert found["t"].tolist() == [0, 500_000, 1_500_000]


def test_few_events_in_another_age_are_doubted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text("1674050002090794123,2,3,1\n1674050002090794900,4,5,0\n")
    open_events(tmp_path / "a.csv", SIZE)
    assert "years; if the times are not µs, pass --time-unit" in caplog.text
    assert collect(open_events(tmp_path / "a.csv", SIZE, options=ReadOptions("ns")))["t"].tolist() == [1674050002090794] * 2
