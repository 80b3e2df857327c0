"""Datasets: labelled windows to train, calibrate and evaluate on. Each has a DatasetSpec."""

from __future__ import annotations

from dataclasses import dataclass

from data.events import SensorSize


@dataclass(frozen=True)
class DatasetSpec:
    """What a detector of this dataset sees and tells apart.

    Attributes:
        name: the dataset.
        classes: class names in the order of their indices.
        sensor_size: (W, H) px of its sensor.
        source_names: class names of the labelled pictures, to class index.
        ignored_names: classes that are neither object nor background; their region is blanked.
    """

    name: str
    classes: tuple[str, ...]
    sensor_size: SensorSize
    source_names: dict[str, int]
    ignored_names: frozenset[str] = frozenset()


SPECS = {
    "street": DatasetSpec(
        "street",
        ("car", "pedestrian"),
        SensorSize(304, 240),
        {"car": 0, "vehicle": 0, "person": 1},
        frozenset({"bus", "bicyclist", "bike", "motobike"}),
    ),
}
