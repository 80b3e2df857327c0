"""results.json: typed, versioned, refused where it is of another shape; its JSON Schema says the same to other programs."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evburst.data.errors import DataError
from evburst.data.stats import ActivityStats, ConvMemory, LayerStats, MemoryGeometry, SpikeStats
from evburst.eval.coco import coco_result
from evburst.eval.energy import energy_figures, energy_report
from evburst.eval.memory import memory_figures
from evburst.eval.protocol import PROTOCOLS, RecordingBoxes, match
from evburst.eval.results import VERSION, finite, json_schema, parse, read_results, to_json
from evburst.eval.scoring import ap_figures, describe, detail_figures
from tests.test_eval_protocol import CLASSES, GEN1, random_recording

CONV = ConvMemory("conv", 1000, inputs=16, weights=18, outputs=32, biases=2, kept_macs=1000)
GEOMETRY = MemoryGeometry((CONV,), {"a": {"conv": 90.0}})


def row(model: str, timesteps: int | None, seed: int = 0) -> dict[str, Any]:
    """Figures of random boxes and of a tiny network."""
    frames, left_out = match([RecordingBoxes(*random_recording(np.random.default_rng(seed)))], PROTOCOLS["coco"], GEN1)
    scored = coco_result(frames, CLASSES)
    ones = np.ones(4)
    spikes = SpikeStats((LayerStats("a", "neuron", 9, 1, 5 * ones, 50 * ones, 20 * ones, 2 * ones),), {"conv": 1000})
    activity = ActivityStats({"conv": 1000}, {"conv": 400 * ones}, 3 * ones, 9)
    energy = energy_figures(energy_report(spikes if timesteps else None, activity))
    loss = {"mean": 0.5, "low": -0.25, "high": 1.25, "resamples": 100, "units": 20, "unit": "picture"} if timesteps else None
    return {
        "model": model,
        "timesteps": timesteps,
        **ap_figures(scored),
        "left_out": vars(left_out),
        "engine": "int8" if timesteps else None,
        "energy": {**energy, "snn_pj_percentiles": {"p5": 1.0, "p50": 2.0, "p95": 3.0} if timesteps else None},
        "ap_loss": loss,
        "ap50_loss": loss,
        "latency_ms": {"p50": 1.5, "p90": 2.0, "p99": 3.0},
        "memory": memory_figures(spikes if timesteps else activity, activity, GEOMETRY, "int8"),
        "details": detail_figures(scored, frames, CLASSES),
    }


def results(**changes: Any) -> dict[str, Any]:
    """A whole file's content."""
    rows = [row("ann", None), row("snn", 1)]
    content = {
        "version": VERSION,
        "results": rows,
        **describe(PROTOCOLS["coco"], GEN1, CLASSES),
        "dataset": "simulated",
        "split": "val",
        "windows": 4,
        "recordings": 1,
        "window_ms": 50.0,
        "weights": "street",
        "ap_loss": rows[1]["ap_loss"],
        "provenance": {"commit": "0123456789ab", "versions": {"python": "3.11"}, "machine": "a processor"},
        "timing": {"wall_s": 1.5, "processes": 1, "threads": 2, "date": "2026-11-27T04:00:00+00:00"},
        "config": {"device": "cpu", "seed": 0},
    }
    return json.loads(json.dumps(finite({**content, **changes})))  # type: ignore[no-any-return]


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = parse(results())
    (tmp_path / "results.json").write_text(to_json(found))
    assert read_results(tmp_path / "results.json") == found
    assert (found.main.label, found.results[0].label, found.title) == ("SNN, T = 1", "ANN", "street on simulated, val split")
    assert parse(results(downsample=2)).title == "street on simulated, val split, blocks of 2x2 px"
    assert found.sensor_size == (304, 240)
    assert found.results[0].energy is not None
    assert found.results[0].energy.tables["int8"].snn_pj is None


def test_the_json_schema_describes_it() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    content = json.loads(to_json(parse(results())))
    assert list(check.iter_errors(content)) == []
    content["results"][0]["ap"] = "high"
    assert [error.json_path for error in check.iter_errors(content)] == ["$.results[0].ap"]


def changed(place: str, value: Any) -> dict[str, Any]:
    """A file's content with one value replaced (or taken out: ...)."""
    content = copy.deepcopy(results())
    *path, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    inner: Any = content
    for part in path:
        inner = inner[part]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return content


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("results.1.energy.qnn_pj", ...),  # missing
        ("results.0.surprise", 1),  # unknown
        ("results.0.frames", "many"),  # another type
        ("protocol_rule.smallest_box", None),
        ("sensor_size", [304]),
        ("results.1.ap", math.inf),
        ("provenance.commit", 7),
    ],
)
def test_what_is_misshapen_is_named(place: str, value: Any) -> None:
    with pytest.raises(DataError, match=place.replace(".", r"\.")):
        parse(changed(place, value))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"[1, 2]", "not a results.json of this version; run evburst evaluate again"),
        (b'{"results": []}', "not a results.json of this version"),
        (b'{"version": 1}', "results: Field required"),
        (b"\xff\xfe", "not JSON"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_results(tmp_path / "results.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_results(tmp_path / "none.json")


def test_other_versions_and_empty_lists_are_refused() -> None:
    with pytest.raises(DataError, match=f"version is 99; this program reads version {VERSION}"):
        parse(results(version=99))
    with pytest.raises(DataError, match="results is empty"):
        parse(results(results=[]))


def test_numbers_that_json_does_not_have_become_null() -> None:
    found = parse(results(weights_record={}))
    content = json.loads(to_json(found))
    assert content["weights_record"] == {}
    record = {"best": {"ap": float("nan"), "rows": [1.0, float("inf")]}, "note": "x"}
    assert finite(record) == {"best": {"ap": None, "rows": [1.0, None]}, "note": "x"}


def test_the_json_schema_is_of_the_task() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(json_schema())
    content = json.loads(to_json(parse(results())))
    content["task"] = "classification"
    assert any(error.validator == "additionalProperties" for error in check.iter_errors(content))
