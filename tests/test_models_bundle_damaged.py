"""Damaged weights files: whatever is wrong with one, it is refused with one printable line, or runs; nothing else happens."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from evburst.data.errors import CheckpointError, EvburstError
from evburst.data.events import SensorSize
from evburst.data.representations.voxel_grid import VoxelConfig
from evburst.models.bundle import FORMAT, Bundle, load_tensors
from evburst.models.detector import GridDetector
from evburst.models.detectors.postprocess import HeadSpec, PostConfig
from evburst.models.runtime.int8.simd.emit import AVAILABLE
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.integer_form import integer_form
from tests.conftest import drawn, spiking
from tests.test_models_detector import TwoLevels

Content = tuple[dict[str, Tensor], Any]
Damage = tuple[str, Callable[[], Content]]
"""Its name, and what makes the damaged content: a copy of all metadata, of which few are used."""

HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 3, 10**9, 10**400, 1.5, -1e308, float("nan"), float("inf"), "", "x", "__class__", "a\nb\x1b[2J\ud800",
    [], {}, [1], [0, 0], [-1, -1], [10**6, 10**6], [["x"]], {"x": 1}, [None],
)  # fmt: skip


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a sound file, the graph as JSON values."""
    grid = torch.poisson(torch.full((2, 4, 12, 20), 0.7), generator=torch.Generator().manual_seed(1))
    graph = trace(drawn(TwoLevels), torch.zeros(1, 4, 16, 16)).in_float16()
    spikes, parameters = integer_form(graph, spiking(graph, grid, 2, 4))
    head = HeadSpec("yolo", (4, 2), 2, ("car",))
    path = tmp_path_factory.mktemp("sound") / "a.safetensors"
    Bundle(graph, spikes, parameters, head, VoxelConfig(bins=2), {"training": {"config": {}}}).save(path)
    tensors, metadata = load_tensors(path, "detector")
    metadata["graph"] = json.loads(metadata["graph"])
    return tensors, metadata


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places in JSON values, from the outside in."""
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from paths(item, (*path, key))


def replaced(metadata: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    """A copy with something done to the container and key at a place."""
    root = [copy.deepcopy(metadata)]
    parent: Any = root
    for key in (0, *path)[:-1]:
        parent = parent[key]
    change(parent, (0, *path)[-1])
    return root[0]


def _put(parent: Any, key: Any, value: Any) -> None:
    parent[key] = value


def damaged_metadata(tensors: dict[str, Tensor], metadata: Any) -> Iterator[Damage]:
    """Every value of the metadata gone, or something else."""
    for path in paths(metadata):
        if path:
            yield f"{path} gone", lambda path=path: (tensors, replaced(metadata, path, lambda parent, key: parent.pop(key)))
        for value in HOSTILE:
            put = partial(_put, value=value)
            yield f"{path} = {value!r:.30}", lambda path=path, put=put: (tensors, replaced(metadata, path, put))


def damaged_tensors(tensors: dict[str, Tensor], metadata: Any) -> Iterator[Damage]:
    """Every tensor gone, of another name, dtype or shape, or with numbers that it must not hold."""
    for name, tensor in tensors.items():
        kind = tensor.dtype
        changes: dict[str, Tensor] = {
            "short": tensor[:-1], "long": torch.cat([tensor, tensor]), "flat": tensor.flatten()[None], "empty": tensor[:0],
            "scalar": tensor.flatten()[0].clone(), "huge axis": torch.zeros((0, 2**40)),
            "int64": torch.ones_like(tensor).long(), "int8": torch.ones_like(tensor).to(torch.int8),
            "float64": tensor.double(), "bool": tensor.bool(),
            "complex": tensor.to(torch.complex64), "zero": torch.zeros_like(tensor), "negative": -tensor.abs() - 1,
        }  # fmt: skip
        if kind.is_floating_point:
            for value in (float("nan"), float("inf"), -float("inf"), 6e4, 1e-7):
                changes[f"{value}"] = torch.full_like(tensor, value)
            one = tensor.clone()
            one.view(-1)[-1] = float("nan")
            changes["one NaN"] = one
        else:
            changes["-128"] = torch.full_like(tensor, -128)
        for what, value in changes.items():
            changed = {**tensors, name: value.contiguous()}
            yield f"{name} {what}", lambda changed=changed: (changed, metadata)
        rest = {k: t for k, t in tensors.items() if k != name}
        yield f"{name} gone", lambda rest=rest: (rest, metadata)
        yield f"{name} renamed", lambda rest=rest, tensor=tensor: ({**rest, "evil/../x": tensor}, metadata)


def outcome(path: Path, tensors: dict[str, Tensor], metadata: Any, engine: str) -> str:
    """What loading and running a file ends in: "runs", or the error."""
    if isinstance(metadata, dict) and "graph" in metadata:
        metadata = {**metadata, "graph": json.dumps(metadata["graph"])}
    save_file(tensors, path, {"format": FORMAT, "kind": "detector", "json": json.dumps(metadata)})
    grid = torch.poisson(torch.full((1, 128, 16, 16), 0.5), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    try:
        run(Bundle.load(path), grid, engine)
    except EvburstError as error:
        message = str(error)
    else:
        return "runs"
    assert "\n" not in message
    assert message.isprintable()
    assert path.name in message or "NaN" in message
    return message


def run(bundle: Bundle, grid: Tensor, engine: str) -> None:
    """Twice, and look at what comes out."""
    detector = GridDetector(bundle, PostConfig(score=0.01), engine=engine)
    side = -(-16 // bundle.stride) * bundle.stride
    grids = np.zeros((1, bundle.voxel.channels, side, side), np.uint8)
    grids[:, :, :16, :16] = grid[:, : bundle.voxel.channels]
    for _ in range(2):
        found, stats = detector.detect(grids, SensorSize(16, 16), [0])
        assert stats is not None
        assert np.isfinite(found[0].boxes_xyxy).all()
        assert all((layer.spikes >= 0).all() for layer in stats.layers)
    assert all(name.isprintable() for name in bundle.head.classes)


@pytest.mark.parametrize("kind", [damaged_metadata, damaged_tensors])
def test_every_damage_is_refused_or_runs(
    content: tuple[dict[str, Tensor], Any], tmp_path: Path, kind: Callable[..., Iterator[Damage]]
) -> None:
    """All places, and each of them damaged in every way; EVBURST_ALL_DAMAGES=1 takes all, else every 23rd."""
    step = 1 if os.environ.get("EVBURST_ALL_DAMAGES") else 23
    seen = {"runs": 0, "refused": 0}
    for i, (name, make) in enumerate(kind(*content)):
        if i % step == 0:
            try:
                found = outcome(tmp_path / "a.safetensors", *make(), "int8" if AVAILABLE else "reference")
            except Exception as error:
                raise AssertionError(f"{name}: {error!r}") from error
            seen["runs" if found == "runs" else "refused"] += 1
    assert seen["refused"] > 3 * seen["runs"], seen


def structure(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Callable[[Any], Any]:
    """A change of the graph: of all of it, and of its nodes by name."""

    def changed(metadata: Any) -> Any:
        found = copy.deepcopy(metadata)
        change(found["graph"], {node["name"]: node for node in found["graph"]["nodes"]})
        return found

    return changed


def _bomb(graph: dict[str, Any], nodes: dict[str, Any]) -> None:
    last = graph["nodes"][0]["name"]
    for i in range(64):
        graph["nodes"].append({"name": f"z{i}", "op": "concat", "inputs": [last, last], "attrs": {}})
        last = f"z{i}"


def _without_convolutions(graph: dict[str, Any], nodes: dict[str, Any]) -> None:
    relu = {"name": "z", "op": "relu", "inputs": [graph["nodes"][0]["name"]], "attrs": {}}
    graph.update(nodes=[graph["nodes"][0], relu], outputs=["z"])


def _tower(graph: dict[str, Any], nodes: dict[str, Any]) -> None:
    """A branch that nothing reads, for whose sake inputs would be padded to multiples of a quarter of a million."""
    last = graph["nodes"][0]["name"]
    for i in range(3):
        attrs = {"kernel": [1, 1], "stride": [64, 64], "padding": [0, 0]}
        graph["nodes"].append({"name": f"z{i}", "op": "max_pool", "inputs": [last], "attrs": attrs})
        last = f"z{i}"


STRUCTURES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "cycle": (structure(lambda g, n: n["stem.conv"].update(inputs=["out_a"])), "not a node before it"),
    "self": (structure(lambda g, n: n["stem.conv"].update(inputs=["stem.conv"])), "not a node before it"),
    "twice": (structure(lambda g, n: g["nodes"].append(copy.deepcopy(n["stem.conv"]))), "second node of this name"),
    "two inputs": (structure(lambda g, n: g["nodes"].append({**g["nodes"][0], "name": "y"})), "not the first node"),
    "no input": (structure(lambda g, n: g["nodes"].pop(0)), "not a node before it"),
    "no convolution": (structure(_without_convolutions), "has no convolution"),
    "bomb": (structure(_bomb), "values of its largest node"),
    "tower": (structure(_tower), "reduces the sides of its input more than 1,024 times"),
    "output of nothing": (structure(lambda g, n: g["outputs"].append("zzz")), "is not a node"),
    "one output twice": (structure(lambda g, n: g["outputs"].__setitem__(1, g["outputs"][0])), "read out twice"),
    "outputs in another order": (structure(lambda g, n: g["outputs"].reverse()), "its head decodes"),
    "upsampled too far": (structure(lambda g, n: n["up"].update(attrs={"factor": 64})), "concat of values of different sizes"),
    "max-pool of currents": (
        structure(lambda g, n: n["pool.pool"].update(inputs=["down.conv"])),
        "max-pool of something other than spikes",
    ),
    "relu with an evil attribute": (
        structure(lambda g, n: next(x for x in g["nodes"] if x["op"] == "relu").update(attrs={"evil": 1})),
        "'evil' is unknown",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", STRUCTURES)
def test_unsound_structures_are_named(content: tuple[dict[str, Tensor], Any], tmp_path: Path, case: str) -> None:
    change, message = STRUCTURES[case]
    assert message in outcome(tmp_path / "a.safetensors", content[0], change(content[1]), "reference")


@pytest.mark.parametrize("text", ["[" * 200_000, "[" * 50_000 + "]" * 50_000, "null", "{", '{"graph": 1}', "\ufeff{}"])
def test_metadata_that_are_no_object_are_refused(content: tuple[dict[str, Tensor], Any], tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file(content[0], path, {"format": FORMAT, "kind": "detector", "json": text})
    with pytest.raises(CheckpointError, match="metadata"):
        Bundle.load(path)


def test_a_record_may_hold_what_it_likes_but_not_without_end(content: tuple[dict[str, Tensor], Any], tmp_path: Path) -> None:
    path, record = tmp_path / "a.safetensors", {"note": "x", "free": [1, {"a": float("inf")}]}
    assert outcome(path, content[0], {**content[1], "record": record}, "reference") == "runs"
    deep: Any = {}
    for _ in range(100):
        deep = {"x": [deep]}
    assert "nested too deeply" in outcome(path, content[0], {**content[1], "record": deep}, "reference")


def test_class_names_that_cannot_be_printed_are_escaped(content: tuple[dict[str, Tensor], Any], tmp_path: Path) -> None:
    metadata = copy.deepcopy(content[1])
    metadata["head"]["classes"] = ["a\nb\x1b[2J\ud800"]
    assert outcome(tmp_path / "a.safetensors", content[0], metadata, "reference") == "runs"
    assert Bundle.load(tmp_path / "a.safetensors").head.classes == (r"a\nb\x1b[2J\ud800",)
