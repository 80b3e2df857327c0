"""`from evburst import Detector`: recordings, streams and arrays give the same results as detect.py."""

from __future__ import annotations

import gc
import io
import json
import os
import pickle
import shutil
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy, deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing.reduction import ForkingPickler
from pathlib import Path, PurePath
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import evburst
from evburst import Classifier, Detections, Detector, EvburstError, open_events
from evburst.app.detect import DetectConfig, detect_file, human_summary
from evburst.app.library import MOST_SIZES
from evburst.app.runs import block_side, open_inference
from evburst.data.arrays import as_events
from evburst.data.encoding import pack
from evburst.data.errors import ConfigError
from evburst.data.events import EVENT_DTYPE, EventArray, Events, Faults, SensorSize
from evburst.data.readers.dat import dat_header
from evburst.models.bundle import Bundle, find_weights
from tests.conftest import SAMPLE, in_new_process, random_events

SIZE = SensorSize(304, 240)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector("street", sensor_size=SIZE, max_windows=4)


@pytest.fixture(scope="module")
def events() -> Events:
    """The first 200 ms of the sample."""
    return np.concatenate(list(open_events(SAMPLE).packets()))[:38_000]


def boxes(results: list[Any]) -> list[list[list[float]]]:
    return [np.round(result.detections.boxes_xyxy.astype(float), 2).tolist() for result in results]


@pytest.mark.parametrize("path", [SAMPLE, str(SAMPLE)], ids=["Path", "str"])
def test_a_recording_gives_what_detect_writes(detector: Detector, path: Path | str, tmp_path: Path) -> None:
    detect_file(path, tmp_path / "out", DetectConfig(max_windows=4, sinks=("jsonl",), count_every=1))
    lines = [json.loads(line) for line in (tmp_path / "out" / "detections.jsonl").read_text().splitlines()]
    results = list(detector.stream(path))
    assert boxes(results) == [line["boxes_xyxy"] for line in lines]
    assert [result.t1_us for result in results] == [line["t_us"] for line in lines]
    assert [result.spikes for result in results] == [line["spikes"] for line in lines]
    assert [round(result.energy_pj) for result in results] == [line["energy_pj"] for line in lines]
    assert all(isinstance(result.detections, Detections) for result in results)
    assert [int(result.grid.sum()) > 0 for result in results] == [True] * 4


def test_a_stream_and_an_array_give_the_same(detector: Detector, events: Events) -> None:
    expected = boxes(list(detector.stream(SAMPLE)))[:3]
    assert boxes(list(detector.stream(open_events(SAMPLE))))[:3] == expected
    assert boxes(list(detector.stream(events)))[:3] == expected
    assert boxes(detector(events))[:3] == expected


SHAPES: dict[str, Callable[[Events], Any]] = {
    "structured": lambda e: e,
    "other integers": lambda e: np.array(
        list(zip(*(e[n].tolist() for n in "txyp"), strict=True)), [(n, "<i4") for n in "txyp"]
    ),
    "(n, 4)": lambda e: np.stack([e[name].astype(np.int64) for name in "txyp"], 1),
    "(n, 4) of whole floats": lambda e: np.stack([e[name].astype(np.float64) for name in "txyp"], 1),
    "columns": lambda e: tuple(e[name] for name in "txyp"),
    "a dict": lambda e: {name: e[name] for name in "pyxt"},
    "polarity -1 and 1": lambda e: (e["t"], e["x"], e["y"], e["p"].astype(int) * 2 - 1),
    "polarity as booleans": lambda e: [e["t"], e["x"], e["y"], e["p"] > 0],
    "names as in files": lambda e: e.astype([("timestamp", "<i8"), ("x", "<i4"), ("y", "<i4"), ("polarity", "?")]),
    "a dict of other names": lambda e: {"ts": e["t"], "x_pos": e["x"], "y_pos": e["y"], "on": e["p"]},
    "further columns": lambda e: {name: e[name] for name in "txyp"} | {"time": e["t"] * 0, "sign": e["p"] * 0},
    "times in ns": lambda e: {"t_ns": e["t"] * 1000, "x": e["x"], "y": e["y"], "p": e["p"]},
    "times in seconds": lambda e: {"Time [s]": e["t"] * 1e-6, "x": e["x"], "y": e["y"], "p": e["p"]},
    "timedelta64": lambda e: {"t": e["t"].astype("m8[us]").astype("m8[ns]"), "x": e["x"], "y": e["y"], "p": e["p"]},
    "datetime64": lambda e: (e["t"].astype("M8[us]"), e["x"], e["y"], e["p"]),
    "datetime64 by a name": lambda e: {"t_ns": e["t"].astype("M8[us]"), "x": e["x"], "y": e["y"], "p": e["p"]},
    "not sorted": lambda e: e[np.random.default_rng(0).permutation(len(e))],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_arrays_in_every_shape_are_the_same_events(shape: str) -> None:
    events = random_events(500, SIZE, 40_000)
    events["t"] = np.arange(500) * 80  # no two at one time: the order is the same after sorting
    assert (as_events(SHAPES[shape](events)) == events).all()


class Lazy:
    """Has named columns that cannot be taken by their names, as a LazyFrame of polars."""

    columns = ("t", "x", "y", "p")

    def __getitem__(self, name: str) -> Any:
        raise TypeError("collect it first\n\nand more")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((5, 3)), r"shape \(5, 3\)"),
        ({"t": [1], "x": [1], "y": [1]}, "no column p; found t, x, y"),
        ({"t": [1], "x": [1], "y": [1], 3: [1]}, "no column p; found t, x, y, 3"),
        (np.zeros(3, [("t", "i8"), ("x", "i2")]), "no column y, p"),
        (np.ma.masked_less(np.ones((5, 4), int), 0), "a masked array"),
        ((np.ma.masked_less([1, 2], 2), [1, 1], [1, 1], [1, 1]), "a masked array"),
        ({"t_ns": np.ma.masked_less([1, 2], 2), "x": [1, 1], "y": [1, 1], "p": [1, 1]}, "a masked array"),
        (([1, 2], [1], [1], [1]), "different lengths"),
        (([0.5], [1], [1], [1]), "column t has fractions or NaN; .* need a name that states it, such as t_s"),
        (([1], [0.5], [1], [1]), "column x has fractions or NaN; expected whole numbers$"),
        (([np.nan], [1], [1], [1]), "column t has fractions or NaN"),
        ((np.float32([1 << 25]), [1], [1], [1]), "column t is float32, which holds no whole microseconds up to 33554432; pass"),
        ((np.array(["NaT"], "M8[us]"), [1], [1], [1]), r"column t has a time that is missing \(NaT\)"),
        ((np.array([5]).view("m8"), [1], [1], [1]), "column t: expected a list of numbers, received timedelta64"),
        (([datetime.now(UTC)], [1], [1], [1]), r"column t holds datetime objects, .* t\.dt\.tz_convert\(None\)"),
        ({"t_ns": [datetime.now(UTC)], "x": [1], "y": [1], "p": [1]}, "column t holds datetime objects"),
        ({"t_ns": ["0"], "x": [1], "y": [1], "p": [1]}, "column t: expected a list of numbers, received <U1"),
        (([1], np.array([5], "m8[us]"), [1], [1]), "column x: expected a list of numbers, received timedelta64"),
        (([1], [-1], [1], [1]), "x = -1"),
        (([1], [1], [70_000], [1]), "y = 70000"),
        (([1], [1], [1], [3]), "polarity 3"),
        (np.array([(1, 1, 1, 255)], EVENT_DTYPE), "polarity 255 in an array of bytes"),
        (([1], [1], [1], ["on"]), "column p"),
        ([[0, 1, 1, 1]] * 4, "may be rows or columns"),
        (list(np.ones((4, 4), int)), "may be rows or columns"),
        ([[0, 1, 1, 1], [2, 3]], "rows or columns of different lengths"),
        ([[0, 1, 1, 1], [2, [3]], [4], [5]], "rows or columns of different lengths"),
        ({"t": [0, [1]], "x": [1, 1], "y": [1, 1], "p": [1, 1]}, "rows or columns of different lengths"),
        ({"t_ns": [0, [1]], "x": [1, 1], "y": [1, 1], "p": [1, 1]}, "rows or columns of different lengths"),
        ((np.array([2**63], np.uint64), [1], [1], [1]), "t = 9223372036854775808 does not fit"),
        (([1e30], [1], [1], [1]), "does not fit"),
        (([-(2**63), 2**63 - 1], [1, 1], [1, 1], [1, 1]), "times from -9223372036854775808 to 9223372036854775807"),
        (np.array([(2**63 - 1, 1, 1, 1), (-(2**63), 1, 1, 1)], EVENT_DTYPE), "times from -9223372036854775808"),
        (([2**62], [1], [1], [1]), "expected less than"),
        *((one, "a recording is passed by its path") for one in ("a.dat", b"a.dat", Path("a.dat"), ["a.dat"] * 2, [b""] * 4)),
        (io.BytesIO(), "received BytesIO; a recording is passed by its path"),
        (open_events(SAMPLE), r"received DatFile; .*, or opened, to `stream`, one at a time"),
        ([open_events(SAMPLE)] * 2, "received list; a recording is passed by its path"),
        (5, "received int of shape"),
        (iter([[0, 1, 1, 1]]), "an iterator; join its chunks"),
        (SimpleNamespace(read=None), "received SimpleNamespace; a recording is passed by its path"),
        (Lazy(), r"the columns of a Lazy cannot be read \(collect it first\); pass them as a dict"),
    ],
)
def test_other_arrays_are_refused(value: Any, message: str) -> None:
    with pytest.raises(EvburstError, match=message):
        as_events(value)


@pytest.mark.parametrize("value", [[], (), np.empty((0, 4)), [[], [], [], []], {name: [] for name in "txyp"}])
def test_no_events_are_events(value: Any) -> None:
    assert as_events(value).tolist() == []


def test_four_arrays_in_a_tuple_are_columns() -> None:
    assert as_events(tuple(np.array([[0, 1, 2, 3], [4] * 4, [5] * 4, [1] * 4]))).tolist() == [(t, 4, 5, 1) for t in range(4)]


def test_events_of_one_window_are_one_result_wherever_it_begins(detector: Detector, events: Events) -> None:
    part = events[(events["t"] >= 73_000) & (events["t"] < 123_000)]
    (result,) = detector(part)
    assert (result.t0_us, result.t1_us - result.t0_us) == (int(part["t"][0]), 50_000)
    assert result.events == len(part)
    assert len(detector(events[:20_000])) == int(events["t"][19_999] // 50_000) + 1
    assert detector(events[:0]) == []


def test_streams_of_one_detector_at_the_same_time(detector: Detector, events: Events) -> None:
    """Each has its own memory and its own faults."""
    outside = events.copy()
    outside["x"][::20] = 400  # beyond the sensor
    remembering = Detector("street", sensor_size=SIZE, memory=True)
    one, other = EventArray(events, SIZE), EventArray(outside, SIZE)
    expected = [boxes(list(remembering.stream(part))) for part in (one, other)]
    lost = other.faults.outside_sensor
    pairs = list(zip(remembering.stream(one), remembering.stream(other), strict=True))
    assert len(pairs) >= 3
    assert [boxes([pair[k] for pair in pairs]) for k in (0, 1)] == expected
    assert expected[0] != boxes(list(Detector("street", sensor_size=SIZE).stream(one)))
    assert (one.faults.outside_sensor, other.faults.outside_sensor) == (0, 2 * lost)
    assert lost > 0


def test_threads_share_a_detector(events: Events) -> None:
    """By calls and by streams, also after a stream was left in the middle. Engines reuse the buffers that boxes come from."""
    detector, t = Detector("street", sensor_size=SIZE, engine="int8"), events["t"]
    parts = [events[(t >= t0) & (t < t0 + 60_000)] for t0 in range(0, 150_000, 10_000)]

    def found(part: Events) -> list[Any]:
        return [(boxes([result]), result.energy_pj) for run in (detector, detector.stream) for result in run(part)]

    left = detector.stream(events)
    next(left)
    left.close()
    expected = [found(part) for part in parts]
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(found, 3 * parts)) == 3 * expected
    assert len({str(one) for one in expected}) == len(parts)


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP is that of numba's wheels for Linux")
def test_a_process_forked_after_a_run_gets_an_error() -> None:
    """OpenMP would end it without one."""
    code = f"""
import os
os.environ["NUMBA_THREADING_LAYER"] = "omp"
from evburst import Detector, EvburstError
detector = Detector("street", max_windows=1, engine="int8")
print(len(list(detector.stream({str(SAMPLE)!r}))), flush=True)
if child := os.fork():
    raise SystemExit(os.waitpid(child, 0)[1])
try:
    list(detector.stream({str(SAMPLE)!r}))
except EvburstError as error:
    print(error, flush=True)
os._exit(0)
"""
    windows, error = in_new_process(code).splitlines()
    assert windows == "1"
    assert error.startswith("this process was forked after its parent had run a network")
    assert 'start processes with multiprocessing.get_context("spawn")' in error


@pytest.mark.parametrize("form", ["npz", "dat", "memory"])
def test_passes_over_one_stream_count_their_own_faults(form: str, events: Events, tmp_path: Path) -> None:
    """A share of late events, and one outside the sensor, below the limits, which they exceeded if several passes added up."""
    faulty, rng = events.copy(), np.random.default_rng(0)
    late = rng.random(len(faulty)) < 0.06
    faulty["t"][late] = np.maximum(faulty["t"][late] - 80_000, 0)
    faulty["x"][rng.random(len(faulty)) < 0.06] = 400
    if form == "npz":
        np.savez(path := tmp_path / "a.npz", **{name: faulty[name] for name in "txyp"})
    else:
        (path := tmp_path / "a_td.dat").write_bytes(dat_header(SIZE) + pack(faulty).tobytes())
    stream = EventArray(faulty, SIZE) if form == "memory" else open_events(path, SIZE if form == "npz" else None)
    # In memory, `stream` sorts the events, so that none is late.
    detector = Detector("street", sensor_size=SIZE)
    expected = [result.events for result in detector.stream(stream)]
    once = replace(stream.faults)
    assert bool(once.late_events) == (form != "memory")
    assert once.outside_sensor > 0
    together = zip(*(detector.stream(stream) for _ in range(3)), strict=True)
    assert [[one.events for one in results] for results in together] == [[count] * 3 for count in expected]
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(lambda _: [one.events for one in detector.stream(stream)], range(3))) == [expected] * 3
    assert stream.faults == Faults(**{name: 7 * count for name, count in vars(once).items()})


def test_leaving_the_results_of_a_silent_source(events: Events) -> None:
    """Who leaves the loop does not wait for events that may never come; the thread that reads ends after the next ones."""
    left, waited = Event(), list[bool]()

    class Silent(EventArray):
        def packets(self) -> Iterator[Events]:
            yield self.events
            waited.append(left.wait(20))

    for _ in Detector("street").stream(Silent(events[events["t"] < 60_000], SIZE, finite=False)):
        break
    left.set()
    for thread in threading.enumerate():
        if thread.name == "binning":
            thread.join()
    assert waited == [True]


def test_the_thread_that_reads_does_not_keep_the_network(events: Events) -> None:
    """A program that ends meanwhile would be aborted if that thread freed the network's tensors last."""
    left, waits = Event(), Event()

    class Silent(EventArray):
        def packets(self) -> Iterator[Events]:
            yield self.events
            waits.set()
            left.wait(20)

    detector = Detector("street")
    for _ in detector.stream(Silent(events[events["t"] < 60_000], SIZE, finite=False)):
        break
    (inference,) = detector._inferences.values()  # the only way to the network
    network = weakref.ref(inference.network)
    del inference, detector
    assert waits.wait(20)
    gc.collect()
    assert network() is None
    left.set()


@pytest.mark.parametrize("copied", [copy, deepcopy, lambda detector: pickle.loads(pickle.dumps(detector))])
def test_a_copy_finds_the_same(copied: Callable[[Detector], Detector], events: Events) -> None:
    """Whether or not the original has been used, and by the engine whose buffers are views of each other."""
    detector = Detector("street", sensor_size=SIZE, max_windows=2, engine="int8")
    unused, expected = copied(detector), detector(events)
    assert boxes(expected)[0]
    for one in (unused, copied(detector)):
        found = one(events)
        assert boxes(found) == boxes(expected)
        assert [result.energy_pj for result in found] == [result.energy_pj for result in expected]


@pytest.mark.skipif(sys.platform != "linux", reason="counts the open files of /proc")
def test_another_process_gets_a_detector_without_open_files() -> None:
    """Torch would pass each of its hundreds of tensors as an open file, of which a process may have a thousand."""
    detector, before = Detector("street"), len(os.listdir("/proc/self/fd"))
    sent = bytes(ForkingPickler.dumps(detector))
    assert len(os.listdir("/proc/self/fd")) == before
    again = pickle.loads(sent)._bundle
    for name, tensor in detector._bundle.spiking.tensors.items():
        assert torch.equal(again.spiking.tensors[name], tensor)


def test_an_unknown_setting_is_answered_with_those_of_the_class() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'foo'; known: score, maps, .*post$") as error:
        Detector("street", foo=1)
    assert "sinks" not in str(error.value)
    with pytest.raises(ConfigError, match=r"unknown setting 'map'; did you mean 'maps'\?"):
        Classifier("nmnist", map=True)


def test_a_stream_may_be_passed_again(detector: Detector, events: Events, caplog: pytest.LogCaptureFixture) -> None:
    """Its faults add up; the judgement of the sensor's size and the warning are those of one pass."""
    outside = events.copy()
    outside["x"][::12] = 400  # 8 % lie beyond the sensor
    stream = EventArray(outside, SIZE)
    for _ in range(3):
        list(detector.stream(stream))
    assert len(caplog.messages) == 3
    assert len(set(caplog.messages)) == 1
    assert f"outside sensor {stream.faults.outside_sensor // 3}" in caplog.messages[0]


def test_an_event_array_is_checked_as_other_arrays_are(detector: Detector, events: Events) -> None:
    expected = boxes(list(detector.stream(events)))
    assert boxes(list(detector.stream(EventArray(events[::-1], SIZE)))) == expected
    assert boxes(detector(EventArray(SHAPES["names as in files"](events), SIZE))) == expected


def test_networks_and_a_simulation_run_in_threads_on_numba_s_own_thread_pool() -> None:
    """It ends a process in which two threads use it at once; it is what there is without OpenMP and TBB."""
    code = """
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
import numba, numpy as np
from evburst import Classifier, Detector, SensorSize
from evburst.data.events import EventArray
from evburst.data.simulation.sensor import EventSimulator, SimulatorConfig
from tests.conftest import SAMPLE, random_events
size = SensorSize(304, 240)
detector, reference = Detector("street"), Detector("street", engine="reference", max_windows=4)
classifier, small = Classifier("dvs128-objects"), SensorSize(128, 128)
events = EventArray(random_events(40_000, small, 1_000_000), small)
def simulate():
    simulator = EventSimulator(size, SimulatorConfig(), parallel=True)
    frames = np.random.default_rng(0).random((40, 240, 304), np.float32)
    return sum(len(simulator.step(frame, 1000 * k)) for k, frame in enumerate(frames))
jobs = [lambda: list(detector.stream(SAMPLE)), lambda: list(detector.stream(SAMPLE)), lambda: list(reference.stream(SAMPLE)),
        lambda: list(classifier.stream(events)), simulate]
with ThreadPoolExecutor(len(jobs)) as threads:
    list(threads.map(lambda job: job(), jobs))
print(numba.threading_layer())
"""
    assert in_new_process(code, NUMBA_THREADING_LAYER="workqueue", NUMBA_NUM_THREADS="2").strip() == "workqueue"


def test_a_start_in_seconds(events: Events, tmp_path: Path) -> None:
    """Windows that end before it are left out, also of short recordings; the faults of the recording are counted once."""
    late = Detector("street", sensor_size=SIZE, start_s=0.06)
    part = events[(events["t"] >= 73_000) & (events["t"] < 123_000)]
    assert [result.t0_us for result in late(events)] == [50_000 * k for k in range(1, len(late(events)) + 1)]
    assert [result.t0_us for result in late(part)] == [100_000]
    with pytest.raises(EvburstError, match=r"events: contains no usable events after 0\.06 s"):
        late(part[part["t"] < 80_000])
    with pytest.raises(EvburstError, match="contains no usable events after 50 s"):
        list(Detector("street", start_s=50).stream(SAMPLE))
    words = pack(events)
    words[5, 0] = 1 << 31  # a time far ahead
    (path := tmp_path / "a_td.dat").write_bytes(dat_header(SIZE) + words.tobytes())
    stream = open_events(path)
    assert list(late.stream(stream))
    assert stream.faults.time_glitches == 1


def test_a_stream_that_can_be_read_once_has_no_start_in_seconds(events: Events) -> None:
    stream = EventArray(events, SIZE, finite=False)
    assert list(Detector("street", sensor_size=SIZE, max_windows=1).stream(stream))
    with pytest.raises(EvburstError, match="can only be read once"):
        Detector("street", start_s=1.0).stream(stream)


def test_numbers_of_numpy_are_settings() -> None:
    numbers = {"max_windows": np.int64(2), "ann": np.bool_(True), "post": {"nms_iou": np.float32(0.5)}}
    config = Detector("street", score=np.float32(0.25), sensor_size=np.array([304, 240]), **numbers).config
    assert config == Detector("street", score=0.25, sensor_size=SIZE, max_windows=2, ann=True, post={"nms_iou": 0.5}).config
    assert type(config.max_windows) is int
    with pytest.raises(EvburstError, match="expected a whole number, received True"):
        Detector("street", max_windows=np.bool_(True))


def test_sizes_are_pairs_or_text_everywhere(tmp_path: Path) -> None:
    """As in `Detector(sensor_size=(304, 240))`: for recordings that do not state their size, and events in memory."""
    events, path = random_events(1000, SIZE, 40_000), tmp_path / "a.npy"
    np.save(path, events)
    (expected,) = Detector("street", sensor_size=SIZE).stream(path)
    for size in ((304, 240), [304, 240], np.array([304, 240]), "304x240"):
        for stream in (open_events(path, size), EventArray(events, size)):
            assert isinstance(stream.sensor_size, SensorSize)
            (found,) = Detector("street").stream(stream)
            assert np.array_equal(found.grid, expected.grid)
    for size in (304, (304, 240, 2), (304.5, 240), "304", (0, 240)):
        with pytest.raises(EvburstError, match=r"\(W, H\)|WIDTHxHEIGHT"):
            open_events(path, size)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.ones(3, 4, requires_grad=True), "requires grad"),
        (torch.ones(3, 4, device="meta"), "meta device"),  # as of a tensor on a GPU
        (torch.ones(3, 4).to_sparse(), "Sparse layout"),
    ],
)
def test_tensors_that_numpy_cannot_read_are_refused(tensor: torch.Tensor, reason: str) -> None:
    for given in (tensor, dict.fromkeys("txyp", tensor)):
        with pytest.raises(EvburstError, match=f"NumPy cannot read a Tensor: .*{reason}"):
            Detector("street", sensor_size=SIZE)(given)


def test_settings_and_errors() -> None:
    assert Detector("street", score=0.7, ann=True).config.post.score == 0.7
    for settings, message in (
        ({"weights": "strete"}, "bundled: caltech101, caltech6"),
        ({"timestep": 2}, "did you mean 'timesteps'"),
        ({"post": {1: 2}}, r"unknown setting 'post\.1'"),
        ({"post": 5, "score": 0.5}, "setting 'post': expected a section"),
        ({"sensor_size": "304"}, "WIDTHxHEIGHT"),
        ({"sensor_size": (304.5, 240)}, "WIDTHxHEIGHT"),
        *(({"sensor_size": size}, r"sensor_size .*: expected \(W, H\)") for size in (304, (304,), (), {"w": 3}, (304, 240, 3))),
        ({"sinks": ("jsonl",), "slow": 3.0}, "sinks, slow: for the files of `evburst detect`; a Detector writes none"),
        ({"fps": 3.0}, "fps: for the files"),
        ({"overwrite": False}, "overwrite: for the files"),
        ({"ann": True, "engine": "reference"}, "the ANN has no engine"),
        ({"ann": True, "count_every": 3}, "the ANN has no count_every"),
    ):
        with pytest.raises(EvburstError, match=message):
            Detector(**settings)
    with pytest.raises(EvburstError, match="weights nmnist are for classification, not for detection"):
        Detector("nmnist")
    with pytest.raises(EvburstError, match="no such file"):
        Detector().stream("gone.dat")
    with pytest.raises(EvburstError, match="sensor_size"):
        Detector()(random_events(10, SIZE, 1000))
    for given in (SAMPLE.read_bytes(), [SAMPLE, SAMPLE]):  # what they are, before their sensor size
        with pytest.raises(EvburstError, match=r"a recording is passed by its path \(str or Path\), or opened, to `stream`"):
            Detector().stream(given)
    with pytest.raises(EvburstError, match="lie outside 32x32"):
        Detector(sensor_size=(32, 32))(random_events(1000, SIZE, 1000))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": b"street"}, "weights: expected the name of bundled weights or a path, received bytes"),
        ({"weights": None}, "weights: expected the name .*, received NoneType"),
        ({"weights": "s" * 300}, "no such bundled weights"),
        ({"weights": "s" * 300 + ".safetensors"}, "no such weights file"),
        ({"weights": "a\0b"}, "no such bundled weights"),
        ({"engine": "cuda"}, "engine 'cuda' needs --device cuda"),
        ({"adaptive": 0.8}, "adaptive needs at least two timesteps"),
        ({"adaptive": 0.8, "timesteps": 2, "engine": "int8"}, "adaptive runs on the reference engine only"),
        ({"memory": True, "timesteps": 2}, "a network with memory has one timestep per window"),
        ({"memory": True, "batch": 4}, "a network with memory runs every window, one after the other"),
        ({"memory": True, "stride_ms": 10.0}, "windows of a network with memory follow each other"),
        ({"stride_ms": 15}, "must divide the length of the windows, 50 ms"),
        pytest.param(
            {"device": "cuda"},
            "torch finds no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="it has a CUDA device"),
        ),
    ],
)
def test_settings_that_cannot_be_used_are_refused_when_the_detector_is_made(settings: dict[str, Any], message: str) -> None:
    """Not when its first recording arrives."""
    with pytest.raises(EvburstError, match=message):
        Detector(**settings)


def test_tracks_without_their_package_are_refused_when_the_detector_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(EvburstError, match="--track needs trackers"):
        Detector(track=True)


def test_recordings_and_weights_are_given_by_anything_that_names_a_file(tmp_path: Path) -> None:
    """As to Python's own `open`."""

    class Named:
        def __init__(self, path: Path) -> None:
            self._path = path

        def __fspath__(self) -> str:
            return str(self._path)

    weights = tmp_path / "own.safetensors"
    shutil.copy(find_weights("street"), weights)
    with os.scandir(SAMPLE.parent) as entries:
        entry = next(entry for entry in entries if entry.name == SAMPLE.name)
    detector = Detector(Named(weights), max_windows=1)
    assert detector.config.weights == str(weights)
    (expected,) = detector.stream(SAMPLE)
    for source in (Named(SAMPLE), PurePath(SAMPLE), entry):
        (found,) = detector.stream(source)
        assert np.array_equal(found.grid, expected.grid)
        assert open_events(source).sensor_size == SIZE


def test_a_result_is_shown_in_one_line() -> None:
    (result,) = Detector("street", max_windows=1).stream(SAMPLE)
    assert repr(result) == (
        f"WindowResult(0 to 50000 us, {result.events} events, {len(result.detections)} boxes, {result.energy_pj / 1e6:.3g} uJ)"
    )
    assert repr(replace(result, energy_pj=None)).endswith("boxes, energy not counted)")
    assert repr(replace(result, idle=True)).endswith("events, idle)")
    (windows,) = Classifier("nmnist", max_windows=1)(random_events(1000, SensorSize(34, 34), 90_000))
    assert windows.classification is not None
    assert f", class {windows.classification.label}, score {windows.classification.score:.2f}, " in repr(windows)


@pytest.mark.parametrize(("window_ms", "warned"), [(12.4, True), (12.5, False), (200.0, False), (200.1, True)])
def test_windows_unlike_those_of_training_give_a_warning(
    window_ms: float, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    Detector("street", window_ms=window_ms)
    found = [f"windows of {window_ms:g} ms: the network was trained with 50 ms; expect worse results"] if warned else []
    assert caplog.messages == found


def test_adaptive_timesteps_name_their_engine(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        Detector("street", adaptive=0.8, timesteps=2)
    assert caplog.messages == ["note: adaptive runs on the engine reference; `evburst engines` shows how much slower that is"]


def test_a_larger_sensor_in_blocks(events: Events) -> None:
    """Blocks of 2 x 2 px of a sensor twice as large are the pixels of the smaller one; boxes are in its own pixels."""
    large = events.copy()
    large["x"], large["y"] = 2 * large["x"] + 1, 2 * large["y"]
    small = Detector("street", sensor_size=(304, 240))(events)
    blocks = Detector("street", sensor_size=(608, 480), downsample=2)(large)
    assert len(small[0].detections)
    for own, expected in zip(blocks, small, strict=True):
        np.testing.assert_array_equal(own.detections.boxes_xyxy, 2 * expected.detections.boxes_xyxy)
        np.testing.assert_array_equal(own.detections.scores, expected.detections.scores)
        assert (own.energy_pj, own.ann_energy_pj, own.events) == (expected.energy_pj, expected.ann_energy_pj, expected.events)
        assert own.grid.shape[1:] == (512, 640)


@pytest.mark.parametrize(("side", "block"), [(640, 1), (1280, 2), (1920, 3)])
def test_blocks_are_chosen_by_the_sensor(side: int, block: int, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, random_events(300, SensorSize(side, 16), 40_000))
    summary = detect_file(path, tmp_path / "out", DetectConfig(sensor_size=f"{side}x16", sinks=("jsonl",)))
    assert summary["downsample"] == block
    assert ("--downsample 1" in human_summary(summary)) == (block > 1)


@pytest.mark.parametrize(
    ("downsample", "side", "trained", "block"),
    [
        (0, 1280, 304, 2),
        (0, 1280, 1280, 1),
        (0, 1280, 720, 1),
        (0, 1280, 640, 2),
        (0, 2560, 1280, 2),
        (0, 1280, None, 2),
        (3, 9, 9, 3),
    ],
)
def test_no_blocks_of_a_sensor_that_the_network_was_trained_on(
    downsample: int, side: int, trained: int | None, block: int
) -> None:
    size = None if trained is None else SensorSize(16, trained)
    assert block_side(downsample, SensorSize(side, 16), size) == block


def test_overlapping_windows(events: Events) -> None:
    """Every stride the events of a window's length before it; where a window begins on its own multiples, the same results."""
    plain = {result.t1_us: result for result in Detector("street", sensor_size=(304, 240)).stream(EventArray(events, SIZE))}
    found = list(Detector("street", sensor_size=(304, 240), stride_ms=12.5).stream(EventArray(events, SIZE)))
    t = events["t"]
    ends = [result.t1_us for result in found]
    assert np.diff(ends).tolist() == [12_500] * (len(found) - 1)
    assert [result.events for result in found] == [int(((t >= end - 50_000) & (t < end)).sum()) for end in ends]
    assert all(result.t1_us - result.t0_us == 50_000 for result in found)
    same = [result for result in found if result.t1_us in plain]
    assert len(same) >= 3
    for result in same:
        expected = plain[result.t1_us].detections
        np.testing.assert_array_equal(result.detections.boxes_xyxy, expected.boxes_xyxy)
        np.testing.assert_array_equal(result.detections.scores, expected.scores)
    with pytest.raises(EvburstError, match="must divide the length of the windows, 50 ms"):
        next(iter(Detector("street", sensor_size=(304, 240), stride_ms=15).stream(EventArray(events, SIZE))))


@pytest.mark.parametrize("start_s", [0.02, 0.05, 0.06, 0.1125, 0.13])
@pytest.mark.parametrize("form", ["events", "a file"])
def test_overlapping_windows_from_a_start_have_the_events_before_it(
    events: Events, tmp_path: Path, start_s: float, form: str
) -> None:
    (path := tmp_path / "a_td.dat").write_bytes(dat_header(SIZE) + pack(events).tobytes())
    source = EventArray(events, SIZE) if form == "events" else path
    whole = list(Detector("street", sensor_size=SIZE, stride_ms=12.5).stream(source))
    found = list(Detector("street", sensor_size=SIZE, stride_ms=12.5, start_s=start_s).stream(source))
    expected = [result for result in whole if result.t1_us > int(events["t"][0]) + round(1e6 * start_s)]
    assert len(found) < len(whole)
    assert [(r.t0_us, r.t1_us, r.events) for r in found] == [(r.t0_us, r.t1_us, r.events) for r in expected]
    assert boxes(found) == boxes(expected)


def test_maps_on_request() -> None:
    (result,) = Detector("street", max_windows=1, maps=True).stream(SAMPLE)
    assert result.maps is not None
    assert len(result.maps) == 4
    assert {values.shape[1:] for values in result.maps.values()} == {(32, 40), (16, 20)}
    assert result.energy is not None
    assert 0 < (result.energy.energies("int8").ratio or 0) < 1


def test_what_holds_arrays_is_equal_to_itself_alone() -> None:
    """As NumPy's own arrays have no equality that is true or false: in sets, lists and as keys, an object is itself."""
    (result,) = Classifier("nmnist", max_windows=1)(random_events(1000, SensorSize(34, 34), 90_000))
    bundle = Bundle.load("nmnist")
    window = next(open_events(SAMPLE).windows(50_000))
    objects = [result, result.stats, result.classification, window, bundle.parameters, *bundle.parameters.neurons.values()]
    for one in objects:
        assert one in [deepcopy(one), one]
        assert len({one, deepcopy(one)}) == 2


def test_boxes_as_others_hold_them(detector: Detector) -> None:
    found = next(iter(detector.stream(SAMPLE))).detections
    assert len(found) > 0
    assert found.to_prophesee()["w"] == pytest.approx(found.boxes_xyxy[:, 2] - found.boxes_xyxy[:, 0])
    first = found.to_coco(image_id=7)[0]
    assert (first["image_id"], first["category_id"]) == (7, int(found.labels[0]))
    pytest.importorskip("supervision")
    assert (found.to_supervision().xyxy == found.boxes_xyxy).all()


def test_importing_evburst_is_light_and_lists_its_names() -> None:
    assert set(evburst.__all__) <= set(dir(evburst))
    with pytest.raises(AttributeError, match="no attribute 'Detecter'"):
        evburst.Detecter  # noqa: B018
    assert {"sys", "Path", "import_module"}.isdisjoint(dir(evburst))
    code = "import sys, evburst; print([m for m in ('torch', 'numba', 'cv2', 'numpy') if m in sys.modules])"
    assert in_new_process(code).strip() == "[]"


def test_a_recording_without_usable_events_is_called_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the words of the command, whose run ends with an error."""
    path, none = tmp_path / "a.raw", np.empty((0, 4))
    path.write_bytes(b"% evt 2.0\n% geometry 304x240\n% end\n" + np.full(5, 1 << 28, "<u4").tobytes())  # before any time
    detector = Detector("street", sensor_size=SIZE)
    assert list(detector.stream(path)) == list(detector.stream(none)) == detector(none) == []
    assert Classifier("nmnist").classify(none) is None
    in_memory = "events: contains no usable events"
    assert caplog.messages == [f"{path}: contains no usable events (repaired: untimed events 5)", *[in_memory] * 3]
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    with pytest.raises(EvburstError) as caught:
        detect_file(path, tmp_path / "out")
    assert str(caught.value) == caplog.messages[0]
    with pytest.raises(EvburstError, match=r"events: contains no usable events after 0\.06 s"):
        Detector("street", sensor_size=SIZE, start_s=0.06)(none)


def test_networks_of_a_few_sensor_sizes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those used last; a run that has begun keeps its own, and a size that comes back gives the same results."""
    opened: list[SensorSize] = []
    alive: list[weakref.ref[Any]] = []

    def counted(bundle: Any, config: Any, size: SensorSize, **settings: Any) -> Any:
        inference = open_inference(bundle, config, size, **settings)
        opened.append(size)
        alive.append(weakref.ref(inference.network))
        return inference

    monkeypatch.setattr("evburst.app.library.open_inference", counted)
    detector = Detector("street", ann=True, sensor_size=SIZE)
    sizes = [SensorSize(64 + 32 * k, 64) for k in range(MOST_SIZES + 2)]
    recordings = [EventArray(random_events(4000, size, 90_000), size) for size in sizes]
    running = detector.stream(recordings[0])
    first = [next(running)]
    found = [boxes(detector(recording)) for recording in recordings[:MOST_SIZES]]
    assert [boxes(detector(recording)) for recording in recordings[:MOST_SIZES]] == found
    assert opened == sizes[:MOST_SIZES]
    detector(recordings[0])  # now the second one has not been used for longest
    for recording in recordings[MOST_SIZES:]:
        detector(recording)
    assert boxes([*first, *running]) == found[0]
    del running
    gc.collect()
    assert [size for size, network in zip(opened, alive, strict=True) if network() is not None] == [sizes[0], *sizes[3:]]
    assert [boxes(detector(recordings[k])) for k in (0, 1)] == found[:2]
    assert opened == [*sizes, sizes[1]]
