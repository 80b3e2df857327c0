"""Networks as conversion takes them: a training run's checkpoint, or a file that was converted before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from evburst.data.errors import CheckpointError
from evburst.models.bundle import DetectorBundle, find_weights, load_trained, read_kind
from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.graph import Graph


def read_converted(weights: str) -> DetectorBundle:
    """A file that was converted before, to go on from."""
    path = find_weights(weights)
    if read_kind(path) != "detector":
        raise CheckpointError(f"{path}: has not been converted yet; --continue starts from a converted file")
    bundle = DetectorBundle.load(path)
    return bundle if "conversion" in bundle.record else replace(bundle, record={**bundle.record, "conversion": {}})


def read_ann(weights: str) -> tuple[Graph, HeadSpec, dict[str, Any]]:
    """The folded ANN as it will be stored, its head, and the record of its training.

    Args:
        weights: best.safetensors of a training run; or a file that was converted before, whose ANN is converted anew.
    """
    path = find_weights(weights)
    if read_kind(path) == "detector":
        bundle = DetectorBundle.load(path)
        if "training" not in bundle.record:
            raise CheckpointError(f"{path}: no record of how it was trained; give the training run's best.safetensors instead")
        return bundle.graph, bundle.head, bundle.record["training"]
    return load_trained(path)


def blended(graph: Graph, other: Graph, share: float) -> Graph:
    """The weighted mean of two networks' folded weights; raises CheckpointError if they are not the same network."""
    if graph.to_json() != other.to_json():
        raise CheckpointError("blend_with: not the same network as the weights it is to be blended with")
    mean = {name: share * tensor + (1 - share) * other.tensors[name] for name, tensor in graph.tensors.items()}
    return Graph(graph.nodes, graph.outputs, mean).in_float16()
