"""Bootstrap of AP differences: every resample has the AP of pycocotools on its frames; intervals are paired and repeatable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evburst.eval.bootstrap import ap_losses, number_units, resampled_ap, resampled_ap_reference
from evburst.eval.coco import IOUS, ClassMatches, coco_result
from evburst.eval.protocol import PROTOCOLS, Frame, RecordingBoxes, match
from tests.test_eval_protocol import CLASSES, GEN1, boxes, random_recording

THREE = (*CLASSES, "bicycle")


def frames(seed: int, recordings: int = 3) -> list[Frame]:
    """Random labels and predictions without ties of score."""
    rng = np.random.default_rng(seed)
    pairs = [random_recording(rng) for _ in range(recordings)]
    for _, found in pairs:
        found["class_confidence"] = rng.random(len(found))
    return match([RecordingBoxes(*pair) for pair in pairs], PROTOCOLS["coco"], GEN1)[0]


def noisy(some: list[Frame], seed: int, jitter: float, share: float = 0.9) -> list[Frame]:
    """Predictions derived from the labels: shifted by `jitter` pixels, some lost, some invented."""
    rng = np.random.default_rng(seed)
    out = []
    for frame in some:
        found = frame.labels[rng.random(len(frame.labels)) < share].copy()
        for side in "xy":
            found[side] += rng.normal(0, jitter, len(found))
        false = boxes(*((frame.t_us, *rng.uniform(0, 150, 2), 40, 40, rng.integers(2)) for _ in range(3)))
        found = np.concatenate([found, false])
        found["class_confidence"] = rng.random(len(found))
        out.append(frame._replace(predictions=found))
    return out


@pytest.mark.parametrize("seed", range(5))
def test_the_whole_set_is_pycocotools_own_figure(seed: int) -> None:
    result = coco_result(frames(seed), THREE)
    once = np.ones((1, len(result.matches[0].labels)), np.int64)
    expected = [result.ap_by_iou[iou] for iou in IOUS]
    for path in (resampled_ap, resampled_ap_reference):
        (found,) = path(result.matches, once)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        assert found.mean() == pytest.approx(result.summary.ap, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_a_resample_is_what_pycocotools_says_of_its_frames(seed: int) -> None:
    some = frames(seed)
    matches, rng = coco_result(some, THREE).matches, np.random.default_rng(seed)
    repeats = rng.multinomial(len(some), np.full(len(some), 1 / len(some)), 4)
    found, reference = resampled_ap(matches, repeats), resampled_ap_reference(matches, repeats)
    np.testing.assert_allclose(found, reference, rtol=1e-12)
    for row, times in zip(found, repeats, strict=True):
        drawn = [frame for frame, n in zip(some, times, strict=True) for _ in range(n)]
        np.testing.assert_allclose(row, list(coco_result(drawn, THREE).ap_by_iou.values()), rtol=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_fast_path_equals_numpy_on_random_matches(seed: int) -> None:
    """Silent classes, frames without predictions, frames that are never drawn, everything wrong, everything right."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 30))
    classes = []
    for _ in range(4):
        frame = rng.integers(0, n, rng.integers(0, 200))
        labels = rng.integers(0, 3, n) * (rng.random() < 0.8)
        right = rng.integers(0, 1 << 10, len(frame)) * (rng.random(len(frame)) < rng.random())
        left = labels.sum()
        for k in range(10):  # no more right ones than labels
            hits = np.flatnonzero(right >> k & 1)
            right[hits[left:]] &= ~(1 << k)
        classes.append(ClassMatches(frame, right.astype(np.uint16), labels.astype(np.int64)))
    repeats = np.concatenate([rng.integers(0, 4, (5, n)), np.zeros((1, n), np.int64)])
    np.testing.assert_allclose(resampled_ap(classes, repeats), resampled_ap_reference(classes, repeats), rtol=1e-12)
    assert np.isnan(resampled_ap(classes, repeats)[-1]).all()


def test_losses_are_paired_repeatable_and_signed() -> None:
    some = frames(0, 8)
    exact, rough = (coco_result(noisy(some, 1, jitter), CLASSES) for jitter in (1.0, 4.0))
    units = number_units([k // 3 for k in range(len(some))])
    losses = ap_losses(exact.matches, rough.matches, units, 200)
    assert losses == ap_losses(exact.matches, rough.matches, units, 200)
    assert losses != ap_losses(exact.matches, rough.matches, units, 200, seed=1)
    assert losses.ap.mean == pytest.approx(exact.summary.ap - rough.summary.ap)
    assert losses.ap50.mean == pytest.approx(exact.summary.ap50 - rough.summary.ap50)
    assert losses.ap50 == losses.by_iou["0.50"]
    assert losses.ap.low is not None
    assert losses.ap.high is not None
    assert 0 < losses.ap.low < losses.ap.mean < losses.ap.high
    assert (losses.ap.resamples, losses.ap.units) == (200, len(set(units.tolist())))
    same = ap_losses(exact.matches, exact.matches, units, 50)
    assert (same.ap.low, same.ap.mean, same.ap.high) == (0, 0, 0)  # paired: both networks see the same draw
    swapped = ap_losses(rough.matches, exact.matches, units, 200)
    assert (swapped.ap.mean, swapped.ap.low) == (pytest.approx(-losses.ap.mean), pytest.approx(-losses.ap.high))


def test_showings_of_one_picture_are_one_unit() -> None:
    """Every frame three times is no more evidence than once: the interval by picture stays, that by frame shrinks."""
    some = frames(3, 6)
    one, other = noisy(some, 1, 1.0), noisy(some, 2, 3.0)
    units = np.arange(len(some))
    single = ap_losses(coco_result(one, CLASSES).matches, coco_result(other, CLASSES).matches, units, 300)
    first, second = coco_result(one * 3, CLASSES).matches, coco_result(other * 3, CLASSES).matches
    by_picture = ap_losses(first, second, np.tile(units, 3), 300)
    by_frame = ap_losses(first, second, np.arange(3 * len(some)), 300)

    def width(of: object) -> float:
        return of.ap.high - of.ap.low  # type: ignore[attr-defined, no-any-return]

    assert by_picture.ap.units == len(some)
    assert width(by_picture) == pytest.approx(width(single), rel=0.05)
    assert width(by_frame) < 0.75 * width(single)


def test_one_unit_has_no_interval() -> None:
    some = frames(4, 1)
    matches = coco_result(some, CLASSES).matches
    losses = ap_losses(matches, matches, np.zeros(len(some), np.int64))
    assert (losses.ap.low, losses.ap.high, losses.ap.resamples, losses.ap.units) == (None, None, 0, 1)


def test_different_labels_are_refused() -> None:
    matches = coco_result(frames(5), CLASSES).matches
    other = [replace(own, labels=own.labels + 1) for own in matches]
    with pytest.raises(ValueError, match="same frames"):
        ap_losses(matches, other, np.arange(len(matches[0].labels)))


def test_units_are_numbered_as_they_appear() -> None:
    assert number_units(["b", "a", "b", ("c", 1), "a"]).tolist() == [0, 1, 0, 2, 1]
    assert number_units([]).tolist() == []
