"""Access to the items of an HDF5 file without opening other files, and checks before they are read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from evburst.data.errors import EventFileError
from evburst.data.readers.columns import MAX_ITEM_BYTES

MAX_CHUNK_BYTES = 1 << 28
"""Maximum size of a compressed chunk, which HDF5 decompresses as a whole."""

_MAX_LINKS = 16
_ALLOW = "which is not followed by default; pass --allow-external to follow it, for files that you trust"


@contextmanager
def hdf5_file(h5py: ModuleType, path: Path) -> Iterator[Any]:
    """Open the file for reading.

    Raises:
        EventFileError: another program has it open for writing, or did not close it.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        if "h5clear" in str(error):
            raise EventFileError(f"{path}: the program that wrote it did not close it: h5clear -s FILE repairs it") from None
        if "lock file" in str(error):
            raise EventFileError(f"{path}: another program has it open for writing: close it there, or read a copy") from None
        raise
    with file:
        yield file


def find_item(h5py: ModuleType, group: Any, name: str, allow_external: bool, n_links: int = 0) -> Any:
    """Return the group or data set `name` (a path) below `group`, or None.

    Links are resolved here one by one, because HDF5 itself would open any file that they name, even a pipe without a writer.

    Raises:
        EventFileError: a link leads to another file, or links form a cycle.
    """
    item = group.file if name.startswith("/") else group
    for part in filter(None, name.split("/")):
        link = item.get(part, getlink=True) if isinstance(item, h5py.Group) and part in item else None
        if link is None:
            return None
        if isinstance(link, h5py.ExternalLink) and not allow_external:
            where = f"{group.file.filename}: {item.name.rstrip('/')}/{part}"
            raise EventFileError(f"{where} is a link to another file ({link.filename}), {_ALLOW}")
        if isinstance(link, h5py.SoftLink):
            if n_links == _MAX_LINKS:
                raise EventFileError(f"{group.file.filename}: {part} is a link that leads back to itself")
            item = find_item(h5py, item, link.path, allow_external, n_links + 1)
        else:
            item = item[part]
        if item is None:
            return None
    return item


def check_dataset(dataset: Any, place: str, allow_external: bool) -> None:
    """Raise EventFileError unless a data set is complete, stored in this file, and in pieces that fit into memory."""
    where = f"{place}: {dataset.name}"
    if not allow_external and dataset.is_virtual:
        raise EventFileError(f"{where} is a virtual data set, assembled from other files, {_ALLOW}")
    if not allow_external and dataset.external:
        raise EventFileError(f"{where} is stored in another file ({dataset.external[0][0]}), {_ALLOW}")
    item_bytes = dataset.dtype.itemsize * math.prod(dataset.shape[1:])
    if item_bytes > MAX_ITEM_BYTES:
        raise EventFileError(f"{where} has {item_bytes} bytes per event; at most {MAX_ITEM_BYTES} are supported")
    if dataset.is_virtual or dataset.external:
        return
    if dataset.chunks:
        _check_chunks(dataset, where)
    elif dataset.id.get_storage_size() < item_bytes * len(dataset):
        raise EventFileError(
            f"{where} declares {len(dataset)} events, but the file holds only {dataset.id.get_storage_size()} bytes of them"
        )


def scalar(value: Any, place: str) -> int | float:
    """Return the single number in a value, which may be an array.

    Raises:
        EventFileError: it is not a single number.
    """
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iuf":
        raise EventFileError(f"{place} is {array.dtype} {array.shape}; expected one number")
    number: int | float = array.item()
    return number


def _check_chunks(dataset: Any, where: str) -> None:
    n_expected = math.prod(-(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True))
    n_found = dataset.id.get_num_chunks()
    if n_found < n_expected:
        # HDF5 would return zeros for the missing ones.
        raise EventFileError(f"{where} has {n_found} of its {n_expected} chunks")
    chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if chunk_bytes > MAX_CHUNK_BYTES and dataset.id.get_create_plist().get_nfilters():
        raise EventFileError(
            f"{where} is compressed in chunks of {chunk_bytes} bytes; at most {MAX_CHUNK_BYTES} are supported: "
            "h5repack -l CHUNK=1048576 makes them smaller"
        )
