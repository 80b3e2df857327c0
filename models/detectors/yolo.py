"""YOLO networks, built from ultralytics' own model definitions with ReLU activations and event channels, and their loss.

Reference: ultralytics YOLOv8 (`yolov8.yaml`, task-aligned assigner, distribution focal loss). Between the input and the
last convolutions of the head, only operations with a spiking equivalent occur: convolution, batch norm, ReLU, addition,
concatenation, channel slices, nearest upsampling, average pool and max-pool (see models/spiking/network.py). This holds for
v5, v8 and v9 (t, s, m). The attention blocks of yolo11 and later cannot be converted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from evburst.data.errors import ConfigError
from evburst.data.extras import require
from evburst.models.architectures import NetworkConfig, family
from evburst.models.detectors.postprocess import HeadSpec

_LOSS_GAINS = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
_PICO = {"p": [0.33, 0.125, 1024]}
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "silu": nn.SiLU,
}


@family("yolo")
def build(config: NetworkConfig, variant: str) -> Yolo:
    """Build a network; `variant` is an ultralytics definition and scale ("v8n", "11n"), p being half the channels of nano."""
    return Yolo(config, f"yolo{variant[:-1]}", variant[-1:])


class Yolo(nn.Module):
    """A YOLO network with `loss` for training and `forward` for inference.

    Args:
        config: input channels, classes and activation.
        definition_name: name of an ultralytics model definition.
        scale: p, n, s, m, l or x.

    Raises:
        ConfigError: ultralytics has no such definition or scale.
    """

    loss_names = ("box", "cls", "dfl")

    def __init__(self, config: NetworkConfig, definition_name: str, scale: str) -> None:
        super().__init__()
        tasks = _ultralytics_tasks()
        definition = _definition(tasks, config.architecture, definition_name, scale)
        self.config = config
        self.net = tasks.DetectionModel(definition, ch=config.channels, nc=len(config.classes), verbose=False)
        _replace_silu(self.net, _ACTIVATIONS[config.activation]())
        self.net.args = _LOSS_GAINS
        self._criterion: Any = None

    @property
    def head_spec(self) -> HeadSpec:
        """See Network.head_spec."""
        head = self.net.model[-1]
        return HeadSpec("yolo", tuple(int(s) for s in head.stride), int(head.reg_max), self.config.classes)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute raw maps, see Network.

        Returns:
            For every stride the box distribution `(N, 4 * reg_max, h, w)`, then for every stride the class logits
            `(N, classes, h, w)`.
        """
        saved: list[Tensor] = []
        for layer in self.net.model[:-1]:
            if isinstance(layer.f, int):
                source: Any = x if layer.f == -1 else saved[layer.f]
            else:
                source = [x if index == -1 else saved[index] for index in layer.f]
            x = layer(source)
            saved.append(x)
        head = self.net.model[-1]
        features = [saved[index] for index in head.f]
        boxes = [branch(feature) for branch, feature in zip(head.cv2, features, strict=True)]
        classes = [branch(feature) for branch, feature in zip(head.cv3, features, strict=True)]
        return boxes + classes

    def loss(self, x: Tensor, boxes: Tensor, labels: Tensor, image_index: Tensor, amp: bool = False) -> Tensor:
        """See Network.loss."""
        if self._criterion is None:
            from ultralytics.utils.loss import v8DetectionLoss

            self._criterion = v8DetectionLoss(self.net)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            predictions = self.net(x)
        predictions = {
            "boxes": predictions["boxes"].float(),
            "scores": predictions["scores"].float(),
            "feats": predictions["feats"],
        }
        total: Tensor = self._criterion(predictions, _loss_targets(x, boxes, labels, image_index))[0]
        return total


def _loss_targets(x: Tensor, boxes: Tensor, labels: Tensor, image_index: Tensor) -> dict[str, Tensor]:
    """Return the labels of a batch as ultralytics' losses expect them; the arguments are those of `Network.loss`."""
    size = torch.tensor(x.shape[:1:-1], dtype=torch.float32)
    centre_size = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2 / size, (boxes[:, 2:] - boxes[:, :2]) / size], 1)
    return {"batch_idx": image_index.float(), "cls": labels.float(), "bboxes": centre_size.to(x.device)}


def _replace_silu(network: nn.Module, activation: nn.Module) -> None:
    """Replace every SiLU; ultralytics' own setting for the activation leaves some blocks (RepConv) unchanged."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.SiLU):
                setattr(parent, name, activation)


def _definition(tasks: Any, architecture: str, name: str, scale: str) -> dict[str, Any]:
    """Load ultralytics' definition at a scale. Most families have one definition for all scales, some (v9) one per scale."""
    for file in (f"{name}n.yaml", f"{name}{scale}.yaml"):
        try:
            definition: dict[str, Any] = tasks.yaml_model_load(file)
        except FileNotFoundError:
            continue
        if "scales" not in definition:
            return definition
        definition["scales"] = {**definition["scales"], **_PICO}
        if scale not in definition["scales"]:
            known = ", ".join(definition["scales"])
            raise ConfigError(f"architecture {architecture!r}: scale {scale!r} is unknown (known: {known})")
        return {**definition, "scale": scale}
    raise ConfigError(f"architecture {architecture!r}: ultralytics has no definition {name!r}")


def _ultralytics_tasks() -> Any:
    """Import ultralytics' model builder, preventing it from accessing the network or writing to the home directory."""
    import tempfile

    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_VERBOSE", "false")
    os.environ.setdefault("YOLO_CONFIG_DIR", os.path.join(tempfile.gettempdir(), "evburst-ultralytics"))
    return require("ultralytics.nn.tasks", "train", "building a YOLO network")
