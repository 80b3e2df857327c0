"""Repeat a DAT recording until it has a given size: python bench/repeat_recording.py FILE OUT --gigabytes 2

The timestamps keep increasing. The file is streamed, so memory does not grow with its size. It serves to check that the memory
of detection does not grow either.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evburst.data.readers.dat import DatFile, read_header


def repeat(source: Path, target: Path, size_bytes: int) -> None:
    """Write copies of `source`, each starting 1 ms after the last one's end; 32-bit times wrap as in camera recordings."""
    recording = DatFile(source)
    _, offset = read_header(source)
    words = np.array(recording.words)
    step = np.uint32(int(words[-1, 0]) - int(words[0, 0]) + 1000)
    with target.open("wb") as file:
        file.write(source.read_bytes()[:offset])
        while file.tell() < size_bytes:
            file.write(words.tobytes())
            words[:, 0] += step


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    args = parser.parse_args()
    repeat(args.source, args.target, int(args.gigabytes * 1e9))
