"""Frames between frames: as many as the motion needs, and moved, not faded."""

from __future__ import annotations

import cv2
import numpy as np

from evburst.data.simulation.upsample import MotionUpsampler


def texture(seed: int, low: int, high: int, size: tuple[int, int]) -> np.ndarray:
    """Smooth random spots."""
    noise = np.random.default_rng(seed).uniform(-1, 1, size).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.0)
    return (low + (high - low) * np.clip(0.5 + 2 * smooth, 0, 1)).astype(np.float32)


def square(x: float) -> np.ndarray:
    """A bright square on a darker ground, its left edge at x, drawn to a fraction of a pixel."""
    place = np.array([[1, 0, x], [0, 1, 20.0]])
    mask = cv2.warpAffine(np.ones((24, 24), np.float32), place, (96, 64))
    moved = cv2.warpAffine(texture(1, 150, 250, (24, 24)), place, (96, 64))
    return (texture(0, 50, 90, (64, 96)) * (1 - mask) + moved * mask).astype(np.uint8)


def test_what_lies_between_has_moved_halfway() -> None:
    upsampler = MotionUpsampler(step_px=5.0)
    between = upsampler.between(square(30), square(38), 9)
    assert len(between) == 1
    halfway, faded = square(34).astype(float), (square(30).astype(float) + square(38)) / 2
    errors = [np.abs(picture - halfway)[20:44, 34:58].mean() for picture in (between[0], faded)]
    assert errors[0] < 0.4 * errors[1]


def test_faster_motion_gets_more_frames_up_to_the_limit() -> None:
    upsampler = MotionUpsampler(step_px=1.0)
    counts = [len(upsampler.between(square(30), square(30 + shift), 6)) for shift in (0, 3, 12)]
    assert counts[0] == 0 < counts[1] < counts[2] == 6


def test_pictures_too_small_for_flow_get_none() -> None:
    dark, light = np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)
    assert MotionUpsampler().between(dark, light, 9) == []
