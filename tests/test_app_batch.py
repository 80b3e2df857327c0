"""Many recordings in one command: a folder for each and one table; a damaged one does not stop the others."""

from __future__ import annotations

import csv
import json
import ntpath
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evburst.app import batch
from evburst.app.batch import result_folders
from evburst.app.cli import detect_main, main
from evburst.app.inference import Inference, WindowResult
from evburst.app.recordings import find_recordings, one_file
from evburst.data.errors import ConfigError, DataError
from evburst.data.events import EventWindow, SensorSize
from evburst.data.files import only_writer
from evburst.data.writers import write_events
from evburst.models.bundle import Bundle
from tests.conftest import ROOT, needs_fork, random_events

SIZE = SensorSize(64, 48)
SMALL = ["--no-video", "--ann"]


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Four recordings, two of one name; a damaged one; label files, a hidden file and a note, which are none."""
    root = tmp_path / "in"
    for k, name in enumerate(("a/rec_td.dat", "b/rec_td.dat", "b/other.dat", "b/other.npz")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_events(root / name, random_events(500 + k, SIZE, 100_000, k), SIZE)
    (root / "b" / "other.npz").rename(root / "b" / "plain.npz")
    (root / "b" / "bad.dat").write_bytes(b"% Version 2\n\x0c\x08")
    for name in ("rec_bbox.npy", "rec_bbox.csv", "rec_labels.csv"):
        (root / "b" / name).write_bytes(b"boxes")
    (root / "b" / "._rec_td.dat").write_bytes(b"macOS")
    (root / "b" / "notes.md").write_text("mine")
    return root


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "summary.csv").open() as file:
        return {row["folder"]: row for row in csv.DictReader(file)}


def test_folders_files_and_patterns(recordings: Path) -> None:
    names = [path.relative_to(recordings).as_posix() for path in find_recordings([recordings])]
    assert names == ["a/rec_td.dat", "b/bad.dat", "b/other.dat", "b/plain.npz", "b/rec_td.dat"]
    assert find_recordings([str(recordings / "*" / "rec_td.dat"), recordings / "a" / "rec_td.dat"]) == [
        recordings / "a" / "rec_td.dat",
        recordings / "b" / "rec_td.dat",
    ]
    (recordings / "c").mkdir()
    (recordings / "c" / "digit.bin").touch()
    assert find_recordings([recordings / "c"]) == [recordings / "c" / "digit.bin"]
    assert find_recordings([recordings / "gone.dat"]) == [recordings / "gone.dat"]  # whose own error says what is wrong
    (recordings / "a" / "linked").symlink_to(recordings / "c", target_is_directory=True)
    (recordings / "c" / "loop").symlink_to(recordings / "c", target_is_directory=True)
    assert find_recordings([recordings / "a"])[0] == recordings / "a" / "linked" / "digit.bin"
    assert find_recordings([recordings / "c"]) == [recordings / "c" / "digit.bin"]
    for pattern, message in ((str(recordings / "*.raw"), "no file matches"), (ROOT / "configs", "no file named")):
        with pytest.raises(ConfigError, match=message):
            find_recordings([pattern])
    assert one_file([recordings / "a" / "rec_td.dat"])
    assert not one_file([recordings])
    assert not one_file([str(recordings / "*.dat")])


def test_tables_without_events_are_passed_over_with_a_note(recordings: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = find_recordings([recordings])
    tables = {
        "boxes.csv": "file,class,t0_us,t1_us,x0,y0,x1,y1\na.dat,car,0,5,1,1,2,2\n",
        "recordings.csv": "file,class,seconds,events\na.dat,car,1.5,9\n",
        "yolo.txt": "0 0.5 0.5 0.2 0.1\n",
        "nothing.txt": "",
        "classes.txt": "car\nperson\n",
    }
    events = {"bare.csv": "1,1,1,1\n", "named.csv": "t,x,y,p\n1,1,1,1\n", "misnamed.csv": "t,x,y,q\n1,1,1,1\n", "void.csv": ""}
    comments = {
        "geometry.csv": "%geometry:64,48\n1,1,1,1\n",
        "size.txt": "64 48\n1 1 1 1\n",
        "comment.txt": "# mine\n1 1 1 1\n",
    }
    for name, text in (tables | events | comments).items():
        (recordings / name).write_text(text)
    with caplog.at_level("INFO"):
        assert sorted(find_recordings([recordings])) == sorted([*names, *(recordings / name for name in events | comments)])
    (message,) = caplog.messages
    assert message.startswith("note: passed over, because they are tables or labels without events: ")
    assert all(str(recordings / name) in message for name in tables)
    assert find_recordings([recordings / "boxes.csv"]) == [recordings / "boxes.csv"]  # whoever names it learns what is wrong


def test_compressed_recordings_are_passed_over_with_a_note(recordings: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = find_recordings([recordings])
    for name in ("c/x.csv.gz", "c/y.DAT.ZST", "c/rec_bbox.npy.gz", "c/notes.txt.md.gz", "b/other.dat.xz"):
        (recordings / name).parent.mkdir(exist_ok=True)
        (recordings / name).write_bytes(b"compressed")
    with caplog.at_level("INFO"):
        assert find_recordings([recordings]) == names
    files = f"{recordings / 'c' / 'x.csv.gz'}, {recordings / 'c' / 'y.DAT.ZST'}"
    assert caplog.messages == [f"note: passed over, because they are compressed: {files}; unpack them first"]
    with pytest.raises(ConfigError, match=r"no file named .*; unpack the compressed ones first, such as y\.DAT\.ZST"):
        find_recordings([recordings / "c"])


def test_results_beside_the_recordings_are_no_recordings(recordings: Path) -> None:
    (recordings / "b" / "bad.dat").unlink()
    names = find_recordings([recordings])
    command = ["--events", str(recordings), "--out", str(recordings), "--sensor-size", "64x48", "--ann", "--sinks", "bbox,csv"]
    assert detect_main(command) == 0
    assert (recordings / "a" / "rec_td" / "boxes.csv").exists()
    assert find_recordings([recordings]) == names
    assert find_recordings([str(recordings / "a" / "**")]) == [recordings / "a" / "rec_td.dat"]
    with pytest.raises(ConfigError, match="no file matches"):
        find_recordings([str(recordings / "a" / "**" / "*.csv")])
    (recordings / "a" / "summary.csv").write_text("t,x,y,p\n1,1,1,1\n")
    assert recordings / "a" / "summary.csv" in find_recordings([recordings])


def test_no_two_recordings_share_a_folder(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/x.dat", "b/x.dat", "b/x.raw", "b/x.raw.dat", "b/c/x.dat")]
    folders = result_folders(paths, Path("out"))
    assert len(set(folders)) == len(paths)
    assert [folder.as_posix() for folder in folders[:3]] == ["out/a/x", "out/b/x.dat", "out/b/x.raw"]


def test_folders_differ_where_case_does_not_matter() -> None:
    paths = [Path("in", name) for name in ("Rec.dat", "rec.raw", "SUMMARY.JSON.dat", "other.dat")]
    names = [folder.name for folder in result_folders(paths, Path("out"))]
    assert names == ["Rec.dat", "rec.raw", "SUMMARY.JSON.dat", "other"]


@pytest.mark.parametrize("command", ["detect", "classify"])
def test_recordings_on_several_drives(
    command: str, recordings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os.path, "commonpath", lambda paths: ntpath.commonpath([r"C:\in", r"D:\in"]))
    assert main([command, "--events", str(recordings), *(["--weights", "nmnist"] if command == "classify" else [])]) == 1
    reason = "recordings on several drives have no folder in common: run one command a drive"
    assert capsys.readouterr().err == f"error: --events: {reason}\n"


def test_folders_stay_below_the_output_and_a_file_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/x.dat", "b/y.dat"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / "b")
    found = find_recordings([Path("../a/x.dat"), Path("y.dat"), tmp_path / "b" / "y.dat"])
    assert found == [Path("../a/x.dat"), Path("y.dat")]
    assert result_folders(found, Path("out")) == [Path("out/a/x"), Path("out/b/y")]


def test_no_folder_of_a_recording_has_the_name_of_a_file_of_the_batch() -> None:
    paths = [Path("in/summary.csv.dat"), Path("in/summary.json.npz"), Path("in/a.dat")]
    names = [folder.name for folder in result_folders(paths, Path("out"))]
    assert names == ["summary.csv.dat", "summary.json.npz", "a"]


def test_a_recording_whose_folder_is_not_ours_counts_as_failed(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (recordings / "b" / "bad.dat").unlink()
    out = tmp_path / "out"
    (out / "b" / "other").mkdir(parents=True)
    (out / "b" / "other" / "detections.jsonl").write_text("precious")
    command = ["--events", str(recordings), "--out", str(out), "--sensor-size", "64x48", *SMALL]
    assert detect_main(command) == 1
    assert "1 of 4 recordings failed" in capsys.readouterr().err
    assert (out / "b" / "other" / "detections.jsonl").read_text() == "precious"
    row = table(out)["b/other"]
    assert row["status"] == "failed"
    assert "was not written by evburst" in row["error"]


def test_a_table_of_others_is_not_replaced(recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recordings / "b" / "bad.dat").unlink()
    (out := tmp_path / "out").mkdir()
    (out / "summary.csv").write_text("precious")
    command = ["--events", str(recordings), "--out", str(out), "--sensor-size", "64x48", *SMALL]
    assert detect_main(command) == 1
    assert "summary.csv: exists already and was not written by evburst" in capsys.readouterr().err
    assert [(file.name, file.read_text()) for file in out.iterdir()] == [("summary.csv", "precious")]
    assert detect_main([*command, "--overwrite"]) == 0
    assert detect_main(command) == 0


@needs_fork
def test_a_recording_that_fails_in_another_process_counts_as_failed(recordings: Path, tmp_path: Path) -> None:
    """Its folder is locked, and contains the complete summary of an earlier run."""
    shutil.rmtree(recordings / "b")
    write_events(recordings / "a" / "second.dat", random_events(500, SIZE, 100_000), SIZE)
    out = tmp_path / "out"
    command = ["--events", str(recordings), "--out", str(out), *SMALL]
    assert detect_main(command) == 0
    two = [sys.executable, str(ROOT / "tests" / "helpers" / "two.py"), "detect", *command]
    with only_writer(out / "second"):
        done = subprocess.run(two, capture_output=True, text=True, timeout=300, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "1 of 2 recordings failed" in done.stderr
    assert "another process is writing" in table(out)["second"]["error"]


def test_what_a_failed_recording_had_computed_is_kept(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = Inference.stream

    def failing(self: Inference, windows: Iterator[EventWindow], batch: int, finite: bool) -> Iterator[WindowResult]:
        yield next(computed(self, windows, batch, finite))
        raise DataError("the disk is gone")

    monkeypatch.setattr(Inference, "stream", failing)
    out = tmp_path / "out"
    command = ["--events", str(recordings / "a"), str(recordings / "b" / "other.dat"), "--out", str(out), *SMALL]
    assert detect_main(command) == 1
    assert {row["error"] for row in table(out).values()} == {"the disk is gone"}
    assert len((out / "a" / "rec_td" / "detections.jsonl").read_text().splitlines()) == 1


def test_a_damaged_recording_is_reported_and_the_others_are_processed(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["--events", str(recordings), "--out", str(out), "--sensor-size", "64x48", *SMALL]
    assert detect_main(command) == 1
    err = capsys.readouterr().err
    assert "bad.dat" in err
    assert "1 of 5 recordings failed" in err
    rows = table(out)
    assert {name: row["status"] for name, row in rows.items()} == {
        "a/rec_td": "complete",
        "b/bad": "failed",
        "b/other": "complete",
        "b/plain": "complete",
        "b/rec_td": "complete",
    }
    assert [row["windows"] for row in rows.values()] == ["2", "", "2", "2", "2"]
    assert "no event after the header" in rows["b/bad"]["error"]
    times = {name: (out / name / "summary.json").stat().st_mtime_ns for name in rows}
    capsys.readouterr()
    assert detect_main([*command, "--skip-existing"]) == 1
    assert "4 recordings done already, skipped\n" in capsys.readouterr().err
    again = {name for name in rows if (out / name / "summary.json").stat().st_mtime_ns != times[name]}
    assert again == {"b/bad"}
    assert detect_main([*command, "--skip-existing", "--score", "0.5"]) == 1  # other settings: all anew
    assert all((out / name / "summary.json").stat().st_mtime_ns != times[name] for name in rows)


def test_an_error_of_an_own_reader_does_not_stop_the_others(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(path: Path, *args: Any) -> dict[str, Any]:
        if path.parent.name == "a":
            raise RuntimeError("the vendor's library failed")
        return detect_file(path, *args)

    detect_file = batch.detect_file
    monkeypatch.setattr(batch, "detect_file", failing)
    out = tmp_path / "out"
    assert detect_main(["--events", str(recordings), "--out", str(out), "--sensor-size", "64x48", *SMALL]) == 1
    rows = table(out)
    assert rows["a/rec_td"]["error"] == "RuntimeError: the vendor's library failed"
    assert rows["b/rec_td"]["status"] == "complete"
    summary = json.loads((out / "a" / "rec_td" / "summary.json").read_text())
    assert (summary["status"], summary["error"]) == ("failed", "RuntimeError: the vendor's library failed")
    err = capsys.readouterr().err
    assert ("rec_td.dat: RuntimeError: the vendor's library failed" in err, "Traceback" in err) == (True, True)


def test_json_of_a_batch_lists_failed_recordings_too(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(recordings / "a")
    (recordings / "b" / "plain.npz").unlink()
    command = ["--events", str(recordings), "--out", str(tmp_path / "out"), *SMALL]
    assert detect_main([*command, "--json"]) == 1
    bad, other, third = json.loads(capsys.readouterr().out)
    assert (bad["events_file"], bad["status"]) == ("bad.dat", "failed")
    assert "no event after the header" in bad["error"]
    assert [(summary["status"], summary["windows"]) for summary in (other, third)] == [("complete", 2)] * 2
    assert detect_main(command) == 1
    assert capsys.readouterr().out.startswith("3 recordings (1 failed): 4 windows, ")


def test_a_second_batch_into_one_folder_is_refused(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["--events", str(recordings / "a"), "--out", str(out), *SMALL]
    with only_writer(out):
        assert detect_main(command) == 1
        assert [file.name for file in out.iterdir() if file.name != ".evburst.lock"] == []
    assert "out: another process is writing its results there; use another --out" in capsys.readouterr().err
    assert detect_main(command) == 0


def test_one_recording_and_several_do_not_share_a_folder(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, several = str(recordings / "a" / "rec_td.dat"), str(recordings / "a")
    for first, second, message in ((one, several, "a single recording"), (several, one, "several recordings")):
        out = tmp_path / message
        assert detect_main(["--events", first, "--out", str(out), *SMALL]) == 0
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        assert detect_main(["--events", second, "--out", str(out), *SMALL]) == 1
        assert f"{out}: holds the results of {message}; use another --out" in capsys.readouterr().err
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_an_interrupted_batch_has_totals_and_a_table(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (recordings / "b" / "bad.dat").unlink()
    computed, windows = Inference.stream, 0

    def interrupted(self: Inference, *args: Any) -> Iterator[WindowResult]:
        nonlocal windows
        for result in computed(self, *args):
            yield result
            windows += 1
            if windows == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(Inference, "stream", interrupted)
    out = tmp_path / "out"
    assert detect_main(["--events", str(recordings), "--out", str(out), "--sensor-size", "64x48", *SMALL]) == 130
    shown = capsys.readouterr()
    assert shown.out.startswith("2 recordings (1 interrupted): 3 windows, ")
    assert f"interrupted: what was written to {out} so far is complete and readable" in shown.err
    found = {name: (row["status"], row["windows"]) for name, row in table(out).items()}
    assert found == {"a/rec_td": ("complete", "2"), "b/other": ("interrupted", "1")}


def test_an_interrupted_batch_has_no_figures_of_an_earlier_one(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (recordings / "b" / "bad.dat").unlink()
    out = tmp_path / "out"
    command = ["--events", str(recordings), "--out", str(out), "--sensor-size", "64x48", *SMALL]
    assert detect_main(command) == 0
    computed, passes = batch.detect_file, list[Path]()

    def interrupted(path: Path, *args: Any) -> dict[str, Any]:
        passes.append(path)
        if len(passes) == 2:
            raise KeyboardInterrupt
        return computed(path, *args)

    monkeypatch.setattr(batch, "detect_file", interrupted)
    assert detect_main([*command, "--score", "0.9"]) == 130
    assert list(table(out)) == ["a/rec_td"]


def test_a_recording_that_cannot_be_read_leaves_its_earlier_results(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["--events", str(recordings / "a"), str(recordings / "b" / "other.dat"), "--out", str(out), *SMALL]
    assert detect_main([*command, "--sensor-size", "64x48"]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert detect_main([*command, "--sensor-size", "20x20"]) == 1
    assert {row["status"] for row in table(out).values()} == {"failed"}
    assert {path: path.read_bytes() for path in before if path.name != "summary.csv"} == {
        path: content for path, content in before.items() if path.name != "summary.csv"
    }
    capsys.readouterr()
    (out / "a" / "rec_td" / "detections.jsonl").unlink()
    assert detect_main([*command, "--sensor-size", "64x48", "--skip-existing"]) == 0
    assert "1 recording done already, skipped" in capsys.readouterr().err


def test_results_lie_beside_recordings_that_differ_in_their_suffix_alone(recordings: Path) -> None:
    (recordings / "b" / "other.dat").rename(recordings / "a" / "rec_td.raw")
    folder = str(recordings / "a")
    assert detect_main(["--events", folder, "--out", folder, *SMALL, "--sensor-size", "64x48"]) == 0
    assert set(table(recordings / "a")) == {"rec_td.dat-results", "rec_td.raw-results"}


def test_a_recording_or_weights_that_have_changed_are_not_done(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = tmp_path / "mine.safetensors", tmp_path / "out"
    bundle = Bundle.load("street")
    bundle.save(weights)
    command = ["--events", str(recordings / "a"), "--out", str(out), *SMALL, "--weights", str(weights), "--skip-existing"]
    assert detect_main(command) == 0
    assert "1 recording: 2 windows, " in capsys.readouterr().out
    assert table(out)["rec_td"]["events"] == "500"
    write_events(recordings / "a" / "rec_td.dat", random_events(400, SIZE, 100_000), SIZE)
    assert detect_main(command) == 0
    assert table(out)["rec_td"]["events"] == "400"
    summary = out / "rec_td" / "summary.json"
    before = summary.stat().st_mtime_ns
    assert detect_main(command) == 0
    assert summary.stat().st_mtime_ns == before
    replace(bundle, record={**bundle.record, "dataset": "another"}).save(weights)
    assert detect_main(command) == 0
    assert summary.stat().st_mtime_ns != before


@pytest.mark.parametrize("flags", [[], ["--out", "mine"]])
def test_a_single_recording_is_skipped_in_the_folder_of_a_run_without_the_flag(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = recordings / "a" / "rec_td.dat"
    command = ["--events", str(path), *SMALL, *flags]
    folder = tmp_path / (flags[1] if flags else "runs/detect/rec_td")
    assert detect_main(command) == 0
    first, before = capsys.readouterr().out, (folder / "summary.json").stat().st_mtime_ns
    assert detect_main([*command, "--skip-existing"]) == 0
    again = capsys.readouterr()
    assert (again.out, again.err) == (first, f"{path}: done already, skipped\n")
    assert (folder / "summary.json").stat().st_mtime_ns == before
    assert detect_main([*command, "--skip-existing", "--score", "0.5"]) == 0
    assert (folder / "summary.json").stat().st_mtime_ns != before
    results = [file for file in tmp_path.rglob("summary.*") if recordings not in file.parents]
    assert results == [folder / "summary.json"]


def test_a_run_that_was_killed_is_taken_up(recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The interrupted recording, whose summary says "running", is processed again; finished ones are not."""
    (recordings / "b" / "bad.dat").unlink()
    out = tmp_path / "out"
    command = ["--events", str(recordings), "--out", str(out), "--sensor-size", "64x48", *SMALL, "--skip-existing"]
    assert detect_main(command) == 0
    first = (out / "a" / "rec_td" / "summary.json").stat().st_mtime_ns
    killed = out / "b" / "rec_td" / "summary.json"
    killed.write_text(json.dumps({**json.loads(killed.read_text()), "status": "running"}))
    capsys.readouterr()
    assert detect_main([*command, "--json"]) == 0
    assert [summary["status"] for summary in json.loads(capsys.readouterr().out)] == ["complete"] * 4
    assert (out / "a" / "rec_td" / "summary.json").stat().st_mtime_ns == first


@pytest.mark.slow
def test_two_processes_give_the_same_as_one(recordings: Path, tmp_path: Path) -> None:
    shutil.rmtree(recordings / "a")
    (recordings / "b" / "bad.dat").unlink()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    for name, launcher in (("one", []), ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"])):
        command = [sys.executable, *launcher, str(ROOT / "detect.py"), "--events", str(recordings), *SMALL]
        command += ["--out", str(tmp_path / name), "--sensor-size", "64x48"]
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env=environment)
    one, two = table(tmp_path / "one"), table(tmp_path / "two")
    measured = {"real_time_factor", "latency_p50_ms"}
    assert len(one) == 3
    assert [{k: v for k, v in row.items() if k not in measured} for row in one.values()] == [
        {k: v for k, v in row.items() if k not in measured} for row in two.values()
    ]
    for folder in one:
        files = [(tmp_path / run / folder / "detections.jsonl").read_bytes() for run in ("one", "two")]
        assert files[0] == files[1]


def test_time_left_goes_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first recording has a quarter of all bytes and took ten seconds, so thirty are left."""
    now = [100.0]
    monkeypatch.setattr("evburst.app.batch.time.perf_counter", lambda: now[0])
    paths = [tmp_path / "a.dat", tmp_path / "b.dat"]
    for path, size in zip(paths, (1_000_000, 3_000_000), strict=True):
        path.write_bytes(bytes(size))
    left = batch._TimeLeft(paths)
    now[0] = 110.0
    assert left.after(paths[0]) == "; 1.0 of 4.0 MB, about 30 s left"
    assert left.after(paths[1]) == ""


def test_time_left_of_many_small_recordings_is_that_of_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One large recording took 20 s; each small one takes a second, whatever its size."""
    now = [100.0]
    monkeypatch.setattr("evburst.app.batch.time.perf_counter", lambda: now[0])
    paths = [tmp_path / f"{k:02d}.dat" for k in range(41)]
    for k, path in enumerate(paths):
        path.write_bytes(bytes(1_000 if k else 8_000_000))
    left, shown = batch._TimeLeft(paths), []
    for k, path in enumerate(paths):
        now[0] += 1 if k else 20
        shown.append(left.after(path).partition("about ")[2])
    assert [shown[k] for k in (1, 20, 39)] == ["39 s left", "20 s left", "1 s left"]
    assert shown[-1] == ""
