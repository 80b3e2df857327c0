"""Own layouts and kinds of data sets that return objects of another form: errors name the object, its fault and the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evburst.data.classification import CLASSIFICATION, DETECTION
from evburst.data.datasets import Dataset
from evburst.data.datasets.class_layouts import CLASS_LAYOUTS, Sample, class_layout
from evburst.data.datasets.classes import open_classes
from evburst.data.datasets.labels import LabelFile, NamedBoxes
from evburst.data.datasets.layouts import LAYOUTS, LabelledFile, layout
from evburst.data.datasets.registry import CLASS_OPENERS, OPENERS, DatasetConfig, Request, open_dataset, opener
from evburst.data.errors import ConfigError
from evburst.data.events import SensorSize
from tests.test_data_layouts import folder_tree

PAGE = r"; see docs/architecture\.md#extending$"
EVENTS, BOXES = Path("a.dat"), np.zeros((2, 4), np.float32)
NAMED = NamedBoxes(60_000, BOXES, ("car", 1))
FILE = LabelledFile(EVENTS, LabelFile((NAMED,)))
SAMPLE = Sample(EVENTS, "cat", "unknown", "a.dat")


def of(*instants: Any) -> LabelledFile:
    return LabelledFile(EVENTS, LabelFile(instants))


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layouts and kinds are registered for one test."""
    for registry in (LAYOUTS, CLASS_LAYOUTS, OPENERS, CLASS_OPENERS):
        monkeypatch.setitem(registry, "mine", None)  # type: ignore[arg-type]
        del registry["mine"]


def opened(kind: str, root: Path, task: str = DETECTION) -> Dataset:
    return open_dataset(DatasetConfig(kind, str(root)), Request("val", 50_000, cache=root / "cache", task=task))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "its function returned None; expected an iterator of LabelledFile"),
        (5, "its function returned int 5; expected an iterator of LabelledFile"),
        ([None], "its function yielded None; expected a LabelledFile"),
        ([EVENTS], r"its function yielded \w*Path .*; expected a LabelledFile"),
        ([tuple(FILE)], r"its function yielded tuple .*; expected a LabelledFile"),
        ([FILE._replace(events="a.dat")], r"LabelledFile\.events is str 'a\.dat'; expected a Path"),
        ([FILE._replace(labels=(NAMED,))], r"LabelledFile\.labels is tuple .*; expected a LabelFile"),
        ([FILE._replace(name="drive/1")], r"LabelledFile\.name is str 'drive/1'; expected text without slashes"),
        ([LabelledFile(EVENTS, LabelFile((NAMED,), (304, 240)))], r"a\.dat: LabelFile\.sensor_size is tuple \(304, 240\)"),
        ([of(BOXES)], r"a\.dat: LabelFile\.instants is tuple .*; expected a tuple of NamedBoxes"),
        ([LabelledFile(EVENTS, LabelFile(iter([NAMED])))], r"LabelFile\.instants is list_iterator"),
        ([of(NAMED._replace(t_us=0.06))], r"NamedBoxes\.t_us is float 0\.06; expected a whole number of µs or None"),
        ([of(NAMED._replace(boxes_xyxy=[[0, 0, 1, 1]]))], r"NamedBoxes\.boxes_xyxy is list .*; expected an array .*\(n, 4\)"),
        ([of(NAMED._replace(boxes_xyxy=BOXES[0]))], r"NamedBoxes\.boxes_xyxy is ndarray"),
        ([of(NAMED._replace(boxes_xyxy=BOXES.astype(str)))], r"NamedBoxes\.boxes_xyxy is ndarray"),
        ([of(NAMED._replace(names="ab"))], r"NamedBoxes\.names is str 'ab'; expected names .* of 2 boxes"),
        ([of(NAMED._replace(names=("car",)))], r"NamedBoxes\.names is tuple .*; expected names .* of 2 boxes"),
        ([of(NAMED._replace(names=("car", None)))], r"NamedBoxes\.names is tuple"),
        ([of(NAMED._replace(names=("car", np.int64(1))))], r"NamedBoxes\.names is tuple .*class ids \(int\)"),
    ],
)  # fmt: skip
def test_what_a_layout_yields_is_checked(tmp_path: Path, found: Any, message: str) -> None:
    layout("mine", expected="")(lambda source: found)
    for split in ("val", "train"):
        with pytest.raises(ConfigError, match=f"^layout 'mine': (a.dat: )?({message}).*{PAGE}"):
            open_dataset(DatasetConfig("mine", str(tmp_path)), Request(split, 50_000, cache=tmp_path / "cache"))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "its function returned None; expected an iterator of Sample"),
        ([EVENTS], r"its function yielded \w*Path .*; expected a Sample"),
        ([SAMPLE._replace(path="a.dat")], r"Sample\.path is str 'a\.dat'; expected a Path"),
        ([SAMPLE._replace(class_name=3)], r"Sample\.class_name is int 3; expected the name of its class"),
        ([SAMPLE._replace(split="val")], r"Sample\.split is str 'val'; expected one of training, unknown, train, select, test"),
        ([SAMPLE._replace(group=3)], r"Sample\.group is int 3; expected text"),
        ([SAMPLE._replace(span_us=(0,))], r"Sample\.span_us is tuple \(0,\); expected two whole numbers of µs or None"),
        ([SAMPLE._replace(span_us=5)], r"Sample\.span_us is int 5"),
    ],
)
def test_what_a_layout_of_class_recordings_yields_is_checked(tmp_path: Path, found: Any, message: str) -> None:
    class_layout("mine", "")(lambda folder: found)
    with pytest.raises(ConfigError, match=f"^layout 'mine': {message}.*{PAGE}"):
        open_classes("mine", tmp_path, "test")


def test_a_layout_of_the_right_form_is_opened(tmp_path: Path) -> None:
    """NumPy's numbers and lists count as numbers and tuples."""
    root = folder_tree(tmp_path / "data")
    boxes = NamedBoxes(np.int64(60_000), np.array([[0, 0, 20, 20]]), [1])  # type: ignore[arg-type]
    labels = LabelFile([boxes], SensorSize(64, 48))  # type: ignore[arg-type]
    layout("mine", expected="")(lambda source: [LabelledFile(root / "a.dat", labels)])
    data = opened("mine", root)
    assert (len(data), data[0].boxes.boxes_xyxy.tolist()) == (1, [[0, 0, 20, 20]])


REGISTER: dict[str, Callable[[], Any]] = {
    "layout": lambda: layout("mine", expected=""),
    "class layout": lambda: class_layout("mine", ""),
    "kind": lambda: opener("mine"),
}


@pytest.mark.parametrize("what", REGISTER)
def test_what_is_registered_has_to_be_a_function(what: str) -> None:
    with pytest.raises(ConfigError, match=rf"'mine': expected a function or a class, received list{PAGE}"):
        REGISTER[what]()([])


def test_the_sensor_of_a_layout_has_to_be_a_size() -> None:
    for register in (layout("mine", expected="", sensor_size=(304, 240)), class_layout("mine", "", (34, 34))):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=rf"'mine': sensor_size is tuple .*; expected SensorSize.*{PAGE}"):
            register(lambda source: iter(()))


@pytest.mark.parametrize("task", [DETECTION, CLASSIFICATION])
def test_what_a_kind_of_data_set_returns_is_checked(tmp_path: Path, task: str) -> None:
    root = folder_tree(tmp_path / "data")
    good = opened("folder", root)
    returned: list[Any] = []
    opener("mine", task=task)(lambda config, request: returned[-1])
    for other, message in ((None, "None, which has no __len__ and"), ([1], r"list \[1\], which has no labels and start_us")):
        returned.append(other)
        with pytest.raises(ConfigError, match=f"^kind of data set 'mine': its function returned {message}.*a Dataset{PAGE}"):
            opened("mine", root, task)
    returned.append(good)
    assert opened("mine", root, task) is good
    good.spec = "street"  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=rf"whose spec is no DatasetSpec; expected a Dataset{PAGE}"):
        opened("mine", root, task)
