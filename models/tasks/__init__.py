"""Tasks: what a network's outputs mean, and what follows from that for conversion and for stopping early.

A head's kind (HeadSpec.kind) names its task. Decoding, divergence, confidence and settling differ between kinds here and
nowhere else:

    found = task_of(bundle.head).decode(maps, bundle.head, post, sensor_size, t_us)

A new kind is one class with `@task("kind")`, and the layout of its maps in models/layout.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

from evburst.data.boxes import Detections
from evburst.data.classification import CLASSIFICATION, DETECTION, Classification
from evburst.data.events import SensorSize
from evburst.models.detectors.postprocess import HeadSpec, PostConfig

Prediction = Detections | Classification
"""What a network has found in one window."""
__all__ = ["CLASSIFICATION", "DETECTION", "Prediction", "TASKS", "Task", "divergence", "task", "task_of"]


class Task(Protocol):
    """What one kind of head is for.

    Attributes:
        name: DETECTION or CLASSIFICATION.
    """

    name: str

    def decode(
        self, maps: list[Tensor], spec: HeadSpec, post: PostConfig, sensor_size: SensorSize, t_us: Sequence[int]
    ) -> Sequence[Prediction]:
        """What is found in each of the N windows.

        Args:
            maps: outputs of the network, `(N, C, h, w)` each.
            spec: what they mean.
            post: thresholds; of detection.
            sensor_size: (W, H) px.
            t_us: the instant of each window.
        """
        ...

    def divergence(self, ann: list[Tensor], snn: list[Tensor], spec: HeadSpec, everywhere: bool = False) -> Tensor:
        """How far the outputs of a spiking network lie from its ANN's, per window; a scalar with gradients.

        Args:
            ann, snn: outputs of both networks.
            spec: what they mean.
            everywhere: as a network that learns from it needs it, instead of as layers are compared (see each task).
        """
        ...

    def confidence(self, maps: list[Tensor], spec: HeadSpec) -> Tensor:
        """Where an error matters: `(N, 1, h, w)` in [0, 1], see `convert/importance.position_weights`."""
        ...

    def settled(self, found: Sequence[Any], tau: float) -> bool:
        """Whether what was found after each timestep so far shows that another one is not needed; `tau` in [0, 1]."""
        ...


TASKS: dict[str, Task] = {}
_Kind = TypeVar("_Kind", bound=Callable[[], Task])


def task(kind: str) -> Callable[[_Kind], _Kind]:
    """Register the task of a kind of head."""

    def register(own: _Kind) -> _Kind:
        TASKS[kind] = own()
        return own

    return register


def task_of(spec: HeadSpec) -> Task:
    """The task of a head."""
    from evburst.models.tasks import classification, detection  # noqa: F401  (they register themselves)

    return TASKS[spec.kind]


def divergence(ann: list[Tensor], snn: list[Tensor], spec: HeadSpec, everywhere: bool = False) -> Tensor:
    """See Task.divergence."""
    return task_of(spec).divergence(ann, snn, spec, everywhere)
