"""Names of own readers, sinks, engines and so on: one that is taken is refused, and a module may be loaded again."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from evburst.app import scoring
from evburst.app.outputs import sinks
from evburst.data import readers, representations, writers
from evburst.data.classification import CLASSIFICATION
from evburst.data.datasets import class_layouts, labels, layouts, registry
from evburst.data.errors import ConfigError
from evburst.data.extensions import refuse_taken
from evburst.data.representations.voxel_grid import VoxelConfig
from evburst.models import architectures, runtime, tasks
from evburst.models.detectors.postprocess import HeadSpec

architectures.find_family("resnet18")  # bundled families and tasks register themselves when the first one is asked for
tasks.task_of(HeadSpec("yolo", (8,), 1, ("car",)))


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """What is registered is so for one test."""
    modules: tuple[ModuleType, ...] = (readers, sinks, layouts, class_layouts, registry)
    modules += (writers, representations, architectures, runtime, tasks, labels, scoring)
    own = [value for module in modules for name, value in vars(module).items() if name.isupper() or name.startswith("_WITHOUT")]
    found: list[Any] = [value for value in own if isinstance(value, dict | set)] + [readers._RECOGNISE]  # private: a registry
    before = [registry.copy() for registry in found]
    yield
    for registered, content in zip(found, before, strict=True):
        registered.clear()
        registered.update(content)


class Mine:
    """Stands for a sink, and by its call for a reader and a layout."""

    def __init__(self, *_: object) -> None: ...

    def write(self, result: object) -> None: ...

    def close(self) -> None: ...


class Other(Mine):
    """Stands for another one."""


Register = Callable[[str], Callable[[Any], Any]]
REGISTER: dict[str, tuple[Register, str, dict[str, Any]]] = {
    "reader": (lambda name: readers.reader(name, lambda head, path: False), "dat", readers.READERS),
    "sink": (lambda name: sinks.sink(name, f"{name}.txt"), "jsonl", sinks.SINKS),
    "layout": (lambda name: layouts.layout(name, expected=""), "gen1", layouts.LAYOUTS),
    "class layout": (lambda name: class_layouts.class_layout(name, ""), "nmnist", class_layouts.CLASS_LAYOUTS),
    "kind": (lambda name: registry.opener(name), "simulated", registry.OPENERS),
    "kind of classes": (lambda name: registry.opener(name, task=CLASSIFICATION), "tonic", registry.CLASS_OPENERS),
    "kind as a layout": (lambda name: registry.opener(name), "folder", layouts.LAYOUTS),
    "writer": (writers.writer, ".dat", writers.WRITERS),
    "representation": (
        lambda name: representations.representation(name, VoxelConfig, lambda *_: None, ("uint8",)),  # type: ignore[arg-type]
        "voxel_histogram",
        representations.REPRESENTATIONS,
    ),
    "family": (architectures.family, "resnet", architectures.FAMILIES),
    "engine": (lambda name: runtime.engine(name, lambda device: ""), "int8", runtime.ENGINES),
    "task": (tasks.task, "yolo", tasks.TASKS),
    "label file": (labels.label_file, "_bbox.npy", labels.LABEL_FILES),
    "scoring": (
        lambda name: scoring.scoring(name, lambda *_: None, "", ()),  # type: ignore[arg-type,return-value]
        "detection",
        scoring.SCORINGS,
    ),
    "kind as a class layout": (lambda name: registry.opener(name, task=CLASSIFICATION), "ncars", class_layouts.CLASS_LAYOUTS),
}


@pytest.mark.parametrize("what", REGISTER)
def test_a_name_that_is_taken_is_refused(what: str) -> None:
    """By a bundled one, or by an earlier registration; what was registered stays."""
    register, bundled, names = REGISTER[what]
    before = names[bundled]
    with pytest.raises(ConfigError, match=rf"'{bundled}' is taken by evburst\..*, so that .*\.Mine cannot have it; choose"):
        register(bundled)(Mine)
    assert names[bundled] is before
    register("mine")(Mine)
    register("mine")(Mine)
    with pytest.raises(ConfigError, match=r"'mine' is taken by .*\.Mine, so that .*\.Other cannot have it"):
        register("mine")(Other)


def test_the_suffix_of_another_reader_is_refused() -> None:
    """Without registering half of the reader."""
    with pytest.raises(ConfigError, match=r"file name suffix '\.dat' is taken by evburst\..*open_dat.* leave it out"):
        readers.reader("mine", lambda head, path: False, suffixes=(".mine", ".dat"))(Mine)
    assert "mine" not in readers.READERS
    assert ".mine" not in readers.recording_suffixes()
    assert readers.SUFFIXES[".dat"] == "dat"


MODULE = """
from evburst.app.outputs.sinks import sink
from evburst.data.datasets.layouts import layout
from evburst.data.readers import reader

@reader("mine", lambda head, path: head == b"mine", suffixes=({suffix!r},), signature={signature})
def open_mine(path, sensor_size, options): ...

@sink("mine", {file!r})
class MySink:
    def __init__(self, path, run): ...
    def write(self, result): ...
    def close(self): ...

@layout("mine", expected="")
def find_mine(source): ...

reader("short", lambda head, path: False)(lambda path, sensor_size, options: None)
"""


def test_a_module_may_be_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after it was changed, and under another name, as the program that is run is `__main__`."""
    path = tmp_path / "own_extension.py"
    path.write_text(MODULE.format(suffix=".mine", signature=False, file="a.txt"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = importlib.import_module("own_extension")
    assert (readers.SUFFIXES[".mine"], sinks.SINKS["mine"].file) == ("mine", "a.txt")
    path.write_text(MODULE.format(suffix=".other", signature=True, file="another.txt"))
    importlib.reload(module)
    assert (readers.SUFFIXES.get(".mine"), readers.SUFFIXES[".other"]) == (None, "mine")
    assert sinks.SINKS["mine"].file == "another.txt"
    assert readers.READERS["mine"] is module.open_mine
    (tmp_path / "mine").write_bytes(b"mine")
    assert readers.recognise_format(tmp_path / "mine") == "mine"
    spec = importlib.util.spec_from_file_location("the_same", path)
    assert spec is not None
    assert spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "the_same", again)
    spec.loader.exec_module(again)
    assert readers.READERS["mine"] is again.open_mine
    del sys.modules["own_extension"]


def test_objects_without_a_name_are_the_same_only_if_they_are_one() -> None:
    one, other, first = Mine(), Mine(), lambda: 1
    refuse_taken("sink", "a", one, {"a": one})
    for old, new in ((one, other), (first, lambda: 2)):
        with pytest.raises(ConfigError, match=r"sink 'a' is taken by .*, so that .* cannot have it; choose another name"):
            refuse_taken("sink", "a", new, {"a": old})


def test_a_layout_with_the_name_of_a_kind_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    """The kind would be opened, and the layout never."""
    layouts.layout("simulated", expected="")(Mine)
    with pytest.raises(ConfigError, match=r"data\.kind 'simulated' is the name of a kind of data set and of a layout"):
        registry.open_dataset(registry.DatasetConfig("simulated", str(tmp_path)), registry.Request("val", 50_000))
