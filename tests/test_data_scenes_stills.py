"""Pictures driven over: where boxes go is where the picture goes; people drawn over it; validation does not change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import evburst.data.simulation.scenes.stills as stills
from evburst.data.events import SensorSize
from evburst.data.simulation.scenes.picture import IGNORE, Picture
from evburst.data.simulation.scenes.stills import StillScene, StillSceneConfig
from evburst.data.simulation.scenes.walkers import Walker

SIZE = SensorSize(80, 60)
WALKING = StillSceneConfig(mosaic=0.0, still=1.0, walkers=1.0, most_walkers=3, walker_px=(20.0, 40.0))


def picture(grey: int = 128, label: int = 0) -> Picture:
    """A grey wall with a bright block in its middle, which is labelled."""
    image = np.full((120, 160), grey, np.uint8)
    image[40:80, 60:100] = 250
    return Picture("a/b", image, np.array([[60, 40, 100, 80]], np.float32), np.array([label]))


def scene(config: StillSceneConfig, seed: int = 0, **kwargs: Any) -> StillScene:
    """One picture in front of a small sensor."""
    return StillScene([picture(**kwargs)], SIZE, config, np.random.default_rng(seed), walker_label=1)


@pytest.mark.parametrize("seed", range(5))
def test_a_box_follows_its_object_through_camera_and_own_motion(seed: int) -> None:
    moving = scene(replace(StillSceneConfig(mosaic=0.0, still=0.0, sway=0.0), closest=1.0), seed)
    for t_us in (0, 30_000, 50_000):
        frame = moving.render(t_us)
        bright = frame > (np.median(frame[:, 0]) + frame.max()) / 2
        rows, columns = np.nonzero(bright)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        expected = np.clip(moving.boxes(t_us).boxes_xyxy[0], 0, [*SIZE, *SIZE])
        assert np.abs(seen - expected).max() < 4


@pytest.mark.parametrize("seed", range(5))
def test_displacing_only_what_an_object_reaches_is_displacing_everywhere(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = StillSceneConfig(mosaic=0.0, still=0.0, object_px=20.0)
    fast = scene(config, seed).render(40_000)
    # Private: a shortcut, which must not show.
    monkeypatch.setattr(stills, "_displaced_region", lambda *_: (slice(None), slice(None)))
    assert np.array_equal(fast, scene(config, seed).render(40_000))


@pytest.mark.parametrize("seed", range(8))
def test_walkers_stand_in_their_boxes_and_nowhere_else(seed: int) -> None:
    with_people, without = scene(WALKING, seed), scene(replace(WALKING, walkers=0.0), seed)
    people = with_people.boxes(20_000)
    assert set(people.labels.tolist()) <= {0, 1}
    assert (people.labels == 1).any()
    changed = np.abs(with_people.render(20_000) - without.render(20_000)) > 0.05
    inside = np.zeros_like(changed)
    for walker in with_people._walkers:  # private, and `_camera`: `boxes` leaves out those that are too small or hidden
        matrix, offset = with_people._camera(20_000)
        corners = (walker.box(0.02).reshape(2, 2) - offset) @ np.linalg.inv(matrix).T
        x0, y0, x1, y1 = np.clip(np.round(corners.reshape(-1)).astype(int) + np.array([-1, -1, 2, 2]), 0, 1000)
        inside[y0:y1, x0:x1] = True
    assert not (changed & ~inside).any()
    for box in people.above(0.5).boxes_xyxy[people.labels == 1]:
        x0, y0, x1, y1 = np.clip(box, 0, [*SIZE, *SIZE]).astype(int)
        assert changed[y0:y1, x0:x1].mean() > 0.15 or (x1 - x0) * (y1 - y0) < 30


def test_a_walker_walks_and_its_legs_swing() -> None:
    walker = Walker((50.0, 90.0), 80.0, 60.0, 1.0, 0.0, 0.15, 1.0, (60, 40, 150, 30, 20), np.zeros((3, 3), np.float32))
    boxes = [walker.box(t) for t in (0.0, 0.25, 0.5)]
    assert boxes[1][2] - boxes[1][0] > 1.3 * (boxes[0][2] - boxes[0][0])  # stride at its widest, legs together
    assert boxes[2][0] - boxes[0][0] == pytest.approx(30, abs=2)
    assert boxes[0][3] - boxes[0][1] == pytest.approx(80, rel=0.02)


def test_an_object_behind_a_person_is_left_out() -> None:
    boxes = np.array([[10, 10, 20, 30]], np.float32)
    # Private: scenes in which a person hides an object by a given share are hard to draw.
    assert stills._hidden(boxes[0], np.array([[8, 8, 21, 26]], np.float32))
    assert not stills._hidden(boxes[0], np.array([[8, 8, 21, 18]], np.float32))
    assert not stills._hidden(boxes[0], np.zeros((0, 4), np.float32))


def test_brightening_changes_all_pixels_equally() -> None:
    config = StillSceneConfig(mosaic=0.0, brighten=1.0)
    brighter, plain = (scene(replace(config, brighten=share), 3) for share in (1.0, 0.0))
    difference = brighter.render(50_000) - plain.render(50_000)
    assert abs(difference.mean()) > 0.01
    assert difference.std() < 1e-6


def test_ignored_regions_never_move_by_themselves() -> None:
    assert not scene(StillSceneConfig(mosaic=0.0), label=IGNORE)._moving.size
