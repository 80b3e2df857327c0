"""Networks of a live run, loaded and warmed up."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from evburst.app.detect import DetectConfig, network_name
from evburst.app.inference import Inference
from evburst.app.live.sources import NO_EVENTS
from evburst.app.runs import load_weights, open_inference
from evburst.data.events import EventWindow, Faults, SensorSize
from evburst.models.bundle import Bundle
from evburst.models.detector import GridDetector, resolve_timesteps


class Prepared(NamedTuple):
    """A loaded and warmed-up network.

    Attributes:
        detect: the settings, with the current score threshold.
        bundle: the weights.
        inference: the inference that runs the network.
    """

    detect: DetectConfig
    bundle: Bundle
    inference: Inference

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        return self.bundle.head.classes

    @property
    def timesteps(self) -> int | None:
        """T; None for the ANN."""
        return None if self.detect.ann else resolve_timesteps(self.bundle, False, self.detect.timesteps)

    @property
    def name(self) -> str:
        """Name of the network as shown in pictures."""
        return network_name(self.bundle, self.detect)

    @property
    def detector(self) -> GridDetector:
        """The detector that inference runs."""
        network = self.inference.network
        if not isinstance(network, GridDetector):
            raise TypeError(f"expected a GridDetector, received {type(network).__name__}")
        return network

    def with_score(self, score: float) -> Prepared:
        """Set the minimum score of a box; the returned value shares this network."""
        post = replace(self.detect.post, score=score)
        self.detector.post = post
        return self._replace(detect=replace(self.detect, post=post))


def prepare(detect: DetectConfig, sensor_size: SensorSize, faults: Faults, current: Prepared | None = None) -> Prepared:
    """Load and warm up a network.

    Args:
        detect: the settings.
        sensor_size: (W, H) px.
        faults: counters of the source's faults.
        current: the current network; returned if only the post-processing differs, and its weights are reused if possible.
    """
    if current is not None and replace(current.detect, post=detect.post) == detect:
        return current
    is_loaded = current is not None and current.detect.weights == detect.weights
    bundle = current.bundle if current is not None and is_loaded else load_weights(detect, remarks=False)
    inference = open_inference(bundle, detect, sensor_size, faults)
    inference.warm_up(EventWindow(0, inference.voxel.window_us, NO_EVENTS))
    return Prepared(detect, bundle, inference)
