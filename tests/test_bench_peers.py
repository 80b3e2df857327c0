"""Our events and other libraries' are the same, field by field; where they are not, the test says who is wrong, and why.

The hashes are of what we and every peer that is not listed as mistaken read, so that they can be checked without the peers
(extra `bench`), whose tests are skipped then.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench import peers
from bench.recording import write_as, write_recording
from evburst.data.events import SensorSize
from evburst.data.readers import open_events
from evburst.data.readers.evt import RawFile
from evburst.data.writers import write_events
from tests.event_files import real, rows

# What the peers warn of is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

HASHES = {
    "davis_sample.aedat4": (111_954, "4501ef229eb5b956", "8e7f13a5c4619ad3", "04379e968d5fa618", "70e5618909d24333"),
    "evt2_640x480.raw": (521_252, "ecac3caf317a6737", "dde6627c570eeaf1", "4af0861c7c00428b", "04394c7572ccb8f5"),
    "evt3_1280x720.raw": (219_596, "41a62d1aeed53a5b", "1014ebcc18dcc912", "81f935a5e5fb7398", "a8c5419384b9b052"),
    "gen1_street_td.dat": (1_018_739, "01fab84b7794ee3b", "fd9b727b2c1f534a", "bd39e496c2bf046a", "ef2210c65d5059bd"),
    "ncaltech101_faces_easy_0001.bin": (67_445, "3da175f2afc27df6", "be1a55dbfc47b2e5", "acf43832501ee597", "529aa0908a342d91"),
    "ncars_obj_004397_td.dat": (4_407, "41ec25007480cf8b", "8f92d1890e91a1e5", "fccad88f11f069a8", "0705345784b3521f"),
    "ncars_sample_td.dat": (2_009, "e9e618b87bd7acec", "ecb2896c9516598e", "cc3a2f3b608d2e28", "bc21cc783fb72b8e"),
    "pedro_frame0001566.npy": (17_691, "161b43cb2564ecc6", "b8319a6b2d2a876f", "0316e3876238df41", "d7cbd81cee875601"),
    "pedro_frame0013230.npy": (38_416, "20d07a534ff77bb1", "9afef4c6c0285878", "0fc56fa70b0873f7", "37cdb27c700827e8"),
    "pedro_frame0017525.npy": (2_498, "6343b46770b05dde", "2636637997a138a4", "8824cbb4a0a76ba1", "3d79a62412073834"),
}
"""Events, and the first 16 digits of the SHA-256 of t (int64), x, y (uint16), p (0 and 1 as uint8), by recording."""

MISTAKEN = {("dat", "faery"), ("evt3", "expelliarmus"), ("evt3", "faery")}
"""(format, peer) whose mistakes have tests of their own."""


def numpy_rows(path: Path) -> Iterator[peers.Columns]:
    """PEDRo's rows t x y p, as NumPy loads them."""
    t, x, y, p = np.load(path).T
    yield t, x, y, p


READING = {**peers.READING, "npy": {"evburst": peers.evburst, "numpy": numpy_rows}}


def format_of(name: str) -> str:
    """evt2_640x480.raw is "evt2", others' formats are their endings."""
    return name[:4] if name.endswith(".raw") else name.rpartition(".")[2]


def hashes(run: peers.Run, path: Path) -> tuple[int | str, ...]:
    """As in HASHES; the test is skipped where the peer is not installed."""
    try:
        count, digests = peers.check_columns(run(path))
    except ImportError as error:
        pytest.skip(f"{error.name} is not installed")
    return count, *(digest[:16] for digest in digests.values())


def columns(run: peers.Run, path: Path) -> list[np.ndarray]:
    """t, x, y, p of a whole file; the test is skipped where the peer is not installed."""
    try:
        return [np.concatenate(column) for column in zip(*run(path), strict=True)]
    except ImportError as error:
        pytest.skip(f"{error.name} is not installed")


PAIRS = [(name, peer) for name in HASHES for peer in READING[format_of(name)] if (format_of(name), peer) not in MISTAKEN]


@pytest.mark.shared
@pytest.mark.parametrize(("name", "peer"), PAIRS)
def test_every_field_of_real_recordings(name: str, peer: str) -> None:
    assert hashes(READING[format_of(name)][peer], real(name)) == HASHES[name]


@pytest.mark.shared
def test_expelliarmus_takes_every_fall_of_an_evt3_time_for_a_new_period() -> None:
    """Each time TIME_LOW falls it adds 4096 µs for good: 11 times in 54 ms.

    Twice a new period begins indeed, which TIME_HIGH says already. The other falls are the sensor's: at a period's repeated
    TIME_HIGH it sends TIME_LOW twice, the second 3 or 11 µs earlier, before any event.
    """
    path = real("evt3_1280x720.raw")
    theirs, ours = columns(peers.READING["evt3"]["expelliarmus"], path), columns(peers.evburst, path)
    words = RawFile(path, SensorSize(1280, 720)).words.astype(np.int64)
    low, high = words[words >> 12 == 6] & 0xFFF, words[words >> 12 == 8] & 0xFFF
    falls = np.diff(low)[np.diff(low) < 0]
    assert (sorted(set(falls[falls > -100])), np.count_nonzero(falls > -100), len(falls)) == ([-11, -3], 9, 11)
    assert high[-1] - high[0] == 2
    ahead = theirs[0] - ours[0]
    assert set(np.diff(ahead)) == {0, 4096}
    assert ahead[-1] == len(falls) * 4096
    for their_column, our_column in zip(theirs[1:], ours[1:], strict=True):
        np.testing.assert_array_equal(their_column, our_column)


@pytest.mark.shared
def test_faery_never_lets_evt3_times_fall() -> None:
    """Where TIME_LOW falls by 3 or 11 µs (see above), events keep the later time until the clock has passed it."""
    path = real("evt3_1280x720.raw")
    theirs, ours = columns(peers.faery, path), columns(peers.evburst, path)
    late = theirs[0].astype(np.int64) - ours[0]
    assert (set(late.tolist()), np.count_nonzero(late)) == (set(range(12)), 1455)
    for their_column, our_column in zip(theirs[1:], ours[1:], strict=True):
        np.testing.assert_array_equal(their_column, our_column)


@pytest.mark.shared
def test_faery_refuses_gen1_and_reads_the_same_events_as_cd(tmp_path: Path) -> None:
    """Gen1 and N-CARS files are of event type 0x00 (2D), which it does not know; of type 0x0C it reads the same events."""
    pytest.importorskip("faery")
    path = real("gen1_street_td.dat")
    with pytest.raises(Exception, match='unsupported type "2d"'):
        columns(peers.faery, path)
    write_events(tmp_path / "cd.dat", np.concatenate(list(open_events(path).packets())), SensorSize(304, 240))
    assert hashes(peers.faery, tmp_path / "cd.dat") == HASHES["gen1_street_td.dat"]


@pytest.mark.shared
def test_evlib_takes_dat_for_text() -> None:
    """It has no DAT reader, and looks for numbers in the header's first line."""
    pytest.importorskip("polars")
    with pytest.raises(OSError, match="Invalid timestamp '%'"):
        columns(peers.evlib, real("gen1_street_td.dat"))


# ---------------------------------------------------------------- written here


@pytest.mark.parametrize(
    ("peer", "after_us"),
    [("evburst", 2**34 + 200), ("faery", 2**34 + 200), ("expelliarmus", 200), ("evlib", 2 * 2**34 + 200)],
)
def test_the_second_event_after_a_wrap_of_evt2(tmp_path: Path, peer: str, after_us: int) -> None:
    """The clock wraps after 2**34 µs (4.8 hours). expelliarmus restarts at 0; evlib adds it twice after the next event."""
    events = rows((2**34 - 50, 3, 4, 1), (2**34 + 10, 5, 6, 0), (2**34 + 200, 7, 8, 1))
    write_as("evt2", tmp_path / "a.raw", [events])
    assert int(columns(peers.READING["evt2"][peer], tmp_path / "a.raw")[0][-1]) == after_us


@pytest.mark.parametrize("encoding", ["evt2", "evt3", "bin"])
def test_recordings_for_benchmarks_read_back(tmp_path: Path, encoding: str) -> None:
    write_recording(tmp_path / "a.dat", 100_000)
    events = np.concatenate(list(open_events(tmp_path / "a.dat").packets()))
    path = tmp_path / ("a.bin" if encoding == "bin" else "a.raw")
    write_as(encoding, path, [events[:60_000], events[60_000:]])
    expected = events[(events["x"] < 240) & (events["y"] < 180)] if encoding == "bin" else events
    np.testing.assert_array_equal(np.concatenate(list(open_events(path).packets())), expected)
