"""`python -m evburst.app.events`: exact output of every command, and of its errors."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from evburst.app.console import LOG
from evburst.app.events import main
from evburst.data.errors import EventFileError
from evburst.data.events import SensorSize
from evburst.data.readers import READERS, open_events
from evburst.data.writers import write_events
from tests.conftest import random_events
from tests.event_files import (
    SAMPLE,
    SIZE,
    bin_bytes,
    collect,
    dat_bytes,
    evt2_high,
    evt3_high,
    evt3_low,
    evt3_x,
    evt3_y,
    fed,
    real,
    rows,
)

KNOWN = ", ".join(sorted(READERS))


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """SAMPLE as a .dat, which every checkout can slice."""
    write_events(tmp_path / "a.dat", SAMPLE, SIZE)
    return tmp_path / "a.dat"


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    code = main([str(arg) for arg in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_info(capsys: pytest.CaptureFixture[str], recording: Path) -> None:
    assert run(capsys, "info", recording) == (
        0,
        "format       dat\n"
        "time unit    µs\n"
        "sensor       32x24\n"
        "events       5\n"
        "duration     0.061001 s, from 1000 to 62001 µs\n"
        "mean rate    0.000 million events/s\n"
        "peak rate    0.000 million events/s in 10 ms\n"
        "ON share     60.00 %\n"
        "longest gap  60.250 ms, 0.000750 s after the first event\n"
        "hot pixels   0\n"
        "faults       none\n",
        "",
    )


@pytest.mark.parametrize(
    ("command", "outputs"), [("info", []), ("convert", ["out.csv"]), ("cut", ["out.csv"]), ("frames", ["pictures"])]
)
@pytest.mark.parametrize(("flag", "level"), [("--quiet", logging.WARNING), ("--verbose", logging.DEBUG)])
def test_flags_of_messages_stand_before_and_after_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recording: Path,
    command: str, outputs: list[str], flag: str, level: int,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    levels = list[int]()

    def noted(args: object) -> None:
        levels.append(LOG.level)

    monkeypatch.setattr(f"evburst.app.events._{command}", noted)  # private: the command itself is tested elsewhere
    for before, after in (((flag,), ()), ((), (flag,)), ((), ())):
        assert run(capsys, *before, command, recording, *outputs, *after) == (0, "", "")
    assert levels == [level, level, logging.INFO]


def test_flags_of_messages_after_the_command_have_an_effect(capsys: pytest.CaptureFixture[str], recording: Path) -> None:
    assert run(capsys, "convert", recording, recording.with_name("a.csv"), "--quiet")[0] == 0
    with pytest.raises(EventFileError, match="no such file"):
        main(["info", str(recording.with_name("none.dat")), "--debug"])
    with pytest.raises(SystemExit, match="2"):
        main(["--quiet", "info", str(recording), "--verbose"])
    assert "argument --verbose: not allowed with argument --quiet" in capsys.readouterr().err


def test_info_as_json(capsys: pytest.CaptureFixture[str], recording: Path) -> None:
    code, out, _ = run(capsys, "info", "--json", recording)
    assert code == 0
    assert json.loads(out) == {
        "file": str(recording),
        "format": "dat",
        "time_unit": "us",
        "sensor": [32, 24],
        "smallest_sensor": [32, 24],
        "events": 5,
        "first_us": 1000,
        "last_us": 62_001,
        "duration_s": 0.061001,
        "mean_rate": 82,
        "peak_rate": 300,
        "on_share": 0.6,
        "longest_gap_us": 60_250,
        "longest_gap_after_s": 0.00075,
        "hot_pixels": 0,
        "hottest": [],
        "faults": {},
    }


@pytest.mark.parametrize("name", ["a.npz", "a.csv", "a.raw"])
def test_info_of_a_file_without_a_sensor_size(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    """All that is known is reported, and how to give the rest."""
    if name == "a.raw":
        words = [evt3_high(0), evt3_low(5), evt3_y(23), evt3_x(0, 31), evt3_y(2), evt3_x(1, 7)]
        (tmp_path / name).write_bytes(b"% evt 3.0\n" + np.array(words, "<u2").tobytes())
    elif name == "a.npz":
        np.savez(tmp_path / name, SAMPLE)
    else:
        (tmp_path / name).write_text("t,x,y,p\n" + "".join(f"{t},{x},{y},{p}\n" for t, x, y, p in SAMPLE.tolist()))
    code, out, err = run(capsys, "info", tmp_path / name)
    assert (code, err) == (0, "")
    assert (
        "sensor       unknown: the file does not state it; all events fit in 32x24; other commands need --sensor-size WxH\n"
        in out
    )
    assert f"events       {2 if name == 'a.raw' else 5}\n" in out
    assert out.endswith("faults       none\n")
    described = json.loads(run(capsys, "info", "--json", tmp_path / name)[1])
    assert (described["sensor"], described["smallest_sensor"]) == (None, [32, 24])
    described = json.loads(run(capsys, "info", "--json", tmp_path / name, "--sensor-size", "64x48")[1])
    assert (described["sensor"], described["smallest_sensor"]) == ([64, 48], [32, 24])


def test_info_needs_a_size_for_coordinates_beyond_any_sensor(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", rows((0, 60_000, 5, 1), (10, 3, 30_000, 0)))
    code, out, err = run(capsys, "info", tmp_path / "a.npz")
    assert (code, out) == (1, "")
    assert "the file does not say the sensor's size" in err


def test_info_passes_over_a_corrupt_coordinate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    events = random_events(2000, SIZE, 500_000)
    events["x"][7] = 40_000
    np.savez(tmp_path / "a.npz", events=events)
    assert "outside sensor 1" in run(capsys, "info", tmp_path / "a.npz")[1]
    assert f"pass --sensor-size {SIZE}" in run(capsys, "convert", tmp_path / "a.npz", tmp_path / "a.csv")[2]


def test_info_of_a_single_event(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_events(tmp_path / "a.dat", SAMPLE[:1], SIZE)
    _, out, _ = run(capsys, "info", tmp_path / "a.dat")
    assert "mean rate    unknown\n" in out
    assert "longest gap  none\n" in out


def test_the_peak_rate_of_a_short_recording_is_not_below_its_mean(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The 5 ms lie in two intervals of 10 ms."""
    write_events(tmp_path / "a.dat", rows(*((7_500 + 50 * k, k % 30, k % 20, k % 2) for k in range(101))), SIZE)
    info = json.loads(run(capsys, "info", "--json", tmp_path / "a.dat")[1])
    assert info["peak_rate"] == info["mean_rate"] == 20_200


def test_info_counts_faults_and_events_outside(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(dat_bytes(SAMPLE, SensorSize(31, 23)))
    with (tmp_path / "a.dat").open("ab") as file:
        file.write(b"123")
    _, out, _ = run(capsys, "info", tmp_path / "a.dat")
    assert "events       3\n" in out
    assert "faults       truncated bytes 3, outside sensor 2\n" in out


def test_info_treats_events_outside_the_sensor_as_dropped(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Rates, times and gaps are those of the other events."""
    sound = rows(*((10_000 + 5_000 * k, k, k, 1) for k in range(5)))
    outside = rows(*((9_000 + 30 * k, 31, 0, 1) for k in range(50)), *((80_000 + k, 0, 23, 0) for k in range(50)))
    write_events(tmp_path / "sound.dat", sound, SensorSize(31, 23))
    both = np.sort(np.concatenate([sound, outside]), order="t")
    (tmp_path / "both.dat").write_bytes(dat_bytes(both, SensorSize(31, 23)))
    known, found = (json.loads(run(capsys, "info", "--json", tmp_path / f"{name}.dat")[1]) for name in ("sound", "both"))
    assert found == {**known, "file": found["file"], "faults": {"outside_sensor": 100}}
    (tmp_path / "both.dat").write_bytes(dat_bytes(outside[:1], SensorSize(31, 23)))
    code, _, err = run(capsys, "info", tmp_path / "both.dat")
    assert (code, "contains no usable events (repaired: outside sensor 1)" in err) == (1, True)


def test_info_describes_the_other_files(capsys: pytest.CaptureFixture[str], tmp_path: Path, recording: Path) -> None:
    """Columns contradict the format of the first file, but not that of the second."""
    (tmp_path / "b.csv").write_text("0,1,2,1\n5,3,4,0\n")
    code, out, err = run(capsys, "info", recording, tmp_path / "b.csv", "--columns", "t,x,y,p")
    assert code == 1
    assert out.startswith(f"{tmp_path / 'b.csv'}\n")
    assert "1 of 2 recordings cannot be read" in err


def test_info_names_hot_pixels(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    every_pixel = np.array([(t, t % 32, t // 32, 0) for t in range(32 * 24)], SAMPLE.dtype)
    hot = rows(*[(800 + i, 5, 6, 1) for i in range(500)], *[(1300 + i, 9, 9, 1) for i in range(400)])
    write_events(tmp_path / "a.dat", np.concatenate([every_pixel, hot]), SIZE)
    _, out, _ = run(capsys, "info", tmp_path / "a.dat")
    assert "hot pixels   2: (5, 6) 501; (9, 9) 401\n" in out


def test_info_reads_other_formats(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("evburst.data.slicing")
    (tmp_path / "a.xyz").write_bytes(bin_bytes(SAMPLE.tolist()))
    code, out, _ = run(capsys, "info", tmp_path / "a.xyz", "--format", "bin", "--sensor-size", "34x34")
    assert code == 0
    assert out.startswith("format       bin\ntime unit    µs\nsensor       34x34\nevents       5\n")


@pytest.mark.parametrize("suffix", [".dat", ".npz", ".csv"])
def test_convert(capsys: pytest.CaptureFixture[str], recording: Path, suffix: str) -> None:
    out = recording.with_name(f"b{suffix}")
    assert run(capsys, "convert", recording, out) == (0, f"{out}: 5 events, 32x24\n", "")
    assert collect(open_events(out, SIZE)).tolist() == SAMPLE.tolist()


def test_convert_warns_of_repairs(capsys: pytest.CaptureFixture[str], recording: Path) -> None:
    recording.write_bytes(recording.read_bytes()[:-1])
    out = recording.with_name("b.npz")
    assert run(capsys, "convert", recording, out) == (
        0,
        f"{out}: 4 events, 32x24\n",
        f"warning: {recording}: repaired: truncated bytes 7\n",
    )


def test_epoch_times_fit_a_dat_from_zero_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    late = SAMPLE.copy()
    late["t"] += 1_674_050_002_090_794
    np.save(tmp_path / "a.npy", late)
    out = tmp_path / "b.dat"
    assert run(capsys, "convert", tmp_path / "a.npy", out, "--sensor-size", "32x24") == (
        1,
        "",
        f"error: {out}: a DAT file holds times from 0 to 4294967295 µs, this recording has 1674050002091794: "
        "let it begin at 0 (--from-zero), leave single wrong times out (evburst events cut), or write .npz or .csv\n",
    )
    code, *_ = run(capsys, "convert", tmp_path / "a.npy", out, "--sensor-size", "32x24", "--from-zero")
    assert code == 0
    assert collect(open_events(out))["t"].tolist() == (SAMPLE["t"] - 1000).tolist()


@pytest.mark.parametrize(
    ("flags", "times"),
    [
        ([], [1000, 1000, 1750, 62_000, 62_001]),
        # Half-open: the event at the start belongs to it, the one at the end does not.
        (["--from", "0.00075"], [1750, 62_000, 62_001]),
        (["--to", "0.00075"], [1000, 1000]),
        (["--from", "0.0005", "--to", "0.061001"], [1750, 62_000]),
        (["--from", "0.0005", "--from-zero"], [0, 60_250, 60_251]),
    ],
)
def test_cut(capsys: pytest.CaptureFixture[str], recording: Path, flags: list[str], times: list[int]) -> None:
    out = recording.with_name("b.npz")
    assert run(capsys, "cut", recording, out, *flags) == (0, f"{out}: {len(times)} events, 32x24\n", "")
    assert collect(open_events(out))["t"].tolist() == times


@pytest.mark.parametrize("name", ["a.dat", "a.npz", "a.csv"])
def test_convert_sorts(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    ordered = random_events(30_000, SensorSize(32, 24), 3_000_000)
    ordered["t"] = np.arange(30_000) * 100
    write_events(tmp_path / name, np.random.default_rng(0).permutation(ordered), SensorSize(32, 24))
    command = ["convert", tmp_path / name, tmp_path / "b.dat", "--sort"]
    assert run(capsys, *command) == (0, f"{tmp_path / 'b.dat'}: 30,000 events, 32x24\n", "")
    assert np.array_equal(collect(open_events(tmp_path / "b.dat")), ordered)


def test_convert_sorts_a_recording_without_events(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"% evt 2.0\n% end\n" + np.array([evt2_high(1), evt2_high(2)], "<u4").tobytes())
    command = ["convert", tmp_path / "a.raw", tmp_path / "b.npz", "--sensor-size", "32x24"]
    plain, sorts = (run(capsys, *command, *flags) for flags in ([], ["--sort"]))
    assert plain == sorts
    assert plain[0] == 1
    assert len(plain[2].splitlines()) == 1


def test_convert_warns_of_disorder_that_windows_would_leave_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    events = random_events(3000, SIZE, 3_000_000)
    events["t"] = np.arange(3000) * 1000
    events["t"][1::2] -= 300_000
    events["t"] += 300_000
    write_events(tmp_path / "a.csv", events, SIZE)
    for command, warned in (([], True), (["--sort"], False)):
        code, _, err = run(capsys, "convert", tmp_path / "a.csv", tmp_path / "b.npz", "--overwrite", *command)
        assert (code, "time falls by more than 10 ms 1,500 times" in err, "pass --sort" in err) == (0, warned, warned)
    assert "time falls" not in run(capsys, "convert", tmp_path / "b.npz", tmp_path / "c.dat")[2]


def test_convert_sorts_across_a_wrap_of_the_clock(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    times = [(1 << 32) - 10, 5, (1 << 32) - 3_000_000, 2_000_000]
    content = rows(*((t, 1, 2, 1) for t in times))
    (tmp_path / "a.dat").write_bytes(dat_bytes(content))
    assert run(capsys, "convert", tmp_path / "a.dat", tmp_path / "b.npz", "--sort")[0] == 0
    found = collect(open_events(tmp_path / "b.npz"))["t"].tolist()
    assert found == [times[2], times[0], (1 << 32) + 5, (1 << 32) + 2_000_000]


SILENT = np.r_[np.arange(0, 10**6, 1000), np.arange(2_400_000_000, 2_400_100_000, 1000)]
"""Times before and after 40 minutes without an event, which are more than half a period of the clock."""


@pytest.mark.parametrize("first_us", [0, (1 << 32) - 900_000], ids=["", "wraps before"])
def test_convert_sorts_times_after_a_long_silence(capsys: pytest.CaptureFixture[str], tmp_path: Path, first_us: int) -> None:
    times = (SILENT + first_us).tolist()
    (tmp_path / "a.dat").write_bytes(dat_bytes(rows(*((t % (1 << 32), 1, 2, 1) for t in times))))
    assert run(capsys, "convert", tmp_path / "a.dat", tmp_path / "b.npz", "--sort")[0] == 0
    found = collect(open_events(tmp_path / "b.npz"))["t"]
    np.testing.assert_array_equal(found, times)
    np.testing.assert_array_equal(found, collect(open_events(tmp_path / "a.dat"))["t"])


def test_convert_sorts_an_hour_that_was_shuffled(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Nothing shows wraps in it: times are taken as they are."""
    times = np.arange(5000, dtype=np.int64) * 800_000
    shuffled = np.random.default_rng(0).permutation(times)
    (tmp_path / "a.dat").write_bytes(dat_bytes(rows(*((int(t), 1, 2, 1) for t in shuffled))))
    assert run(capsys, "convert", tmp_path / "a.dat", tmp_path / "b.dat", "--sort")[0] == 0
    np.testing.assert_array_equal(collect(open_events(tmp_path / "b.dat"))["t"], times)


def test_convert_sorts_in_spite_of_a_corrupt_time(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    times = [*range(0, 10**6, 1000), 3 * 10**9, *range(10**6, 2 * 10**6, 1000)]
    (tmp_path / "a.dat").write_bytes(dat_bytes(rows(*((t, 1, 2, 1) for t in times))))
    assert run(capsys, "convert", tmp_path / "a.dat", tmp_path / "b.dat", "--sort")[0] == 0
    assert collect(open_events(tmp_path / "b.dat"))["t"].tolist() == sorted(times)


def test_more_events_than_fit_into_memory_are_not_sorted(
    capsys: pytest.CaptureFixture[str], recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evburst.app.events.MAX_HELD_EVENTS", 4)
    assert run(capsys, "convert", recording, recording.with_name("b.npz"), "--sort") == (
        1,
        "",
        f"error: {recording}: more than 4 events, too many to sort in memory\n",
    )
    assert not recording.with_name("b.npz").exists()


@pytest.mark.parametrize("first_us", [9_000_000, 1 << 40])
def test_a_corrupt_first_time_is_not_the_start(capsys: pytest.CaptureFixture[str], tmp_path: Path, first_us: int) -> None:
    np.save(tmp_path / "a.npy", np.concatenate([rows((first_us, 1, 1, 1)), SAMPLE]))
    out = tmp_path / "b.npz"
    assert run(capsys, "cut", tmp_path / "a.npy", out, "--from", "0.0005", "--sensor-size", "32x24", "--overwrite")[0] == 0
    assert collect(open_events(out))["t"].tolist() == [1750, 62_000, 62_001]
    assert run(capsys, "convert", tmp_path / "a.npy", out, "--from-zero", "--sensor-size", "32x24", "--overwrite")[0] == 0
    assert collect(open_events(out))["t"].tolist() == [first_us - 1000, *(SAMPLE["t"] - 1000)]


def test_events_before_the_first_are_counted_as_late(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sample = SAMPLE.copy()
    sample["t"] += 2_000_000
    later = [(2_070_000 + k, 1, 1, 1) for k in range(9)]
    np.save(tmp_path / "a.npy", np.concatenate([sample, rows(*later, (900, 1, 1, 1))]))
    assert run(capsys, "convert", tmp_path / "a.npy", tmp_path / "b.csv", "--from-zero", "--sensor-size", "32x24") == (
        0,
        f"{tmp_path / 'b.csv'}: 14 events, 32x24\n",
        f"warning: {tmp_path / 'a.npy'}: repaired: late events 1\n",
    )


@pytest.mark.parametrize("part", ["cut", "cut --to 1", "cut --from 0", "cut --from-zero", "convert --from-zero"])
def test_disorder_at_the_beginning_loses_no_event(capsys: pytest.CaptureFixture[str], tmp_path: Path, part: str) -> None:
    command, *flags = part.split()
    t = [1000, 900, 950, *range(1100, 1200)]
    np.save(tmp_path / "a.npy", rows(*((time, 1, 1, 1) for time in t)))
    out = tmp_path / "b.npz"
    assert run(capsys, command, tmp_path / "a.npy", out, "--sensor-size", "32x24", *flags) == (
        0,
        f"{out}: 103 events, 32x24\n",
        "",
    )
    shift = 900 if flags == ["--from-zero"] else 0
    assert collect(open_events(out))["t"].tolist() == [time - shift for time in t]


@pytest.mark.parametrize(
    ("command", "flags"), [("cut", []), ("cut", ["--from", "0.5"]), ("convert", []), ("convert", ["--from-zero"])]
)
def test_events_in_another_order_are_no_loss_that_is_passed_over(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, flags: list[str]
) -> None:
    """Two halves that were swapped: what drops events in silence otherwise is an error, and leaves no file."""
    t = [*range(4_000_000, 6_000_000, 10_000), *range(0, 4_000_000, 10_000)]
    write_events(tmp_path / "a.dat", rows(*((time, 1, 1, 1) for time in t)), SIZE)
    code, out, err = run(capsys, command, tmp_path / "a.dat", tmp_path / "b.csv", *flags)
    assert (code, out) == (1, "")
    assert re.search(
        r"a\.dat: 400 of \d+ events are older than a window before them: .*; sort its events first: .* --sort", err
    )
    assert not (tmp_path / "b.csv").exists()


def test_late_events_before_a_part_do_not_count(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    t = [t for second in range(1, 9) for t in (*range(second * 1_000_000, second * 1_000_000 + 100), 5)]
    np.save(tmp_path / "a.npy", rows(*((time, 1, 1, 1) for time in [*t, *range(9_000_000, 9_000_020)])))
    code, out, _ = run(capsys, "cut", tmp_path / "a.npy", tmp_path / "b.csv", "--from", "8", "--sensor-size", "32x24")
    assert (code, out) == (0, f"{tmp_path / 'b.csv'}: 20 events, 32x24\n")


def test_cutting_counts_what_was_left_out_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_events(tmp_path / "a.dat", np.concatenate([SAMPLE[:3], rows((9_000_000, 1, 1, 1)), SAMPLE[3:]]), SIZE)
    assert run(capsys, "cut", tmp_path / "a.dat", tmp_path / "b.csv", "--to", "0.05") == (
        0,
        f"{tmp_path / 'b.csv'}: 3 events, 32x24\n",
        f"warning: {tmp_path / 'a.dat'}: repaired: time glitches 1\n",
    )


def test_cutting_out_nothing_keeps_the_old_file(capsys: pytest.CaptureFixture[str], recording: Path) -> None:
    out = recording.with_name("b.csv")
    out.write_text("old")
    assert run(capsys, "cut", recording, out, "--from", "5", "--overwrite") == (
        1,
        "",
        f"error: {recording}: no events in this part; nothing was written; --from and --to count from its first event\n",
    )
    assert out.read_text() == "old"


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        (["--from", "2", "--to", "1"], "--from 2 --to 1"),
        (["--from", "-1"], "--from -1 --to inf"),
        (["--from", "nan"], "--from nan --to inf"),
        (["--from", "inf"], "--from inf --to inf"),
        (["--from", "1e300"], "--from 1e+300 --to inf"),
        (["--to", "0"], "--from 0 --to 0"),
        (["--to", "nan"], "--from 0 --to nan"),
    ],
)
def test_parts_that_are_none(capsys: pytest.CaptureFixture[str], recording: Path, flags: list[str], shown: str) -> None:
    found = run(capsys, "cut", recording, recording.with_name("b.csv"), *flags)
    assert found == (1, "", f"error: {shown}: expected 0 <= FROM < TO, and FROM at most 1e+09, in seconds\n")


@pytest.mark.parametrize(
    ("flags", "kept"),
    [([], [500, 2_000_500]), (["--to", "2"], [500]), (["--to", "2.1"], [500, 2_000_500]), (["--from", "1"], None)],
)
def test_a_pipe_is_cut_at_its_end_only(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, flags: list[str], kept: list[int] | None
) -> None:
    """A start needs the first time before the events are read."""
    out = tmp_path / "b.csv"
    writer = fed(tmp_path / "pipe.csv", b"# sensor_size 32x24\n500,1,1,1\n2000500,1,1,0\n")
    code, _, err = run(capsys, "cut", tmp_path / "pipe.csv", out, *flags)
    writer.join()
    if kept is None:
        assert (code, "can only be read once" in err, "leave the start out" in err, out.exists()) == (1, True, True, False)
    else:
        assert (code, err, collect(open_events(out))["t"].tolist()) == (0, "", kept)


def test_a_wrong_sensor_size_is_noticed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", SAMPLE)
    assert run(capsys, "convert", tmp_path / "a.npy", tmp_path / "b.csv", "--sensor-size", "8x8") == (
        1,
        "",
        f"error: {tmp_path / 'a.npy'}: 4 of 5 events lie outside 8x8: pass the sensor's true size (--sensor-size, in "
        "Python sensor_size), unless it is their coordinates that are wrong, e.g. negative\n",
    )
    assert [item.name for item in tmp_path.iterdir()] == ["a.npy"]


def test_the_recording_itself_is_not_overwritten(capsys: pytest.CaptureFixture[str], recording: Path) -> None:
    before = recording.read_bytes()
    link = recording.with_name("link.dat")
    link.symlink_to(recording)
    for out in (recording, link):
        for flags in ([], ["--overwrite"]):
            code, _, err = run(capsys, "convert", recording, out, *flags)
            assert (code, err) == (1, f"error: {out}: is {recording}, which this run reads; write to another file\n")
    assert recording.read_bytes() == before


def test_an_existing_file_is_replaced_only_on_request(capsys: pytest.CaptureFixture[str], recording: Path) -> None:
    out = recording.with_name("b.csv")
    out.write_text("mine")
    code, _, err = run(capsys, "convert", recording, out)
    assert (code, out.read_text()) == (1, "mine")
    assert "exists already" in err
    assert run(capsys, "convert", recording, out, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["info", "no.dat"], "no.dat: no such file"),
        (["info", "no.dat", "--format", "avi"], f"format 'avi' is unknown (known: {KNOWN})"),
        (["info", "no.dat", "--sensor-size", "40000x9"], "sensor size '40000x9': a side has at most 16384 pixels"),
        (["info", "no.dat", "--sensor-size", "big"], "sensor size 'big': write it as WIDTHxHEIGHT in pixels, e.g. 304x240"),
    ],
)
def test_errors(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    assert run(capsys, *argv) == (1, "", f"error: {message}\n")


def test_an_unwritable_ending_is_noticed_before_reading(capsys: pytest.CaptureFixture[str], recording: Path) -> None:
    out = recording.with_name("b.avi")
    assert run(capsys, "convert", recording, out) == (
        1,
        "",
        f"error: {out}: events cannot be written as '.avi' (known: .csv, .dat, .npz)\n",
    )


@pytest.mark.parametrize("argv", [[], ["info"], ["convert", "a.dat"], ["look", "a.dat"]])
def test_wrong_usage_exits_2(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert "usage: python -m evburst.app.events" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["info", "convert", "cut"])
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: python -m evburst.app.events {command}" in shown
    assert "--sensor-size WxH" in shown


def test_as_a_module(recording: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "evburst.app.events", "info", str(recording)],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("format       dat\n")


@pytest.mark.shared
def test_info_of_a_real_recording(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "info", real("gen1_street_td.dat")) == (
        0,
        "format       dat\n"
        "time unit    µs\n"
        "sensor       304x240\n"
        "events       1018739\n"
        "duration     0.739996 s, from 0 to 739996 µs\n"
        "mean rate    1.377 million events/s\n"
        "peak rate    1.766 million events/s in 10 ms\n"
        "ON share     35.18 %\n"
        "longest gap  20.002 ms, 0.479996 s after the first event\n"
        "hot pixels   50: (275, 111) 1730; (279, 192) 1649; (265, 111) 1603; (268, 111) 1505; (270, 145) 1363\n"
        "faults       none\n",
        "",
    )


def test_a_column_to_pass_over_may_be_the_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """argparse takes "-,t,x,y,p" for a flag."""
    (tmp_path / "a.csv").write_text("0,100,5,6,1\n1,110,7,8,0\n")
    assert main(["info", str(tmp_path / "a.csv"), "--columns", "-,t,x,y,p", "--sensor-size", "304x240"]) == 0
    assert "from 100 to 110 µs" in capsys.readouterr().out


def test_frames_are_pictures_of_windows_named_by_their_end(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    events = random_events(4000, SIZE, 400_000)
    path, folder = tmp_path / "a_td.dat", tmp_path / "pictures"
    write_events(path, events[(events["t"] < 100_000) | (events["t"] >= 200_000)], SIZE)  # the second window is empty
    assert run(capsys, "frames", path, folder, "--every-ms", "100") == (
        0,
        f"{folder}: 3 pictures, a_000000100000us.png to a_000000400000us.png\n"
        f"next: label the objects, and save them in COCO's format as {tmp_path / 'a.json'}\n",
        "",
    )
    for t in (100_000, 300_000, 400_000):
        picture = cv2.imread(str(folder / f"a_{t:012d}us.png"))
        window = events[(events["t"] >= t - 50_000) & (events["t"] < t)]
        fired = np.zeros((SIZE.height, SIZE.width), bool)
        fired[window["y"], window["x"]] = True
        assert np.array_equal((picture != picture[~fired][0]).any(-1), fired)
    code, _, err = run(capsys, "frames", path, folder)
    assert (code, "exists already" in err) == (1, True)


def test_labels_of_frames_from_a_pipe_are_to_lie_beside_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    writer = fed(tmp_path / "pipe.csv", b"# sensor_size 32x24\n40000,1,1,1\n60000,1,1,0\n")
    code, out, _ = run(capsys, "frames", tmp_path / "pipe.csv", tmp_path / "p", "--every-ms", "50")
    writer.join()
    assert (code, out.splitlines()[1].partition(" as ")[2]) == (0, "NAME.json, beside a file NAME.csv with these events")


@pytest.mark.parametrize(("window", "step"), [("1000", 1_000_000), ("30", 510_000), ("33.3333", 499_995), ("50", 500_000)])
def test_the_usual_time_between_frames_is_a_multiple_of_the_window(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, window: str, step: int
) -> None:
    write_events(tmp_path / "a.dat", random_events(40_000, SIZE, 2_100_000), SIZE)
    assert run(capsys, "frames", tmp_path / "a.dat", tmp_path / "p", "--window-ms", window)[0] == 0
    assert sorted(path.name for path in (tmp_path / "p").iterdir())[:2] == [f"a_{k * step:012d}us.png" for k in (1, 2)]
    shown = f"not a multiple of the window's length, --window-ms {float(window):g}: pass --every-ms "
    assert shown in run(capsys, "frames", tmp_path / "a.dat", tmp_path / "q", "--window-ms", window, "--every-ms", "7")[2]


@pytest.mark.parametrize("flags", [("--every-ms", "120"), ("--every-ms", "0"), ("--window-ms", "0"), ("--every-ms", "nan")])
def test_times_of_frames_that_cannot_be_used(
    capsys: pytest.CaptureFixture[str], recording: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    code, _, err = run(capsys, "frames", recording, tmp_path / "pictures", *flags)
    assert (code, flags[0] in err, (tmp_path / "pictures").exists()) == (1, True, False)


def test_frames_are_not_replaced_whatever_the_recording_is_called(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, folder = tmp_path / "a[1].dat", tmp_path / "pictures"
    write_events(path, random_events(2000, SIZE, 500_000), SIZE)
    assert run(capsys, "frames", path, folder)[0] == 0
    code, _, err = run(capsys, "frames", path, folder)
    assert (code, "exists already" in err) == (1, True)


def test_frames_of_a_recording_whose_name_another_one_begins_with(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("rec_1.dat", "rec.dat"):
        write_events(tmp_path / name, random_events(2000, SIZE, 500_000), SIZE)
        assert run(capsys, "frames", tmp_path / name, tmp_path / "pictures")[0] == 0


@pytest.mark.parametrize("name", ["a.npy", "a.csv"])
def test_convert_refuses_events_in_no_order_of_any_format(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    """As it does of DAT files; one time that is wrong is no disorder."""
    ordered = random_events(3000, SensorSize(32, 24), 3_000_000)
    shuffled = np.random.default_rng(0).permutation(ordered)
    wrong = ordered.copy()
    wrong["t"][1000] = 60_000_000

    def save(events: np.ndarray) -> None:
        if name.endswith("npy"):
            np.save(tmp_path / name, events)
        else:
            write_events(tmp_path / name, events, SensorSize(32, 24))

    command = ["convert", tmp_path / name, tmp_path / "b.dat", "--sensor-size", "32x24"]
    save(shuffled)
    code, _, err = run(capsys, *command)
    assert code == 1
    assert "sort its events first" in err
    assert not (tmp_path / "b.dat").exists()
    save(wrong)
    assert run(capsys, *command)[0] == 0


def test_files_of_our_own_are_not_doubted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Few events in a long time, or many in a short one, are no other unit of time there."""
    size = SensorSize(32, 24)
    for span in (10_000_000_000, 2):
        events = random_events(3000, size, span)
        for name in ("a.npz", "a.csv"):
            write_events(tmp_path / name, events, size)
            np.testing.assert_array_equal(collect(open_events(tmp_path / name)), events)
            (tmp_path / name).unlink()
    np.save(tmp_path / "a.npy", random_events(3000, size, 10_000_000_000))
    with pytest.raises(EventFileError, match="which no sensor records; if the times are not µs"):
        open_events(tmp_path / "a.npy", size)


def test_frames_of_a_short_recording_and_of_a_wrong_sensor_size(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    size = SensorSize(64, 48)
    np.save(tmp_path / "a.npy", random_events(2000, size, 120_000))
    code, _, err = run(capsys, "frames", tmp_path / "a.npy", tmp_path / "p", "--sensor-size", "64x48")
    assert code == 1
    assert "no window that ends at a multiple of 500 ms contains events; pass a smaller --every-ms" in err
    drawn = ["frames", tmp_path / "a.npy", tmp_path / "p", "--every-ms", "50", "--sensor-size"]
    assert run(capsys, *drawn, "20x20")[0] == 1
    assert not list((tmp_path / "p").glob("*.png"))
    assert run(capsys, *drawn, "64x48")[0] == 0
