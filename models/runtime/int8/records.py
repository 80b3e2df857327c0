"""Records that the kernels read: operations and terms, written by tables.py."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

FIRE, READ_OUT, MAX_POOL, UPSAMPLE, ADD = range(5)
"""Kinds of operations."""


def _sources(folder: Path) -> str:
    """Digest of the files from which the kernels are compiled."""
    digest = hashlib.sha256()
    for file in sorted([*(folder / "simd").glob("*.py"), *(folder / f"{name}.py" for name in ("kernels", "records", "rows"))]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


_FIELDS = """kind rows columns blocks channels first_term terms added weights steps planes chunks together channel constant
    out out_step out_image out_row out_pixel fan_out wide factor tiles"""
OPERATION = np.dtype([(name, np.int64) for name in (*_FIELDS.split(), f"sources_{_sources(Path(__file__).parent)}")])
"""One operation. Distances and positions are in elements.

rows, columns, channels: shape of the output, computed in blocks of LANES channels.
first_term, terms, added: position of its terms, the number of those that are convolved, or resampled, or added up, and of
    those after them whose counts are added to the sums of convolutions.
weights, steps (per block and plane), planes: see rows.py.
chunks: position of its chunks, see quantise.py.
together: number of blocks that are summed together; QUAD if steps whose counts are 0 are left out.
channel: index of the first channel in scale, bias and limits.
constant: whether its current is equal at every timestep.
out, out_step, out_image, out_row, out_pixel: position of the counts or maps, and distances of timesteps, images, rows, pixels.
fan_out: where it is stated, row by row, at which position the fan-outs `(columns, blocks * LANES)` of its spikes are.
wide: position of the fan-outs `(rows, columns, blocks * LANES)` in 32 bits, for count_wide, if 16 do not suffice; else -1.
factor: of upsampling.
tiles: of FIRE and MAX_POOL, index of its first tile in the counts of silence `(rows, blocks, tiles)`.
sources_...: not used. numba's cache compiles a kernel anew if its own file or the types of its arguments change, of which this
    name is a part, but not if another file does whose functions it calls.
"""

_TERM_FIELDS = """start step image row pixel offsets steps run first_step span_rows span_columns source_row source_pixel blocks
    buffer buffer_size"""
TERM = np.dtype([(name, np.int64) for name in _TERM_FIELDS.split()])
"""What an operation reads from one buffer.

start: where the window of the first output begins.
step, image, row, pixel: distances per timestep, image, output row and output column.
offsets, steps, run, first_step: position of its steps in the offsets, their number, how many at a time read what lies next to
    each other (0 if this differs), and the index of the first in the weights. Of counts that are added, first_step is the
    position of their factors.
span_rows, span_columns: extent of the window.
source_row, source_pixel: distances of rows and pixels in the buffer.
blocks: number of blocks of LANES channels that it reads.
buffer, buffer_size: position and size of the buffer's first timestep in `changed`.
"""

COUNTERS = 16
"""Counters of a unit of work: spikes, synaptic operations, and both with each burst counted once; then the same four for
differences from silence. Each is the sum of two consecutive elements."""

BEYOND = 8
"""The first counter of differences."""
