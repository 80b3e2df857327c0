"""Frame interpolation along the optical flow, so that simulated events come from motion instead of cross-fading.

The simulator interpolates a pixel's brightness between two frames. If an edge moves by many pixels in between, the result
is two fading edges instead of one moving edge. So as many frames are inserted as are needed for steps of about one pixel
(ESIM's adaptive rendering, Rebecq et al., CoRL 2018; v2e uses a trained network), with the dense inverse search flow of
OpenCV (Kroeger et al., ECCV 2016).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_FASTEST_PERCENTILE = 98.0


class MotionUpsampler:
    """Interpolates frames between two frames.

    Args:
        step_px: target motion between two successive frames, px; measured on the fastest 2 % of the pixels.
    """

    def __init__(self, step_px: float = 1.5) -> None:
        self.step_px = step_px
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)

    def between(self, before: NDArray[np.uint8], after: NDArray[np.uint8], max_frames: int) -> list[NDArray[np.float32]]:
        """Return frames at equal time steps between the two, without them; none if nothing moves.

        Args:
            before, after: `(H, W)` uint8.
            max_frames: maximum number of frames.
        """
        if max_frames < 1 or min(before.shape) < 16:  # minimum size for the coarsest level of the flow
            return []
        flow = self._flow.calc(before, after, None)
        fastest = float(np.percentile(np.abs(flow).max(2), _FASTEST_PERCENTILE))
        n = min(int(np.ceil(fastest / self.step_px)) - 1, max_frames)
        return [_interpolate(before, after, flow, (k + 1) / (n + 1)) for k in range(n)]


def _interpolate(
    before: NDArray[np.uint8], after: NDArray[np.uint8], flow: NDArray[np.float32], fraction: float
) -> NDArray[np.float32]:
    """Interpolate a frame at this fraction of the interval: warp both frames along the flow to that time, and blend them."""
    height, width = before.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    warped = [
        cv2.remap(frame, x - distance * flow[..., 0], y - distance * flow[..., 1], cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE)
        for frame, distance in ((before.astype(np.float32), fraction), (after.astype(np.float32), fraction - 1))
    ]
    blended: NDArray[np.float32] = (1 - np.float32(fraction)) * warped[0] + np.float32(fraction) * warped[1]
    return blended
