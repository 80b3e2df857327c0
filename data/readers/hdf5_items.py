"""Items of an HDF5 file, found without opening any other file, and checked before they are read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from evburst.data.errors import EventFileError

MAX_CHUNK_BYTES = 1 << 28
"""Most bytes of a compressed chunk, which HDF5 unpacks as a whole."""

MAX_ITEM_BYTES = 1 << 8
_MAX_LINKS = 16
_ALLOW = "which is not followed; --allow-external follows it, for files that you trust"


@contextmanager
def opened(h5py: ModuleType, path: Path) -> Iterator[Any]:
    """The file, open for reading.

    Raises:
        EventFileError: another program has it open for writing, or had when it ended.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        if "h5clear" in str(error):
            raise EventFileError(f"{path}: the program that wrote it did not close it: h5clear -s FILE mends it") from None
        if "lock file" in str(error):
            raise EventFileError(f"{path}: another program has it open for writing: close it there, or read a copy") from None
        raise
    with file:
        yield file


def find_item(h5py: ModuleType, group: Any, name: str, allow_external: bool, n_links: int = 0) -> Any:
    """The group or data set `name` (a path) below `group`, or None.

    Links are followed one by one, because HDF5 itself would open whatever file they name, even a pipe that nobody writes to.

    Raises:
        EventFileError: a link leads out of the file, or in a circle.
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
                raise EventFileError(f"{group.file.filename}: {part} is a link that leads in a circle")
            item = find_item(h5py, item, link.path, allow_external, n_links + 1)
        else:
            item = item[part]
        if item is None:
            return None
    return item


def check_dataset(dataset: Any, place: str, allow_external: bool) -> None:
    """Raise EventFileError unless a data set holds what it declares, in this file, in pieces that fit into memory."""
    where = f"{place}: {dataset.name}"
    if not allow_external and dataset.is_virtual:
        raise EventFileError(f"{where} is a virtual data set, made of other files, {_ALLOW}")
    if not allow_external and dataset.external:
        raise EventFileError(f"{where} is stored in another file ({dataset.external[0][0]}), {_ALLOW}")
    item_bytes = dataset.dtype.itemsize * math.prod(dataset.shape[1:])
    if item_bytes > MAX_ITEM_BYTES:
        raise EventFileError(f"{where} has {item_bytes} bytes an event; at most {MAX_ITEM_BYTES} are read")
    if dataset.is_virtual or dataset.external:
        return
    if dataset.chunks:
        _check_chunks(dataset, where)
    elif dataset.id.get_storage_size() < item_bytes * len(dataset):
        raise EventFileError(
            f"{where} declares {len(dataset)} events, the file holds {dataset.id.get_storage_size()} bytes of them"
        )


def scalar(value: Any, place: str) -> int | float:
    """The one number of a value, be it an array.

    Raises:
        EventFileError: it is not one number.
    """
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iuf":
        raise EventFileError(f"{place} is {array.dtype} {array.shape}; expected one number")
    number: int | float = array.item()
    return number


def _check_chunks(dataset: Any, where: str) -> None:
    wanted = math.prod(-(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True))
    found = dataset.id.get_num_chunks()
    if found < wanted:
        # HDF5 would hand out zeros for them.
        raise EventFileError(f"{where} has {found} of its {wanted} chunks")
    chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if chunk_bytes > MAX_CHUNK_BYTES and dataset.id.get_create_plist().get_nfilters():
        raise EventFileError(
            f"{where} is compressed in chunks of {chunk_bytes} bytes; at most {MAX_CHUNK_BYTES} are unpacked: "
            "h5repack -l CHUNK=1048576 makes them smaller"
        )
