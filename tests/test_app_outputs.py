"""The folder of a run: outputs of one run only, nothing of anybody else's, readable whatever ends the run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from evburst.app.cli import detect_main
from evburst.app.detect import DetectConfig, DetectInterrupted, detect_file, human_summary
from evburst.app.inference import WindowResult
from evburst.app.outputs.folder import SUMMARY, RunFolder, free_folder, read_summary
from evburst.app.outputs.render import Renderer, picture_scale
from evburst.app.outputs.sinks import SINKS, JsonlSink, RunInfo, open_sink
from evburst.app.outputs.video import VideoFile
from evburst.app.runs import run_windows
from evburst.app.totals import RecordingTotals
from evburst.data.boxes import Detections
from evburst.data.errors import ConfigError, DataError, EvburstError
from evburst.data.events import SensorSize
from evburst.data.files import part_of
from evburst.data.writers import write_events
from evburst.eval.energy import EnergyTotals
from tests.conftest import SAMPLE, random_events

SIZE = SensorSize(64, 48)
FAST = DetectConfig(sinks=("jsonl", "bbox"))


def recording(path: Path, seed: int = 0) -> Path:
    """100 ms of random events."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_events(path, random_events(2_000, SIZE, 100_000, seed), SIZE)
    return path


def result(n: int = 2, t0_us: int = 0, idle: bool = False) -> WindowResult:
    """A window with n boxes side by side."""
    boxes = np.array([[10 * k, 5, 10 * k + 8, 20] for k in range(n)], np.float32).reshape(-1, 4)
    found = Detections(boxes, np.full(n, 0.5, np.float32), np.arange(n) % 2, t0_us + 50_000)
    return WindowResult(
        t0_us, t0_us + 50_000, np.ones((4, 48, 64), np.uint8), found, 9, idle, None, EnergyTotals(0), 3.0, 0.1, 1, 1e6, 2e6, 7.5
    )


def info() -> RunInfo:
    return RunInfo(("car", "pedestrian"), SIZE, 50_000, 0, "SNN T=1")


def test_recordings_of_one_name_go_to_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = recording(tmp_path / "a" / "rec_td.dat"), recording(tmp_path / "b" / "rec_td.dat", 1)
    folders = [Path(detect_file(path, config=FAST)["folder"]) for path in (one, two, one)]
    assert folders == [Path("runs/detect/rec_td"), Path("runs/detect/rec_td-2"), Path("runs/detect/rec_td")]
    for folder, path in zip(folders, (one, two), strict=False):
        summary = read_summary(folder)
        assert summary is not None
        assert (summary["status"], summary["events_path"]) == ("complete", str(path))


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    base = tmp_path / "rec"
    base.mkdir()
    (base / "notes.txt").write_text("mine")
    assert free_folder(base, tmp_path / "rec.dat") == tmp_path / "rec-2"


def test_outputs_of_a_run_replace_all_of_the_run_before(tmp_path: Path) -> None:
    path, out = recording(tmp_path / "a.dat"), tmp_path / "out"
    detect_file(path, out, DetectConfig(sinks=("jsonl", "bbox", "video", "csv")))
    assert {file.name for file in out.iterdir()} == {
        "detections.jsonl",
        "bbox.npy",
        "annotated.mp4",
        "boxes.csv",
        "summary.json",
    }
    detect_file(path, out, FAST)
    assert {file.name for file in out.iterdir()} == {"detections.jsonl", "bbox.npy", "summary.json"}


def test_a_failed_run_leaves_a_summary_that_says_so(tmp_path: Path) -> None:
    path, out = recording(tmp_path / "a.dat"), tmp_path / "out"
    header = path.read_bytes()
    path.write_bytes(b"% Version 2\n" + header[header.index(bytes([0x0C, 8])) :])  # no sensor size
    detect_file(path, out, DetectConfig(sinks=("jsonl",), sensor_size="64x48"))
    with pytest.raises(EvburstError, match="lie outside"):
        detect_file(path, out, DetectConfig(sinks=("jsonl",), sensor_size="32x24"))
    summary = read_summary(out)
    assert summary is not None
    assert summary["status"] == "failed"
    assert "lie outside" in summary["error"]
    assert "energy" not in summary


@pytest.mark.parametrize("name", ["bbox.npy", "summary.json"])
def test_files_that_no_run_wrote_are_not_replaced(tmp_path: Path, name: str) -> None:
    path, out = recording(tmp_path / "a.dat"), tmp_path / "out"
    out.mkdir()
    (out / name).write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match=f"{name}: exists already and was not written by evburst"):
        detect_file(path, out, FAST)
    assert (out / name).read_text() == '{"mine": 1}'
    detect_file(path, out, DetectConfig(sinks=("jsonl", "bbox"), overwrite=True))
    assert read_summary(out) is not None


def test_the_recording_itself_is_never_replaced(tmp_path: Path) -> None:
    """Not even on request: its events would be deleted before they are read."""
    path = recording(tmp_path / "a.dat").rename(tmp_path / "boxes.csv")
    before = path.read_bytes()
    for out in (tmp_path, tmp_path / "link"):
        if out.name == "link":
            out.mkdir()
            (out / "bbox.npy").symlink_to(path)
        with pytest.raises(ConfigError, match="the recording itself"):
            detect_file(path, out, DetectConfig(format="dat", sinks=("csv", "bbox"), overwrite=True))
    assert path.read_bytes() == before


def test_a_run_removes_only_what_the_run_before_has_written(tmp_path: Path) -> None:
    """Files of other names that evburst could have written stay, and are not replaced either."""
    path, out = recording(tmp_path / "a.dat"), tmp_path / "out"
    detect_file(path, out, DetectConfig(sinks=("jsonl", "bbox")))
    (out / "boxes.csv").write_text("mine")
    detect_file(path, out, DetectConfig(sinks=("jsonl",)))
    assert {file.name for file in out.iterdir() if not file.name.startswith(".")} == {
        "boxes.csv",
        "detections.jsonl",
        "summary.json",
    }
    with pytest.raises(ConfigError, match=r"boxes\.csv: exists already and was not written by evburst"):
        detect_file(path, out, DetectConfig(sinks=("csv",)))
    assert (out / "boxes.csv").read_text() == "mine"
    detect_file(path, out, DetectConfig(sinks=("csv",), overwrite=True))
    assert (out / "boxes.csv").read_text() != "mine"


def test_a_summary_cannot_have_other_files_deleted(tmp_path: Path) -> None:
    path, out = recording(tmp_path / "a.dat"), tmp_path / "out"
    detect_file(path, out, FAST)
    (tmp_path / "precious").write_text("mine")
    for names in (["../precious"], "boxes.csv", None, [1, {}]):
        summary = json.loads((out / "summary.json").read_text())
        (out / "summary.json").write_text(json.dumps({**summary, "outputs": names}))
        for name in ("detections.jsonl", "bbox.npy"):
            (out / name).unlink(missing_ok=True)
        detect_file(path, out, FAST)
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_second_run_into_one_folder_is_refused(tmp_path: Path) -> None:
    path, out = recording(tmp_path / "a.dat"), tmp_path / "out"
    with RunFolder(out, path, ["bbox.npy"], ["bbox.npy"]), pytest.raises(ConfigError, match="another process is writing"):
        detect_file(path, out, FAST)
    detect_file(path, out, FAST)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recording(tmp_path / "a.dat")
    assert detect_main(["--events", str(path), "--out", str(path / "out")]) == 1
    err = capsys.readouterr().err
    assert "out: cannot be written into (Not a directory); use another --out" in err
    assert err.count("\n") == 1


@pytest.fixture
def full_disk() -> Iterator[None]:
    """A limit on the size of files simulates a full disk: writes fail in the same way."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1200, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("sink", ["jsonl", "bbox", "csv", "video"])
def test_a_full_disk_is_one_line_and_what_was_written_is_readable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], full_disk: None, sink: str
) -> None:
    run = ["--events", str(SAMPLE), "--out", str(tmp_path / "out"), "--max-windows", "30"]
    assert detect_main([*run, "--set", f"sinks=[{sink}]"]) == 1
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "cannot be written (File too large)" in line  # what the system says of this limit
    assert "Traceback" not in err
    if sink == "jsonl":
        lines = (tmp_path / "out" / "detections.jsonl").read_text().splitlines()
        assert len(lines) >= 1
        json.loads(lines[0])
    if sink == "bbox":
        assert len(np.load(tmp_path / "out" / "bbox.npy")) >= 1


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="names of any bytes are Linux's")
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = recording(tmp_path / "a.dat").rename(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.dat")))
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/out\xfe"))
    detect_file(path, out, DetectConfig(sinks=("video", "jsonl")))
    with (out / "annotated.mp4").open("rb") as file, av.open(file) as video:
        assert sum(1 for _ in video.decode(video=0)) == 2


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("name", SINKS)
def test_every_sink_writes_its_file_and_closes_it_readable(tmp_path: Path, name: str, counted: bool) -> None:
    """With boxes, without, and of an idle window; also of windows in which spikes were not counted."""
    sink = open_sink(name, tmp_path, info())
    for k, n in enumerate((2, 0, 1)):
        window = result(n, 50_000 * k, idle=n == 0)
        sink.write(window if counted or window.idle else replace(window, energy_pj=None, spikes=None, spikes_per_neuron=None))
    sink.close()
    (path,) = tmp_path.iterdir()
    assert path.name == SINKS[name].file.partition("/")[0]
    assert READ[name](path) == EXPECTED[name]


def test_lines_of_idle_windows_say_so(tmp_path: Path) -> None:
    sink = open_sink("jsonl", tmp_path, info())
    for idle in (False, True):
        sink.write(result(0, idle=idle))
    sink.close()
    lines = [json.loads(line) for line in (tmp_path / "detections.jsonl").read_text().splitlines()]
    assert [line.get("idle") for line in lines] == [None, True]


def video_facts(path: Path) -> tuple[str, int, float]:
    with av.open(str(path)) as video:
        stream = video.streams.video[0]
        return stream.codec_context.name, sum(1 for _ in video.decode(video=0)), float(stream.average_rate or 0)


READ = {
    "jsonl": lambda path: [len(json.loads(line)["scores"]) for line in path.read_text().splitlines()],
    "bbox": lambda path: np.load(path)["t"].tolist(),
    "csv": lambda path: path.read_text().splitlines()[:2],
    "coco": lambda path: [len(json.loads(path.read_text())[key]) for key in ("images", "annotations", "categories")],
    "video": video_facts,
    "crops": lambda path: {file.name: cv2.imread(str(file)).shape for file in path.iterdir()},
}
EXPECTED = {
    "jsonl": [2, 0, 1],
    "bbox": [50_000, 50_000, 150_000],
    "csv": ["t_us,class,score,x0,y0,x1,y1", "50000,car,0.5000,0.00,5.00,8.00,20.00"],
    "coco": [3, 3, 2],
    "video": ("h264", 3, 20.0),
    "crops": {
        "0001_50000us_car.png": (210, 112, 3),
        "0002_50000us_pedestrian.png": (210, 112, 3),
        "0003_150000us_car.png": (210, 112, 3),
    },
}


def played(path: Path) -> tuple[list[float], float]:
    """When each frame is shown, and the video's length, in seconds."""
    with av.open(str(path)) as video:
        times = [round(frame.time, 4) for frame in video.decode(video=0)]
        return times, round(video.duration / 1e6, 3)


@pytest.mark.parametrize(
    ("pace", "times", "length"),
    [
        ({}, [0.0, 0.05, 0.1], 0.15),
        ({"slow": 10.0}, [0.0, 0.5, 1.0], 1.5),
        ({"frames_per_s": 4.0}, [0.0, 0.25, 0.5], 0.75),
        ({"frames_per_s": 4.0, "step_us": None}, [0.0, 0.25, 0.5], 0.75),
    ],
)
def test_the_pace_of_the_video(tmp_path: Path, pace: dict[str, float], times: list[float], length: float) -> None:
    sink = open_sink("video", tmp_path, replace(info(), **pace))
    for k in range(3):
        sink.write(result(1, 50_000 * k))
    sink.close()
    assert played(tmp_path / "annotated.mp4") == (times, length)


@pytest.mark.parametrize("slow", [1.0, 3.0])
def test_windows_of_uneven_length_are_shown_as_long_as_they_took(tmp_path: Path, slow: float) -> None:
    ends, shown = [20_000, 300_000, 310_000, 900_000], 0
    sink = open_sink("video", tmp_path, replace(info(), step_us=None, slow=slow))
    for end in ends:
        sink.write(replace(result(1), t0_us=shown, t1_us=end))
        shown = end
    sink.close()
    assert played(tmp_path / "annotated.mp4") == ([0.0, *(round(slow * t * 1e-6, 4) for t in ends[:-1])], round(0.9 * slow, 3))


def test_an_emptied_folder_of_crops_is_removed(tmp_path: Path) -> None:
    path, out = recording(tmp_path / "a.dat"), tmp_path / "out"
    detect_file(path, out, replace(FAST, sinks=("jsonl", "crops")))
    assert (out / "crops").is_dir()
    detect_file(path, out, FAST)
    assert not (out / "crops").exists()
    (out / "crops").mkdir()
    detect_file(path, out, FAST)
    assert (out / "crops").is_dir()  # no run of evburst has made this one


def test_crops_of_an_earlier_run_are_deleted_and_nothing_else(tmp_path: Path) -> None:
    path, out = recording(tmp_path / "a.dat"), tmp_path / "out"
    detect_file(path, out, replace(FAST, sinks=("jsonl", "crops")))
    with RunFolder(out, path, ["crops/*us_*.png"], [entry.file for entry in SINKS.values()]) as run:
        (out / "crops").mkdir(exist_ok=True)
        (out / "crops" / "0001_5us_car.png").write_bytes(b"")
        run.write_summary({"status": "complete"})
    (out / "crops" / "mine.png").write_bytes(b"")
    detect_file(path, out, FAST)
    assert [file.name for file in (out / "crops").iterdir()] == ["mine.png"]


def test_pictures_of_the_user_among_crops_are_not_deleted(tmp_path: Path) -> None:
    path, out, crops = recording(tmp_path / "a.dat"), tmp_path / "out", replace(FAST, sinks=("jsonl", "crops"))
    detect_file(path, out, crops)
    (out / "crops" / "status_best.png").write_text("mine")
    detect_file(path, out, FAST)
    assert (out / "crops" / "status_best.png").read_text() == "mine"
    with pytest.raises(ConfigError, match=r"status_best\.png: exists already and was not written by evburst"):
        detect_file(path, out, crops)


def test_crops_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """In number, and to one of a track in half a second; objects that are held show nothing."""
    monkeypatch.setattr("evburst.app.outputs.sinks.MOST_CROPS", 3)
    sink = open_sink("crops", tmp_path, replace(info(), tracks=True))
    for k in range(40):
        one = result(2, 50_000 * k)
        ids, held = np.array([7, 8]), np.array([False, True])
        sink.write(replace(one, detections=replace(one.detections, track_ids=ids, held=held)))
    sink.close()
    names = sorted(file.name for file in (tmp_path / "crops").iterdir())
    assert names == ["0001_50000us_car_7.png", "0002_550000us_car_7.png", "0003_1050000us_car_7.png"]
    assert "stopped after 3 crops" in caplog.text


def test_an_unknown_sink_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="known: jsonl, bbox"):
        open_sink("xml", tmp_path, info())
    with pytest.raises(ValueError, match="sinks: 'xml' is unknown"):
        DetectConfig(sinks=("xml",))


def test_a_video_that_is_not_closed_plays_up_to_its_last_second(tmp_path: Path) -> None:
    """As after a kill: the file is fragmented, a fragment a second."""
    video = VideoFile(tmp_path / "a.mp4", (64, 48), 10)
    for k in range(120):
        video.write(np.full((48, 64, 3), k, np.uint8))
    video._file.flush()  # what the operating system has of a killed process
    with av.open(str(tmp_path / "a.mp4")) as read:
        assert sum(1 for _ in read.decode(video=0)) >= 20
    video.close()
    with pytest.raises(DataError, match="cannot be written"):
        VideoFile(tmp_path / "none" / "a.mp4", (64, 48), 10)


def test_a_picture_shows_the_energy_of_the_last_counted_window() -> None:
    def lower(renderer: Renderer, *energies_pj: float | None) -> bytes:
        pictures = [renderer.draw(replace(result(0), energy_pj=energy_pj)) for energy_pj in energies_pj]
        return pictures[-1][-30:].tobytes()

    def made(*energies_pj: float | None) -> bytes:
        return lower(Renderer(SIZE, ("car",), "SNN"), *energies_pj)

    assert made(5e8, None) == made(1e6, 5e8, None, None) != made(1e6, None)
    assert made(None) != made(5e8, None) != made(5e8)


def test_labels_of_neighbouring_boxes_cover_neither_each_other_nor_the_edge() -> None:
    renderer = Renderer(SIZE, ("car", "pedestrian"), "ANN")
    taken: list[tuple[int, int, int, int]] = []
    width, height = SIZE.width * renderer.scale, SIZE.height * renderer.scale
    for x0 in (0, 4, 8, width - 6):
        # Private: in a picture labels are only pixels.
        left, top, right, bottom = renderer._place((90, 20), x0, 10, 200, taken)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert not any(left < r and x < right and top < b and y < bottom for x, y, r, b in taken)
        taken.append((left, top, right, bottom))
    assert renderer.draw(result()).shape == (renderer.picture_size[1], renderer.picture_size[0], 3)


@pytest.mark.parametrize("size", [(33, 401), (16, 1000), (1, 1)])
def test_a_narrow_picture_has_room_for_legend_and_figures(size: tuple[int, int]) -> None:
    renderer = Renderer(SensorSize(*size), ("car", "pedestrian"), "ANN")
    picture = renderer.draw(replace(result(0), grid=np.zeros((4, size[1], size[0]), np.uint8)))
    # Private: in a picture a legend is only pixels.
    assert all(left >= 0 for left, *_ in renderer._legend(picture))
    assert picture[size[1] * renderer.scale + 4 :].any(0).any(1).sum() > 300  # columns with figures


def test_the_legend_can_be_read_over_events_and_beside_labels() -> None:
    """Its part of the picture does not depend on what is behind it; a label beside it takes another place."""
    renderer = Renderer(SIZE, ("car", "pedestrian"), "ANN")
    corner = np.array([[56, 0, 64, 9]], np.float32)
    boxes = Detections(corner, np.full(1, 0.5, np.float32), np.zeros(1, np.int64), 50_000)
    pictures = [
        renderer.draw(replace(result(0), grid=np.full((4, 48, 64), events, np.uint8), detections=found))
        for events, found in ((0, result(0).detections), (1, result(0).detections), (1, boxes))
    ]
    # Private: in a picture a legend is only pixels.
    places = renderer._legend(np.zeros_like(pictures[0]))
    assert len(places) == 4
    for left, top, right, bottom in places:
        shown = [picture[top:bottom, left:right] for picture in pictures]
        assert all((part == shown[0]).all() for part in shown)
        assert len(np.unique(shown[0].reshape(-1, 3), axis=0)) > 2


@pytest.mark.parametrize(("error", "status"), [(DataError("disk full"), "failed"), (KeyboardInterrupt(), "interrupted")])
def test_a_run_that_ends_on_a_full_disk_does_not_stay_running(tmp_path: Path, error: BaseException, status: str) -> None:
    folder = RunFolder(tmp_path / "out", tmp_path / "a.dat", [], [])
    folder.__enter__()
    part_of(folder.path / SUMMARY).symlink_to("/dev/full")
    folder.__exit__(type(error), error, None)
    summary = read_summary(tmp_path / "out")
    assert summary is not None
    assert (summary["status"], summary["events_path"]) == (status, str(tmp_path / "a.dat"))
    assert summary.get("error") == ("disk full" if status == "failed" else None)


def test_where_an_error_does_not_fit_on_a_full_disk_the_status_does(tmp_path: Path, full_disk: None) -> None:
    folder = RunFolder(tmp_path / "out", tmp_path / "a.dat", [], [])
    folder.__enter__()
    part_of(folder.path / SUMMARY).symlink_to("/dev/full")
    folder.__exit__(DataError, DataError("x" * 2000), None)
    summary = read_summary(tmp_path / "out")
    assert summary is not None
    assert (summary["status"], "error" in summary) == ("failed", False)


@pytest.mark.parametrize("moved", [False, True])
def test_a_folder_that_is_deleted_during_a_run_is_not_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    def lose(self: RecordingTotals) -> None:
        finish(self)
        out.rename(tmp_path / "elsewhere") if moved else shutil.rmtree(out)

    out, finish = tmp_path / "out", RecordingTotals.finish
    monkeypatch.setattr(RecordingTotals, "finish", lose)
    assert detect_main(["--events", str(SAMPLE), "--out", str(out), "--max-windows", "2", "--no-video"]) == 1
    assert capsys.readouterr() == ("", f"error: {out}: was moved or emptied during the run, whose results are not there\n")
    assert not out.exists()


@pytest.mark.parametrize("windows", [0, 3])
def test_an_interrupted_run_has_totals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], windows: int
) -> None:
    """Ctrl-C before the first window and after the third, all of which have events from their beginning to their end."""

    def interrupted(results: Iterator[WindowResult]) -> Iterator[WindowResult]:
        yield from islice(results, windows)
        raise KeyboardInterrupt

    monkeypatch.setattr("evburst.app.detect.run_windows", lambda *args: interrupted(run_windows(*args)))
    out = tmp_path / "out"
    assert detect_main(["--events", str(SAMPLE), "--out", str(out), "--sinks", "jsonl"]) == 130
    shown, summary = capsys.readouterr(), read_summary(out)
    assert summary is not None
    assert (summary["status"], summary["windows"], summary["energy"]["windows"]) == ("interrupted", windows, windows)
    assert summary["recorded_s"] == pytest.approx(0.05 * windows, abs=0.01)
    assert summary["config"]["sinks"] == ["jsonl"]
    assert "commit" in summary["provenance"]
    lines = [json.loads(line) for line in (out / "detections.jsonl").read_text().splitlines()]
    assert [len(lines), sum(line["events"] for line in lines)] == [windows, summary["events"]]
    assert shown.out == human_summary(summary) + "\n"
    assert shown.err.endswith(f"warning: interrupted: what was written to {out} so far is complete and readable\n")


def test_outputs_of_an_interrupted_run_have_the_same_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal arrives while the first of two sinks writes the second window."""
    written = JsonlSink.write

    def interrupted(self: JsonlSink, result: WindowResult) -> None:
        written(self, result)
        if result.t0_us == 50_000:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(JsonlSink, "write", interrupted)
    out = tmp_path / "out"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        with pytest.raises(DetectInterrupted):
            detect_file(SAMPLE, out, replace(FAST, sinks=("jsonl", "csv")))
    finally:
        signal.signal(signal.SIGINT, before)
    summary = read_summary(out)
    assert summary is not None
    assert (summary["status"], summary["windows"]) == ("interrupted", 2)
    times = {line.split(",")[0] for line in (out / "boxes.csv").read_text().splitlines()[1:]}
    assert len(times) == 2


def test_an_interrupted_start_claims_no_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("evburst.app.detect.load_weights", interrupted)
    assert detect_main(["--events", str(SAMPLE), "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr() == ("", "warning: interrupted\n")


def test_a_file_of_an_unknown_sink_does_not_stay_beside_another_run(tmp_path: Path) -> None:
    out, source = tmp_path / "out", tmp_path / "a.dat"
    with RunFolder(out, source, ["own.csv"], ["own.csv"]):
        (out / "own.csv").write_text("x")
    with pytest.raises(ConfigError, match=r"own\.csv: was written by an earlier run with a sink"):
        RunFolder(out, source, ["bbox.npy"], ["bbox.npy"]).__enter__()
    assert (out / "own.csv").read_text() == "x"
    with pytest.raises(ConfigError, match=r"own\.csv: is the recording itself"):
        RunFolder(out, out / "own.csv", ["bbox.npy"], ["bbox.npy"], overwrite=True).__enter__()
    with RunFolder(out, source, ["bbox.npy"], ["bbox.npy"], overwrite=True):
        assert not (out / "own.csv").exists()


def test_pictures_of_narrow_tall_sensors_are_not_enlarged() -> None:
    """Both sides count, so that a sensor of 1x4096 px does not get a picture of millions of lines."""
    scales = {size: picture_scale(SensorSize(*size)) for size in ((304, 240), (34, 34), (1, 4096), (4096, 1), (1280, 720))}
    assert scales == {(304, 240): 3, (34, 34): 27, (1, 4096): 1, (4096, 1): 1, (1280, 720): 1}
