"""Pictures seen in saccades: boxes lie where the object is shown, whatever was done to it; evaluation changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evburst.data.events import SensorSize
from evburst.data.simulation.scenes.picture import Picture
from evburst.data.simulation.scenes.saccades import SACCADE_US, SaccadeConfig, SaccadeScene

SIZE = SensorSize(80, 60)
TIMES = (0, 20_000, 50_000, 99_999, 130_000, 299_999)


def scene(config: SaccadeConfig, seed: int = 0) -> SaccadeScene:
    """A grey wall with a bright block left of its middle, which is labelled, in front of a small sensor."""
    image = np.full((120, 160), 128, np.uint8)
    image[40:80, 40:90] = 250
    picture = Picture("a/b", image, np.array([[40, 40, 90, 80]], np.float32), np.array([3]))
    return SaccadeScene(picture, SIZE, config, np.random.default_rng(seed))


@pytest.mark.parametrize("vary", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_boxes_lie_where_the_object_is_shown(seed: int, vary: bool) -> None:
    shown = scene(SaccadeConfig(vary=vary, rotate_deg=0.0), seed)
    for t_us in TIMES:
        frame, found = shown.render(t_us), shown.boxes(t_us)
        box = np.clip(found.boxes_xyxy[0], 0, [*SIZE, *SIZE])
        x, y = ((box[:2] + box[2:]) / 2).astype(int)
        # The block has a brightness of its own; what lies outside the picture, and the wall, have others.
        rows, columns = np.nonzero(np.abs(frame - frame[y, x]) < 0.2)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(seen - box).max() < 2
        assert (found.labels.tolist(), found.t_us) == ([3], t_us)


def test_a_rotated_box_has_the_centre_of_its_object() -> None:
    for seed in range(5):
        shown = scene(SaccadeConfig(rotate_deg=30.0, zoom=(0.7, 0.9)), seed)
        frame, box = shown.render(0), shown.boxes(0).boxes_xyxy[0]
        x, y = (box[:2] + box[2:]) / 2
        rows, columns = np.nonzero(np.abs(frame - frame[int(y), int(x)]) < 0.2)
        assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((x, y), abs=1.5)


def test_the_gaze_returns_after_three_saccades_and_rests_at_each_end() -> None:
    still = scene(SaccadeConfig(vary=False))
    for t_us in (SACCADE_US, 2 * SACCADE_US, 3 * SACCADE_US):
        np.testing.assert_allclose(still.boxes(t_us - 12_000).boxes_xyxy, still.boxes(t_us).boxes_xyxy, atol=1e-3)
        assert np.array_equal(still.render(t_us - 1), still.render(t_us - 12_000))
    np.testing.assert_allclose(still.boxes(0).boxes_xyxy, still.boxes(3 * SACCADE_US).boxes_xyxy, atol=1e-4)
    moved = [np.abs(still.boxes(k * SACCADE_US).boxes_xyxy - still.boxes(0).boxes_xyxy).max() for k in (1, 2)]
    assert min(moved) > 1.5


def test_a_scene_is_drawn_once() -> None:
    """Rendering in any order gives the same frames; for evaluation the picture fits the sensor and lies in its corner."""
    config = SaccadeConfig()
    forwards, backwards = scene(config, 7), scene(config, 7)
    frames = [forwards.render(t) for t in TIMES]
    for t_us, frame in reversed(list(zip(TIMES, frames, strict=True))):
        assert np.array_equal(backwards.render(t_us), frame)
    plain = scene(replace(config, vary=False, amplitude_px=(0.0, 0.0)))
    assert plain.boxes(40_000).boxes_xyxy.tolist() == [[20, 20, 45, 40]]
