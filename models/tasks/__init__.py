"""Tasks: how a network's outputs are decoded, compared in conversion, and judged for stopping early.

The kind of a head (HeadSpec.kind) determines its task: decoding, divergence, confidence, and the criterion for stopping early.

    predictions = task_of(bundle.head).decode(maps, bundle.head, post, sensor_size, t_us)

A new kind needs one class with `@task("kind")`, and the layout of its maps in models/layout.py (HEADS). The arithmetic of
boxes is in models/detectors/postprocess.py, and for ONNX files that contain it, in models/export/onnx_boxes.py. Only YOLO's
head can lose strides (models/spiking/convert/scales.py) or get a memory (models/detectors/remembering.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

from evburst.data.boxes import Detections
from evburst.data.classification import CLASSIFICATION, DETECTION, Classification
from evburst.data.events import SensorSize
from evburst.data.extensions import refuse_taken
from evburst.models.detectors.postprocess import HeadSpec, PostConfig

Prediction = Detections | Classification
"""A network's result for one window."""
__all__ = ["CLASSIFICATION", "DETECTION", "Prediction", "TASKS", "Task", "divergence", "task", "task_of"]


class Task(Protocol):
    """The task of one kind of head.

    Attributes:
        name: DETECTION or CLASSIFICATION.
    """

    name: str

    def decode(
        self, maps: list[Tensor], spec: HeadSpec, post: PostConfig, sensor_size: SensorSize, t_us: Sequence[int]
    ) -> Sequence[Prediction]:
        """Decode the predictions for each of the N windows.

        Args:
            maps: outputs of the network, `(N, C, h, w)` each.
            spec: description of the head.
            post: thresholds for detection.
            sensor_size: (W, H) px.
            t_us: end time of each window.
        """
        ...

    def divergence(self, ann: list[Tensor], snn: list[Tensor], spec: HeadSpec, everywhere: bool = False) -> Tensor:
        """Return the divergence of a spiking network's outputs from its ANN's, per window, as a scalar with gradients.

        Args:
            ann, snn: outputs of both networks.
            spec: description of the head.
            everywhere: True for the loss with which a network is trained; False for comparing layers (see each task).
        """
        ...

    def confidence(self, maps: list[Tensor], spec: HeadSpec) -> Tensor:
        """Return the weight of errors at each position: `(N, 1, h, w)` in [0, 1], see `convert/importance.position_weights`."""
        ...

    def independent_logits(self, outputs: Sequence[str], spec: HeadSpec) -> Sequence[str]:
        """Return the names of the outputs whose channel k determines the score of class k alone, by a sigmoid; none if classes
        share a softmax."""
        ...

    def settled(self, predictions: Sequence[Any], tau: float) -> bool:
        """Return whether the predictions after each timestep so far are stable enough to stop; `tau` in [0, 1]."""
        ...


TASKS: dict[str, Task] = {}
_Kind = TypeVar("_Kind", bound=Callable[[], Task])


def task(kind: str) -> Callable[[_Kind], _Kind]:
    """Register the task of a kind of head; raises ConfigError if another one has the kind."""

    def register(cls: _Kind) -> _Kind:
        refuse_taken("task", kind, cls, {known: type(one) for known, one in TASKS.items()})
        TASKS[kind] = cls()
        return cls

    return register


def task_of(spec: HeadSpec) -> Task:
    """Return the task of a head."""
    from evburst.models.tasks import classification, detection  # noqa: F401  (they register themselves)

    return TASKS[spec.kind]


def divergence(ann: list[Tensor], snn: list[Tensor], spec: HeadSpec, everywhere: bool = False) -> Tensor:
    """See Task.divergence."""
    return task_of(spec).divergence(ann, snn, spec, everywhere)
