"""Recordings that a command names: files, folders and glob patterns, and how one is opened for a network."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from evburst.app.outputs.folder import is_table, outputs_in
from evburst.data.datasets.labels import holds_yolo_labels, is_recording_name
from evburst.data.errors import ConfigError
from evburst.data.events import EventStream, SensorSize
from evburst.data.readers import open_sized, recording_suffixes
from evburst.data.readers.columns import COLUMN_NAMES
from evburst.data.readers.text_header import count_numbers, split_fields

if TYPE_CHECKING:
    from evburst.app.runs import RunConfig
    from evburst.models.bundle import Bundle

_LOG = logging.getLogger(__name__)

_LONGEST_NAMES = 4096
"""Bytes of the line of names of a table."""
_COMPRESSED = (".bz2", ".gz", ".lz4", ".xz", ".zst")


def find_recordings(patterns: Sequence[str | Path]) -> list[Path]:
    """Expand files, folders and glob patterns to a list of recordings, in order and without duplicates.

    A folder is searched recursively, through links too, for files with a recording's suffix; hidden files and label files are
    skipped, and with a note tables of something else than events and compressed recordings. So are results of earlier runs,
    which may lie beside the recordings, here and where a pattern matches them.

    Args:
        patterns: files, folders and glob patterns.

    Raises:
        ConfigError: a pattern matches no file, or a folder contains no recording.
    """
    recordings: dict[Path, Path] = {}
    other_tables, compressed = list[Path](), list[Path]()
    for pattern in patterns:
        if not str(pattern):
            raise ConfigError("--events: the name is empty; is a shell variable unset?")
        path = Path(pattern)
        if path.is_dir():
            inside = _files_below(path)
            named = _usable(file for file in inside if _is_named_recording(file))
            tables = [file for file in named if _is_other_table(file)]
            other_tables += tables
            compressed += [file for file in inside if _is_compressed_recording(file)]
            matches = sorted(set(named).difference(tables))
        elif not os.path.lexists(path) and glob.has_magic(str(pattern)):
            matches = _usable(map(Path, glob.glob(str(pattern), recursive=True)))
        else:
            matches = [path]
        if not matches:
            reason = f"no file named *{', *'.join(sorted(recording_suffixes()))}" if path.is_dir() else "no file matches"
            if path.is_dir() and compressed:
                reason += f"; unpack the compressed ones first, such as {compressed[-1].name}"
            raise ConfigError(f"{pattern}: {reason}")
        for match in matches:
            recordings.setdefault(_absolute(match), match)
    if other_tables:
        _LOG.info("note: passed over, because they are tables or labels without events: %s", ", ".join(map(str, other_tables)))
    if compressed:
        _LOG.info("note: passed over, because they are compressed: %s; unpack them first", ", ".join(map(str, compressed)))
    return list(recordings.values())


def _files_below(folder: Path) -> list[Path]:
    """Return all files below a folder, in order; links to folders are followed, and folders that cannot be read are noted."""
    found, seen = list[Path](), set[str]()

    def note(error: OSError) -> None:
        _LOG.warning("%s: passed over, because it cannot be read (%s)", error.filename, error.strerror)

    for place, folders, files in os.walk(folder, onerror=note, followlinks=True):
        seen.add(os.path.realpath(place))
        folders.sort(key=lambda name: os.path.islink(os.path.join(place, name)))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(place, name)) not in seen]
        found += [Path(place, name) for name in files]
    return sorted(found)


def _absolute(path: Path) -> Path:
    """Return the path from the root, without `..`; links are not followed."""
    return Path(os.path.abspath(path))


def _is_named_recording(path: Path) -> bool:
    """Return whether a file in a folder of recordings is one, by its name."""
    return is_recording_name(path) and not path.name.startswith(".")


def _is_compressed_recording(path: Path) -> bool:
    """Return whether a file in a folder of recordings is one that was compressed, and whose original is not beside it."""
    original = path.with_suffix("")
    return path.suffix.lower() in _COMPRESSED and _is_named_recording(original) and not original.exists()


def _is_other_table(path: Path) -> bool:
    """Return whether a text file begins with names of columns, none of which is a position or a polarity, or has labels."""
    if path.suffix.lower() not in (".csv", ".txt"):
        return False
    if holds_yolo_labels(path):
        return True
    try:
        with path.open("rb") as file:
            line = file.readline(_LONGEST_NAMES)
    except OSError:
        return False  # who reads it says why
    names, of_events = split_fields(line), {name for column in "xyp" for name in COLUMN_NAMES[column]}
    has_names = len(names) > 1 and not count_numbers(names) and not line.startswith((b"#", b"%"))
    return has_names and of_events.isdisjoint(name.decode("utf-8", "replace").lower() for name in names)


def _usable(paths: Iterable[Path]) -> list[Path]:
    """Return those paths, in order, that are files and no results of an earlier run."""
    outputs = cache(outputs_in)
    return sorted(path for path in paths if path.is_file() and path.name not in outputs(path.parent) and not is_table(path))


def one_file(patterns: Sequence[str | Path]) -> bool:
    """Return whether the patterns name a single file rather than a folder or a glob pattern."""
    path = Path(patterns[0])
    if not str(patterns[0]):
        return False
    is_pattern = glob.has_magic(str(path)) and not os.path.lexists(path)
    return len(patterns) == 1 and not path.is_dir() and not is_pattern


def below_common_folder(recordings: Sequence[Path]) -> list[Path]:
    """Return the path of each recording from the deepest folder that contains them all."""
    base = common_folder(recordings)
    return [_absolute(path).relative_to(base) for path in recordings]


def common_folder(recordings: Sequence[Path]) -> Path:
    """Return the deepest folder that contains all recordings; raises ConfigError if they are on several drives of Windows."""
    try:
        return Path(os.path.commonpath([_absolute(path).parent for path in recordings]))
    except ValueError:
        raise ConfigError("--events: recordings on several drives have no folder in common: run one command a drive") from None


def open_recording(path: Path, config: RunConfig, bundle: Bundle) -> EventStream:
    """Open a recording; its sensor size is that of the settings, of the file, or else of the training data, in this order."""
    given = SensorSize.of_setting(config.sensor_size)
    stream = open_sized(path, given, bundle.sensor_size, config.format, options=config.reading)
    if not given:
        warn_of_other_sensor(path, stream.sensor_size, bundle)
    return stream


def warn_of_other_sensor(path: Path, size: SensorSize, bundle: Bundle) -> None:
    """Log if a network was trained on another size of sensor than that of a recording or folder."""
    if bundle.sensor_size and size != bundle.sensor_size:
        _LOG.warning("%s: a %s sensor; the network was trained on %s", path, size, bundle.sensor_size)
