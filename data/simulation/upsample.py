"""Frames between frames, moved along the optical flow, so that simulated events come from motion and not from cross-fading.

Between two frames a pixel's brightness is interpolated by the simulator; where an edge has moved by many pixels meanwhile, that
makes two fading edges instead of one that moves. As many frames are put between as the motion needs for steps of about a pixel
(ESIM's adaptive rendering, Rebecq et al., CoRL 2018; v2e does the same with a trained network), with dense inverse search flow (Kroeger et
al., ECCV 2016) of OpenCV.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_FAST_SHARE = 98.0


class MotionUpsampler:
    """Puts frames between two frames.

    Args:
        step_px: motion between two frames of the result that is aimed at, px; of the fastest 2 % of the pixels.
    """

    def __init__(self, step_px: float = 1.5) -> None:
        self.step_px = step_px
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)

    def between(self, before: NDArray[np.uint8], after: NDArray[np.uint8], most: int) -> list[NDArray[np.float32]]:
        """Frames at equal steps of time between the two, without them; none where nothing moves.

        Args:
            before, after: `(H, W)` uint8.
            most: no more frames than that.
        """
        if most < 1 or min(before.shape) < 16:  # the flow's coarsest level needs that many
            return []
        flow = self._flow.calc(before, after, None)
        fastest = float(np.percentile(np.abs(flow).max(2), _FAST_SHARE))
        n = min(int(np.ceil(fastest / self.step_px)) - 1, most)
        return [_moved(before, after, flow, (k + 1) / (n + 1)) for k in range(n)]


def _moved(before: NDArray[np.uint8], after: NDArray[np.uint8], flow: NDArray[np.float32], part: float) -> NDArray[np.float32]:
    """The frame at `part` of the way: both frames warped along the flow to that time, and blended."""
    height, width = before.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    warped = [
        cv2.remap(frame, x - share * flow[..., 0], y - share * flow[..., 1], cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE)
        for frame, share in ((before.astype(np.float32), part), (after.astype(np.float32), part - 1))
    ]
    blended: NDArray[np.float32] = (1 - np.float32(part)) * warped[0] + np.float32(part) * warped[1]
    return blended
