"""Our events for tonic's transforms and back, and our representations as transforms for tonic's data sets.

    DropEvent(p=0.1)(to_tonic(events))
    tonic.datasets.NMNIST(folder, transform=ToRepresentation(NMNIST.sensor_size, "voxel_bilinear", VoxelConfig(bins=9)))

tonic itself is not imported here. Where it differs from ours:

- `ToFrame` counts as our histograms do, but without saturation, in int16, which wraps around above 32,767; shape
  `(frames, 2, H, W)`, ours `(2 * bins, H, W)`;
- `ToVoxelGrid` is bilinear, too, but adds polarities with their sign, and shares between the beginnings of bins instead of
  their centres, so that what falls beyond the last one is lost; it writes -1 into the polarities it is given, takes a bool
  OFF for ON, and divides by zero where all events have one time. Hence `to_tonic`'s p is int8, and it always copies;
- `ToTimesurface` goes on from slice to slice; ours knows one window;
- `RefractoryPeriod` counts from a pixel's last event, kept or not; `Denoise` looks at 4 neighbours, ours at 8: see `evburst.data.filters`;
- `Compose` hands a sample without events back as it is;
- `NCALTECH101` moves each recording's events so that the smallest x and y are 0: its annotated boxes fit them no longer. Our
  reader leaves them in place (`evburst.data.readers.bin`, `evburst.data.datasets.caltech`).
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
"""An event as tonic's transforms take it: its own type, but p in {0, 1} as int8 where it has bool."""

_MAX_COORDINATE = np.iinfo(np.int16).max


def to_tonic(events: Events) -> NDArray[np.void]:
    """Events (EVENT_DTYPE) for tonic's transforms, as a copy of TONIC_DTYPE.

    Raises:
        ValueError: an x or y is above 32,767, which tonic's type cannot hold.
    """
    converted = np.empty(len(events), TONIC_DTYPE)
    for name in "xy":
        if (events[name] > _MAX_COORDINATE).any():
            raise ValueError(f"{name} reaches {events[name].max()}: tonic holds coordinates up to {_MAX_COORDINATE}")
    for name in "xytp":
        converted[name] = events[name]
    return converted


def from_tonic(events: NDArray[np.void]) -> Events:
    """Events of tonic's data sets and transforms, with the fields x, y, t (whole µs) and p, as a copy of EVENT_DTYPE.

    p may be bool, {0, 1} or {-1, 1}.

    Raises:
        EventFileError: a field is not of whole numbers, a time is below 0, or a polarity is none of -1, 0, 1.
    """
    if events["t"].dtype.kind not in "iu":
        raise EventFileError(f"tonic's events: t is {events['t'].dtype}; expected whole microseconds")
    return columns_to_events({name: events[name] for name in "txyp"}, "tonic's events", Faults())


@dataclass(frozen=True)
class ToRepresentation:
    """A tonic transform: a sample's events become one array, over the window from its first time to its last.

    Attributes:
        sensor_size: (W, H, 2) as tonic's data sets have it.
        name: of a registered representation.
        config: its settings; None for the defaults. Lengths of windows in it do not apply.
    """

    sensor_size: tuple[int, int, int]
    name: str = "voxel_histogram"
    config: RepresentationConfig | None = None

    def __call__(self, events: NDArray[np.void]) -> NDArray[np.uint8] | NDArray[np.float32]:
        """The array of `name`, `(channels, H, W)`; all 0 where there is no event."""
        ours = from_tonic(events)
        t0, t1 = (int(ours["t"].min()), int(ours["t"].max()) + 1) if len(ours) else (0, 1)
        return represent(EventWindow(t0, t1, ours), self.name, SensorSize(*self.sensor_size[:2]), self.config)
