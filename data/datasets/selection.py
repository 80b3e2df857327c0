"""The split "select": a part of the training data on which choices are made, so that "val" is used for reporting only.

Nothing is trained on it. Datasets that come with such a split keep it; of the others an eighth of "train" is held out, the
same fraction of every class or set, chosen by a hash of the name: whole pictures, whole recordings, or contiguous stretches of
picture sequences. Of recordings none of which can be missed, the end is held out.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

_LOG = logging.getLogger(__name__)

SELECT = "select"
"""Name of the split."""
SHARE = 8
"""The split gets one in this number of training pictures or recordings."""


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
    by_hash = sorted(sizes, key=lambda name: hashlib.sha256(f"{kind}/{name}".encode(errors="surrogatepass")).digest())
    for name in by_hash[:-1]:
        own = contents[name] if contents else ()
        if count < target and all(left[what] > 1 for what in own):
            names.add(name)
            count += sizes[name]
            left.subtract(own)
    return names
