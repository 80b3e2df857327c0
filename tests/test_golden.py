"""Figures of the bundled weights on the bundled recording: only weights, binning, engine, decoding or account change them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evburst import Classifier, Detector, open_events
from evburst.app.evaluate.cli import evaluate_main
from tests.conftest import ROOT, SAMPLES

# Of the first three windows: spikes of all neurons, boxes, share of the dense ANN's energy (INT8).
GOLDEN = {
    "street": ([1_524_448, 1_498_299, 1_486_706], [6, 4, 4], [0.14467, 0.14076, 0.13712]),
    "caltech6": ([778_788, 745_154, 761_333], [0, 0, 1], [0.0847, 0.07968, 0.0825]),
    "caltech6-ssd": ([383_679, 376_931, 374_553], [2, 1, 2], [0.07029, 0.06918, 0.06954]),
}

# Likewise of the bundled recording folded into a sensor of that size: spikes, the best class, share of the energy.
CLASSIFIERS = {
    "nmnist": ((34, 34), [110_645, 101_279, 99_832], [8, 2, 2], [0.29148, 0.27085, 0.26662]),
    "dvs128-objects": ((128, 128), [123_015, 125_359, 126_848], [1, 1, 1], [0.28416, 0.29910, 0.30096]),
    "caltech101": ((240, 180), [464_843, 459_827, 460_647], [40, 94, 40], [0.23413, 0.23177, 0.23302]),
}


def test_every_bundled_file_has_its_figures() -> None:
    assert {path.stem for path in (ROOT / "models" / "weights").glob("*.safetensors")} == {*GOLDEN, *CLASSIFIERS}


@pytest.mark.parametrize("weights", GOLDEN)
def test_spikes_boxes_and_energy_of_bundled_weights(weights: str) -> None:
    """Of the reference engine; sums of float32 differ a little between processors, so that a few spikes may."""
    spikes, boxes, shares = GOLDEN[weights]
    results = list(Detector(weights, engine="reference", max_windows=3).stream(SAMPLES / "street_td.dat"))
    assert [result.spikes for result in results] == pytest.approx(spikes, rel=1e-4)
    assert [len(result.detections) for result in results] == boxes
    energies = [result.energy.energies("int8") for result in results if result.energy is not None]
    assert [energy.ratio for energy in energies] == pytest.approx(shares, rel=2e-4)


@pytest.mark.parametrize("weights", CLASSIFIERS)
def test_spikes_class_and_energy_of_bundled_classifiers(weights: str) -> None:
    size, spikes, labels, shares = CLASSIFIERS[weights]
    events = next(open_events(SAMPLES / "street_td.dat").packets())
    events = events[events["t"] < 300_000].copy()
    events["x"] %= size[0]
    events["y"] %= size[1]
    results = list(Classifier(weights, sensor_size=size, engine="reference").stream(events))[:3]
    assert [result.spikes for result in results] == pytest.approx(spikes, rel=1e-4)
    assert [result.classification.label for result in results if result.classification is not None] == labels
    energies = [result.energy.energies("int8") for result in results if result.energy is not None]
    assert [energy.ratio for energy in energies] == pytest.approx(shares, rel=2e-4)


@pytest.mark.usefixtures("without_page")
def test_ap_of_street_on_the_bundled_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--dataset", "folder", "--root", str(SAMPLES), "--weights", "street", "--both", "--out", str(tmp_path), "--json"]
    assert evaluate_main([*run, "--set", "latency_windows=2", "--set", "streaming_windows=1"]) == 0
    ann, snn = json.loads(capsys.readouterr().out)["results"]
    assert (ann["ap"], ann["ap50"]) == pytest.approx((39.66, 70.49), abs=0.1)
    assert (snn["ap"], snn["ap50"]) == pytest.approx((38.43, 72.15), abs=0.3)
    assert snn["energy"]["of_ann"] == pytest.approx(0.1421, abs=2e-4)
