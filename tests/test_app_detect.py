"""detect.py as a user runs it: real files, exact errors, readable outputs."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from evburst.app.cli import detect_main
from evburst.app.detect import DetectConfig, detect_file, human_summary
from evburst.app.inference import WindowResult
from evburst.app.outputs import sinks
from evburst.app.outputs.sinks import BoxSink, RunInfo
from evburst.app.runs import open_inference
from evburst.data.boxes import BBOX_DTYPE, Detections, iou_matrix, read_prophesee_boxes
from evburst.data.errors import EventFileError
from evburst.data.events import EventArray, EventWindow, SensorSize
from evburst.data.readers import open_events
from evburst.data.slicing import first_sound_us
from evburst.data.writers import write_events
from evburst.eval.energy import EnergyTotals
from evburst.models.bundle import Bundle
from evburst.models.runtime.int8.simd.emit import AVAILABLE
from tests.conftest import ROOT, SAMPLE, SHARED, make_events, random_events
from tests.event_files import fed
from tests.test_data_readers_dat import HEADER, dat


def detect(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of detect.py."""
    code = detect_main([str(arg) for arg in args])
    return code, *capsys.readouterr()


def test_the_sample_gives_boxes_energy_and_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = detect(capsys, "--events", SAMPLE, "--out", tmp_path, "--json", "--max-windows", 12)
    summary = json.loads(out)
    assert code == 0
    assert (summary["windows"], summary["network"], summary["faults"]) == (12, "snn", {})
    assert summary["detections"] > 0
    assert 0 < summary["energy"]["ratio"] < 1
    assert summary["energy"]["ratio"] == pytest.approx(summary["energy"]["snn_pj"] / summary["energy"]["ann_pj"], abs=1e-4)
    assert summary["latency_ms"]["p50"] <= summary["latency_ms"]["p99"]
    assert "memory traffic" in summary["energy"]["excluded"]
    beyond = summary["energy"]["beyond_silence"]
    assert beyond["snn_pj"] == pytest.approx(0.1 * beyond["synaptic_ops"])
    assert beyond["of_ann"] == pytest.approx(beyond["snn_pj"] / summary["energy"]["ann_pj"])
    assert 0 < beyond["snn_pj"] < 1.5 * summary["energy"]["snn_pj"]
    text = human_summary({**summary, "folder": tmp_path})
    assert f"changes   {beyond['snn_pj'] / 1e6:,.1f} uJ per window, {100 * beyond['of_ann']:.1f} %" in text
    lines = [json.loads(line) for line in (tmp_path / "detections.jsonl").read_text().splitlines()]
    assert [line["t_us"] for line in lines] == list(range(50_000, 600_001, 50_000))
    assert sum(line["events"] for line in lines) == summary["events"]
    boxes = np.load(tmp_path / "bbox.npy")
    assert boxes.dtype == BBOX_DTYPE
    assert len(boxes) == summary["detections"] == sum(len(line["scores"]) for line in lines)
    video = cv2.VideoCapture(str(tmp_path / "annotated.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 12
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_windows_of_a_number_of_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their lengths are in the summary and in every line, and figures per second depend on them."""
    args = ["--events", SAMPLE, "--out", tmp_path, "--window-events", 20_000, "--max-windows", 8, "--track"]
    code, out, _ = detect(capsys, *args, "--json")
    summary = json.loads(out)
    assert code == 0
    lines = [json.loads(line) for line in (tmp_path / "detections.jsonl").read_text().splitlines()]
    assert [line["events"] for line in lines] == [20_000] * 8
    lengths = [(line["t_us"] - line["t0_us"]) / 1000 for line in lines]
    assert len(set(lengths)) > 4
    assert (summary["window_events"], summary["window_ms"]["p50"]) == (20_000, pytest.approx(np.median(lengths), abs=0.01))
    assert summary["recorded_s"] == pytest.approx(sum(lengths) / 1000, abs=0.001)
    assert summary["detections"] > 0
    video = cv2.VideoCapture(str(tmp_path / "annotated.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 8
    code, out, err = detect(capsys, *args, "--no-video")
    assert "expect worse results" not in err
    assert f"8 windows of up to 20,000 events (1 % within {summary['window_ms']['p1']} ms, half" in out


def test_only_some_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--events", SAMPLE, "--no-video", "--max-windows", 8, "--json"]
    both = json.loads(detect(capsys, *args, "--out", tmp_path / "both")[1])["per_class"]
    assert both.keys() == {"car", "pedestrian"}
    for names in (["car"], ["pedestrian"], ["car", "pedestrian"]):
        flags = [word for name in names for word in ("--class", name)]
        found = json.loads(detect(capsys, *args, "--out", tmp_path / "some", *flags)[1])["per_class"]
        assert found == {name: both[name] for name in names}
    code, out, err = detect(capsys, *args, "--out", tmp_path / "none", "--class", "cart")
    assert (code, out) == (1, "")
    assert err == "error: class 'cart' is unknown to these weights (known: car, pedestrian)\n"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--window-events", "0"], "window_events must be 1 to 33554432, received 0"),
        (["--window-ms", "0.001"], "window_ms must be 0.1 to 60000, received 0.001"),
        (["--stride-ms", "20"], "must divide the length of the windows"),
        (["--stride-ms", "10", "--window-events", "5"], "exclude each other"),
        (["--window-events", "5", "--window-ms", "5"], "give one"),
        (["--slow", "2", "--fps", "2"], "give one"),
        (["--slow", "0"], "slow must be"),
        (["--slow", "2", "--sinks", "jsonl"], "add video to the sinks"),
        (["--fps", "2", "--sinks", "jsonl,csv"], "add video to the sinks"),
        (["--tracking.hold-s", "5"], "add track, or leave it out"),
        (["--memory", "--batch", "7"], "leave --batch out"),
        (["--memory", "--batch", "auto"], "leave --batch out"),
        (["--memory", "--idle-events", "9"], "leave --idle-events out"),
        (["--memory", "--idle-events", "9", "--batch", "2"], "leave --batch and --idle-events out"),
    ],
)
def test_settings_that_contradict_each_other(capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    code, _, err = detect(capsys, "--events", SAMPLE, *flags)
    assert code == 1
    assert message in err


def test_most_boxes_of_the_sample_are_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the drawn street, whose generator the network never saw: most boxes with a score above 0.5 overlap a label."""
    detect(capsys, "--events", SAMPLE, "--out", tmp_path, "--no-video", "--score", 0.5)
    labels = {found.t_us: found for found in read_prophesee_boxes(SAMPLE.with_name("street_bbox.npy"))}
    right, total = 0, 0
    for found in read_prophesee_boxes(tmp_path / "bbox.npy"):
        truth = labels[found.t_us]
        same = found.labels[:, None] == truth.labels[None]
        right += int(((iou_matrix(found.boxes_xyxy, truth.boxes_xyxy) >= 0.5) & same).any(1).sum())
        total += len(found)
    assert total >= 40
    assert right >= 0.7 * total


def test_ann_runs_the_same_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = detect(capsys, "--events", SAMPLE, "--out", tmp_path, "--json", "--ann", "--no-video", "--max-windows", 3)
    summary = json.loads(out)
    assert code == 0
    assert (summary["network"], summary["timesteps"], summary["energy"]["snn_pj"]) == ("ann", None, None)
    assert not (tmp_path / "annotated.mp4").exists()


@pytest.mark.parametrize("batch", [3, "auto"])
def test_batches_change_nothing_that_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], batch: object) -> None:
    """Neither boxes nor energies nor counts; the last batch is not full. One engine: the last bits of others may differ."""
    for name, size in (("one", 1), ("many", batch)):
        args = ["--events", SAMPLE, "--out", tmp_path / name, "--no-video", "--max-windows", 7, "--batch", size, "--json"]
        args += ["--engine", "int8" if AVAILABLE else "reference"]
        code, out, _ = detect(capsys, *args)
        assert code == 0
        assert json.loads(out)["windows"] == 7
    for file in ("detections.jsonl", "bbox.npy"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "many" / file).read_bytes()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("network", [[], ["--ann"]], ids=["snn", "ann"])
def test_idle_windows_cost_nothing_and_change_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], batch: int, network: list[str]
) -> None:
    common = "--events", SAMPLE, "--no-video", "--max-windows", 10, "--batch", batch, *network
    detect(capsys, *common, "--out", tmp_path / "all")
    all_lines = [json.loads(line) for line in (tmp_path / "all" / "detections.jsonl").read_text().splitlines()]
    limit = sorted(line["events"] for line in all_lines)[4]
    _, out, _ = detect(capsys, *common, "--out", tmp_path / "idle", "--set", f"idle_events={limit}", "--json")
    lines = [json.loads(line) for line in (tmp_path / "idle" / "detections.jsonl").read_text().splitlines()]
    assert json.loads(out)["idle_windows"] == 5
    for line, full in zip(lines, all_lines, strict=True):
        assert line["events"] == full["events"]
        if line["events"] > limit:
            assert line == full
        else:
            assert (line["scores"], line["energy_pj"], line["t_us"]) == ([], 0, full["t_us"])
            assert line["spikes"] == (None if network else 0)


@pytest.mark.parametrize("batch", [2, 4])
@pytest.mark.parametrize("error", [EventFileError("torn"), ValueError("torn")], ids=["of a file", "of a user's source"])
def test_an_error_is_raised_after_the_results_of_earlier_windows(error: Exception, batch: int) -> None:
    """Windows are read in advance and in batches; those before the fault still give results, in order."""
    stream = EventArray(random_events(4_000, SensorSize(64, 64), 20_000), SensorSize(64, 64))
    inference = open_inference(Bundle.load("street"), DetectConfig(window_ms=5.0), stream.sensor_size, stream.faults)

    def windows() -> Iterator[EventWindow]:
        yield from islice(stream.windows(5_000), 3)
        raise error

    times, results = [], inference.stream(windows(), batch)
    for _ in range(3):
        result = next(results)
        times.append(result.detections.t_us)
        assert result.events == int(result.grid.sum())
    assert times == [5_000, 10_000, 15_000]
    with pytest.raises(type(error), match="torn"):
        next(results)


def test_start_time_and_filters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The windows of the whole recording from 2 s on; events removed by filters are reported, and not counted."""
    args = ["--events", SAMPLE, "--out", tmp_path, "--no-video", "--ann", "--start-s", 2, "--max-windows", 3]
    _, out, _ = detect(capsys, *args, "--json")
    plain = json.loads(out)
    lines = [json.loads(line) for line in (tmp_path / "detections.jsonl").read_text().splitlines()]
    assert [line["t_us"] for line in lines] == [2_050_000, 2_100_000, 2_150_000]
    assert plain["filtered"] == {"hot_pixel": 0, "refractory": 0, "background": 0}
    args += ["--set", "filters.refractory_us=5000", "--set", "filters.background_us=2000"]
    _, out, _ = detect(capsys, *args, "--json")
    filtered = json.loads(out)
    assert min(filtered["filtered"]["refractory"], filtered["filtered"]["background"]) > 0
    assert filtered["events"] + sum(filtered["filtered"].values()) == plain["events"]
    _, out, _ = detect(capsys, *args)
    assert f"filtered  {sum(filtered['filtered'].values()):,} events (refractory " in out


def test_overlapping_windows_from_a_start_have_the_events_before_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = []
    for start in ([], ["--start-s", 0.2]):
        args = ["--events", SAMPLE, "--out", tmp_path, "--no-video", "--stride-ms", 10, "--max-windows", 24, *start]
        assert detect(capsys, *args)[0] == 0
        lines.append((tmp_path / "detections.jsonl").read_text().splitlines())
    assert json.loads(lines[1][0])["t_us"] == 210_000
    assert lines[1][:4] == lines[0][20:]


@pytest.mark.parametrize("timesteps", [1, 2])
def test_text_for_people_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str], timesteps: int) -> None:
    args = "--events", SAMPLE, "--out", tmp_path, "--no-video", "--max-windows", 2, "--timesteps", timesteps
    _, out, _ = detect(capsys, *args)
    assert out.startswith("street_td.dat: ")
    names = ["boxes", "speed", "energy", "traffic", "changes", "spikes", "written"]
    assert [line.split()[0] for line in out.splitlines()[1:]] == names
    assert out.count("of the same network quantised") == (2 if timesteps == 1 else 0)


@pytest.mark.parametrize("size", [(64, 48), (346, 260), (33, 31)])
def test_any_sensor_size(tmp_path: Path, capsys: pytest.CaptureFixture[str], size: tuple[int, int]) -> None:
    write_events(tmp_path / "a.dat", random_events(20_000, SensorSize(*size), 120_000), SensorSize(*size))
    code, out, _ = detect(capsys, "--events", tmp_path / "a.dat", "--out", tmp_path / "o", "--json", "--score", 0.01)
    assert code == 0
    assert json.loads(out)["windows"] == 3
    boxes = np.load(tmp_path / "o" / "bbox.npy")
    assert (boxes["x"] >= 0).all()
    assert (boxes["x"] + boxes["w"] <= size[0] + 1e-3).all()
    assert (boxes["y"] + boxes["h"] <= size[1] + 1e-3).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (HEADER, "the file ends after the header: event type and size are missing at byte"),
        (b"some text\n", "not a Prophesee DAT file"),
        (HEADER + b"\x0c\x08abc", "no event after the header, which ends at byte"),
    ],
    ids=["missing", "empty", "header only", "text", "half an event"],
)
def test_unusable_input_is_one_line_and_exit_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    path = tmp_path / "bad.dat"
    if content is not None:
        path.write_bytes(content)
    code, out, err = detect(capsys, "--events", path, "--out", tmp_path / "o")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "o").exists()


def test_truncation_backwards_time_and_strays_are_repaired_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = dat(tmp_path / "a.dat", [*range(0, 60_000, 100), 10, 20, *range(60_000, 90_000, 100)])
    with path.open("ab") as file:
        file.write(struct.pack("<II", 90_001, 400 | 7 << 14) + b"\x01\x02\x03")
    code, out, err = detect(capsys, "--events", path, "--out", tmp_path / "o", "--json", "--no-video")
    assert code == 0
    assert json.loads(out)["faults"] == {"truncated_bytes": 3, "late_events": 2, "outside_sensor": 1}
    assert err == f"warning: {path}: repaired: truncated bytes 3, late events 2, outside sensor 1\n"


@pytest.mark.parametrize("flags", ["", "--stride-ms 10", "--window-events 50", "--filters.refractory-us 1000000"])
@pytest.mark.parametrize("suffix", [".dat", ".npy"])
def test_a_recording_that_is_not_in_order_of_time_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str, flags: str
) -> None:
    """The newest event first, and halves that were swapped; the filter would remove nearly all that is left."""
    t = np.arange(0, 800_000, 1000)
    for name, order in (("reversed", t[::-1]), ("swapped", np.concatenate([t[300:], t[:300]]))):
        path = tmp_path / f"{name}{suffix}"
        size = ["--sensor-size", "64x48"] if suffix == ".npy" else []
        if size:
            np.save(path, make_events(order, 3, 4))
        else:
            write_events(path, make_events(order, 3, 4), SensorSize(64, 48))
        code, out, err = detect(capsys, "--events", path, "--out", tmp_path / "o", "--no-video", "--ann", *size, *flags.split())
        assert (code, out) == (1, "")
        assert "events are older than a window before them: the file is not in order of time; sort its events" in err


@pytest.mark.parametrize("flags", ["", "--stride-ms 10", "--window-events 50", "--filters.refractory-us 1000000"])
def test_some_late_events_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str) -> None:
    """One of 20, and many before the start, which is in the last tenth."""
    t = np.arange(0, 800_000, 1000).tolist()
    for number in range(760, 0, -20):
        t.insert(number, 0)
    np.save(tmp_path / "a.npy", make_events(t, 3, 4))
    command = ["--events", tmp_path / "a.npy", "--out", tmp_path / "o", "--no-video", "--ann", "--sensor-size", "64x48"]
    for start in ([], ["--start-s", 0.76]):
        assert detect(capsys, *command, *flags.split(), *start)[0] == 0


def test_a_run_whose_events_are_late_ends_early(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    t = [*range(1_000_000, 1_100_000, 10), *range(0, 1_000_000, 200), *range(1_100_000, 1_500_000, 1000)]
    write_events(tmp_path / "a.dat", make_events(t, 3, 4), SensorSize(64, 48))
    code, _, err = detect(capsys, "--events", tmp_path / "a.dat", "--out", tmp_path / "o", "--no-video", "--ann")
    assert (code, "5000 of 15000 events are older" in err) == (1, True)
    assert len((tmp_path / "o" / "detections.jsonl").read_text().splitlines()) == 1


def test_a_pipe_whose_clock_is_reset_is_detected_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = [start + t for start in (9_000_000, 2_000_000) for t in range(0, 100_000, 100)]
    writer = fed(tmp_path / "a", b"".join(b"%d,1,1,1\n" % t for t in times))
    code, out, err = detect(
        capsys, "--events", tmp_path / "a", "--sensor-size", "64x48", "--out", tmp_path / "o", "--json", "--no-video"
    )
    writer.join()
    summary = json.loads(out)
    assert (code, summary["windows"], summary["events"], summary["recorded_s"]) == (0, 4, 2000, 0.2)
    assert summary["faults"] == {"clock_resets": 1}
    assert "warning: the clock of the source jumped back by 7.1 s: windows continue at its new time\n" in err
    lines = (tmp_path / "o" / "detections.jsonl").read_text().splitlines()
    assert [json.loads(line)["t_us"] for line in lines] == [9_050_000, 9_100_000, 2_050_000, 2_100_000]


def test_a_pipe_keeps_its_name_and_the_results_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = []
    for _ in range(2):
        writer = fed(tmp_path / "a", b"".join(b"%d,1,1,1\n" % t for t in range(0, 100_000, 100)))
        # What /dev/stdin and <(...) are: a link to a pipe, whose own name says nothing.
        (link := tmp_path / "link").unlink(missing_ok=True)
        link.symlink_to(tmp_path / "a")
        found.append(detect_file(link, config=DetectConfig(sinks=("jsonl",), sensor_size="64x48")))
        writer.join()
        (tmp_path / "a").unlink()
    assert [(summary["events_path"], summary["folder"]) for summary in found] == [
        (str(tmp_path / "link"), "runs/detect/link"),
        (str(tmp_path / "link"), "runs/detect/link-2"),
    ]


@pytest.mark.parametrize("length", [[], ["--window-ms", 40, "--stride-ms", 10]])
def test_the_recorded_time_is_that_from_the_first_event_to_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], length: list[str | int]
) -> None:
    path = dat(tmp_path / "a.dat", list(range(1_040_000, 1_161_001, 1000)))
    code, out, _ = detect(capsys, "--events", path, "--out", tmp_path / "o", "--json", "--no-video", *length)
    assert (code, json.loads(out)["recorded_s"]) == (0, 0.121)


def test_wrong_sensor_size_is_an_error_and_written_output_is_readable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = dat(tmp_path / "a.dat", list(range(0, 200_000, 100)), header=b"% Version 2\n", x=200, y=50)
    code, _, err = detect(capsys, "--events", path, "--out", tmp_path / "o", "--sensor-size", "64x48", "--no-video")
    assert code == 1
    assert "lie outside 64x48: pass the sensor's true size (--sensor-size, in Python sensor_size)" in err
    assert len(np.load(tmp_path / "o" / "bbox.npy")) == 0


@pytest.mark.parametrize("batch", [1, 2])
def test_the_sensor_size_is_judged_by_many_events(tmp_path: Path, capsys: pytest.CaptureFixture[str], batch: int) -> None:
    """One of the first window's two events is outside the sensor, but only 1 of 12 in the recording."""
    path, size = tmp_path / "a.npy", SensorSize(64, 64)
    events = random_events(12, SensorSize(60, 60), 50_000)
    events["t"] = [0, 1, *range(50_000, 50_010)]
    events["x"][1] = 64
    np.save(path, events)
    args = ["--events", path, "--out", tmp_path / "o", "--sensor-size", str(size), "--no-video", "--batch", batch, "--json"]
    code, out, _ = detect(capsys, *args)
    assert code == 0
    assert json.loads(out)["faults"] == {"outside_sensor": 1}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--weights", "strete"], "bundled: caltech101, caltech6"),
        (["--sensor-size", "304"], "write it as WIDTHxHEIGHT"),
        (["--timesteps", "0"], "timesteps must be 1 to 64"),
        (["--window-ms", "-5"], "window_ms must be 0.1 to 60000"),
        (["--window-ms", "0.0001"], "window_ms must be"),
        (["--start-s", "-1"], "start_s must be 0 to 1e9"),
        (["--start-s", "3.1"], "contains no usable events after 3.1 s"),
        (["--set", "filters.refractory_us=-1"], "refractory_us and background_us must not be negative"),
        (["--set", "filters.refractory=1"], "did you mean 'filters.refractory_us'"),
        (["--score", "1.5"], "post: score must be 0 to 1, received 1.5"),
        (["--set", "pots.score=0.5"], "did you mean 'post.score'"),
        (["--config", "gone.yaml"], "no such configuration file"),
    ],
)
def test_wrong_settings_are_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    code, _, err = detect(capsys, "--events", SAMPLE, "--out", tmp_path / "o", *args)
    assert code == 1
    assert message in err


def test_usage_errors_are_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        detect_main([])
    assert "--events" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["detect.py", "train.py", "convert.py", "live.py"])
def test_scripts_run_from_any_folder(tmp_path: Path, script: str) -> None:
    done = subprocess.run([sys.executable, ROOT / script, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: {script}")


def test_interrupted_box_file_is_readable(tmp_path: Path) -> None:
    """Not closed, as after a kill: the header counts the rows of every window that was written."""
    found = Detections(np.array([[1, 2, 3, 4]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64), 9)
    sink = BoxSink(tmp_path / "b.npy", RunInfo(("car",), SensorSize(8, 8), 50_000, 0, "ANN"))
    grid = np.zeros((2, 8, 8), np.uint8)
    for _ in range(3):
        sink.write(WindowResult(0, 9, grid, found, 0, False, None, EnergyTotals(0), None, None, None, 1.0, 1.0, 1.0))
    assert len(np.load(tmp_path / "b.npy")) == 3
    sink.close()
    np.save(tmp_path / "whole.npy", np.concatenate([found.to_prophesee()] * 3))
    assert (tmp_path / "b.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


@pytest.mark.shared
def test_the_car_ahead_is_found_in_the_real_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Annotated by hand: (120, 88)-(161, 128) at 0 s grows to (113, 87)-(166, 138) at 0.74 s."""
    detect(capsys, "--events", SHARED / "real" / "gen1_street_td.dat", "--out", tmp_path, "--no-video")
    first, last = np.array([120, 88, 161, 128]), np.array([113, 87, 166, 138])
    hits = 0
    for line in (tmp_path / "detections.jsonl").read_text().splitlines():
        window = json.loads(line)
        truth = (first + (last - first) * min(window["t_us"] / 740_000, 1)).astype(np.float32)[None]
        cars = np.array(window["boxes_xyxy"], np.float32).reshape(-1, 4)[np.array(window["labels"], int) == 0]
        hits += bool((iou_matrix(cars, truth) >= 0.5).any())
    assert hits >= 12  # of 15


@pytest.mark.shared
@pytest.mark.parametrize("network", [[], ["--ann"]])
def test_the_face_of_a_real_ncaltech101_recording_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], network: list[str]
) -> None:
    """One of N-Caltech101's Faces_easy, three saccades; its box was annotated by hand."""
    recording = SHARED / "real" / "ncaltech101_faces_easy_0001.bin"
    flags = ["--weights", "caltech6", "--out", tmp_path, "--no-video", "--json", *network]
    code, _, _ = detect(capsys, "--events", recording, *flags)
    assert code == 0
    rows = [json.loads(line) for line in (tmp_path / "detections.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        best = int(np.argmax(row["scores"]))
        assert row["labels"][best] == 2
        overlap = iou_matrix(np.array([row["boxes_xyxy"][best]], np.float32), np.array([[24, 5, 131, 162]], np.float32))
        assert overlap[0, 0] > 0.8


def test_the_clock_of_the_video_counts_from_the_first_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a time read from it can be passed as `--start-s`."""
    clocks: list[int] = []
    renderer = sinks.Renderer

    def watched(size: SensorSize, classes: tuple[str, ...], network: str, clock_us: int) -> object:
        clocks.append(clock_us)
        return renderer(size, classes, network, clock_us)

    monkeypatch.setattr(sinks, "Renderer", watched)
    first_us = first_sound_us(next(open_events(SAMPLE).packets())["t"])
    for start_s in (0.0, 2.0):
        detect_file(SAMPLE, tmp_path / str(start_s), DetectConfig(start_s=start_s, max_windows=1, sinks=("video",)))
    assert clocks == [first_us, first_us]
