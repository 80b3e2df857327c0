"""A network of a live run, loaded and warmed up."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from threading import Lock
from typing import NamedTuple

import numba

from evburst.app.detect import DetectConfig, network_name, open_inference
from evburst.app.inference import Inference
from evburst.app.live.sources import NO_EVENTS
from evburst.data.events import EventWindow, Faults, SensorSize
from evburst.models.bundle import DetectorBundle
from evburst.models.detector import Detector

_TURN = Lock()


class Prepared(NamedTuple):
    """A network that is ready.

    Attributes:
        detect: the settings it was made with; its score may have been set since.
        bundle: the weights.
        inference: what runs it.
    """

    detect: DetectConfig
    bundle: DetectorBundle
    inference: Inference

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of its classes."""
        return self.bundle.head.classes

    @property
    def timesteps(self) -> int | None:
        """T; None for the ANN."""
        return None if self.detect.ann else self.detect.timesteps or self.bundle.parameters.timesteps

    @property
    def name(self) -> str:
        """What runs, as pictures name it."""
        return network_name(self.bundle, self.detect)

    @property
    def detector(self) -> Detector:
        """The detector that inference runs."""
        network = self.inference.network
        if not isinstance(network, Detector):
            raise TypeError(f"expected a Detector, received {type(network).__name__}")
        return network

    def with_score(self, score: float) -> Prepared:
        """The same network, which from now on leaves out boxes below this score."""
        post = replace(self.detect.post, score=score)
        self.detector.post = post
        return self._replace(detect=replace(self.detect, post=post))


def prepare(detect: DetectConfig, sensor_size: SensorSize, faults: Faults, before: Prepared | None = None) -> Prepared:
    """Load and warm up the network of some settings; `before` lends its weights, or is returned where it is that network."""
    if before is not None and same_network(before.detect, detect):
        return before
    is_loaded = before is not None and before.detect.weights == detect.weights
    bundle = before.bundle if before is not None and is_loaded else DetectorBundle.load(detect.weights)
    inference = open_inference(bundle, detect, sensor_size, faults)
    with kernels_turn():
        inference.warm_up(EventWindow(0, inference.voxel.window_us, NO_EVENTS))
    return Prepared(detect, bundle, inference)


def same_network(one: DetectConfig, other: DetectConfig) -> bool:
    """Whether two settings differ in nothing but the score of boxes."""
    return replace(one, post=other.post) == other


def kernels_turn() -> AbstractContextManager[object]:
    """Held while parallel kernels run: numba's own thread pool ends the process where two threads use it; OpenMP and TBB do not."""
    try:
        return _TURN if numba.threading_layer() == "workqueue" else nullcontext()
    except ValueError:  # no kernel has run yet
        return _TURN
