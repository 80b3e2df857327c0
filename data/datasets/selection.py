"""The split "select": a part of the training data on which choices are made, so that "val" is used for reporting only.

Nothing is trained on it. Datasets that come with such a split keep it; of the others an eighth of "train" is held out, the
same fraction of every class or set, chosen by a hash of the name: whole pictures, whole recordings, or contiguous stretches of
picture sequences.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

SELECT = "select"
"""Name of the split."""
SHARE = 8
"""The split gets one in this number of training pictures or recordings."""


def held_out(kind: str, sizes: Mapping[str, int]) -> set[str]:
    """Return the names to hold out of one class or set: at least one if it has two or more, and never all.

    Args:
        kind: the class or set.
        sizes: number of items in each group that must not be split, by the group's name.
    """
    target, names, count = max(1, round(sum(sizes.values()) / SHARE)), set(), 0
    for name in sorted(sizes, key=lambda name: hashlib.sha256(f"{kind}/{name}".encode(errors="surrogatepass")).digest())[
        : len(sizes) - 1
    ]:
        if count < target:
            names.add(name)
            count += sizes[name]
    return names
