"""The files of docs/examples/, which docs/extending.md shows, and the Python blocks of the pages do what the pages say."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, SAMPLE, random_events
from event_files import bin_bytes

from evburst import Detector
from evburst.app.cli import detect_main, main
from evburst.app.outputs import sinks
from evburst.data import readers
from evburst.data.boxes import Detections
from evburst.data.errors import ConversionError, EventFileError, SensorSizeError
from evburst.data.events import EventArray, EventWindow, SensorSize
from evburst.data.representations.voxel_grid import VoxelConfig, voxel_batch
from evburst.data.simulation.sensor import EventSimulator, SimulatorConfig, log_intensity
from evburst.data.writers import write_events
from evburst.models.bundle import Bundle
from evburst.models.detector import GridDetector
from evburst.models.detectors.postprocess import PostConfig
from evburst.models.graph import Runner
from evburst.models.runtime.int8.simd.emit import AVAILABLE
from evburst.models.spiking.integer_form import integer_form
from tests.test_docs import PAGES

SIZE = SensorSize(32, 24)


def load(name: str) -> ModuleType:
    """docs/examples/<name>.py as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "docs" / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def registries() -> Iterator[None]:
    """Readers and sinks that register themselves do so for one test."""
    found = [
        value
        for module in (readers, sinks)
        for name, value in vars(module).items()
        if isinstance(value, dict | set) and name[:2] != "__"
    ]
    before = [registry.copy() for registry in found]
    yield
    for registry, content in zip(found, before, strict=True):
        registry.clear()
        registry.update(content)


@pytest.fixture
def reader(registries: None) -> ModuleType:
    """The example's reader, registered for one test."""
    return load("reader")


def test_the_reader_is_found_by_content(reader: ModuleType, tmp_path: Path) -> None:
    events = random_events(5000, SIZE, 120_000)
    path = tmp_path / "recording"
    path.write_bytes(b"EVREC 32x24\n" + events.tobytes() + b"cut")
    stream = readers.open_events(path)
    assert stream.sensor_size == SIZE
    assert np.array_equal(np.concatenate(list(stream.packets())), events)
    assert [len(window) for window in stream.windows(50_000)] == np.histogram(events["t"], [0, 50_000, 100_000, 150_000])[
        0
    ].tolist()
    assert stream.faults.found() == {"truncated_bytes": 3}


@pytest.mark.parametrize(
    ("content", "size", "error", "message"),
    [
        (b"EVREC 32x24\n", None, EventFileError, "contains no events"),
        (b"EVREC 32x24", None, EventFileError, "does not begin with a line"),
        (b"EVREC here\n" + bytes(13), None, SensorSizeError, "sensor"),
        (b"EVREC 32x24\n" + bytes(13), SensorSize(64, 48), SensorSizeError, "32x24"),
    ],
    ids=["empty", "cut in the header", "no size", "contradiction"],
)  # fmt: skip
def test_the_reader_refuses(
    reader: ModuleType, tmp_path: Path, content: bytes, size: SensorSize | None, error: type[Exception], message: str
) -> None:
    path = tmp_path / "recording.evrec"
    path.write_bytes(content)
    with pytest.raises(error, match=message):
        readers.open_events(path, size)


def test_the_scene_has_its_events_where_its_boxes_are() -> None:
    scene = load("scene")
    size = SensorSize(128, 96)
    events = scene.square_events(size)
    assert len(events) > 100
    for t_us in (50_000, 150_000):
        x0, y0, x1, y1 = scene.SquareScene(size).boxes(t_us).boxes_xyxy[0]
        now = events[(events["t"] >= t_us - 10_000) & (events["t"] < t_us)]
        inside = (now["x"] >= x0 - 3) & (now["x"] < x1 + 3) & (now["y"] >= y0 - 3) & (now["y"] < y1 + 3)
        assert inside.mean() > 0.8
        # Brighter where it arrives, darker where it leaves.
        assert now["p"][inside & (now["x"] > (x0 + x1) / 2)].mean() > 0.9
        assert now["p"][inside & (now["x"] < (x0 + x1) / 2)].mean() < 0.1


@pytest.mark.usefixtures("registries")
def test_the_sink_counts_boxes(tmp_path: Path) -> None:
    example = load("sink")
    assert sinks.SINKS["counts"].file == "counts.csv"
    run = example.RunInfo(classes=("car", "pedestrian"), sensor_size=SIZE, step_us=50_000, start_us=0, network="SNN T=1")
    sink = example.CountSink(tmp_path / "counts.csv", run)
    for t_us, labels in ((50_000, [0, 1, 0]), (100_000, [])):
        found = Detections(
            np.zeros((len(labels), 4), np.float32), np.ones(len(labels), np.float32), np.array(labels, np.int64), t_us
        )
        sink.write(SimpleNamespace(t1_us=t_us, detections=found))
    sink.close()
    assert (tmp_path / "counts.csv").read_text().splitlines() == ["t_us,car,pedestrian", "50000,2,1", "100000,0,0"]


def test_a_network_of_ones_own_becomes_a_weights_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its spiking network decides as its ANN does, the file works with every engine, and other operations are refused."""
    example = load("own_network")
    example.main(str(tmp_path / "direction.safetensors"))
    ann, snn, energy = capsys.readouterr().out.splitlines()
    assert float(ann.split()[1]) > 95
    assert float(snn.split()[1]) > 95
    assert 0 < float(energy.split()[4]) < 20
    bundle = Bundle.load(tmp_path / "direction.safetensors")
    grids, _ = example.moving_bars(4)
    found = [
        GridDetector(bundle, PostConfig(), engine=engine).detect(grids.byte().numpy(), SensorSize(32, 32), [0] * 4)
        for engine in ("reference", "int8")
    ]
    (expected, counted), (fast, fast_counted) = found
    assert np.allclose([x.scores for x in expected], [x.scores for x in fast], atol=1e-5)
    assert counted is not None
    assert fast_counted is not None
    assert counted.spikes_per_neuron.tolist() == fast_counted.spikes_per_neuron.tolist()
    module = example.Direction()
    saved = example.convert(module, grids)
    saved.save(tmp_path / "again.safetensors")
    loaded = Bundle.load(tmp_path / "again.safetensors")
    for one, other in zip(*(Runner(bundle.graph)(grids) for bundle in (saved, loaded)), strict=True):
        assert torch.equal(one, other)
    module.features[2] = torch.nn.SiLU()
    with pytest.raises(ConversionError, match="silu"):
        example.convert(module, grids)


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def named_commands(page: str, start: str) -> list[list[str]]:
    """The commands of a page that begin like this, split into words."""
    return [line.split() for line in re.findall(rf"^    ({start}.*)$", (ROOT / page).read_text(), re.MULTILINE)]


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_python_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the first two windows of the bundled recording, in the order of the page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "docs" / "examples")
    for example in ("reader", "sink"):  # imported anew, so that they register themselves
        monkeypatch.setitem(sys.modules, example, None)
        del sys.modules[example]
    sample = readers.open_events(SAMPLE)
    events = next(sample.packets())
    events = events[events["t"] < 100_000]
    write_events(tmp_path / "recording.dat", events, sample.sensor_size)
    (tmp_path / "00001.bin").write_bytes(bin_bytes(random_events(2000, SensorSize(34, 34), 300_000).tolist()))
    (tmp_path / "recording.evrec").write_bytes(b"EVREC %dx%d\n" % sample.sensor_size + events.tobytes())
    blocks = python_blocks(page)
    if page.name == "export.md":
        export_street(tmp_path)
        if all(find_spec(package) is not None for package in ("nir", "nirtorch", "spikingjelly")):
            ((_, *command),) = named_commands("docs/export.md", "evburst export --weights nmnist --nir")
            assert main(command) == 0
        else:
            blocks = [block for block in blocks if "spikingjelly" not in block]
        capsys.readouterr()
    for block in blocks:
        exec(compile(block, str(page), "exec"), {})
        assert capsys.readouterr().out or (tmp_path / "out" / "boxes.csv").is_file()


def test_a_live_source_whose_thread_fails_ends(tmp_path: Path) -> None:
    """Where there is no recording, the program of the page says so and does not wait for its events."""
    (block,) = (block for block in python_blocks(ROOT / "docs" / "extending.md") if "arrivals" in block)
    paths = os.pathsep.join([str(ROOT / "docs" / "examples"), *sys.path])
    command = [sys.executable, "-c", block]
    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=120
    )
    assert "recording.dat: no such file" in ended.stderr


@pytest.mark.parametrize("name", ["scene", "own_network"])
def test_an_example_without_the_file_to_write_says_how_it_is_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    with pytest.raises(SystemExit, match=rf"^usage: python {name}.py OUT\."):
        runpy.run_path(str(ROOT / "docs" / "examples" / f"{name}.py"), run_name="__main__")


def export_street(folder: Path) -> None:
    """Write street_snn.onnx as docs/export.md does, and put the bundled recording beside it."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    ((_, *command),) = named_commands("docs/export.md", "evburst export --weights street --onnx-snn street_snn.onnx")
    assert main(command) == 0
    shutil.copy(SAMPLE, folder)


def test_boxes_of_the_exported_network_need_numpy_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are those of the detector, with the weights in integer form as in the file."""
    monkeypatch.chdir(tmp_path)
    export_street(tmp_path)
    (block,) = [block for block in python_blocks(ROOT / "docs" / "export.md") if "onnxruntime" in block]
    assert re.findall(r"^(?:import|from) .*$", block, re.MULTILINE) == ["import numpy as np, onnxruntime"]
    found: dict[str, Any] = {}
    exec(compile(block, "docs/export.md", "exec"), found)
    bundle = Bundle.load("street")
    graph, parameters = integer_form(bundle.spiking, bundle.parameters)
    stream = readers.open_events(SAMPLE)
    window = next(islice(stream.windows(bundle.voxel.window_us, 1_500_000), 1))
    grid = voxel_batch([window], bundle.voxel, stream.sensor_size, bundle.stride)
    assert np.array_equal(grid, found["counts"].clip(max=10))
    detector = GridDetector(replace(bundle, spiking=graph, parameters=parameters), PostConfig())
    (expected,), _ = detector.detect(grid, stream.sensor_size, [0])
    assert len(expected) >= 2
    assert found["labels"].tolist() == expected.labels.tolist()
    np.testing.assert_allclose(found["boxes"], expected.boxes_xyxy, atol=1e-3)
    np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-5)


def test_the_commands_on_recordings_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of docs/formats.md, in the order of the page."""
    monkeypatch.chdir(tmp_path)
    write_events(tmp_path / "a.dat", random_events(2000, SIZE, 20_000_000), SIZE)
    commands = named_commands("docs/formats.md", "evburst events")
    assert [words[2] for words in commands] == ["info", "convert", "cut", "frames"]
    for words in commands:
        assert main(["a.dat" if word == "FILE" else word for word in words[1:]]) == 0
    cut = np.concatenate(list(readers.open_events("out.dat").packets()))
    assert len(cut) > 300
    assert cut["t"].min() >= 10_000_000
    assert cut["t"].max() < 15_000_000
    assert len(list((tmp_path / "FOLDER").glob("a_*us.png"))) == 40


def test_the_commands_of_the_scene_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ((_, script, file),) = named_commands("docs/extending.md", "python docs/examples/scene")
    ((_, *words),) = named_commands("docs/extending.md", "evburst detect")
    monkeypatch.setattr(sys, "argv", [script, file])
    runpy.run_path(str(ROOT / script), run_name="__main__")
    assert main([*words, "--no-video"]) == 0
    assert next((tmp_path / "runs").rglob("bbox.npy")).is_file()


@pytest.mark.skipif(not AVAILABLE, reason="the README shows the output of the int8 engine")
def test_the_readme_shows_the_output_of_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every line but the speed, where this engine is the fastest."""
    monkeypatch.chdir(tmp_path)
    events = str(ROOT / "data" / "samples" / "street_td.dat")
    assert detect_main(["--events", events, "--batch", "8", "--engine", "int8"]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("speed")]
    assert printed
    readme = (ROOT / "README.md").read_text()
    for line in printed:
        assert f"    {line}\n" in readme


def test_the_readmes_speed_is_that_of_a_run() -> None:
    run = json.loads((ROOT / "docs" / "results" / "detect_sample.json").read_text())
    latency = f"latency p50 {run['latency_ms']['p50']} ms, p99 {run['latency_ms']['p99']} ms"
    assert f"    speed     {run['real_time_factor']:.2f} x real time; {latency}\n" in (ROOT / "README.md").read_text()


def test_the_quickstart_runs_and_keeps_no_outputs() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg", force=True)
    notebook = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    names: dict[str, Any] = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), "quickstart.ipynb", "exec"), names)
    assert len(names["results"]) == len(names["pairs"]) == 60
    assert names["scored"].ap50 > 40
    assert 0 < names["microjoules"].mean() < 0.25 * names["ann"]
    assert names["stats"].layers


def test_events_that_arrive_are_detected_in_as_those_of_a_recording() -> None:
    """They are put in by another thread, in parts of any length."""
    stream = readers.open_events(SAMPLE)
    events = next(stream.packets())
    events = events[events["t"] < 200_000]
    arrivals = load("arrivals").Arrivals(*stream.sensor_size)

    def receive() -> None:
        for part in np.array_split(events, 7):
            arrivals.put(part)
            arrivals.put(part[:0])
        arrivals.close()

    detector = Detector("street")
    receiver = threading.Thread(target=receive)
    receiver.start()
    found = list(detector.stream(arrivals))
    receiver.join()
    expected = list(detector.stream(EventArray(events, stream.sensor_size)))
    assert [(one.t0_us, one.events, one.spikes) for one in found] == [(one.t0_us, one.events, one.spikes) for one in expected]
    assert len(found) == 4
    assert sum(len(one.detections) for one in found) > 0


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_page_in_the_browser_says_that_its_runtime_is_missing(tmp_path: Path) -> None:
    """A module that is missing must not end the page's script before it can say so."""
    for name in ("detect.js", "events.js"):
        shutil.copy(ROOT / "docs" / "examples" / "browser" / name, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    script = """
        const status = { getContext: () => ({}) };
        globalThis.document = { getElementById: () => status, createElement: () => ({}) };
        globalThis.OffscreenCanvas = class { getContext() { return {}; } };
        await import("./detect.js");
        setTimeout(() => console.log(status.textContent), 200);"""
    (tmp_path / "run.js").write_text(script)
    node = [shutil.which("node") or "node", str(tmp_path / "run.js")]
    shown = subprocess.run(node, check=True, capture_output=True, text=True).stdout
    assert shown.startswith("The network cannot be loaded: ")
    assert "onnxruntime-web installed?" in shown


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_page_in_the_browser_counts_the_events_of_the_simulator(tmp_path: Path) -> None:
    """Three windows of 50 ms from pictures 30 ms apart; after a jump back, the page begins anew."""
    rng = np.random.default_rng(0)
    size, config = (
        SensorSize(16, 12),
        SimulatorConfig(0.25, 0.25, mismatch=0, refractory_us=0, cutoff_hz=0, leak_hz=0, shot_hz=0),
    )
    pictures = rng.integers(0, 256, (6, size.height, size.width)).astype(np.uint8)
    (tmp_path / "pictures.json").write_text(json.dumps(pictures.reshape(6, -1).tolist()))
    script = """
        import { readFileSync } from "fs";
        import { EventCounter } from "./events.mjs";
        const pictures = JSON.parse(readFileSync(process.argv[2]));
        const counter = new EventCounter({ width: 16, height: 12, gridWidth: 32, gridHeight: 32, bins: 5, windowMs: 50 });
        for (const again of [0, 1]) {
          const windows = pictures.flatMap((picture, k) => counter.add(picture, 5000 * (1 - again) + 30 * k));
          console.log(JSON.stringify(windows.map(({ counts, events }) => [Array.from(counts), events])));
        }"""
    (tmp_path / "run.mjs").write_text(script)
    shutil.copy(ROOT / "docs" / "examples" / "browser" / "events.js", tmp_path / "events.mjs")
    node = [shutil.which("node") or "node", str(tmp_path / "run.mjs"), str(tmp_path / "pictures.json")]
    found = [json.loads(line) for line in subprocess.run(node, check=True, capture_output=True, text=True).stdout.splitlines()]
    assert found[0] == found[1]

    simulator = EventSimulator(size, config)
    simulator._initial_offset[:] = 0
    parts = [simulator.step(log_intensity(picture), 30_000 * k) for k, picture in enumerate(pictures)]
    events = np.concatenate(parts)
    windows = [
        EventWindow(t, t + 50_000, events[(events["t"] >= t) & (events["t"] < t + 50_000)]) for t in (0, 50_000, 100_000)
    ]
    expected = voxel_batch(windows, VoxelConfig(), size, 32)
    counted = np.array([counts for counts, _ in found[0]], np.uint8).reshape(expected.shape)
    assert expected.any(axis=(1, 2, 3)).all()
    assert (counted != expected).mean() < 1e-3  # a time on the border of two bins is rounded differently
    assert [number for _, number in found[0]] == pytest.approx([len(window) for window in windows], rel=1e-3)
