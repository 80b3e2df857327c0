"""Generate the bundled sample: python -m evburst.data.samples.make_street

Writes street_td.dat (304x240, 3 s, DAT version 2) and street_bbox.npy (boxes of cars and pedestrians every 50 ms).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from evburst.data.events import SensorSize
from evburst.data.samples import STREET, STREET_LABELS
from evburst.data.simulation.scenes import record
from evburst.data.simulation.scenes.street import StreetScene
from evburst.data.simulation.sensor import SimulatorConfig
from evburst.data.writers import write_events

SENSOR = SensorSize(304, 240)
SEED = 3
DURATION_US, STEP_US, LABEL_US = 3_000_000, 5_000, 50_000
CAMERA = SimulatorConfig(threshold_on=0.36, threshold_off=0.32, mismatch=0.03, shot_hz=0.15, leak_hz=0.05)


def make(folder: Path) -> None:
    """Write the recording and its labels to `folder`."""
    scene = StreetScene(SENSOR, SEED)
    write_events(folder / STREET.name, record(scene, CAMERA, 0, DURATION_US, STEP_US, SEED), SENSOR)
    labels = [scene.boxes(t).to_prophesee() for t in range(LABEL_US, DURATION_US + 1, LABEL_US)]
    np.save(folder / STREET_LABELS.name, np.concatenate(labels))


if __name__ == "__main__":
    make(STREET.parent)
