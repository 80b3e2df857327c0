"""Augmentation: events and boxes move together, whatever happens to them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evburst.data.boxes import Detections
from evburst.data.datasets import LabelledWindow
from evburst.data.datasets.augment import AugmentConfig, augment
from evburst.data.encoding import pack_relative, unpack
from evburst.data.errors import SettingValueError
from evburst.data.events import EVENT_DTYPE, EventWindow, SensorSize

SIZE = SensorSize(64, 48)
BOX = (20, 16, 44, 40)
NOTHING = {"mirror": 0.0, "swap": 0.0, "zoom": 0.0, "stretch": 0.0, "thin": 0.0, "noise_hz": 0.0, "erase": 0.0, "mosaic": 0.0}


def item(seed: int = 0, n: int = 3000, t0: int = 0) -> LabelledWindow:
    """Events fill the box, and only the box."""
    rng = np.random.default_rng(seed)
    events = np.zeros(n, EVENT_DTYPE)
    events["t"] = np.sort(rng.integers(0, 50_000, n)) + t0
    events["x"], events["y"] = rng.integers(BOX[0], BOX[2], n), rng.integers(BOX[1], BOX[3], n)
    events["p"] = rng.integers(0, 2, n)
    boxes = Detections(np.array([BOX], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64), t0 + 50_000)
    return LabelledWindow(EventWindow(t0, t0 + 50_000, events), boxes, "block")


def test_nothing_asked_for_changes_nothing() -> None:
    window, boxes = augment([item(t0=100_000)], SIZE, AugmentConfig(**NOTHING), np.random.default_rng(0))
    assert np.array_equal(window.words, pack_relative(item().window))
    assert boxes.boxes_xyxy.tolist() == [list(BOX)]


@settings(deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["mirror", "swap", "zoom", "stretch", "thin", "mosaic", "all"]))
def test_events_stay_in_their_boxes_and_on_the_sensor(seed: int, what: str) -> None:
    chances = {**NOTHING, **({what: 1.0} if what != "all" else {"mirror": 1.0, "zoom": 1.0, "stretch": 1.0, "thin": 1.0})}
    config = AugmentConfig(**chances, min_visible=0.0, min_side_px=0.0)
    window, boxes = augment([item(k) for k in range(4)], SIZE, config, np.random.default_rng(seed))
    events = unpack(window)
    assert ((events["t"] >= 0) & (events["t"] < 50_000)).all()
    assert ((events["x"] < SIZE.width) & (events["y"] < SIZE.height)).all()
    centre = np.stack([events["x"], events["y"]], 1)[:, None] + 0.5
    inside = ((centre >= boxes.boxes_xyxy[:, :2] - 0.5) & (centre <= boxes.boxes_xyxy[:, 2:] + 0.5)).all(2)
    assert inside.any(1).all()
    if len(boxes):
        assert len(events)


@pytest.mark.parametrize(
    ("name", "value"),
    [("mirror", 1.1), ("mosaic", -0.1), ("zoom_range", (0.0, 0.0)), ("zoom_range", (-2.0, -1.0)), ("stretch_range", (1.5, 1.0)),
     ("stretch_range", (0.0, 0.0)), ("noise_hz", -1.0), ("shift_to", -1.0), ("rotate_deg", -1.0), ("shake_px", -1.0),
     ("min_side_px", -1.0), ("thin_to", 7.0), ("thin_to", -0.1), ("min_visible", 1.1), ("repeat_to", 0.5)],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(SettingValueError, match=name):
        AugmentConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("column", ["x", "y"])
def test_events_beyond_the_sensor_are_left_out(column: str) -> None:
    events = np.zeros(100, EVENT_DTYPE)
    events[column] = {"x": SIZE.width, "y": SIZE.height}[column]
    beyond = LabelledWindow(EventWindow(0, 50_000, events), item().boxes, "beyond")
    config = AugmentConfig(**{**NOTHING, "zoom": 1.0}, zoom_range=(0.5, 0.5))
    window, _ = augment([beyond], SIZE, config, np.random.default_rng(0))
    assert len(window.words) == 0


def boxes_item(*boxes: tuple[float, ...]) -> LabelledWindow:
    """A window with these boxes, each of its own class."""
    n = len(boxes)
    labelled = Detections(np.array(boxes, np.float32).reshape(n, 4), np.ones(n, np.float32), np.arange(n), 50_000)
    return LabelledWindow(EventWindow(0, 50_000, np.zeros(0, EVENT_DTYPE)), labelled, "boxes")


SMALL = [(10, 10, 16, 16), (20.3, 10.7, 23.1, 40.2), (40, 30, 47.9, 37.9), (0, 0, 3, 2), (63, 47, 64, 48)]


@pytest.mark.parametrize("what", ["nothing", "mirror", "swap", "zoom", "rotate", "shake", "stretch", "thin", "noise_hz"])
def test_a_small_object_keeps_its_label_unless_it_shrinks(what: str) -> None:
    """The last two lie in corners of the sensor, out of which a rotation takes them."""
    boxes = SMALL[:3] if what == "rotate" else SMALL
    chances = {**NOTHING, **({what: 1.0} if what != "nothing" else {})}
    config = AugmentConfig(**chances, zoom_range=(1.0, 1.0))
    for seed in range(20):
        found = augment([boxes_item(*boxes)], SIZE, config, np.random.default_rng(seed))[1]
        assert found.labels.tolist() == list(range(len(boxes)))


def test_an_enlarged_small_object_keeps_its_label() -> None:
    config = AugmentConfig(**{**NOTHING, "zoom": 1.0}, zoom_range=(1.2, 1.2), min_visible=0.9)
    wide = SensorSize(640, 480)
    kept = [len(augment([boxes_item((320, 240, 326, 245))], wide, config, np.random.default_rng(k))[1]) for k in range(20)]
    assert kept == [1] * 20


@pytest.mark.parametrize(
    ("box", "scale", "kept"),
    [
        ((20, 20, 26, 40), 0.9, False),  # smaller than the limit, and scaled down
        ((20, 20, 36, 36), 0.6, True),  # scaled down to more than the limit
        ((20, 20, 30, 40), 0.6, False),  # scaled down to less than the limit
    ],
)
def test_a_box_that_is_scaled_down_must_have_the_least_side(box: tuple[float, ...], scale: float, kept: bool) -> None:
    config = AugmentConfig(**{**NOTHING, "zoom": 1.0}, zoom_range=(scale, scale))
    assert len(augment([boxes_item(box)], SIZE, config, np.random.default_rng(0))[1]) == kept


def test_a_small_object_that_is_cut_loses_its_label() -> None:
    config = AugmentConfig(**NOTHING, shift=1.0, shift_to=4 / 64, min_visible=0.0)
    found = [augment([boxes_item((0, 20, 6, 26))], SIZE, config, np.random.default_rng(k))[1].boxes_xyxy for k in range(40)]
    assert {len(boxes) for boxes in found} == {0, 1}, "moved to the left, it is cut; to the right, it is not"
    assert all(boxes[0, 2] - boxes[0, 0] == pytest.approx(6, abs=0.01) for boxes in found if len(boxes))


def test_a_mosaic_scales_down_so_that_small_objects_lose_their_label() -> None:
    config = AugmentConfig(**{**NOTHING, "mosaic": 1.0}, min_visible=0.0)
    items = [boxes_item((20, 16, 26, 22), (30, 16, 60, 46)) for _ in range(4)]
    labels = [augment(items, SIZE, config, np.random.default_rng(k))[1].labels for k in range(20)]
    assert set(np.concatenate(labels).tolist()) == {1}


def test_stretching_holds_the_end_of_the_window() -> None:
    config = AugmentConfig(**{**NOTHING, "stretch": 1.0}, stretch_range=(2.0, 2.0))
    window, _ = augment([item()], SIZE, config, np.random.default_rng(0))
    t = pack_relative(item().window)[:, 0].astype(np.int64)
    assert np.array_equal(window.words[:, 0], 50_000 - 2 * (50_000 - t[t >= 25_000]))


def test_swapping_exchanges_the_polarities() -> None:
    window, _ = augment([item()], SIZE, AugmentConfig(**{**NOTHING, "swap": 1.0}), np.random.default_rng(0))
    assert np.array_equal(unpack(window)["p"], 1 - unpack(item().window)["p"])


def test_erasing_drops_what_it_hides() -> None:
    kept = 0
    for seed in range(60):
        window, boxes = augment([item()], SIZE, AugmentConfig(**{**NOTHING, "erase": 1.0}), np.random.default_rng(seed))
        assert len(window) <= 3000
        assert len(boxes) == (len(window) >= 1500) or abs(len(window) - 1500) < 200
        kept += len(boxes)
    assert 0 < kept <= 60


def test_noise_has_the_rate_asked_for() -> None:
    config = AugmentConfig(**{**NOTHING, "noise_hz": 20.0})
    extra = [len(augment([item()], SIZE, config, np.random.default_rng(k))[0]) - 3000 for k in range(40)]
    expected = 10.0 * SIZE.width * SIZE.height * 0.05
    assert np.mean(extra) == pytest.approx(expected, rel=0.2)


def test_thinning_keeps_at_least_its_share() -> None:
    config = AugmentConfig(**{**NOTHING, "thin": 1.0}, thin_to=0.5)
    shares = [len(augment([item()], SIZE, config, np.random.default_rng(k))[0]) / 3000 for k in range(20)]
    assert 0.45 < min(shares) < max(shares) <= 1.0
