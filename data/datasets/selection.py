"""The split "select": a part of the training data on which choices are made, so that "val" is used for reporting only.

Nothing is trained on it. Datasets that come with such a split keep it; of the others an eighth of "train" is held out, the
same fraction of every class or set, chosen by a hash of the name: whole pictures, recordings or drives, or
contiguous stretches of picture sequences. Of recordings none of which can be missed, the end is held out.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

_LOG = logging.getLogger(__name__)

SELECT = "select"
"""Name of the split."""
SHARE = 8
"""The split gets one in this number of training pictures or recordings."""
STRETCH = 32
"""Length of a stretch of a sequence; consecutive frames are similar and must be in the same split."""


class Holdable(NamedTuple):
    """A file that can be held out: what similar ones share ("": nothing), its size and its contents."""

    group: str
    size: int
    contents: Collection[object]


def tenth(name: str) -> int:
    """Return a number from 0 to 9 that depends on the name only: splits of data that come without any are chosen by it."""
    return int.from_bytes(digest(name)[:4]) % 10


def digest(name: str) -> bytes:
    """Return the SHA-256 digest of a name, which may come from a file name that is not UTF-8."""
    return hashlib.sha256(name.encode(errors="surrogatepass")).digest()


def warn_of_unseen(root: Path, classes: Collection[str], seen: Collection[str]) -> None:
    """Log which classes are not in the split "train"."""
    if unseen := [name for name in classes if name not in seen]:
        _LOG.warning("%s: the split 'train' has nothing of %s, which cannot be learned from it", root, ", ".join(unseen))


def held_out(kind: str, sizes: Mapping[str, int], contents: Mapping[str, Collection[object]] | None = None) -> set[str]:
    """Return the names to hold out of one class or set: never all, and nothing that no other group contains.

    Args:
        kind: the class or set.
        sizes: number of items in each group that must not be split, by the group's name.
        contents: what each group contains; None: the same. Then at least one is held out of two or more.
    """
    target, names, count = max(1, round(sum(sizes.values()) / SHARE)), set(), 0
    left = Counter(what for own in (contents or {}).values() for what in own)
    by_hash = sorted(sizes, key=lambda name: digest(f"{kind}/{name}"))
    for name in by_hash[:-1]:
        own = contents[name] if contents else ()
        if count < target and all(left[what] > 1 for what in own):
            names.add(name)
            count += sizes[name]
            left.subtract(own)
    return names


def drive_of(name: str) -> str:
    """Return Prophesee's name of a recording without its part of the drive: 17-03-30_12-53-58_1037500000_1097500000, in µs.

    Other names, such as those that end in a date and a time of day, stay as they are.
    """
    part = re.search(r"_(\d+)_(\d+)$", name)
    return name[: part.start()] if part and int(part[1]) < int(part[2]) else name


def held_out_files(kind: str, files: Mapping[str, Holdable]) -> set[str]:
    """Return the names of files to hold out, see `held_out`: all files of a group, or none.

    Single files are held out if the groups are too few: if none can be missed, or those that are chosen have twice the share.
    """
    groups: dict[str, list[str]] = {}
    for name, file in files.items():
        groups.setdefault(f"group {file.group}" if file.group else name, []).append(name)
    alone = {name: [name] for name in files}
    most = 2 * sum(file.size for file in files.values()) / SHARE
    for members in (groups, alone):
        sizes = {group: sum(files[name].size for name in own) for group, own in members.items()}
        contents = {group: {what for name in own for what in files[name].contents} for group, own in members.items()}
        held = held_out(kind, sizes, contents)
        if members is alone or (held and sum(sizes[group] for group in held) <= most):
            break
    return {name for group in held for name in members[group]}
