"""How files are written: all of them or nothing, and by one process at a time."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from evburst.data.errors import ConfigError, DataError

LOCK = ".evburst.lock"
"""Name of the file in an output folder whose lock a run holds."""
_NAME = 60
"""Bytes of the file's name in that of its part: file systems end names at 255 bytes."""


def shortened(name: str) -> str:
    """Return the beginning of a name, of at most 60 bytes, to be a part of another file's name."""
    return name.encode("utf-8", "surrogateescape")[:_NAME].decode("utf-8", "ignore")


def part_of(path: Path) -> Path:
    """Where a file is written before it takes its name: beside it, hidden, and of this process only."""
    return path.with_name(f".{shortened(path.name)}.{os.getpid()}.part{shortened(path.suffix)}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The file to write instead of `path`, whose place it takes at the end; it is deleted after an error.

    Raises:
        DataError: it cannot be written.
    """
    part = part_of(path)
    try:
        make_folder(path.parent)
        yield part
        part.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):
            part.unlink()


def refuse_foreign(files: Iterable[Path], ours: bool, hint: str = "use another --out") -> None:
    """Check that files which a run is going to replace were written by evburst.

    Args:
        files: the files; those that do not exist do not count.
        ours: whether something of evburst's shows that an earlier run has written them, for instance a summary beside them.
        hint: what to do about it.

    Raises:
        ConfigError: one of them exists, and is not ours.
    """
    for file in files:
        if not ours and os.path.lexists(file):
            raise ConfigError(f"{file}: exists already and was not written by evburst; {hint}")


def read_json(path: Path) -> dict[str, Any]:
    """Return what a small JSON file holds; nothing if it is missing, damaged or not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def begins_with(path: Path, *beginnings: str) -> bool:
    """Return whether the first line of a text file begins with one of these; False if it cannot be read."""
    with suppress(OSError, UnicodeDecodeError), path.open(encoding="utf-8") as file:
        return file.readline().startswith(beginnings)
    return False


def make_folder(path: Path) -> Path:
    """The folder, made if it is missing; raises DataError if it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be written into ({error.strerror})") from None
    return path


def readable_note(*written: Path) -> str:
    """Return the note of a KeyboardInterrupt that ended a run which had written something; the command line prints it."""
    return f"what was written to {', '.join(map(str, written))} so far is complete and readable"


def unchanged_note(file: Path) -> str:
    """Return the note of a KeyboardInterrupt that ended a run before it replaced a file."""
    return f"{file} is unchanged"


def shown_files(folder: Path, *patterns: str, notes: list[str]) -> list[Path]:
    """Return the sorted files of a folder that match one of the patterns and are not hidden; of those that macOS added for its
    own use, whose names begin with `._`, a note is appended to `notes`."""
    found = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    notes += [f"{path}: created by macOS" for path in found if path.name.startswith("._")]
    return [path for path in found if not path.name.startswith(".")]


@contextmanager
def only_writer(folder: Path, name: str = "") -> Iterator[None]:
    """Hold the lock of an output folder, or of the outputs `name` in it; the folder is made if it is missing, and deleted if
    nothing has been written into it.

    A KeyboardInterrupt gets a note if there are outputs: which were written meanwhile (`readable_note`), and which were not.

    Raises:
        ConfigError: another process holds it.
        DataError: the folder cannot be written to.
    """
    path = folder / (f".{name[:_NAME]}.lock" if name else LOCK)
    lock = FileLock(path, timeout=0)
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _lock(path, lock)
    except Timeout:
        raise ConfigError(f"{folder / name}: another process is writing its results there; use another --out") from None
    except OSError as error:
        raise DataError(f"{folder}: cannot be written into ({error.strerror}); use another --out") from None
    before = _states(folder, name)
    try:
        yield
    except KeyboardInterrupt as error:
        if note := _interruption_note(folder, name, before):
            error.add_note(note)
        raise
    finally:
        with suppress(OSError):  # Windows refuses it here
            path.unlink()
        lock.release()
        if os.name == "nt":
            with suppress(OSError):
                path.unlink()
        with suppress(OSError):
            for place in missing:
                place.rmdir()


def _lock(path: Path, lock: FileLock) -> None:
    """Acquire the lock of the file that is at `path`, not of one that its writer has deleted meanwhile."""
    while True:
        with path.open("ab") as same:
            lock.acquire()
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(same.fileno()), path.stat()):
                    return
            lock.release()


def _states(folder: Path, name: str) -> dict[Path, tuple[int, ...]]:
    """Return what changes when they are written, of the files in an output folder and its folders, or of the outputs `name`."""
    states = dict[Path, tuple[int, ...]]()
    for pattern in (f"{glob.escape(Path(name).stem)}[._]*",) if name else ("*", "*/*"):
        for file in folder.glob(pattern):
            with suppress(OSError):
                if file.is_file() and not file.name.startswith("."):
                    state = file.stat()
                    states[file] = state.st_ino, state.st_mtime_ns, state.st_size
    return states


def _interruption_note(folder: Path, name: str, before: dict[Path, tuple[int, ...]]) -> str:
    """Return what an interrupted run has written of its outputs, and whether the earlier ones are unchanged; "" without any.

    Args:
        folder, name: see `only_writer`.
        before: the outputs when the run began, from `_states`.
    """
    changed = sorted(file for file, state in _states(folder, name).items() if before.get(file) != state)
    if not name:
        return readable_note(folder) if changed else f"{folder}: its files are unchanged" if before else ""
    notes = [readable_note(*changed)] if changed else []
    if folder / name in before and folder / name not in changed:
        notes.append(unchanged_note(folder / name))
    return "; ".join(notes)
