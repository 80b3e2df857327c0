"""Sums that must hold, per format, when a file was read without an error, so that no loss of events is silent.

dat      header + 8 x (events + late + glitches) + truncated bytes = the file's size
evt      per word type: events + untimed + unplaced = pixels of the CD words; all other words are times, known, or counted
bin      5 x (events + overflow events + glitches) + truncated bytes = the file's size
csv      events + outside the sensor = lines after the header, less the truncated bytes
npy      header + item size x (events + outside) + truncated bytes = the file's size
npz      events + outside = stated length, and the checksum of every array that was read is correct
hdf5     events + outside = stated length (wrong values are not detected, because HDF5 has no checksums by default)
rosbag   events + outside = events in the messages (except in EVT3, whose sums are those of evt)
aedat2   header + 8 x (events + special events) + truncated bytes = the file's size
aedat3   header + 8 x (events + invalid ones) + truncated bytes <= the file's size (packets of other types are skipped)
aedat4   16 x events + truncated bytes <= the file's size (decoded by its library; an incomplete packet is an error)
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from evburst.data.readers.dat import read_header
from evburst.data.readers.ros_messages import Array, Packet, packet_columns


class BrokenPromiseError(Exception):
    """An invariant does not hold for a file; the message names it."""


def require(holds: bool, promise: str) -> None:
    """Raise BrokenPromiseError unless the invariant holds."""
    if not holds:
        raise BrokenPromiseError(promise)


# The arguments are the file, its stream after all packets were read, and the number of events in the packets.


def _account_dat(path: Path, stream: Any, events: int) -> None:
    known = events + stream.faults.late_events + stream.faults.time_glitches
    _equal(read_header(path)[1] + 8 * known + stream.faults.truncated_bytes, path.stat().st_size)


def _account_evt(path: Path, stream: Any, events: int) -> None:
    faults, words = stream.faults, stream.words
    skipped = sum(stream.skipped_words.values()) + faults.undefined_words
    if stream.encoding == "EVT3":
        kind = words >> 12
        pixels = np.bitwise_count(np.where(kind == 4, words & 0xFFF, np.where(kind == 5, words & 0xFF, kind == 2))).sum()
        others = (~np.isin(kind, (0, 2, 3, 4, 5, 6, 8))).sum()
    elif stream.encoding == "EVT4":
        kind, pixels, others = _evt4_words(words[:, 0])
    else:
        control = 1 if stream.encoding == "EVT2.1" and stream.word_order == "little" else 0
        kind = words[:, control] >> 28
        valid = np.bitwise_count(words[:, 1 - control]) if words.shape[1] == 2 else 1
        pixels = np.sum((kind <= 1) * valid)
        others = (~np.isin(kind, (0, 1, 8))).sum()
    _equal(events + faults.untimed_events + faults.unplaced_events, int(pixels))
    _equal(skipped, int(others))
    require(
        faults.contradicted_times <= int((kind == (14 if stream.encoding == "EVT4" else 8)).sum()),
        "more contradicted times than times",
    )
    require(
        path.read_bytes().endswith(words.tobytes(), 0, path.stat().st_size - faults.truncated_bytes), "words not up to the end"
    )


def _evt4_words(words: Any) -> tuple[Any, int, int]:
    """The types of words that have one, the number of pixels with an event, and that of words without events and time."""
    kinds, pixels, others, rest = list[int](), 0, 0, iter(words.tolist())
    for word in rest:
        kinds.append(word >> 28)
        valid = next(rest, None) if kinds[-1] in (12, 13) else int(kinds[-1] in (10, 11))
        pixels += (valid or 0).bit_count()
        others += valid is None or kinds[-1] not in (10, 11, 12, 13, 14)
    return np.array(kinds), pixels, others


def _account_bin(path: Path, stream: Any, events: int) -> None:
    overflows = int((stream.raw[:, 1] == 240).sum())
    _equal(5 * (events + overflows + stream.faults.time_glitches) + stream.faults.truncated_bytes, path.stat().st_size)


def _account_csv(path: Path, stream: Any, events: int) -> None:
    body = path.read_bytes()[stream._start :]
    lines = body[: len(body) - stream.faults.truncated_bytes].splitlines()
    _equal(events + stream.faults.outside_sensor, sum(1 for line in lines if line.strip()))


def _account_npy(path: Path, stream: Any, events: int) -> None:
    _equal(events + stream.faults.outside_sensor, len(stream.array))
    _equal(stream.offset + stream.array.nbytes + stream.faults.truncated_bytes, path.stat().st_size)


def _account_npz(path: Path, stream: Any, events: int) -> None:
    _equal(events + stream.faults.outside_sensor, len(stream))
    with zipfile.ZipFile(path) as archive:
        for member, _ in stream._sources.values():
            with archive.open(member.name) as file:  # in pieces: a damaged entry may claim any length
                while file.read(1 << 20):
                    pass


def _account_hdf5(path: Path, stream: Any, events: int) -> None:
    _equal(events + stream.faults.outside_sensor, len(stream))


def _account_rosbag(path: Path, stream: Any, events: int) -> None:
    messages = list(stream._messages())
    if not any(isinstance(message, Packet) and message.encoding == "evt3" for message in messages):
        columns = [message.columns if isinstance(message, Array) else packet_columns(message) for message in messages]
        _equal(events + stream.faults.outside_sensor, sum(len(own["t"]) for own in columns))


def _account_aedat4(path: Path, stream: Any, events: int) -> None:
    require(16 * events + stream.faults.truncated_bytes <= path.stat().st_size, "more events than bytes")


def _account_aedat2(path: Path, stream: Any, events: int) -> None:
    whole = 8 * (events + stream.skipped_events)
    _equal(stream.offset + whole + stream.faults.truncated_bytes, path.stat().st_size)


def _account_aedat3(path: Path, stream: Any, events: int) -> None:
    read = 8 * (events + stream.invalid_events) + stream.faults.truncated_bytes
    require(stream.offset + read <= path.stat().st_size, "more events than bytes")


def _equal(counted: int, actual: int) -> None:
    require(counted == actual, f"{counted} are accounted for, but the file has {actual}")


ACCOUNTS: dict[str, Callable[[Path, Any, int], None]] = {
    "aedat2": _account_aedat2,
    "aedat3": _account_aedat3,
    "aedat4": _account_aedat4,
    "bin": _account_bin,
    "csv": _account_csv,
    "dat": _account_dat,
    "evt": _account_evt,
    "hdf5": _account_hdf5,
    "npy": _account_npy,
    "npz": _account_npz,
    "rosbag": _account_rosbag,
}
