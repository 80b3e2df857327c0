"""Reading of the networks that conversion starts from: training checkpoints and converted files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from evburst.data.datasets.selection import SELECT
from evburst.data.errors import CheckpointError
from evburst.data.events import SensorSize
from evburst.models.bundle import Bundle, find_weights, load_trained, read_kind, size_in
from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.graph import Graph


def read_converted(weights: str) -> Bundle:
    """Read a converted file, to continue converting it.

    Raises:
        CheckpointError: the file has not been converted.
    """
    path = find_weights(weights)
    if read_kind(path) != "detector":
        raise CheckpointError(f"{path}: has not been converted yet; --continue starts from a converted file")
    bundle = Bundle.load(path)
    return bundle if "conversion" in bundle.record else replace(bundle, record={**bundle.record, "conversion": {}})


def read_ann(weights: str) -> tuple[Graph, HeadSpec, dict[str, Any]]:
    """Read the folded ANN in the precision in which it will be stored, its head, and its training record.

    Args:
        weights: best.safetensors of a training run, or a converted file, whose ANN is then converted again.

    Raises:
        CheckpointError: a converted file has no training record.
    """
    path = find_weights(weights)
    if read_kind(path) == "detector":
        bundle = Bundle.load(path)
        if "training" not in bundle.record:
            raise CheckpointError(f"{path}: has no training record; pass the training run's best.safetensors instead")
        size = {"sensor_size": list(bundle.trained_size)} if bundle.trained_size else {}
        return bundle.graph, bundle.head, {**bundle.record["training"], **size}
    return load_trained(path)


def trained_size(trained: dict[str, Any]) -> SensorSize | None:
    """Return the (W, H) px of the sensor that a network was trained on, or of its padded grid, which is all that older records
    of training runs state; None if nothing is stated.

    Args:
        trained: the training record.
    """
    return size_in(trained) or size_in(trained.get("network", {}), "input_size")


def blended(graph: Graph, other: Graph, share: float) -> Graph:
    """Return the weighted mean of two networks' folded weights; raise CheckpointError if their graphs differ."""
    if graph.to_json() != other.to_json():
        raise CheckpointError("blend_with: the two weights files hold different networks; both must have the same graph")
    mean = {name: share * tensor + (1 - share) * other.tensors[name] for name, tensor in graph.tensors.items()}
    return Graph(graph.nodes, graph.outputs, mean).in_float16()


def chosen_on_select(trained: dict[str, Any]) -> bool:
    """Whether a training chose its epoch on the split "select", and so did not learn from it.

    Args:
        trained: the training record; older ones hold only the name of the split.
    """
    chosen = trained.get("chosen_on")
    return bool((chosen.get("split") if isinstance(chosen, dict) else chosen) == SELECT)
