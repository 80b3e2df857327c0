"""evaluate --memory: what detect --memory finds, whatever windows are labelled and in whatever order recordings come."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evburst.app.dataset_runs import run_dataset
from evburst.app.evaluate.cli import evaluate_main
from evburst.app.evaluate.predict import PartResult
from evburst.app.inference import Inference
from evburst.app.library import Detector
from evburst.data.datasets.registry import DatasetConfig, Request, open_dataset
from evburst.data.readers import open_events
from evburst.data.writers import write_events
from evburst.models.bundle import Bundle
from evburst.models.detector import GridDetector
from evburst.models.detectors.postprocess import PostConfig
from evburst.models.detectors.remembering import remembering
from tests.conftest import SAMPLES
from tests.helpers.simulation import simulated_here
from tests.test_app_evaluate import FAST, evaluated, simulated_run
from tests.test_app_train import folder  # noqa: F401  (a fixture)

pytestmark = pytest.mark.usefixtures("without_page")

LABELLED_US = {"early": (100_000, 150_000, 400_000, 500_000), "late": (550_000, 750_000, 900_000, 950_000)}
"""When each recording is labelled; the first window of the second one begins where the last one of the first one ends."""


def recordings(root: Path, names: dict[str, str]) -> Path:
    """Two stretches of the bundled recording on its clock, without events in every third window, under the given names."""
    root.mkdir()
    stream = open_events(SAMPLES / "street_td.dat")
    events, boxes = np.concatenate(list(stream.packets())), np.load(SAMPLES / "street_bbox.npy")
    events = events[events["t"] // 50_000 % 3 < 2]
    for stretch, times in LABELLED_US.items():
        begin, end = (0, 500_000) if stretch == "early" else (500_000, 1_000_000)
        own = events[(events["t"] >= begin) & (events["t"] < end)]
        write_events(root / f"{names[stretch]}_td.dat", own, stream.sensor_size)
        np.save(root / f"{names[stretch]}_bbox.npy", boxes[np.isin(boxes["t"], times)])
    return root


def predictions(out: Path, name: str, model: str) -> np.ndarray[Any, Any]:
    """The boxes of a network in one recording."""
    (file,) = (out / "parts").glob(f"*_{name}_td_{model}*.npz")
    return PartResult.from_bytes(file.read_bytes()).boxes.predictions


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recordings(tmp_path_factory.mktemp("data") / "folder", {"early": "a", "late": "b"})


def run(root: Path, out: Path, *more: str) -> list[str]:
    """Arguments of a short evaluation."""
    return ["--dataset", "folder", "--root", str(root), "--out", str(out), "--set", "streaming_windows=1", *FAST, *more]


def rows(boxes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.stack([boxes[name] for name in ("t", "x", "y", "w", "h", "class_id", "class_confidence")], 1)


@pytest.mark.parametrize("ann", [False, True])
def test_boxes_are_those_of_detect(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ann: bool) -> None:
    found = evaluated(capsys, *run(root, tmp_path, "--memory", *(["--ann"] if ann else [])))
    assert found["memory"]
    model = "ann" if ann else "snn"
    detector = Detector("street", memory=True, ann=ann, score=0.001)
    plain = Detector("street", ann=ann, score=0.001)
    for name, times in zip("ab", LABELLED_US.values(), strict=True):
        of_detect, of_plain = (
            np.concatenate(
                [one.detections.to_prophesee() for one in used.stream(root / f"{name}_td.dat") if one.t1_us in times]
            )
            for used in (detector, plain)
        )
        own = predictions(tmp_path, name, model)
        assert np.allclose(rows(own), rows(of_detect), atol=1e-3)
        assert len(own) != len(of_plain)


def test_the_order_of_recordings_does_not_matter(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For the boxes of both networks; AP sorts equal scores, which held boxes have, by recording."""
    evaluated(capsys, *run(root, tmp_path / "ab", "--memory", "--both"))
    other = recordings(tmp_path / "swapped", {"early": "b", "late": "a"})
    evaluated(capsys, *run(other, tmp_path / "ba", "--memory", "--both"))
    for model in ("ann", "snn"):
        for name, its_other_name in ("ab", "ba"):
            same = predictions(tmp_path / "ab", name, model), predictions(tmp_path / "ba", its_other_name, model)
            assert np.array_equal(*map(rows, same))
    data = open_dataset(DatasetConfig("folder", str(root)), Request("val", 50_000))
    bundle = remembering(Bundle.load("street"))
    inference = Inference(GridDetector(bundle, PostConfig(score=0.001)), bundle.voxel, data.spec.sensor_size)
    together = np.concatenate([boxes.to_prophesee() for boxes in run_dataset(inference, data).predictions])  # type: ignore[union-attr]
    assert np.array_equal(rows(together), rows(np.concatenate([predictions(tmp_path / "ab", name, "snn") for name in "ab"])))


def test_results_with_and_without_memory_are_kept_apart(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one folder, whose finished parts would be used again."""
    plain, held = (evaluated(capsys, *run(root, tmp_path, *memory)) for memory in ([], ["--memory"]))
    assert (plain["memory"], held["memory"]) == (False, True)
    assert plain["results"][0]["energy"]["snn_pj"] != held["results"][0]["energy"]["snn_pj"]
    assert "street with memory on folder" in (tmp_path / "results.md").read_text()
    assert evaluate_main(run(root, tmp_path, "--memory")) == 0
    assert capsys.readouterr().out.startswith("folder val: 8 windows of 50 ms, with memory; protocol coco")


def test_every_processed_window_counts_for_latency_aware_ap(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a latency of next to nothing, the newest result is that of the window that ends at the label."""
    found = evaluated(capsys, *run(root, tmp_path, "--memory", "--set", "streaming_windows=8"))
    streaming = found["results"][0]["timing"]["streaming"]
    assert streaming["frames"] == 8
    assert streaming["offline_ap"] == found["results"][0]["ap"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--timesteps", "2"], "pass --timesteps 1"),
        (["--stride-ms", "10"], "stride_ms: windows of a network with memory follow each other"),
        (["--weights", "caltech6-ssd"], "YOLO detector without memory only"),
    ],
)
def test_what_memory_contradicts(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    """The checks of detect."""
    assert evaluate_main(run(root, tmp_path, "--memory", *flags)) == 1
    assert message in capsys.readouterr().err


def test_overlapping_windows_are_refused(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = run(root, tmp_path, "--memory", "--protocol", "cordone")  # windows of 100 ms, labels 50 ms apart
    assert evaluate_main(flags) == 1
    assert "labels lie 50 ms apart, and windows are 100 ms long: choose fewer labels with --limit" in capsys.readouterr().err


@pytest.fixture
def here() -> Iterator[None]:
    with simulated_here():
        yield


@pytest.mark.usefixtures("here")
def test_windows_that_stand_alone_are_refused(
    folder: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = [*simulated_run(folder, tmp_path), "--memory"]
    assert evaluate_main([*flags, "--limit", "1"]) == 1
    assert (
        "no window of these data follows another, so nothing can be held: leave --memory out, or raise --limit, or set"
        in capsys.readouterr().err
    )
    found = evaluated(capsys, *flags, "--limit", "2", "--set", "data.simulated.sequence=2")
    assert (found["windows"], found["memory"]) == (2, True)
