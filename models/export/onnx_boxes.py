"""Decoding inside an ONNX file for one grid of fixed size, as `evburst.models.tasks` does it.

Outputs of a detector: `boxes` `(n, 4)` float32 xyxy px clipped to the sensor, `scores` `(n,)` float32 in descending order,
`labels` `(n,)` int64. Non-maximum suppression is the standard operator, applied per class. `decode` only considers the best
1,000 candidates while this considers all of them, which makes no difference at practical score thresholds.

Outputs of a classifier: `scores` `(K,)` float32, which sum to 1, `label` `(1,)` int64.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evburst.data.classification import CLASSIFICATION, DETECTION
from evburst.data.events import SensorSize
from evburst.models.detectors.postprocess import SSD_GAINS, SSD_LARGEST, VOTING_SHARE, HeadSpec, PostConfig
from evburst.models.export.onnx_graph import OnnxGraph

DECODED = {DETECTION: ("boxes", "scores", "labels"), CLASSIFICATION: ("scores", "label")}
"""Names of the decoded outputs, by task."""


@dataclass(frozen=True)
class BoxOptions:
    """Settings for the decoding of boxes.

    Attributes:
        sensor_size: (W, H) px that boxes are clipped to; the grid has this size, padded to a multiple of the network's stride.
        post: thresholds of the post-processing.
    """

    sensor_size: SensorSize
    post: PostConfig = field(default_factory=PostConfig)


def write_boxes(onnx: OnnxGraph, maps: list[str], head: HeadSpec, options: BoxOptions, size: tuple[int, int]) -> None:
    """Add operators that decode boxes, or a class, from the outputs of a network.

    Args:
        onnx: the graph of the network.
        maps: names of the outputs: box maps of every stride, then class maps of every stride; of a classifier its class map.
        head: how the maps are decoded.
        options: thresholds and sensor size.
        size: (H, W) of the grid.
    """
    if head.kind == "classes":
        _class(onnx, maps[0], len(head.classes))
        return
    level = {"yolo": _yolo_level, "ssd": _ssd_level}[head.kind]
    levels = len(head.strides)
    parts = [level(onnx, maps[k], maps[levels + k], k, head, size) for k in range(levels)]
    boxes, scores = (_joined(onnx, [part[i] for part in parts], name) for i, name in enumerate(("all_boxes", "all_scores")))
    width, height = options.sensor_size
    ends = (
        onnx.constant("decode.least", np.float32(0)),
        onnx.constant("decode.most", np.array([width, height] * 2, np.float32)),
    )
    clipped = onnx.emit("Min", [onnx.emit("Max", [boxes, ends[0]], "decode.above"), ends[1]], "decode.clipped")
    valid = _has_area(onnx, clipped)
    scores = onnx.emit("Mul", [scores, valid], "decode.scores")
    _select(onnx, clipped, scores, options.post)


def _class(onnx: OnnxGraph, logits: str, n_classes: int) -> None:
    """Add the softmax of the mean over the map `(1, K, h, w)`, and its largest entry."""
    mean = onnx.emit("ReduceMean", [logits], "decode.mean", axes=[2, 3], keepdims=0)
    shares = onnx.emit("Softmax", [mean], "decode.shares", axis=1)
    onnx.emit("Reshape", [shares, _constant(onnx, "last", -1)], "scores")
    onnx.emit("ArgMax", ["scores"], "label", axis=0)
    onnx.output("scores", "FLOAT", [n_classes])
    onnx.output("label", "INT64", [1])


def _constant(onnx: OnnxGraph, name: str, *values: int) -> str:
    return onnx.constant(f"decode.{name}", np.array(values, np.int64))


def _joined(onnx: OnnxGraph, parts: list[str], name: str) -> str:
    """Concatenate the boxes `(1, n, 4)` or scores `(1, classes, n)` of all levels."""
    return parts[0] if len(parts) == 1 else onnx.emit("Concat", parts, f"decode.{name}", axis=1 if name == "all_boxes" else 2)


def _centres(rows: int, columns: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """x and y of the centres of all cells, in cells, `(rows * columns,)`."""
    y, x = np.mgrid[:rows, :columns].reshape(2, -1).astype(np.float32) + np.float32(0.5)
    return x, y


def _yolo_level(
    onnx: OnnxGraph, boxes: str, classes: str, level: int, head: HeadSpec, size: tuple[int, int]
) -> tuple[str, str]:
    stride, bins, name = head.strides[level], head.reg_max, f"decode.{level}"
    rows, columns = size[0] // stride, size[1] // stride
    cells = rows * columns
    shaped = onnx.emit("Reshape", [boxes, _constant(onnx, f"{level}.shape", 4, bins, cells)], f"{name}.bins")
    shares = onnx.emit("Softmax", [shaped], f"{name}.shares", axis=1)
    weights = onnx.constant(f"{name}.distances", np.arange(bins, dtype=np.float32).reshape(1, 1, bins))
    sides = onnx.emit("MatMul", [weights, shares], f"{name}.sides")  # (4, 1, cells): left, top, right, bottom
    x, y = _centres(rows, columns)
    centre = onnx.constant(f"{name}.centres", np.stack([x, y, x, y])[:, None])
    signs = onnx.constant(f"{name}.signs", np.array([-1, -1, 1, 1], np.float32).reshape(4, 1, 1))
    corners = onnx.emit("Add", [centre, onnx.emit("Mul", [sides, signs], f"{name}.signed")], f"{name}.corners")
    pixels = onnx.emit("Mul", [corners, onnx.constant(f"{name}.stride", np.float32(stride))], f"{name}.px")
    turned = onnx.emit("Transpose", [pixels], f"{name}.boxes", perm=[1, 2, 0])
    logits = onnx.emit("Reshape", [classes, _constant(onnx, f"{level}.flat", 1, len(head.classes), cells)], f"{name}.logits")
    return turned, onnx.emit("Sigmoid", [logits], f"{name}.scores")


def _ssd_level(onnx: OnnxGraph, boxes: str, classes: str, level: int, head: HeadSpec, size: tuple[int, int]) -> tuple[str, str]:
    stride, anchors, name = head.strides[level], np.array(head.anchors[level], np.float32), f"decode.{level}"
    rows, columns, n = size[0] // stride, size[1] // stride, len(head.anchors[level])
    cells, kinds = rows * columns, 1 + len(head.classes)
    offsets = onnx.emit("Reshape", [boxes, _constant(onnx, f"{level}.shape", n, 4, cells)], f"{name}.offsets")
    gains = onnx.constant(f"{name}.gains", (1 / np.array(SSD_GAINS)).astype(np.float32).reshape(1, 4, 1))
    scaled = onnx.emit("Mul", [offsets, gains], f"{name}.scaled")
    ends = [_constant(onnx, f"two{i}", 2 * i) for i in range(3)], _constant(onnx, "axis1", 1)
    shift = onnx.emit("Slice", [scaled, ends[0][0], ends[0][1], ends[1]], f"{name}.shift")
    growth = onnx.emit("Slice", [scaled, ends[0][1], ends[0][2], ends[1]], f"{name}.growth")
    wh = onnx.constant(f"{name}.wh", anchors[:, :, None])
    x, y = _centres(rows, columns)
    origin = onnx.constant(f"{name}.origin", np.stack([x, y])[None] * np.float32(stride))
    centre = onnx.emit("Add", [origin, onnx.emit("Mul", [shift, wh], f"{name}.offset")], f"{name}.centre")
    largest = onnx.constant("decode.largest", np.float32(SSD_LARGEST))
    grown = onnx.emit("Exp", [onnx.emit("Min", [growth, largest], f"{name}.least")], f"{name}.exp")
    half_wh = onnx.constant(f"{name}.half", anchors[:, :, None] / 2)
    half = onnx.emit("Mul", [grown, half_wh], f"{name}.halves")
    corners = [onnx.emit(kind, [centre, half], f"{name}.{kind}") for kind in ("Sub", "Add")]
    joined = onnx.emit("Concat", corners, f"{name}.corners", axis=1)  # (n, 4, cells)
    turned = onnx.emit("Transpose", [joined], f"{name}.turned", perm=[0, 2, 1])
    flat = onnx.emit("Reshape", [turned, _constant(onnx, "boxes", 1, -1, 4)], f"{name}.boxes")
    logits = onnx.emit("Reshape", [classes, _constant(onnx, f"{level}.kinds", n, kinds, cells)], f"{name}.logits")
    shares = onnx.emit("Softmax", [logits], f"{name}.shares", axis=1)
    own = onnx.emit("Slice", [shares, _constant(onnx, "one", 1), _constant(onnx, "kinds", kinds), ends[1]], f"{name}.own")
    by_class = onnx.emit("Transpose", [own], f"{name}.by_class", perm=[1, 0, 2])
    shape = _constant(onnx, f"{level}.scores_shape", 1, kinds - 1, n * cells)
    return flat, onnx.emit("Reshape", [by_class, shape], f"{name}.scores")


def _corners(onnx: OnnxGraph, boxes: str, name: str) -> tuple[str, str]:
    """x0 y0 and x1 y1 of boxes `(a, b, 4)`, `(a, b, 2)` each."""
    axis, ends = _constant(onnx, "axis2", 2), [_constant(onnx, f"two{i}", 2 * i) for i in range(3)]
    low = onnx.emit("Slice", [boxes, ends[0], ends[1], axis], f"{name}.low")
    return low, onnx.emit("Slice", [boxes, ends[1], ends[2], axis], f"{name}.high")


def _has_area(onnx: OnnxGraph, boxes: str) -> str:
    """1 for boxes with an area, 0 for others, `(1, 1, n)`."""
    low, high = _corners(onnx, boxes, "decode.solid")
    positive = onnx.emit("Greater", [high, low], "decode.positive")
    both = onnx.emit("ReduceMin", [onnx.cast(positive, "decode.ones", "FLOAT")], "decode.both", axes=[2], keepdims=1)
    return onnx.emit("Transpose", [both], "decode.solid", perm=[0, 2, 1])


def _select(onnx: OnnxGraph, boxes: str, scores: str, post: PostConfig) -> None:
    """Add non-maximum suppression and the selection of the best remaining boxes as outputs."""
    limits = [
        onnx.constant("decode.per_class", np.array([post.max_detections], np.int64)),
        onnx.constant("decode.iou", np.array([post.nms_iou], np.float32)),
        onnx.constant("decode.score", np.array([np.nextafter(np.float32(post.score), np.float32(0))], np.float32)),
    ]
    kept = onnx.emit("NonMaxSuppression", [boxes, scores, *limits], "decode.kept")  # (k, 3): image, class, box
    best = _best(onnx, scores, kept, post.max_detections)
    rows = onnx.emit("Gather", [kept, best], "decode.rows", axis=0)
    columns = {i: _constant(onnx, f"column{i}", i) for i in (1, 2, 3)}
    axis = _constant(onnx, "axis1", 1)
    labels, index = (onnx.emit("Slice", [rows, columns[i], columns[i + 1], axis], f"decode.slice{i}") for i in (1, 2))
    last = _constant(onnx, "last", -1)
    flat = onnx.emit("Reshape", [index, last], "decode.index")
    plain = onnx.emit("Reshape", [boxes, _constant(onnx, "rows4", -1, 4)], "decode.plain")
    onnx.emit("Reshape", [labels, last], "labels")
    onnx.emit("GatherND", [scores, rows], "scores")
    if post.vote_iou == 1:
        onnx.emit("Gather", [plain, flat], "boxes", axis=0)
    else:
        _vote(onnx, onnx.emit("Gather", [plain, flat], "decode.chosen", axis=0), boxes, scores, post.vote_iou)
    for name, kind, shape in (("boxes", "FLOAT", [None, 4]), ("scores", "FLOAT", [None]), ("labels", "INT64", [None])):
        onnx.output(name, kind, shape)


def _vote(onnx: OnnxGraph, chosen: str, boxes: str, scores: str, iou: float) -> None:
    """Add the output `boxes` from those of `chosen` `(k, 4)`, whose scores and labels are outputs already: see `vote`."""
    zero, column = onnx.constant("decode.least", np.float32(0)), _constant(onnx, "column", -1, 1)
    near = onnx.emit(
        "GreaterOrEqual", [_overlaps(onnx, chosen, boxes), onnx.constant("vote.iou", np.float32(iou))], "vote.near"
    )
    of_class = onnx.emit("Gather", [scores, "labels"], "vote.scores", axis=1)  # (1, k, n)
    share = onnx.constant("vote.share", np.float32(VOTING_SHARE))
    least = onnx.emit("Mul", [onnx.emit("Reshape", ["scores", column], "vote.own_score"), share], "vote.least")
    voters = onnx.emit("And", [near, onnx.emit("GreaterOrEqual", [of_class, least], "vote.backed")], "vote.voters")
    tiny = onnx.constant("vote.tiny", np.finfo(np.float32).tiny)
    weights = onnx.emit("Where", [voters, onnx.emit("Max", [of_class, tiny], "vote.raised"), zero], "vote.weights")
    total = onnx.emit("ReduceSum", [weights, _constant(onnx, "axis2", 2)], "vote.total", keepdims=1)
    mean = onnx.emit("Div", [onnx.emit("MatMul", [weights, boxes], "vote.weighted"), total], "vote.mean")
    onnx.emit("Reshape", [mean, _constant(onnx, "rows4", -1, 4)], "boxes")


def _overlaps(onnx: OnnxGraph, first: str, second: str) -> str:
    """Intersection over union of `(k, 4)` and `(1, n, 4)` boxes, `(k, n)`."""
    column = onnx.emit("Unsqueeze", [first, _constant(onnx, "axis1", 1)], "iou.column")  # (k, 1, 4)
    (low_a, high_a), (low_b, high_b) = _corners(onnx, column, "iou.first"), _corners(onnx, second, "iou.second")
    low, high = onnx.emit("Max", [low_a, low_b], "iou.low"), onnx.emit("Min", [high_a, high_b], "iou.high")
    zero = onnx.constant("decode.least", np.float32(0))
    inside = onnx.emit("Max", [onnx.emit("Sub", [high, low], "iou.span"), zero], "iou.inside")
    shared = onnx.emit("ReduceProd", [inside], "iou.shared", axes=[2], keepdims=0)
    areas = [
        onnx.emit("ReduceProd", [onnx.emit("Sub", [ends, starts], f"iou.sides{i}")], f"iou.area{i}", axes=[2], keepdims=0)
        for i, (starts, ends) in enumerate(((low_a, high_a), (low_b, high_b)))
    ]
    union = onnx.emit("Sub", [onnx.emit("Add", areas, "iou.sum"), shared], "iou.union")
    return onnx.emit("Div", [shared, union], "iou")


def _best(onnx: OnnxGraph, scores: str, kept: str, max_detections: int) -> str:
    """Indices of the best of the kept boxes, in descending order of score."""
    candidates = onnx.emit("GatherND", [scores, kept], "decode.found")
    count = onnx.emit("Shape", [candidates], "decode.count")
    limit = onnx.emit("Min", [count, _constant(onnx, "detections", max_detections)], "decode.limit")
    return onnx.emit("TopK", [candidates, limit], "decode.best", unused="decode.best.scores", axis=0)
