"""Every command in a code block of README and docs is run here or by another test, or is listed with the reason why not."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SAMPLE, random_events
from event_files import bin_bytes

from evburst.app.cli import main
from evburst.data import readers
from evburst.data.events import SensorSize
from evburst.data.writers import write_events
from tests.test_docs import _FENCE, _INDENTED, PAGES  # private: what a code block is, is defined there

PROGRAMS = ("evburst", "python", "python3", "make", "pip", "torchrun", "PROGRAM", ".venv/")

DETECT = "evburst detect --events recording_td.dat"
RUN = (
    DETECT,
    f"{DETECT} --lead-ms 50",
    "evburst detect --events recordings/ more/a.raw --out results",
    "evburst classify --events 00001.bin --weights nmnist",
    "evburst evaluate --predictions DT/*_bbox.npy --labels GT/*_bbox.npy --protocol prophesee-toolbox --sensor-size 304x240",
    "evburst results results",
)
"""Run here, in this process, in a folder that holds the named files."""
WITH_EXTRA = {
    f"{DETECT} --track": "trackers",
    "evburst export --weights street --onnx street.onnx": "onnx",
    "evburst export --weights street --onnx-snn street_boxes.onnx --with-boxes --sensor-size 320x240": "onnx",
    "evburst export --weights nmnist --nir nmnist.nir": "nir",
    "evburst export --weights caltech6 --nir caltech6.nir --part": "nir",
}
"""Run here where the package is installed."""
ELSEWHERE = {
    "evburst detect --events data/samples/street_td.dat": "test_docs_examples.py",
    "python detect.py --events data/samples/street_td.dat": "test_app_cli.py",
    "evburst events info FILE": "test_docs_examples.py",
    "evburst events convert FILE out.npz": "test_docs_examples.py",
    "evburst events cut FILE out.dat --from 10 --to 15": "test_docs_examples.py",
    "evburst events frames FILE FOLDER": "test_docs_examples.py",
    "evburst events frames mine/train/a.raw pictures --every-ms 500": "test_app_events.py",
    "python docs/examples/scene.py square_td.dat": "test_docs_examples.py",
    "python docs/examples/own_network.py direction.safetensors": "test_docs_examples.py",
    "evburst detect --events square_td.dat": "test_docs_examples.py",
    "evburst export --weights street --onnx-snn street_snn.onnx --with-boxes": "test_docs_examples.py",
    "evburst live --video FILE --headless --seconds 20 --json": "test_app_live.py",
    "evburst live --events FILE --serve": "test_app_live.py",
    "evburst evaluate --dataset folder --root data/samples --weights street --both": "test_app_evaluate.py",
    "evburst evaluate --dataset folder --root data/samples --weights street --both --memory": "test_app_evaluate_memory.py",
    "evburst convert --weights street --calibration RECORDINGS --unlabelled --budget 0.15 --out mine.safetensors": (
        "test_app_train.py"
    ),
    "PROGRAM | evburst detect --events - --sensor-size 304x240 --no-video --out boxes": "test_docs_commands.py",
}
"""Run by another test, of this file or another one, some on smaller files or with fewer seconds."""
NOT_RUN = {
    r"(python3 -m venv|\.venv/bin/|pip|make) ?.*": "installs or tests the project; CI does (.ci/run, .github/workflows/ci.yml)",
    r"evburst live --camera 0 --serve": "needs a webcam",
    r"python -m http.server .*": "serves files until it is stopped",
    r"evburst live --stream .*": "needs a program that sends a DV stream",
    r"(evburst train|torchrun|evburst convert) .*": "needs a data set and hours; tests train and convert small networks",
    r"evburst detect .* --weights (my|mine)\.safetensors": "needs the result of such a conversion",
    r"evburst evaluate .*": "needs a data set; tests evaluate small ones of every kind",
    r"python bench/.*": "a measurement, which takes minutes; tests run the parts of the benches",
}  # fmt: skip


def commands() -> list[str]:
    """The commands of all code blocks, without what explains them behind two spaces."""
    found = []
    for page in PAGES:
        text = page.read_text()
        blocks = [block for kind, block in _FENCE.findall(text) if kind in ("", "sh", "bash", "console")]
        blocks += [textwrap.dedent(block) for block in _INDENTED.findall(re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))]
        for line in "\n".join(blocks).splitlines():
            if line.startswith(PROGRAMS) and not line.startswith("evburst/"):
                found.append(re.split(r" {2,}", line)[0])
    return found


def reason(command: str) -> str:
    """Why a command is not run; empty if none is listed."""
    return next((why for pattern, why in NOT_RUN.items() if re.fullmatch(pattern, command)), "")


def test_every_command_is_run_or_listed() -> None:
    found = commands()
    assert len(found) > 50
    run = {*RUN, *WITH_EXTRA, *ELSEWHERE}
    assert [command for command in found if command not in run and not reason(command)] == []
    assert run - set(found) == {"python detect.py --events data/samples/street_td.dat"}  # in the README's text
    for pattern in NOT_RUN:
        assert any(re.fullmatch(pattern, command) for command in found), pattern
    for file in ELSEWHERE.values():
        assert (ROOT / "tests" / file).is_file()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the commands name; recordings are the first two windows of the bundled one."""
    place = tmp_path_factory.mktemp("commands")
    stream = readers.open_events(SAMPLE)
    events = next(stream.packets())
    events = events[events["t"] < 100_000]
    for name in ("recordings", "more", "DT", "GT", "results/street"):
        (place / name).mkdir(parents=True)
    write_events(place / "recording_td.dat", events, stream.sensor_size)
    shutil.copy(place / "recording_td.dat", place / "recordings" / "b_td.dat")
    shutil.copy(place / "recording_td.dat", place / "more" / "a.raw")
    (place / "00001.bin").write_bytes(bin_bytes(random_events(2000, SensorSize(34, 34), 300_000).tolist()))
    labels = np.load(SAMPLE.with_name("street_bbox.npy"))
    for name in ("DT", "GT"):
        np.save(place / name / "street_bbox.npy", labels)
    shutil.copy(ROOT / "docs" / "results" / "street" / "results.json", place / "results" / "street")
    return place


def arguments(command: str) -> list[str]:
    """The words behind `evburst`, with the patterns that a shell would expand."""
    words = command.split()[1:]
    return [name for word in words for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]


@pytest.mark.parametrize("command", [*RUN, *WITH_EXTRA])
def test_commands_run(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if command in WITH_EXTRA:
        pytest.importorskip(WITH_EXTRA[command])
    monkeypatch.chdir(folder)
    assert main(arguments(command)) == 0, capsys.readouterr().err


def test_text_is_detected_in_from_a_pipe(tmp_path: Path) -> None:
    stream = readers.open_events(SAMPLE)
    events = next(stream.packets())
    text = "".join(f"{t} {x} {y} {p}\n" for t, x, y, p in events[events["t"] < 100_000].tolist())
    words = ["detect", "--events", "-", "--sensor-size", "304x240", "--no-video", "--out", str(tmp_path / "out")]
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from evburst.app.cli import main; sys.exit(main({words!r}))"
    done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 windows of 50 ms" in done.stdout
