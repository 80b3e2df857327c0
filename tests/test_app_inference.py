"""Counting in a sample of windows: which windows are counted, what the others state, and what a run's energy is the mean of."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from evburst.app.batch import detect_many
from evburst.app.classify import ClassifyConfig, human_line
from evburst.app.detect import DetectConfig, detect_file, human_summary
from evburst.app.inference import Inference, WindowResult
from evburst.app.library import Detector
from evburst.app.live.broadcast import _Counted, _Shown, encode
from evburst.app.runs import open_inference
from evburst.data.boxes import Detections
from evburst.data.errors import ConfigError
from evburst.data.events import EventWindow, SensorSize
from evburst.data.readers import open_events
from evburst.data.representations.voxel_grid import VoxelConfig
from evburst.data.writers import write_events
from evburst.eval.energy import EnergyTotals
from evburst.models.bundle import Bundle
from evburst.models.detector import GridDetector
from evburst.models.detectors.postprocess import HeadSpec, PostConfig
from evburst.models.detectors.remembering import with_memory
from evburst.models.runtime import ENGINES, SAMPLED
from evburst.models.runtime.exported import ExportedNetwork
from evburst.models.spiking.convert.calibrate import Choice, calibrate, record_targets
from evburst.models.spiking.convert.fold import trace
from tests.conftest import SAMPLE, drawn, random_events, spiking
from tests.test_models_detector import TinyYolo, TwoLevels

SIZE = SensorSize(20, 12)
EVENTS = (300, 200, 0, 400, 100, 250, 0, 350, 500, 150)
"""Events in each window; two of them are idle."""
RUN = [k for k, events in enumerate(EVENTS) if events]


@pytest.fixture
def bundle(grid: torch.Tensor) -> Bundle:
    """A detector in integer form."""
    graph = trace(drawn(TwoLevels), torch.zeros(1, 4, 16, 16)).in_float16()
    spikes, parameters = calibrate(graph, record_targets(graph, grid), 1, Choice(4))
    return Bundle(graph, spikes, parameters, HeadSpec("yolo", (4, 2), 2, ("car",)), VoxelConfig(bins=2), {})


def windows() -> Iterator[EventWindow]:
    for k, events in enumerate(EVENTS):
        found = random_events(events, SIZE, 50_000, k)
        found["t"] += k * 50_000
        yield EventWindow(k * 50_000, (k + 1) * 50_000, found)


def results(inference: Inference, batch: int) -> list[WindowResult]:
    return list(inference.stream(windows(), batch))


def skip_without(engine: str) -> None:
    if reason := ENGINES[engine].available("cpu"):
        pytest.skip(reason)


@pytest.mark.parametrize(("batch", "counted"), [(1, RUN[::3]), (3, [0, 1, 9])])
@pytest.mark.parametrize("engine", ["reference", "int8", "onnx", "openvino"])
def test_one_of_n_windows_is_counted_and_a_batch_as_a_whole(
    engine: str, batch: int, counted: list[int], bundle: Bundle
) -> None:
    """Idle windows do not take a turn; boxes and the counted windows' energies are those of a run that counts everything."""
    skip_without(engine)
    every, sampled = (open_inference(bundle, DetectConfig(engine=engine, count_every=n), SIZE) for n in (1, 3))
    expected = results(every, batch)
    for found in (results(sampled, batch), results(sampled, batch)):  # each stream begins with a counted window
        total = EnergyTotals(every.dense_macs)
        for k, (own, whole) in enumerate(zip(found, expected, strict=True)):
            np.testing.assert_allclose(own.detections.boxes_xyxy, whole.detections.boxes_xyxy, rtol=1e-4, atol=1e-3)
            assert (own.ann_energy_pj, own.timesteps, own.idle) == (whole.ann_energy_pj, whole.timesteps, whole.idle)
            if k in counted or own.idle:
                assert (own.energy_pj, own.spikes, own.energy) == (whole.energy_pj, whole.spikes, whole.energy)
            else:
                assert (own.energy_pj, own.spikes, own.spikes_per_neuron, own.stats, own.energy) == (None,) * 5
            total.merge(own.totals)
        report, only = total.report(), EnergyTotals(every.dense_macs)
        for k in counted:
            only.merge(expected[k].totals)
        assert (report.windows, report.counted_windows, report.idle_windows) == (len(RUN), len(counted), 2)
        for name in ("synaptic_ops", "graded_ops", "spikes", "spikes_per_neuron", "timesteps", "beyond_silence", "dense_macs"):
            assert getattr(report, name) == getattr(only.report(), name)


@pytest.mark.parametrize(("batch", "uncounted"), [(1, 7), (2, 8), (4, 8)])
def test_a_library_runs_the_batches_that_are_not_counted(
    batch: int, uncounted: int, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without("onnx")
    ran: dict[str, int] = {"run": 0, "run_uncounted": 0}
    for name in ran:
        whole = getattr(ExportedNetwork, name)

        def counting(
            self: ExportedNetwork, grid: torch.Tensor, memory: Any = None, name: str = name, whole: Any = whole
        ) -> Any:
            ran[name] += len(grid)
            return whole(self, grid, memory=memory)

        monkeypatch.setattr(ExportedNetwork, name, counting)
    results(open_inference(bundle, DetectConfig(engine="onnx"), SIZE), batch)
    assert ran == {"run": batch, "run_uncounted": uncounted}


def test_engines_count_everything_unless_it_takes_time(bundle: Bundle) -> None:
    for engine in ("reference", "int8", "onnx", "openvino"):
        skip_without(engine)
        resolved = GridDetector(bundle, PostConfig(), engine=engine, count_every=None).count_every
        assert resolved == (SAMPLED if engine in ("onnx", "openvino") else 1)
        assert GridDetector(bundle, PostConfig(), engine=engine).count_every == 1  # evaluate
        assert GridDetector(bundle, PostConfig(), engine=engine, count_every=4).count_every == 4
    assert GridDetector(bundle, PostConfig(), ann=True, engine="auto", count_every=4).count_every == 1


def test_the_library_and_classify_count_every_window() -> None:
    assert DetectConfig().count_every is None
    assert Detector("street").config.count_every == 1
    assert Detector("street", count_every=7).config.count_every == 7
    assert ClassifyConfig().count_every == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"count_every": 0}, "must be 1 to"), ({"count_every": 2, "adaptive": 0.5}, "leave out count_every")],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectConfig(**settings)


def test_outputs_state_what_was_counted(tmp_path: Path, bundle: Bundle) -> None:
    path, weights = tmp_path / "a.dat", tmp_path / "w.safetensors"
    bundle.save(weights)
    write_events(path, random_events(3_000, SIZE, 240_000), SIZE)
    config = DetectConfig(weights=str(weights), engine="reference", count_every=2, sinks=("jsonl", "csv", "coco", "video"))
    summary = detect_file(path, tmp_path / "out", config)
    energies = [json.loads(line)["energy_pj"] for line in (tmp_path / "out" / "detections.jsonl").read_text().splitlines()]
    assert [energy is None for energy in energies] == [False, True, False, True, False]
    assert (summary["energy"]["windows"], summary["energy"]["counted_windows"]) == (5, 3)
    assert summary["energy"]["snn_pj"] == pytest.approx(
        np.mean([energy for energy in energies if energy is not None]), rel=1e-3
    )
    assert "uJ of arithmetic per window (of 3 of 5 windows): " in human_summary(summary)
    whole = detect_file(path, tmp_path / "whole", DetectConfig(weights=str(weights), engine="reference", sinks=("jsonl",)))
    assert "uJ of arithmetic per window: " in human_summary(whole)
    assert "traffic   " in human_summary(whole)
    detect_many([path], tmp_path / "many", config)
    with (tmp_path / "many" / "summary.csv").open() as table:
        (row,) = csv.DictReader(table)
    assert (row["counted_windows"], row["windows"]) == ("3", "5")


def test_a_line_of_classify_states_what_was_counted() -> None:
    energy = {"snn_pj": 2e6, "of_ann": 0.5, "counted_windows": 1, "windows": 2}
    times = {"t0_us": 0, "t1_us": 5, "class": "a", "score": 1.0, "timesteps": 1}
    rows = [{**times, "energy_pj": 2e6}, {**times, "energy_pj": None}]
    memory = {"total_pj": 1.25e9, "share_of_ann": 0.4}
    summary = {
        "events_file": "x",
        "class": "a",
        "score": 1.0,
        "energy": energy,
        "memory": memory,
        "timesteps": 1.0,
        "network": "snn",
        "weights": "nmnist",
        "windows": rows,
    }
    lines = human_line(summary, True).splitlines()
    assert "2.00 uJ of arithmetic per window (of 1 of 2 windows) (50.0 % of the ANN's), 1,250.0 uJ with memory" in lines[0]
    assert "memory" not in human_line(summary | {"memory": None})
    assert ("2.00 uJ" in lines[1], "not counted" in lines[2]) == (True, True)


def test_the_page_shows_the_last_counted_window_of_the_same_network() -> None:
    def header(counted: _Counted | None, energy_pj: float | None) -> dict[str, Any]:
        spikes = None if energy_pj is None else 7.0
        none = Detections.empty(9)
        result = WindowResult(
            0, 9, np.zeros((4, 12, 20), np.uint8), none, 5, False, None, EnergyTotals(0), spikes, None, 1, energy_pj, 4e6, 1.0
        )
        message = encode(_Shown(result, network, None, 1, 0, counted), SIZE, False)
        return dict(json.loads(message[4 : 4 + int.from_bytes(message[:4], "little")]))

    network: Any = SimpleNamespace(classes=("car",), inference=SimpleNamespace(ann_pj=4e6, spiking=True))
    earlier: Any = SimpleNamespace(spikes=3.0, energy_pj=2e6, energy=None, idle=False)
    last, foreign = _Counted(network.inference, earlier), _Counted(SimpleNamespace(), earlier)  # type: ignore[arg-type]
    for counted, energy_pj, expected in (
        (last, 1e6, (7.0, 1.0)),
        (last, None, (3.0, 2.0)),
        (foreign, None, (None, None)),
        (None, None, (None, None)),
    ):
        shown = header(counted, energy_pj)
        assert (shown["spikes"], shown["energy_uj"]) == expected


@pytest.fixture
def remembering(grid: torch.Tensor) -> Bundle:
    """A detector whose only layer is held."""
    torch.manual_seed(0)
    head = HeadSpec("yolo", (2,), 4, ("car", "pedestrian"))
    graph = with_memory(trace(TinyYolo().eval(), torch.zeros(1, 4, 16, 16)).in_float16(), head)
    return Bundle(graph, graph, spiking(graph, grid, 1, 4), head, VoxelConfig(bins=2), {})


def moments(*starts_ms: int) -> list[EventWindow]:
    """Windows of 50 ms; that at 0 has events, the others none."""
    found = []
    for start_ms in starts_ms:
        events = random_events(0 if start_ms else 2000, SIZE, 50_000)
        found.append(EventWindow(1000 * start_ms, 1000 * (start_ms + 50), events))
    return found


def maps_of(inference: Inference, *starts_ms: int) -> list[bytes]:
    """The maps of each window, run one by one."""
    return [
        b"".join(values.tobytes() for values in (result.maps or {}).values())
        for window in moments(*starts_ms)
        for result in inference.run([inference.bin(window, inference.new_grid())])
    ]


@pytest.mark.parametrize("ann", [False, True])
def test_memory_lasts_until_a_gap(remembering: Bundle, ann: bool) -> None:
    """What was seen is still found without events; a window may be missing, more may not, and time may not run back."""

    def opened() -> Inference:
        detector = GridDetector(remembering, PostConfig(), ann, engine="reference")
        return Inference(detector, remembering.voxel, SIZE, maps=True, idle_events=10)

    seen, silent = maps_of(opened(), 0, 500)
    assert seen != silent
    assert maps_of(opened(), 0, 50, 100, 200) == [seen] * 4
    assert maps_of(opened(), 0, 101 + 50) == [seen, silent]
    assert maps_of(opened(), 0, 50, 20) == [seen, seen, silent]
    assert maps_of(opened(), 500) == [silent]


def test_a_batch_with_memory_is_run_window_by_window(remembering: Bundle) -> None:
    detector = GridDetector(remembering, PostConfig(score=0.001), engine="reference")
    each, together = (list(Inference(detector, remembering.voxel, SIZE).stream(windows(), batch)) for batch in (1, 4))
    assert not any(result.idle for result in each)
    for one, other in zip(each, together, strict=True):
        assert np.array_equal(one.detections.boxes_xyxy, other.detections.boxes_xyxy)
        assert one.spikes == other.spikes


def test_another_recording_begins_with_an_empty_memory(remembering: Bundle) -> None:
    """Even if its clock continues that of the recording before."""
    inference = Inference(GridDetector(remembering, PostConfig(), engine="reference"), remembering.voxel, SIZE, maps=True)
    first, second = moments(0, 50)
    held = [next(iter(result.maps.values())).copy() for result in inference.stream(iter([first, second])) if result.maps]
    again = [next(iter(result.maps.values())).copy() for result in inference.stream(iter([second])) if result.maps]
    assert np.array_equal(held[0], held[1])
    assert not np.array_equal(again[0], held[1])


def test_windows_of_a_network_with_memory_do_not_overlap(remembering: Bundle) -> None:
    with pytest.raises(ConfigError, match="windows of a network with memory follow each other"):
        open_inference(remembering, DetectConfig(stride_ms=10), SIZE)


def test_memory_of_the_bundled_weights(tmp_path: Path) -> None:
    """In a recording that falls silent boxes stay with memory; networks of several timesteps, and SSD, cannot have one."""
    size = SensorSize(304, 240)
    found = np.concatenate(list(open_events(SAMPLE).packets()))
    seen = found[found["t"] - found["t"][0] < 200_000].copy()
    seen["t"] -= seen["t"][0]
    last = seen[-1:].copy()
    last["t"] = 399_999
    write_events(path := tmp_path / "a.dat", np.concatenate([seen, last]), size)
    boxes = {}
    for memory in (False, True):
        detector = Detector("street", score=0.3, memory=memory)
        boxes[memory] = [len(result.detections) for result in detector.stream(path)]
    assert boxes[True][3] > 0
    assert boxes[True][4:] == [boxes[True][3]] * 4
    assert boxes[False][4:] == [0] * 4
    with pytest.raises(ConfigError, match="pass --timesteps 1"):
        list(Detector("street", memory=True, timesteps=2).stream(path))
    with pytest.raises(ConfigError, match="YOLO detector without memory only"):
        list(Detector("caltech6-ssd", memory=True).stream(path))
