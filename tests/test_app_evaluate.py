"""evaluate.py as a user types it: published layouts, box files, resuming, several processes."""

from __future__ import annotations

import json
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evburst.app.evaluate.boxes import default_protocol
from evburst.app.evaluate.cli import evaluate_main
from evburst.app.evaluate.config import load_evaluation
from evburst.app.evaluate.predict import PartResult
from evburst.data.boxes import BBOX_DTYPE
from evburst.data.datasets import SPECS, simulated, spread_with_events
from evburst.data.datasets.pictures import PictureFolder
from evburst.data.datasets.registry import DatasetConfig, Request, open_dataset
from evburst.data.errors import LabelError
from evburst.data.events import SensorSize
from evburst.data.readers import open_events
from evburst.data.writers import write_events
from evburst.eval.coco import coco_result
from evburst.eval.protocol import PROTOCOLS, RecordingBoxes, match
from evburst.eval.results import json_schema, parse, read_results
from evburst.eval.scoring import without_details
from evburst.models.bundle import Bundle, find_weights
from tests.conftest import ROOT, SAMPLES, SHARED, in_new_process, needs_fork, random_events
from tests.event_files import dat_bytes
from tests.helpers.simulation import simulated_here
from tests.test_app_train import folder  # noqa: F401  (a fixture)
from tests.test_data_datasets_recorded import events, gen1_tree, in_two_drives, ncaltech_tree
from tests.test_eval_protocol import CLASSES, GEN1, labels_at_4_hz, random_recording

pytestmark = pytest.mark.usefixtures("without_page")

SIZE = SPECS["street"].sensor_size
FAST = ["--set", "latency_windows=2"]


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The JSON that a command prints."""
    assert evaluate_main([*arguments, "--json"]) == 0, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    parse(found)
    return found


def lasting(results: dict[str, Any]) -> dict[str, Any]:
    """Results without measured times."""
    rows = [{k: v for k, v in row.items() if k not in ("latency_ms", "timing")} for row in results["results"]]
    return {**{k: v for k, v in results.items() if k != "timing"}, "results": rows}


def without_activity(value: Any, taken: list[float]) -> Any:
    """Results without the counts of the float network's units that are not zero, which go to `taken`.

    Of an activation that is all but zero they depend on the size of the batch, by one unit in a million.
    """
    if isinstance(value, list):
        return [without_activity(item, taken) for item in value]
    if not isinstance(value, dict):
        return value
    of_ann = value.get("kind") == "conv"
    active = {"ann_zero_skipping_pj", "of_ann_zero_skipping", "effective_macs", "active_share", "activation_sparsity"}
    active |= {"graded_operations"} if of_ann else set()
    taken += [value[name] for name in sorted(active & value.keys()) if value[name] is not None]
    return {name: without_activity(item, taken) for name, item in value.items() if name not in active}


def test_a_gen1_tree_is_evaluated_with_both_networks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = gen1_tree(tmp_path / "gen1", ("test",))
    in_two_drives(root / "test")
    run = ["--dataset", "gen1", "--root", str(root), "--split", "test", "--weights", "street", "--both", "--timesteps", "1,2"]
    found = evaluated(capsys, *run, "--protocol", "coco", "--out", str(tmp_path / "out"), *FAST)
    assert [(row["model"], row["timesteps"]) for row in found["results"]] == [("ann", None), ("snn", 1), ("snn", 2)]
    assert (found["protocol"], found["dataset"], found["split"]) == ("coco", "gen1", "test")
    for row in found["results"]:
        assert row["frames"] == 4
        assert set(row["per_class"]) == {"car", "pedestrian"}
        assert 0 <= row["ap"] <= 100
        assert row["latency_ms"]["p50"] <= row["latency_ms"]["p99"]
        assert len(row["coco_stats"]) == 12
    ann, one, two = (row["energy"] for row in found["results"])
    assert ann["ann_pj"] == one["ann_pj"] == two["ann_pj"]
    assert 0 < ann["ann_zero_skipping_pj"] < ann["ann_pj"]
    assert two["ratio"] == pytest.approx(two["snn_pj"] / two["ann_pj"])
    assert two["spikes_per_neuron"] > one["spikes_per_neuron"] > 0
    assert one["snn_pj"] < one["qnn_pj"] < one["ann_zero_skipping_pj"]
    assert one["of_qnn"] == pytest.approx(one["mean_burst"] / 3)  # INT8: an addition costs a third of a multiplication
    beyond = ann["beyond_silence"], one["beyond_silence"], two["beyond_silence"]
    assert beyond[0]["snn_pj"] is None
    assert 0 < beyond[0]["ann_zero_skipping_pj"] == beyond[1]["ann_zero_skipping_pj"] <= ann["ann_pj"]
    assert all(own["snn_pj"] > 0 and own["qnn_pj"] > 0 for own in beyond[1:])
    assert beyond[1]["of_qnn"] > 0
    assert two["of_qnn"] is beyond[2]["of_qnn"] is None
    for row, losses in zip(found["results"], (None, one, two), strict=True):
        if losses is None:
            assert row["ap_loss"] is row["ap50_loss"] is None
            continue
        assert row["ap_loss"]["mean"] == pytest.approx(found["results"][0]["ap"] - row["ap"], abs=2e-4)
        assert row["ap_loss"]["mean"] == pytest.approx(np.mean([v["mean"] for v in row["ap_loss_by_iou"].values()]), abs=1e-3)
        assert row["ap50_loss"]["mean"] == row["ap_loss_by_iou"]["0.50"]["mean"]
        assert row["ap_loss"]["low"] <= row["ap_loss"]["high"]
        assert (row["ap_loss"]["units"], row["ap_loss"]["unit"]) == (2, "recording")
    assert (found["ap_loss"], found["ap50_loss"]) == (found["results"][1]["ap_loss"], found["results"][1]["ap50_loss"])
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    read_results(tmp_path / "out" / "results.json")
    assert list(pytest.importorskip("jsonschema").Draft202012Validator(json_schema()).iter_errors(written)) == []
    assert without_details(written)["results"] == found["results"]
    for row in written["results"]:
        assert sum(layer["pj"] for layer in row["details"]["layers"]) == pytest.approx(
            row["energy"]["snn_pj" if row["model"] == "snn" else "ann_pj"]
        )
        assert len(row["details"]["precision_curves"]["car"]["0.50"]) == 101
        streaming = row["timing"]["streaming"]
        assert (streaming["frames"], streaming["offline_ap"]) == (4, row["ap"])


def test_gen1_s_own_protocol_skips_half_a_second(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tree's labels lie at 0.2 and 0.5 s: none is left, and the error says how to mend it."""
    root = gen1_tree(tmp_path, ("val",))
    run = ["--dataset", "gen1", "--root", str(root), "--ann", "--out", str(tmp_path / "out"), *FAST]
    assert evaluate_main(run) == 1
    assert "protocol prophesee: no label is left to score (all 6 are filtered out" in capsys.readouterr().err
    found = evaluated(capsys, *run, "--protocol", "prophesee-toolbox")
    assert (found["results"][0]["frames"], found["results"][0]["left_out"]["labels"]) == (4, 0)


def test_a_recording_without_events_is_evaluated_as_one_in_which_nothing_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = gen1_tree(tmp_path / "gen1", ("val",))
    run = ["--dataset", "gen1", "--root", str(root), "--protocol", "coco", "--out", str(tmp_path / "out"), *FAST]
    whole = evaluated(capsys, *run)
    (root / "val" / "17-03-30_12-53-58_0_60500000_td.dat").write_bytes(dat_bytes(events(0, 1, SIZE), SIZE))
    found = evaluated(capsys, *run)
    assert (whole["idle_windows"], found["idle_windows"], found["recordings"]) == (0, 2, 2)
    for row in [*whole["results"], *found["results"]]:
        assert (row["frames"], row["left_out"]["labels"]) == (4, 0)


def test_late_events_are_reported_and_a_recording_out_of_order_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = gen1_tree(tmp_path / "gen1", ("val",))
    run = ["--dataset", "gen1", "--root", str(root), "--protocol", "coco", "--out", str(tmp_path / "out"), *FAST]
    ordered = events(2000, 600_000, SIZE)
    for late in (20, 1000):
        name = root / "val" / f"17-03-30_12-53-58_{int(late == 1000)}_60500000_td.dat"
        name.write_bytes(dat_bytes(np.concatenate([ordered[late:], ordered[:late]]), SIZE))
        code = evaluate_main(run)
        out, err = capsys.readouterr()
        if late == 20:
            assert "\nrepaired  late events 20\n" in out
            assert json.loads((tmp_path / "out" / "results.json").read_text())["faults"] == {"late_events": 20}
    assert (code, out) == (1, "")
    assert f"{name}: 1000 of 2000 events are older than a window before them" in err


def test_an_ncaltech101_tree_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ncaltech_tree(tmp_path / "ncaltech101")
    run = ["--dataset", "ncaltech101", "--root", str(root), "--split", "test", "--weights", "caltech6"]
    found = evaluated(capsys, *run, "--out", str(tmp_path / "out"), *FAST)
    (row,) = found["results"]
    assert (row["model"], row["timesteps"], row["frames"], found["window_ms"]) == ("snn", 1, 6, 100)
    assert found["sensor_size"] == [240, 180]
    assert row["per_class"]["butterfly"]["ap"] is None  # the tree has none
    assert (row["energy"]["windows"], row["energy"]["activity_windows"]) == (6, 6)  # the ANN's zeros from a sample


def test_classes_must_be_those_of_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ncaltech_tree(tmp_path)
    run = ["--dataset", "ncaltech101", "--root", str(root), "--weights", "caltech6", "--out", str(tmp_path / "o")]
    assert evaluate_main([*run, "--set", "data.spec=ncaltech101"]) == 1
    assert "weights caltech6 have the classes airplanes, Motorbikes" in capsys.readouterr().err


def test_an_interrupted_evaluation_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = gen1_tree(tmp_path / "gen1", ("val",))
    run = ["--dataset", "gen1", "--root", str(root), "--protocol", "coco", "--out", str(tmp_path / "out"), *FAST]
    whole = evaluated(capsys, *run)
    files = sorted((tmp_path / "out" / "parts").iterdir())
    assert len(files) == 2
    files[0].write_bytes(files[0].read_bytes()[:500])  # as if it had been killed while writing
    content = files[1].read_bytes()
    start = 30 + content[26] + content[28]  # behind the header of the first member of the archive
    files[1].write_bytes(content[:start] + b"\xff" + content[start + 1 :])  # which no longer can be unpacked
    computed: list[str] = []
    original = PartResult.to_bytes
    monkeypatch.setattr(PartResult, "to_bytes", lambda self: computed.append("one") or original(self))  # type: ignore[func-returns-value]
    assert lasting(evaluated(capsys, *run)) == lasting(whole)
    assert computed == ["one", "one"]
    boxes = root / "val" / "17-03-30_12-53-58_1_60500000_bbox.npy"
    changed = np.load(boxes)
    changed["w"] += 5
    np.save(boxes, changed)
    evaluated(capsys, *run)
    assert computed == ["one"] * 3  # new labels are seen


@pytest.mark.slow
@needs_fork
def test_two_processes_give_the_same_results_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only for the spiking network, whose sums are integers; the ANN may round differently in another process."""
    root = gen1_tree(tmp_path / "gen1", ("val",))
    run = ["--dataset", "gen1", "--root", str(root), "--protocol", "coco", *FAST]
    evaluated(capsys, *run, "--out", str(tmp_path / "one"))
    two = str(ROOT / "tests" / "helpers" / "two.py")
    command = [sys.executable, two, "evaluate", *run, "--out", str(tmp_path / "two"), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.stdout.count('"results"') == 1  # the first process prints
    one, both = (json.loads((tmp_path / out / "results.json").read_text()) for out in ("one", "two"))
    assert (one["timing"]["processes"], both["timing"]["processes"]) == (1, 2)
    active: tuple[list[float], list[float]] = [], []
    assert without_activity(lasting(one), active[0]) == without_activity(lasting(both), active[1])
    assert active[0]
    assert active[0] == pytest.approx(active[1], rel=1e-5)


def simulated_run(pictures: Path, tmp_path: Path) -> list[str]:
    """Flags of an evaluation on windows simulated from the pictures of a folder."""
    sets = ["--set", f"cache={tmp_path / 'cache'}", "--set", "data.simulated.val_sets=[voc]", "--set", "workers=1"]
    return ["--dataset", "simulated", "--root", str(pictures), "--out", str(tmp_path / "out"), *sets, *FAST]


def test_simulation_settings_come_from_the_weights(
    folder: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = simulated_run(folder, tmp_path)
    with simulated_here():
        one = evaluated(capsys, *run, "--limit", "1")
        assert (one["windows"], one["window_ms"], one["protocol"]) == (1, 50, "coco")
        assert one["results"][0]["timing"]["streaming"] is None
        assert evaluated(capsys, *run, "--limit", "1", "--ann", "--protocol", "cordone")["window_ms"] == 100


def test_the_mapping_of_classes_comes_from_weights_trained_on_such_data(tmp_path: Path) -> None:
    """Boxes of a class that the training renamed are labels in the evaluation, too."""
    bundle = Bundle.load("street")
    record = deepcopy(bundle.record)
    record["training"]["config"]["data"] |= {"kind": "folder", "classes": {"van": "car"}}
    weights = tmp_path / "mine.safetensors"
    replace(bundle, record=record).save(weights)

    def classes(*settings: str) -> dict[str, str]:
        return load_evaluation(None, [f"weights={weights}", "data.root=x", *settings])[0].data.classes

    assert classes("data.kind=folder") == {"van": "car"}
    assert classes("data.kind=folder", "data.classes={bus: car}") == {"bus": "car"}
    assert classes("data.kind=gen1") == {}


def test_prophesees_data_are_scored_by_their_protocol() -> None:
    assert [default_protocol(kind) for kind in ("gen1", "1mpx")] == 2 * ["prophesee"]
    assert default_protocol("pedro") == "coco"


def test_weights_trained_on_such_data_have_their_own_spec(tmp_path: Path) -> None:
    """`train --dataset 1mpx` learns car and pedestrian unless data.spec says otherwise; their evaluation needs no setting."""
    bundle, weights = Bundle.load("street"), tmp_path / "mine.safetensors"
    record = deepcopy(bundle.record)

    def spec(trained_on: str, kind: str) -> str:
        record["training"]["config"]["data"] |= {"kind": trained_on}
        replace(bundle, record=record).save(weights)
        return load_evaluation(None, [f"weights={weights}", "data.root=x", f"data.kind={kind}"])[0].data.spec

    assert spec("1mpx", "1mpx") == spec("gen1", "gen1") == "street"
    assert spec("gen1", "1mpx") == "1mpx"


def test_classes_of_ones_own_come_from_the_weights(tmp_path: Path) -> None:
    """Those that the data were trained with, or, if the weights do not say how they were trained, those of the head."""
    bundle, weights = Bundle.load("street"), tmp_path / "mine.safetensors"
    record = deepcopy(bundle.record)
    record["training"]["config"]["data"] |= {"kind": "folder", "own_classes": ["van", "cat"], "sensor_size": "64x48"}

    def data(kind: str) -> DatasetConfig:
        return load_evaluation(None, [f"weights={weights}", "data.root=x", f"data.kind={kind}"])[0].data

    replace(bundle, record=record).save(weights)
    assert [(data(kind).own_classes, data(kind).sensor_size) for kind in ("folder", "gen1")] == [
        (("van", "cat"), "64x48"),
        (("van", "cat"), None),
    ]
    weights.unlink()
    replace(bundle, record={}).save(weights)
    assert data("folder").own_classes == ("car", "pedestrian")


def test_the_sensor_size_of_a_classifiers_data_comes_from_the_weights(tmp_path: Path) -> None:
    bundle, weights = Bundle.load("nmnist"), tmp_path / "mine.safetensors"
    record = deepcopy(bundle.record)
    record["training"]["config"]["data"] |= {"kind": "folder", "sensor_size": "64x48"}
    replace(bundle, record=record).save(weights)
    for kind, size in (("folder", "64x48"), ("ncars", None)):
        config, _ = load_evaluation(None, [f"weights={weights}", "data.root=x", f"data.kind={kind}"])
        assert config.data.sensor_size == size


def test_a_spread_sample_shows_windows_of_the_whole_set(
    folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Its windows equal those of the whole set for the same pictures."""
    config = DatasetConfig("simulated", str(folder), "street")
    one = open_dataset(config, Request("val", 50_000, 1, cache=tmp_path, workers=1, spread=True))
    pictures = PictureFolder(folder, "val", one.spec)
    same = simulated.simulate_scene(pictures, config.simulated, 50_000, np.random.default_rng([0, 0]), 0)[0]
    assert len(one) == 1
    assert one[0].window.words.tolist() == same.window.words.tolist()
    assert [part.items for part in one.parts()] == [range(1)]


def voc_folder(root: Path, name: str = "person") -> Path:
    root.mkdir()
    np.save(root / "frame1.npy", events(3000, 40_000, SPECS["pedro"].sensor_size))
    np.save(root / "frame2.npy", events(10, 40_000, SPECS["pedro"].sensor_size))
    box = f"<object><name>{name}</name><bndbox><xmin>10</xmin><ymin>20</ymin><xmax>50</xmax><ymax>120</ymax></bndbox></object>"
    cat = "<object><name>cat</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    size = "<size><width>346</width><height>260</height></size>"
    (root / "frame1.xml").write_text(f"<annotation>{size}{box}{cat}</annotation>")
    return root


@pytest.mark.parametrize("name", ["person", "pedestrian"])
def test_a_folder_takes_pascal_voc_boxes(tmp_path: Path, name: str) -> None:
    data = open_dataset(DatasetConfig("folder", str(voc_folder(tmp_path / "v", name))), Request("any", 50_000))
    assert (len(data), data.unlabelled) == (1, 1)  # type: ignore[attr-defined]
    assert data.spec.sensor_size == (346, 260)
    assert (data[0].boxes.labels.tolist(), data[0].boxes.boxes_xyxy.tolist()) == ([1], [[10, 20, 50, 120]])
    (tmp_path / "v" / "frame1.xml").write_text("<annotation><size><width>x</width></size></annotation>")
    with pytest.raises(LabelError, match="not a Pascal VOC label"):
        open_dataset(DatasetConfig("folder", str(tmp_path / "v")), Request("any", 50_000))


def test_a_larger_sensor_is_seen_in_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in detect: blocks of 2 x 2 px of a sensor twice as large give the figures of the smaller one."""
    events = np.concatenate(list(open_events(SAMPLES / "street_td.dat").packets()))
    labels = np.load(SAMPLES / "street_bbox.npy")
    first = int(events["t"][0])
    rows = []
    for scale in (1, 2):
        root, large, boxes = tmp_path / f"{scale}", events[events["t"] < first + 250_000].copy(), labels.copy()
        root.mkdir()
        for name in ("x", "y"):
            large[name] *= scale
        for name in ("x", "y", "w", "h"):
            boxes[name] *= scale
        size = SensorSize(304 * scale, 240 * scale)
        write_events(root / "a_td.dat", large, size)
        np.save(root / "a_bbox.npy", boxes[boxes["t"] <= first + 250_000])
        run = [
            "--dataset",
            "folder",
            "--root",
            str(root),
            "--sensor-size",
            f"{size.width}x{size.height}",
            "--downsample",
            f"{scale}",
        ]
        found = evaluated(capsys, *run, "--out", str(root / "out"), "--set", "streaming_windows=1", *FAST)
        assert found["downsample"] == scale
        rows.append(found["results"][0])
    for name in ("ap", "ap50", "energy", "memory", "neurobench"):
        assert rows[0][name] == rows[1][name]
    assert rows[0]["ap"] > 0


def test_without_out_other_data_and_other_weights_have_a_folder_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        voc_folder(tmp_path / name / "data")

    def written(*arguments: str) -> str:
        assert evaluate_main(["--dataset", "folder", "--ann", *FAST, *arguments]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        return last.removeprefix("written   ").partition("/:")[0]

    runs = [written("--root", f"{name}/data") for name in ("first", "second")]
    assert len(set(runs)) == 2
    assert all(run.startswith("runs/evaluate/folder_data_val_street_") for run in runs)
    roots = [json.loads((tmp_path / run / "results.json").read_text())["config"]["data"]["root"] for run in runs]
    assert roots == ["first/data", "second/data"]
    assert written("--root", str(tmp_path / "first/data")) == runs[0], "the same data, named in another way"


def test_the_default_folder_tells_weights_splits_and_tables_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = list[Path]()

    def noted(config: object, bundle: object, out: Path) -> None:
        folders.append(out)

    monkeypatch.setattr("evburst.app.evaluate.run.evaluate", noted)
    weights = [tmp_path / name / "best.safetensors" for name in ("first", "second")]
    for path, bundled in zip(weights, ("street", "caltech6"), strict=True):
        path.parent.mkdir()
        path.write_bytes(find_weights(bundled).read_bytes())
    labels = tmp_path / "labels.csv"
    labels.write_text("file,class\n")
    long = tmp_path / ("d" * 250)
    for *arguments, name in (
        ("--weights", str(weights[0]), "folder_data_val_best"),
        ("--weights", str(weights[0]), "--split", "test", "folder_data_test_best"),
        ("--weights", str(weights[1]), "folder_data_val_best"),
        ("--weights", "nmnist", "folder_data_test_nmnist"),
        ("--weights", "nmnist", "--labels", str(labels), "folder_data_test_nmnist"),
        ("--weights", "street", "--root", str(long), "folder_" + 40 * "d" + "_val_street"),
    ):
        assert evaluate_main(["--dataset", "folder", "--root", str(tmp_path / "data"), *arguments]) == 0
        assert folders[-1].name.rpartition("_")[0] == name
    assert len({*folders}) == 6
    copied = tmp_path / "copy" / "best.safetensors"
    copied.parent.mkdir()
    copied.write_bytes(weights[0].read_bytes())
    assert evaluate_main(["--dataset", "folder", "--root", str(tmp_path / "data"), "--weights", str(copied)]) == 0
    assert folders[-1] == folders[0], "the same weights"


def test_a_table_of_labels_may_have_any_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--dataset", "folder", "--root", str(tmp_path), "--weights", "nmnist"]
    assert evaluate_main([*args, "--labels", str(tmp_path / "labels #2.csv")]) == 1
    assert f"{tmp_path / 'labels #2.csv'}: no such file; expected a table of labels" in capsys.readouterr().err


def test_idle_windows_are_in_no_sample_and_in_no_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three of four windows are empty: a sample measures the zero-skipping ANN in the others, and no empty one is timed."""
    size, windows = SensorSize(64, 48), 48
    (tmp_path / "val").mkdir()
    events = random_events(windows * 400, size, windows * 50_000)
    write_events(tmp_path / "val" / "a.dat", events[events["t"] // 50_000 % 4 == 1], size)
    rows = "".join(f"{50_000 * (k + 1)},car,5,5,40,30\n" for k in range(windows))
    (tmp_path / "val" / "a_bbox.csv").write_text(f"t_us,class,x0,y0,x1,y1\n{rows}")
    run = ["--dataset", "folder", "--root", str(tmp_path), "--resamples", "0", "--set", "latency_windows=12"]
    alone = evaluated(capsys, *run, "--out", str(tmp_path / "a"))
    both = evaluated(capsys, *run, "--both", "--out", str(tmp_path / "b"))
    assert alone["idle_windows"] == both["idle_windows"] == 36
    (spiking,), whole = alone["results"], both["results"][-1]
    for values, exact in (
        (spiking["energy"], whole["energy"]),
        (spiking["energy"]["beyond_silence"], whole["energy"]["beyond_silence"]),
    ):
        assert values["ann_zero_skipping_pj"] == pytest.approx(exact["ann_zero_skipping_pj"], rel=0.02)
    data = open_dataset(DatasetConfig("folder", str(tmp_path)), Request("val", 50_000))
    for count, expected in ((1, 1), (5, 5), (12, 12), (100, 12)):
        found = spread_with_events(data, count)
        assert (len(found), sorted(set(found))) == (expected, found)
        assert all(i % 4 == 1 for i in found)


def test_files_without_labels_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--dataset", "folder", "--root", str(voc_folder(tmp_path / "v")), "--ann", "--out", str(tmp_path / "o"), *FAST]
    assert evaluate_main(run) == 0
    out, err = capsys.readouterr()
    assert "1 event file without labels skipped" in err
    assert out.startswith("folder val: 1 window of 50 ms; protocol coco")


@pytest.mark.shared
def test_pedro_s_people_are_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(
        capsys, "--dataset", "folder", "--root", str(SHARED / "real"), "--both", "--out", str(tmp_path / "o"), *FAST
    )
    assert (found["windows"], found["sensor_size"]) == (3, [346, 260])
    assert found["results"][0]["per_class"]["car"]["ap"] is None


def box_files(place: Path, names: list[str], kind: int) -> list[str]:
    """Labels (0) or detections (1) of random recordings, one for each name."""
    place.mkdir()
    for seed, name in enumerate(sorted(names)):
        np.save(place / f"{name}.npy", random_recording(np.random.default_rng(seed))[kind])
    return [str(place / f"{name}.npy") for name in names]


GEN1_SENSOR = ("--sensor-size", "304x240")


def test_box_files_of_any_detector_are_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = box_files(tmp_path / "gt", ["a_bbox", "b_bbox"], 0)
    found = box_files(tmp_path / "dt", ["b_bbox", "a_bbox"], 1)
    run = ["--predictions", *found, "--labels", *labels, "--protocol", "prophesee-toolbox", *GEN1_SENSOR]
    results = evaluated(capsys, *run)
    pairs = [RecordingBoxes(*random_recording(np.random.default_rng(seed))) for seed in (0, 1)]
    expected = coco_result(match(pairs, PROTOCOLS["prophesee-toolbox"], GEN1)[0], CLASSES)
    assert results["coco_stats"] == results["results"][0]["coco_stats"] == expected.stats.tolist()
    assert results["results"][0]["ap"] == pytest.approx(100 * expected.stats[0], abs=1e-3)
    for place in ("dt", "gt"):
        (tmp_path / place / "._a_bbox.npy").write_bytes(b"macOS")  # what its archives leave beside every file
    folders = evaluated(capsys, "--predictions", str(tmp_path / "dt"), "--labels", str(tmp_path / "gt"), *run[-4:])
    assert folders["coco_stats"] == results["coco_stats"]


def test_text_shows_percent_and_distinct_row_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = labels_at_4_hz()
    labels["class_id"] = 0
    np.save(tmp_path / "a.npy", labels)
    file = str(tmp_path / "a.npy")
    assert evaluate_main(["--predictions", file, "--labels", file, *GEN1_SENSOR, "--classes", "car,a long class name"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "protocol  prophesee, sensor 304x240: 10 labelled times, 1 recording; percent"
    cells = [line.rsplit(maxsplit=2 if line.startswith(("class", "car", "a long")) else 1) for line in lines]
    names = [row[0].strip() for row in cells]
    assert len(set(names)) == len(names)
    figures = dict(zip(names, (row[1:] for row in cells), strict=True))
    assert (figures["AP"], figures["AP50"], figures["AP small"]) == (["100.00"], ["100.00"], ["-"])
    assert (figures["car"], figures["a long class name"]) == (["100.00", "100.00"], ["-", "-"])
    assert len({len(line) for line in lines[-3:]}) == 1


def test_box_files_pair_in_order_if_names_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "mine.npy", labels_at_4_hz())
    np.save(tmp_path / "theirs_bbox.npy", labels_at_4_hz())
    run = [*GEN1_SENSOR, "--predictions", str(tmp_path / "mine.npy"), "--labels", str(tmp_path / "theirs_bbox.npy")]
    results = evaluated(capsys, *run)
    assert (results["protocol"], results["results"][0]["ap"], results["results"][0]["frames"]) == ("prophesee", 100, 10)
    assert evaluate_main([*run, str(tmp_path / "mine.npy")]) == 1
    assert "1 file of predictions but 2 of labels" in capsys.readouterr().err


def test_the_sensor_size_of_box_files_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It decides which boxes are scored, so nothing is assumed: it is given, or stated by the recordings beside the labels."""
    np.save(tmp_path / "a.npy", labels_at_4_hz())
    run = ["--predictions", str(tmp_path / "a.npy"), "--labels", str(tmp_path / "a.npy")]
    assert evaluate_main(run) == 1
    assert "pass --sensor-size WIDTHxHEIGHT, e.g. 304x240 for Gen1" in capsys.readouterr().err
    assert evaluate_main([*run[:-1], str(tmp_path / "nix.npy")]) == 1  # a file that is missing is the first error
    assert f"{tmp_path / 'nix.npy'}: no such" in capsys.readouterr().err
    root = gen1_tree(tmp_path / "gen1", ("val",)) / "val"
    beside = sorted(str(path) for path in root.glob("*_bbox.npy"))
    results = evaluated(capsys, "--predictions", *beside, "--labels", *beside, "--protocol", "coco")
    assert results["sensor_size"] == [304, 240]
    assert results["results"][0]["ap"] == 100


def test_recordings_of_two_sensors_are_not_scored_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, size in (("a_td.dat", SensorSize(304, 240)), ("b.npz", SensorSize(640, 480))):
        np.save(tmp_path / f"{name[0]}_bbox.npy", labels_at_4_hz())
        write_events(tmp_path / name, random_events(50, size, 1000), size)
    files = [str(tmp_path / f"{name}_bbox.npy") for name in "ab"]
    assert evaluate_main(["--predictions", *files, "--labels", *files]) == 1
    assert "several sensors (a_td.dat 304x240, b.npz 640x480)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weights", "street", "--limit", "1"], "weights, limit: nothing that box files are scored by"),
        (["--both"], "both: nothing that box files are scored by"),
        (["--classes", "bus=car,truck=car"], "of box files, the names of the classes 0, 1, ... are wanted, not a mapping"),
        (["--classes", "car,car"], "classes must differ"),
        (["--classes", ""], "classes must be names, none of them empty"),
    ],
)
def test_flags_that_box_files_do_not_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    np.save(tmp_path / "a_bbox.npy", labels_at_4_hz())
    file = str(tmp_path / "a_bbox.npy")
    assert evaluate_main(["--predictions", file, "--labels", file, *GEN1_SENSOR, *flags]) == 1
    assert message in capsys.readouterr().err


def test_boxes_beyond_the_sensor_ask_for_its_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = np.zeros(4, BBOX_DTYPE)
    wide["t"], wide["x"], wide["w"], wide["h"] = 600_000, [10, 500, 700, 900], 100, 100
    np.save(tmp_path / "a.npy", wide)
    run = ["--predictions", str(tmp_path / "a.npy"), "--labels", str(tmp_path / "a.npy")]
    assert evaluate_main([*run, *GEN1_SENSOR]) == 1
    assert "3 of 4 labels lie outside 304x240: pass the sensor's true size" in capsys.readouterr().err
    assert evaluated(capsys, *run, "--sensor-size", "1280x720")["results"][0]["ap"] == 100


@pytest.mark.parametrize("shift", [1_674_050_002_090_794, 1])
def test_predictions_on_another_clock_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], shift: int) -> None:
    """Epoch times against times from the start, or half a window beside every label: an AP of 0 would mislead."""
    np.save(tmp_path / "labels.npy", labels_at_4_hz())
    moved = labels_at_4_hz()
    moved["t"] += shift
    np.save(tmp_path / "found.npy", moved)
    run = ["--predictions", str(tmp_path / "found.npy"), "--labels", str(tmp_path / "labels.npy"), *GEN1_SENSOR]
    assert evaluate_main(run) == 1
    error = capsys.readouterr().err
    assert "labels are at 0.250000 to 3.000000 s, predictions at " in error
    assert f"{(250_000 + shift) / 1e6:.6f}" in error
    moved["t"][-1] -= shift  # one that belongs to a label: a poor detector, which is scored
    np.save(tmp_path / "found.npy", moved)
    assert evaluated(capsys, *run)["results"][0]["ap"] > 0


def test_invalid_values_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = [("t", "<f8"), ("x", "<f4"), ("y", "<f4"), ("w", "<f4"), ("h", "<f4"), ("class_id", "<i4")]
    for name, value in (("t", np.nan), ("t", np.inf), ("w", np.nan), ("class_id", -1)):
        rows = np.zeros(3, fields)
        rows["t"], rows["w"], rows["h"] = 600_000, 40, 50
        rows[name][1] = value
        np.save(tmp_path / "a.npy", rows)
        file = str(tmp_path / "a.npy")
        assert evaluate_main(["--predictions", file, "--labels", file, *GEN1_SENSOR]) == 1
        assert f"a.npy: box 1: {name} is {value}" in capsys.readouterr().err


def test_scores_of_any_range_are_those_of_labels_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes = labels_at_4_hz()
    np.save(tmp_path / "a.npy", boxes)
    boxes["class_confidence"] = -3
    np.save(tmp_path / "logits.npy", boxes)
    plain, logits = str(tmp_path / "a.npy"), str(tmp_path / "logits.npy")
    assert evaluate_main(["--predictions", plain, "--labels", logits, *GEN1_SENSOR]) == 0
    assert evaluate_main(["--predictions", logits, "--labels", plain, *GEN1_SENSOR]) == 1
    assert f"{logits}: box 0: the score is -3.0, and scores are 0 to 1" in capsys.readouterr().err


def test_a_stride_that_detect_refuses_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_main(["--dataset", "folder", "--root", str(tmp_path / "none"), "--stride-ms", "30"]) == 1
    assert "stride_ms 30: must divide the length of the windows, 50 ms" in capsys.readouterr().err


def test_boxes_are_scored_without_torch(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", labels_at_4_hz())
    file = str(tmp_path / "a.npy")
    run = ["--predictions", file, "--labels", file, "--out", str(tmp_path / "out"), *GEN1_SENSOR]
    start = "import sys; sys.modules['torch'] = None\nfrom evburst.app.evaluate.cli import evaluate_main\n"
    code = f"{start}sys.exit(evaluate_main({run!r}))"
    in_new_process(code)


@pytest.mark.usefixtures("without_page")
def test_scores_of_files_say_what_they_have_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", labels_at_4_hz())
    file, out = str(tmp_path / "a.npy"), tmp_path / "out"
    assert evaluate_main(["--predictions", file, "--labels", file, "--out", str(out), *GEN1_SENSOR]) == 0
    named = capsys.readouterr().out.splitlines()[-1].removeprefix(f"written   {out}/: ").split(", ")
    assert sorted(named) == sorted(path.name for path in out.iterdir())


def test_predictions_need_labels(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        evaluate_main(["--predictions", "a.npy"])
    assert "must be given together" in capsys.readouterr().err


def test_unknown_protocols_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", labels_at_4_hz())
    file = str(tmp_path / "a.npy")
    assert evaluate_main(["--predictions", file, "--labels", file, "--protocol", "voc"]) == 1
    assert "known: prophesee, prophesee-toolbox, cordone, coco" in capsys.readouterr().err
