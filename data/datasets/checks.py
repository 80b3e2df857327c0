"""Checks of the folder of a data set, and of what own layouts and kinds of data sets return: an object of another form is an
error that names it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from evburst.data.datasets import DatasetSpec
from evburst.data.datasets.labels import LabelFile, NamedBoxes
from evburst.data.errors import ConfigError, DataError
from evburst.data.events import SensorSize
from evburst.data.extensions import check_callable, missing_methods

_Item = TypeVar("_Item")

_PAGE = "docs/architecture.md#extending"
_METHODS = ("__len__", "__getitem__", "labels", "start_us", "faults_of", "parts")
"""Methods of a Dataset."""


def check_root(root: Path, expected: str) -> None:
    """Raise DataError if the root of a data set is no folder; `expected` describes its contents."""
    if not root.is_dir():
        raise DataError(f"{root}: {'a file, not a folder' if root.exists() else 'no such folder'}; expected {expected} in it")


def check_layout(what: str, find: object, sensor_size: object) -> None:
    """Raise ConfigError if a layout to be registered as `what` is no function, or its sensor size no SensorSize or None."""
    check_callable(what, find, _PAGE)
    if not _is_size(sensor_size):
        raise _wrong(what, f"sensor_size is {_shown(sensor_size)}", "SensorSize(width, height) or None")


def checked_items(what: str, found: Any, kind: type[_Item], check: Callable[[str, _Item], None]) -> list[_Item]:
    """Return what the function of a layout yields as a list.

    Args:
        what: the layout, for the error, such as "layout 'folder'".
        found: what its function returned.
        kind: type of the items.
        check: called with a name for the error and each item; raises ConfigError if one of its attributes is wrong.

    Raises:
        ConfigError: `found` is no iterator of items of this kind.
    """
    if not isinstance(found, Iterable):
        raise _wrong(what, f"its function returned {_shown(found)}", f"an iterator of {kind.__name__}")
    items = []
    for item in found:
        if not isinstance(item, kind):
            raise _wrong(what, f"its function yielded {_shown(item)}", f"a {kind.__name__}")
        check(what, item)
        items.append(item)
    return items


def check_attribute(what: str, item: object, name: str, holds: bool, expected: str) -> None:
    """Raise ConfigError if an attribute of an item that `what` has yielded is not as expected."""
    if not holds:
        raise _wrong(what, f"{type(item).__name__}.{name} is {_shown(getattr(item, name))}", expected)


def check_labels(what: str, labels: LabelFile) -> None:
    """Raise ConfigError if the boxes that a layout or a reader of label files has returned are of another form."""
    check_attribute(what, labels, "sensor_size", _is_size(labels.sensor_size), "SensorSize(width, height) or None")
    is_listed = isinstance(labels.instants, list | tuple) and all(isinstance(one, NamedBoxes) for one in labels.instants)
    check_attribute(what, labels, "instants", is_listed, "a tuple of NamedBoxes")
    for one in labels.instants:
        check_attribute(what, one, "t_us", one.t_us is None or isinstance(one.t_us, Integral), "a whole number of µs or None")
        boxes, names = one.boxes_xyxy, one.names
        is_array = isinstance(boxes, np.ndarray) and boxes.ndim == 2 and boxes.shape[1] == 4 and boxes.dtype.kind in "fiu"
        check_attribute(what, one, "boxes_xyxy", is_array, "an array of numbers (n, 4)")
        are_names = isinstance(names, Sequence | np.ndarray) and not isinstance(names, str | bytes) and len(names) == len(boxes)
        are_names = are_names and all(issubclass(kind, str | int) for kind in set(map(type, names)))
        check_attribute(what, one, "names", are_names, f"names (str) or class ids (int) of {len(boxes)} boxes")


def check_dataset(what: str, dataset: Any) -> None:
    """Raise ConfigError if what the function of a kind of data set has returned is no Dataset."""
    if missing := missing_methods(dataset, _METHODS):
        raise _wrong(what, f"its function returned {_shown(dataset)}, which has no {missing}", "a Dataset")
    if not isinstance(getattr(dataset, "spec", None), DatasetSpec):
        raise _wrong(what, f"its function returned {_shown(dataset)}, whose spec is no DatasetSpec", "a Dataset")


def _is_size(value: object) -> bool:
    return value is None or isinstance(value, SensorSize)


def _wrong(what: str, found: str, expected: str) -> ConfigError:
    return ConfigError(f"{what}: {found}; expected {expected}; see {_PAGE}")


def _shown(value: object) -> str:
    """Return a value in short, with its type."""
    return "None" if value is None else f"{type(value).__name__} {repr(value)[:60]}"
