"""Events written by a plain encoder come back as they were, in every format that can hold them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evburst.data.encoding import pack
from evburst.data.events import EVENT_DTYPE, Events, SensorSize
from evburst.data.readers import open_events
from tests.event_files import aedat4_bytes, bin_bytes, collect, encode_evt2, encode_evt3, encode_evt4, encode_evt21

SIZE = SensorSize(2048, 2048)


@dataclass(frozen=True)
class Format:
    """What a format holds.

    Attributes:
        suffix: the name's ending.
        write: makes a file.
        start_us: latest first time, before any wrap.
        step_us: longest time between events at which wraps of the clock are still recognized.
        columns, rows: pixels.
        wraps: whether its clock may wrap on the way.
    """

    suffix: str
    write: Callable[[Path, Events], object]
    start_us: int
    step_us: int
    columns: int = 2048
    rows: int = 2048
    wraps: bool = True


def raw(header: bytes, encode: Callable[[Events], bytes]) -> Callable[[Path, Events], object]:
    return lambda path, events: path.write_bytes(header + encode(events))


def write_dat(path: Path, events: Events) -> None:
    wrapped = events.copy()
    wrapped["t"] %= 1 << 32
    path.write_bytes(b"% Version 2\n\x0c\x08" + pack(wrapped).tobytes())


def write_old_dat(path: Path, events: Events) -> None:
    words = [word for t, x, y, p in events.tolist() for word in (t % (1 << 32), x | y << 9 | p << 17)]
    path.write_bytes(b"% Version 1\n\x00\x08" + np.array(words, "<u4").tobytes())


def write_bin(path: Path, events: Events) -> None:
    path.write_bytes(bin_bytes((t % (1 << 23), x, y, p) for t, x, y, p in events.tolist()))


def write_aedat4(path: Path, events: Events) -> None:
    pytest.importorskip("aedat")
    path.write_bytes(aedat4_bytes([events[:5], events[5:]], SIZE))


def write_hdf5(path: Path, events: Events) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file["t_offset"] = int(events["t"][0])
        for name in "txyp":
            file[f"events/{name}"] = events[name] - (events["t"][0] if name == "t" else 0)


FORMATS = {
    "dat 2": Format(".dat", write_dat, (1 << 32) - 1, 1 << 30),
    "dat 1": Format(".dat", write_old_dat, (1 << 32) - 1, 1 << 30, 512, 256),
    "evt2": Format(".raw", raw(b"% evt 2.0\n", encode_evt2), (1 << 34) - 1, 1 << 31),
    "evt2.1": Format(".raw", raw(b"% format EVT21;endianness=little\n", encode_evt21), (1 << 34) - 1, 1 << 31),
    "evt2.1 legacy": Format(
        ".raw", raw(b"% format EVT21;endianness=legacy\n", lambda e: encode_evt21(e, legacy=True)), (1 << 34) - 1, 1 << 31
    ),
    "evt3": Format(".raw", raw(b"% evt 3.0\n", encode_evt3), (1 << 24) - 1, 1 << 21),
    "evt4": Format(".raw", raw(b"% format EVT4\n", encode_evt4), (1 << 34) - 1, 1 << 31),
    "bin": Format(".bin", write_bin, (1 << 23) - 1, 1 << 20, 256, 240),
    "aedat4": Format(".aedat4", write_aedat4, 1 << 60, 1 << 50, wraps=False),
    "hdf5": Format(".h5", write_hdf5, (1 << 60) - 1, 1 << 50, wraps=False),
    "npy": Format(".npy", np.save, 1 << 60, 1 << 50, 65_536, 65_536, wraps=False),
    "npz": Format(".npz", np.savez_compressed, 1 << 60, 1 << 50, 65_536, 65_536, wraps=False),
}


@st.composite
def events_of(draw: st.DrawFn, kind: Format) -> Events:
    """Sorted events; often several of one time along a row, which vectors code together."""
    border = st.sampled_from([0, kind.start_us]) if kind.wraps else st.just(0)
    t = draw(st.one_of(border, st.integers(0, kind.start_us)))
    x = y = p = 0
    rows = []
    for i in range(draw(st.integers(1, 40))):
        if i and draw(st.booleans()):
            x = (x + draw(st.integers(1, 13))) % kind.columns
        else:
            t += i and draw(st.one_of(st.integers(0, 5000), st.integers(0, kind.step_us)))
            x, y = draw(st.integers(0, kind.columns - 1)), draw(st.integers(0, kind.rows - 1))
            p = draw(st.integers(0, 1))
        rows.append((t, x, y, p))
    return np.array(rows, EVENT_DTYPE)


@pytest.mark.parametrize("name", FORMATS)
@settings(deadline=None)
@given(data=st.data())
def test_events_come_back(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    kind = FORMATS[name]
    events = data.draw(events_of(kind))
    path = tmp_path_factory.getbasetemp() / f"roundtrip{kind.suffix}"
    kind.write(path, events)
    stream = open_events(path, SIZE, "bin" if name == "bin" else None)
    np.testing.assert_array_equal(collect(stream), events)
    assert not stream.faults.found().keys() - {"time_wraps", "long_silences"}
