"""Datasets of labelled windows for training, calibration and evaluation. Each has a DatasetSpec.

Item i is a LabelledWindow: the events of one window and the boxes at its end. Items can be read in any order and hold only
their own events; what a dataset keeps in memory as a whole is its list of labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from evburst.data.boxes import Detections
from evburst.data.events import EventWindow, SensorSize


@dataclass(frozen=True)
class DatasetSpec:
    """Classes and sensor of a dataset.

    Attributes:
        name: the dataset.
        classes: class names in the order of their indices.
        sensor_size: (W, H) px of its sensor.
        scene: how labelled pictures are moved to simulate it: "drive" or "saccades" (evburst.data.simulation.scenes).
        source_names: class names in labels of pictures, to class index.
        ignored_names: classes that are neither object nor background; their region is blanked.
        whole: a label is of a whole picture or recording, and a window's only box the sensor's area.
        own_ids: class ids in label files are the indices of these classes, whatever data set has such files.
    """

    name: str
    classes: tuple[str, ...]
    sensor_size: SensorSize
    scene: str
    source_names: dict[str, int]
    ignored_names: frozenset[str] = frozenset()
    whole: bool = False
    own_ids: bool = False

    @property
    def has_sequences(self) -> bool:
        """Whether its pictures can be shown in several consecutive windows."""
        return self.scene == "drive" and not self.whole


DSEC = ("pedestrian", "rider", "car", "bus", "truck", "bicycle", "motorcycle", "train")
CALTECH6 = ("airplanes", "Motorbikes", "Faces", "butterfly", "dalmatian", "dolphin")

SPECS = {
    "street": DatasetSpec(
        "street",
        ("car", "pedestrian"),
        SensorSize(304, 240),
        "drive",
        {"car": 0, "vehicle": 0, "person": 1},
        frozenset({"bus", "bicyclist", "bike", "motobike"}),
    ),
    "caltech6": DatasetSpec(
        "caltech6", CALTECH6, SensorSize(240, 180), "saccades", {name: index for index, name in enumerate(CALTECH6)}
    ),
    "1mpx": DatasetSpec(
        "1mpx",
        ("pedestrian", "two wheeler", "car"),
        SensorSize(1280, 720),
        "drive",
        {"person": 0, "bicyclist": 1, "bike": 1, "motobike": 1, "car": 2, "vehicle": 2},
        frozenset({"bus"}),
    ),
    "dsec": DatasetSpec("dsec", DSEC, SensorSize(640, 480), "drive", {name: index for index, name in enumerate(DSEC)}),
    "ncaltech101": DatasetSpec("ncaltech101", (), SensorSize(240, 180), "saccades", {}),
    "pedro": DatasetSpec("pedro", ("car", "pedestrian"), SensorSize(346, 260), "drive", {"person": 1}),
}


class LabelledWindow(NamedTuple):
    """One item of a dataset.

    Attributes:
        window: its events.
        boxes: the objects at the window's end, in sensor pixels; in a classification dataset one box, the area of the
            sensor, with the label of the recording.
        name: the recording or picture it comes from.
    """

    window: EventWindow
    boxes: Detections
    name: str


class Part(NamedTuple):
    """Items that are evaluated together: those of one recording, or a block of simulated windows.

    Attributes:
        name: name of the recording or block; not unique.
        items: indices of the items.
        identity: a digest that changes if their events or labels change.
        group: recordings with the same value, e.g. those of one drive, are not independent of each other; "": alone.
    """

    name: str
    items: range
    identity: str
    group: str = ""


class Dataset(Protocol):
    """Labelled windows with random access."""

    spec: DatasetSpec

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> LabelledWindow: ...

    def labels(self, i: int) -> Detections:
        """Return the boxes of item i as labelled; they may extend beyond the sensor."""
        ...

    def start_us(self, i: int) -> int | None:
        """Return when the recording of item i began, on its own clock; None if the item is not part of a recording."""
        ...

    def faults_of(self, i: int) -> dict[str, int]:
        """Return the counts of repairs in the recording of item i, each counted once; empty for simulated windows."""
        ...

    def parts(self) -> list[Part]:
        """Return all items, in order, grouped by recording."""
        ...


def spread_with_events(dataset: Dataset, count: int) -> list[int]:
    """Return the indices of up to `count` items whose windows contain events, spread evenly; of any items if none does.

    More items are read only if too many of them are empty.
    """
    asked = count
    while True:
        found = [i for i in evenly_spread(len(dataset), asked) if len(dataset[i].window)]
        if len(found) >= count or asked >= len(dataset):
            break
        asked *= 2
    found = found or evenly_spread(len(dataset), count)
    return [found[k] for k in evenly_spread(len(found), count)]


def evenly_spread(n: int, most: int) -> list[int]:
    """Return up to `most` evenly spread indices from 0 to n - 1."""
    indices: list[int] = np.linspace(0, n - 1, min(n, most)).astype(int).tolist()
    return indices
