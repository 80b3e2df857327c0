"""Random blur and exposure of pictures, which model lens and camera settings."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from evburst.data.simulation.sensor import log_intensity


def random_tone(grey: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the log intensity `(H, W)` of a grey picture after a random blur and a random exposure."""
    blurred = cv2.GaussianBlur(grey, (0, 0), rng.uniform(0.3, 1.3)).astype(np.float32)
    return log_intensity(np.clip(blurred * rng.uniform(0.6, 1.4), 0, 255))
