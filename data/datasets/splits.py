"""The recordings of a split of a dataset with boxes, found by its layout (layouts.py), with labels as classes of a spec."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evburst.data.boxes import Detections
from evburst.data.datasets import DatasetSpec
from evburst.data.datasets.checks import check_attribute, check_labels, check_root, checked_items
from evburst.data.datasets.class_layouts import SET_CLASSIFIER, has_classes
from evburst.data.datasets.labels import ClassMatcher, LabelFile, NamedBoxes
from evburst.data.datasets.layouts import LAYOUTS, NESTED, ONE_MPX, ONE_MPX_CLASSES, LabelledFile, LayoutFolder
from evburst.data.datasets.selection import SELECT, SHARE, Holdable, held_out_files, warn_of_unseen
from evburst.data.errors import DataError
from evburst.data.events import SensorSize
from evburst.data.notices import warn_once
from evburst.data.text import number_of

_LOG = logging.getLogger(__name__)
_GAP_US = 1_000_000
"""Time between what is learned from and what is held out of the same recording."""


@dataclass(frozen=True)
class Recording:
    """An event file with its labels.

    Attributes:
        events: the file.
        labels: the boxes of every labelled time, unclipped; a time of None is the recording's end.
        sensor_size: (W, H) px as stated by its labels or the layout.
        group: see LabelledFile.
        name: what it is called; "": by its file.
    """

    events: Path
    labels: tuple[tuple[int | None, Detections], ...]
    sensor_size: SensorSize | None = None
    group: str = ""
    name: str = ""

    @property
    def title(self) -> str:
        """What it is called."""
        return self.name or self.events.name


class LabelledSplit(NamedTuple):
    """The recordings of a dataset's split.

    Attributes:
        root: the folder.
        spec: the dataset's classes.
        recordings: the labelled recordings, in order.
        unlabelled: number of event files without labels.
    """

    root: Path
    spec: DatasetSpec
    recordings: list[Recording]
    unlabelled: int = 0


def read_layout(
    name: str,
    root: Path,
    split: str,
    spec: DatasetSpec,
    classes: dict[str, str],
    size_of: Callable[[LabelledFile], SensorSize | None],
) -> LabelledSplit:
    """Find a dataset's recordings and read their labels; logs what is skipped.

    Args:
        name: name in LAYOUTS.
        root: folder of the dataset.
        split: the split to find.
        spec: the dataset's classes.
        classes: names (or class ids) in label files to classes of the spec; see ClassMatcher.
        size_of: returns the sensor size of a recording, None if it has no events; it decides the names of class ids if the
            layout does not, for a recording without events by the others.

    Raises:
        DataError: there is no recording.
        LabelError: a label file is malformed, or no box is of a known class.
        ConfigError: the layout's function does not yield labelled files.
    """
    entry = LAYOUTS[name]
    check_root(root, entry.expected)
    source, found = _find(name, root, split, spec)
    _log_skipped(source)
    if not found:
        first = f", the first one: {source.unlabelled[0]}" if source.unlabelled else ""
        hint = f"; {number_of(len(source.unlabelled), 'event file')} without labels{first}" if source.unlabelled else ""
        hint += f"; skipped: {source.skipped[0]}" if source.skipped else ""
        hint += f"; its recordings have a class each: {SET_CLASSIFIER}" if not spec.own_ids and has_classes(name, root) else ""
        raise DataError(f"{root}: no recording found of split {split!r}; expected {entry.expected}{hint}")
    matcher = ClassMatcher(source.spec, classes, None if spec.own_ids else entry.class_ids)
    recordings = []
    for item in found:
        recording_matcher = matcher
        ids_by_size = entry.class_ids is None and not spec.own_ids and _has_ids(item.labels)
        if ids_by_size and (size_of(item) or next(filter(None, map(size_of, found)), None)) == ONE_MPX:
            recording_matcher = matcher.with_ids(ONE_MPX_CLASSES)
        labels = tuple(_detections(instant, recording_matcher) for instant in item.labels.instants)
        recordings.append(Recording(item.events, labels, item.labels.sensor_size or entry.sensor_size, item.group, item.name))
    matcher.log_unmatched(root)
    if split == "train":
        warn_of_unseen(root, source.spec.classes, matcher.matched)
    return LabelledSplit(root, source.spec, recordings, len(source.unlabelled))


def _found(name: str, source: LayoutFolder) -> list[LabelledFile]:
    """Return what the function of a layout yields; raises ConfigError if that is something else than labelled files."""

    def check(what: str, item: LabelledFile) -> None:
        check_attribute(what, item, "events", isinstance(item.events, Path), "a Path")
        check_attribute(what, item, "labels", isinstance(item.labels, LabelFile), "a LabelFile")
        check_labels(f"{what}: {item.events}", item.labels)
        check_attribute(what, item, "group", isinstance(item.group, str), "text")
        is_name = isinstance(item.name, str) and Path(item.name).name == item.name  # of files, too
        check_attribute(what, item, "name", is_name, "text without slashes")

    return checked_items(f"layout {name!r}", LAYOUTS[name].find(source), LabelledFile, check)


def _find(name: str, root: Path, split: str, spec: DatasetSpec) -> tuple[LayoutFolder, list[LabelledFile]]:
    """Find the recordings of a split, in order. If the folder has no split "select", recordings are held out of "train" for it.

    In a folder without splits, all files count as "train" here. They are "val" as well, which is logged.
    """
    has_select = any(path.is_dir() for path in (root / SELECT, root / "numpy" / SELECT, root / NESTED / SELECT))
    if has_select or split not in ("train", SELECT):
        source = LayoutFolder(root, split, spec)
        return source, _found(name, source)
    source = LayoutFolder(root, "train", spec)
    found = _found(name, source)
    if source.undivided and split == "train" and not (root / "val").is_dir():
        _LOG.warning(
            "%s: has no folders train/ and val/, so that the split 'val' is the whole folder, with all that is learned from; "
            "move the recordings to be measured on into a folder val/, and the others into train/", root,
        )  # fmt: skip
    strata: dict[tuple[Path, str], dict[str, Holdable]] = {}
    for item in found:
        folder, kind = (root, source.split) if source.nested else (item.events.parent, item.events.parent.name)
        strata.setdefault((folder, kind), {})[item.events.relative_to(folder).as_posix()] = _holdable(item)
    held_paths = {folder / name for (folder, kind), files in strata.items() for name in held_out_files(kind, files)}
    if held_paths:
        return source, [item for item in found if (item.events in held_paths) == (split == SELECT)]
    if found and split == "train":
        _LOG.info("%s: no recording can be missed: the split 'select' is the end of each", root)
    parts = ((item, _part_of_time(item.labels.instants, split)) for item in found)
    return source, [item._replace(labels=item.labels._replace(instants=part), group="") for item, part in parts if part]


def _holdable(item: LabelledFile) -> Holdable:
    instants = item.labels.instants
    return Holdable(item.group, len(instants), {label for instant in instants for label in instant.names})


def _part_of_time(instants: tuple[NamedBoxes, ...], split: str) -> tuple[NamedBoxes, ...]:
    """Return the last ones of a recording's labelled times for the split "select", and those well before them for "train"."""
    times = [instant.t_us for instant in instants if instant.t_us is not None]
    n_held = max(1, round(len(times) / SHARE)) if len(times) > 1 and len(times) == len(instants) else 0
    kept, held = instants[: len(instants) - n_held], instants[len(instants) - n_held :]
    if split == SELECT:
        return held
    before = tuple(one for one, t_us in zip(kept, times, strict=False) if t_us <= times[-n_held] - _GAP_US) if held else ()
    return before or kept


def _detections(instant: NamedBoxes, matcher: ClassMatcher) -> tuple[int | None, Detections]:
    labels = matcher.indices(instant.names)
    known = labels >= 0
    scores = np.ones(int(known.sum()), np.float32)
    return instant.t_us, Detections(instant.boxes_xyxy[known], scores, labels[known], instant.t_us or 0)


def _has_ids(labels: LabelFile) -> bool:
    return any(isinstance(name, int) for instant in labels.instants for name in instant.names[:1])


def _log_skipped(source: LayoutFolder) -> None:
    """Log the files that the layout skipped."""
    unlabelled = "event file without labels", "event files without labels"
    for (noun, plural), paths in ((unlabelled, source.unlabelled), (("file", "files"), source.skipped)):
        if paths:
            warn_once(f"{source.root}: {number_of(len(paths), noun, plural)} skipped, the first one: {paths[0]}")
