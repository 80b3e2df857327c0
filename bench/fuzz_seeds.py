"""Valid recordings of a few dozen events in every format and its variants, which `fuzz_readers` damages."""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from evburst.data.encoding import pack
from evburst.data.events import EVENT_DTYPE, Events, SensorSize
from evburst.data.writers import write_events
from tests.event_files import (
    aedat2_bytes,
    aedat3_bytes,
    aedat4_bytes,
    bin_bytes,
    dat_bytes,
    encode_evt2,
    encode_evt3,
    encode_evt4,
    encode_evt21,
    encode_mono,
    put_metavision,
    ros_array,
    ros_header,
    write_bag,
)

SIZE = SensorSize(32, 24)
SIZE_DVS128 = SensorSize(128, 128)
EPOCH_US = 1_674_050_002_090_794
RAW_GEOMETRY = b"% geometry 32x24\n"
EVT3_EXTRAS = (0x0E016, 0x7001, 0xF123, 0xA001, 0xE014)
"""OTHERS, CONTINUED_4, CONTINUED_12, a trigger, OTHERS."""


def make_events(n: int, t0_us: int = 1000, step_us: int = 4000) -> Events:
    """Return deterministic, sorted events, some in runs along a row (which EVT3 encodes as vectors)."""
    rng = np.random.default_rng(n)
    events = np.zeros(n, EVENT_DTYPE)
    together = rng.random(n) < 0.5
    together[0] = False
    steps = np.where(together, 0, rng.integers(1, 4 * step_us, n))
    events["t"] = t0_us + np.cumsum(steps)
    first = np.maximum.accumulate(np.where(together, 0, np.arange(n)))
    events["x"] = rng.integers(0, 20, n)[first] + np.arange(n) - first
    events["y"], events["p"] = rng.integers(0, SIZE.height, n)[first], rng.integers(0, 2, n)[first]
    return events[events["x"] < SIZE.width]


def dat_seeds() -> list[bytes]:
    events = make_events(60)
    wrapping = make_events(40, (1 << 32) - 80_000)
    wrapping["t"] %= 1 << 32
    old = np.stack([events["t"], events["x"] | events["y"].astype("<u4") << 9 | events["p"].astype("<u4") << 17], 1)
    return [
        dat_bytes(events, SIZE),
        dat_bytes(wrapping, SIZE),
        b"% Data file containing Event2D events.\n% Version 1\n% Height 24\n% Width 32\n\x00\x08" + old.astype("<u4").tobytes(),
        b"% Version 2\n% Date 2017-10-31 11:27:54\n\x00\x08" + pack(make_events(20)).tobytes(),
    ]


def evt_seeds() -> list[bytes]:
    events, wrapping = make_events(60), make_events(40, (1 << 24) - 80_000)
    evt3 = b"% evt 3.0\n% format EVT3;height=24;width=32\n% end\n"
    with_extras = np.frombuffer(encode_evt3(events), "<u2").tolist()
    for place, word in enumerate(EVT3_EXTRAS):
        with_extras.insert(7 * place + 3, word & 0xFFFF)
    others = np.array([0xA0000001, 0xE0000000, 0xF0000000], "<u4").tobytes()
    return [
        b"% evt 2.0\n" + RAW_GEOMETRY + encode_evt2(events) + others,
        b"% evt 2.0\n" + RAW_GEOMETRY + b"% end\n" + encode_evt2(make_events(40, (1 << 34) - 80_000)),
        b"% format EVT21;height=24;width=32;endianness=little\n" + encode_evt21(events),
        b"% evt 2.1\n" + RAW_GEOMETRY + encode_evt21(events, legacy=True),
        evt3 + np.array(with_extras, "<u2").tobytes(),
        b"% evt 3.0\n" + encode_evt3(wrapping),
        b"% format EVT4;height=24;width=32\n" + encode_evt4(events) + others,
        b"% format EVT4\n" + RAW_GEOMETRY + encode_evt4(make_events(40, (1 << 34) - 80_000)),
    ]


def bin_seeds() -> list[bytes]:
    turning = make_events(60, (1 << 23) - 100_000)
    turning["t"] %= 1 << 23
    overflowing = [(t, x, 240 if i % 9 == 8 else y, p) for i, (t, x, y, p) in enumerate(make_events(50).tolist())]
    return [bin_bytes(make_events(60).tolist()), bin_bytes(turning.tolist()), bin_bytes(overflowing)]


def csv_seeds() -> list[bytes]:
    events = make_events(40).tolist()
    return [
        b"t,x,y,p\n" + b"".join(b"%d,%d,%d,%d\n" % event for event in events),
        b"".join(b"%d %d %d %d\n" % (EPOCH_US + t, x, y, p) for t, x, y, p in events),
        b"# a park\r\n\r\n" + b"".join(b"%d.%06d %d %d %d\r\n" % (t // 10**6, t % 10**6, x, y, p) for t, x, y, p in events),
        b"x;y;polarity;Timestamp;note\n" + b"".join(b"%d;%d;%d;%d;a\n" % (x, y, 2 * p - 1, t) for t, x, y, p in events),
    ]


def arrays() -> list[np.ndarray]:
    events = make_events(60)
    plain = np.stack([events[name].astype(np.int64) for name in "txyp"], 1)
    named = np.zeros(len(events), [("x", "<i2"), ("y", ">u2"), ("on", "?"), ("timestamp", ">i8"), ("z", "f4")])
    named["x"], named["y"], named["on"], named["timestamp"] = events["x"], events["y"], events["p"], events["t"]
    return [events, named, plain + np.array([EPOCH_US, 0, 0, 0]), np.asfortranarray(plain * [1, 1, 1, 2] - [0, 0, 0, 1])]


def saved(save: Callable[..., None], *positional: np.ndarray, **named: np.ndarray) -> bytes:
    file = io.BytesIO()
    save(file, *positional, **named)
    return file.getvalue()


def npy_seeds() -> list[bytes]:
    return [saved(np.save, array) for array in arrays()]


def npz_seeds() -> list[bytes]:
    events = make_events(60)
    with tempfile.TemporaryDirectory() as folder:
        write_events(Path(folder) / "a.npz", events, SIZE)
        ours = (Path(folder) / "a.npz").read_bytes()
    return [
        ours,
        saved(np.savez, ts=events["t"], x=events["x"], y=events["y"], pol=events["p"] == 1, note=np.array("park")),
        saved(np.savez_compressed, arrays()[3]),
        saved(np.savez, events=arrays()[2], sensor_size=np.array(SIZE)),
    ]


def hdf5_seeds() -> list[bytes]:
    import h5py
    import hdf5plugin

    events = make_events(60)
    layouts: list[tuple[dict[str, object], dict[str, object]]] = [
        ({}, {"events/width": 32, "events/height": 24}),
        (
            {"chunks": (20,), "compression": "gzip"},
            {"t_offset": np.int64(51_648_500_652), "ms_to_idx": np.array([0, 0, 3], np.uint64)},
        ),
        ({"chunks": (32,), "fletcher32": True, "shuffle": True}, {}),
        ({"chunks": (60,), **hdf5plugin.Blosc()}, {}),
    ]
    seeds = []
    for options, extra in layouts:
        file = io.BytesIO()
        with h5py.File(file, "w") as hdf5:
            for name in "txyp":
                hdf5.create_dataset(f"events/{name}", data=events[name], **options)
            for name, value in extra.items():
                hdf5[name] = value
        seeds.append(file.getvalue())
    for form in (0, 1, 2):
        file = io.BytesIO()
        with h5py.File(file, "w") as hdf5:
            put_metavision(hdf5, events, 25, form)
            hdf5.attrs["geometry"] = str(SIZE)
        seeds.append(file.getvalue())
    return seeds


def rosbag_seeds() -> list[bytes]:
    """Bags of ROS 1: an array of events in a message, and packets in two encodings."""
    events = make_events(60)

    def packet(encoding: bytes, data: bytes) -> bytes:
        text = struct.pack("<I", len(encoding)) + encoding
        return ros_header(SIZE) + struct.pack("<2Q", 1, 1_000_000) + text + struct.pack("<BI", 0, len(data)) + data

    mono = encode_mono(events, 1_000_000)
    arrays, packets = "dvs_msgs/msg/EventArray", "event_camera_msgs/msg/EventPacket"
    contents = [
        (arrays, [ros_array(events[:20]), ros_array(events[20:])]),
        (packets, [packet(b"mono", mono[:80]), packet(b"mono", mono[80:])]),
        (packets, [packet(b"evt3", encode_evt3(events))]),
    ]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{k}.bag" for k in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            write_bag(path, *content)
        return [path.read_bytes() for path in paths]


def aedat4_seeds() -> list[bytes]:
    events = make_events(60, EPOCH_US)
    return [aedat4_bytes([events[:25], events[25:]], SIZE, ("EVTS", "TRIG")), aedat4_bytes([events[:10]] * 3, SIZE)]


def aedat2_seeds() -> list[bytes]:
    events, wrapping = make_events(60), make_events(40, (1 << 32) - 80_000)
    wrapping["t"] %= 1 << 32
    special = np.array([[0x8000, 5000], [0xFFFFFFFF, 6000]], ">u4").tobytes()
    return [
        aedat2_bytes(events, "ch.unizh.ini.jaer.chip.retina.DVS128", SIZE_DVS128) + special,
        aedat2_bytes(wrapping, "", SIZE_DVS128),
        aedat2_bytes(events, "eu.seebetter.ini.chips.davis.DAVIS240C", SensorSize(240, 180)),
    ]


def aedat3_seeds() -> list[bytes]:
    events = make_events(60)
    return [aedat3_bytes([events[:25], events[25:]], "DVS128"), aedat3_bytes([events[:10]] * 3, "DVS128", other=True)]


SEEDS: dict[str, tuple[str, Callable[[], list[bytes]]]] = {
    "aedat2": (".aedat", aedat2_seeds),
    "aedat3": (".aedat", aedat3_seeds),
    "aedat4": (".aedat4", aedat4_seeds),
    "bin": (".bin", bin_seeds),
    "csv": (".csv", csv_seeds),
    "dat": (".dat", dat_seeds),
    "evt": (".raw", evt_seeds),
    "hdf5": (".h5", hdf5_seeds),
    "npy": (".npy", npy_seeds),
    "npz": (".npz", npz_seeds),
    "rosbag": (".bag", rosbag_seeds),
}
"""File suffix and seed function of each reader."""
