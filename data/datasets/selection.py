"""The split "select": a share of the training data that nothing learns from, on which every choice is made, so that "val" is only reported.

Data that have such a split themselves keep it; of the others an eighth of "train" is held out: whole pictures, whole recordings, of a
sequence of pictures whole stretches, the same share of every class or set, chosen by a hash of the name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

SELECT = "select"
"""Name of the split."""
SHARE = 8
"""One in this number of training pictures, or recordings, belongs to it."""


def held_out(kind: str, sizes: Mapping[str, int]) -> set[str]:
    """Names of what is held out of one class or set; of two or more at least one, and never all.

    Args:
        kind: the class or set.
        sizes: of everything in it that has to stay together, how much it holds.
    """
    wanted, found, held = max(1, round(sum(sizes.values()) / SHARE)), set(), 0
    for name in sorted(sizes, key=lambda name: hashlib.sha256(f"{kind}/{name}".encode(errors="surrogatepass")).digest())[
        : len(sizes) - 1
    ]:
        if held < wanted:
            found.add(name)
            held += sizes[name]
    return found
