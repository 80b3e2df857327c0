"""Conversion of events to and from tonic's format, and representations as transforms for tonic's datasets.

    DropEvent(p=0.1)(to_tonic(events))
    tonic.datasets.NMNIST(folder, transform=ToRepresentation(NMNIST.sensor_size, "voxel_bilinear", VoxelConfig(bins=9)))

tonic itself is not imported here. It differs from this project as follows:

- `ToFrame` counts as our histograms do, but without saturation, in int16, which overflows above 32,767; its shape is
  `(frames, 2, H, W)`, ours `(2 * bins, H, W)`;
- `ToVoxelGrid` is bilinear, too, but sums polarities with their sign, and shares events between the starts of bins instead of
  their centres, so that what falls beyond the last one is lost. It writes -1 into the caller's polarities, takes a bool OFF for
  ON, and divides by zero if all events have the same time. For this reason `to_tonic` returns p as int8, and always copies;
- `ToTimesurface` carries state from slice to slice; ours depends on one window;
- `RefractoryPeriod` measures from a pixel's last event, kept or not; `Denoise` uses 4 neighbours, ours 8: see
  `evburst.data.filters`;
- `Compose` returns a sample without events unchanged;
- `NCALTECH101` shifts each recording's events so that the smallest x and y are 0, and its annotated boxes no longer match. Our
  reader does not shift them (`evburst.data.readers.bin`, `evburst.data.datasets.caltech`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evburst.data.errors import EventFileError
from evburst.data.events import Events, EventWindow, Faults, SensorSize
from evburst.data.readers.columns import columns_to_events
from evburst.data.representations import RepresentationConfig, represent

TONIC_DTYPE = np.dtype([("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "i1")])
"""An event for tonic's transforms: tonic's own dtype, except that p is int8 in {0, 1} instead of bool."""

_MAX_COORDINATE = np.iinfo(np.int16).max


def to_tonic(events: Events) -> NDArray[np.void]:
    """Convert events (EVENT_DTYPE) for tonic's transforms, as a copy of TONIC_DTYPE.

    Raises:
        ValueError: an x or y is above 32,767, which tonic's dtype cannot represent.
    """
    converted = np.empty(len(events), TONIC_DTYPE)
    for name in "xy":
        if (events[name] > _MAX_COORDINATE).any():
            raise ValueError(f"{name} = {events[name].max()}: tonic supports coordinates up to {_MAX_COORDINATE}")
    for name in "xytp":
        converted[name] = events[name]
    return converted


def from_tonic(events: NDArray[np.void]) -> Events:
    """Convert events of tonic's datasets and transforms, with fields x, y, t (whole µs) and p, to EVENT_DTYPE (a copy).

    p may be bool, {0, 1} or {-1, 1}.

    Raises:
        EventFileError: a field is not integer, a time is below 0, or a polarity is none of -1, 0, 1.
    """
    if events["t"].dtype.kind not in "iu":
        raise EventFileError(f"tonic's events: t is {events['t'].dtype}; expected whole microseconds")
    return columns_to_events({name: events[name] for name in "txyp"}, "tonic's events", Faults())


@dataclass(frozen=True)
class ToRepresentation:
    """A tonic transform that converts a sample's events to one array, over the window from its first time to its last.

    Attributes:
        sensor_size: (W, H, 2) as in tonic's datasets.
        name: name of a registered representation.
        config: its settings; None for the defaults. Window lengths in it are ignored.
    """

    sensor_size: tuple[int, int, int]
    name: str = "voxel_histogram"
    config: RepresentationConfig | None = None

    def __call__(self, events: NDArray[np.void]) -> NDArray[np.uint8] | NDArray[np.float32]:
        """Return the array of the representation, `(channels, H, W)`; all 0 if there is no event."""
        ours = from_tonic(events)
        t0, t1 = (int(ours["t"].min()), int(ours["t"].max()) + 1) if len(ours) else (0, 1)
        return represent(EventWindow(t0, t1, ours), self.name, SensorSize(*self.sensor_size[:2]), self.config)
