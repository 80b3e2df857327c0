"""Make the README's moving picture of the bundled recording: python bench/street_picture.py --out docs/street_sample.gif

Detects in the recording and writes its annotated video, slowed down. Compares the boxes of every window with its labels and
prints how many are right, wrong and missing, by which the caption was chosen. Run it on an idle machine, because the picture
shows the latency.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from evburst.app.cli import detect_main  # noqa: E402

IOU = 0.5
GIF_WIDTH, GIF_MS, GIF_COLOURS = 400, 150, 48


def intersection_over_union(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the `(n, m)` IoU of `(n, 4)` and `(m, 4)` xyxy boxes."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=2)
    area_a, area_b = np.prod(a[:, 2:] - a[:, :2], axis=1), np.prod(b[:, 2:] - b[:, :2], axis=1)
    return np.asarray(shared / (area_a[:, None] + area_b[None] - shared))


def count(line: dict[str, list[float]], labels: NDArray[np.void]) -> tuple[int, int]:
    """Return the numbers of true and false positives of a window; boxes are matched one to one to labels of their class."""
    boxes = np.stack([labels["x"], labels["y"], labels["x"] + labels["w"], labels["y"] + labels["h"]], axis=1).astype(float)
    iou = intersection_over_union(np.array(line["boxes_xyxy"], float).reshape(-1, 4), boxes)
    iou[np.array(line["labels"], int)[:, None] != labels["class_id"][None]] = 0
    true_positives = 0
    for row in iou:
        if row.size and row.max() >= IOU:
            true_positives += 1
            iou[:, row.argmax()] = 0
    return true_positives, len(iou) - true_positives


def write_gif(path: Path, pictures: list[NDArray[np.uint8]]) -> None:
    """Write `(H, W, 3)` uint8 BGR pictures as a GIF that repeats for ever."""
    height = round(GIF_WIDTH * pictures[0].shape[0] / pictures[0].shape[1])
    small = [cv2.resize(picture, (GIF_WIDTH, height), interpolation=cv2.INTER_AREA)[..., ::-1] for picture in pictures]
    palette = Image.fromarray(np.concatenate(small[:: len(small) // 6])).quantize(GIF_COLOURS, Image.Quantize.FASTOCTREE)
    frames = [Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE) for picture in small]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=GIF_MS, loop=0, optimize=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/street_sample.gif"), help="the picture")
    args = parser.parse_args()
    labels = np.load(ROOT / "data/samples/street_bbox.npy")
    with tempfile.TemporaryDirectory() as folder:
        if detect_main(["--events", str(ROOT / "data/samples/street_td.dat"), "--out", folder, "--sinks", "jsonl,video"]):
            raise SystemExit(1)
        lines = [json.loads(line) for line in (Path(folder) / "detections.jsonl").read_text().splitlines()]
        video = cv2.VideoCapture(str(Path(folder) / "annotated.mp4"))
        pictures = [np.asarray(video.read()[1], np.uint8) for _ in lines]
        video.release()
    write_gif(args.out, pictures)
    counts = [count(line, labels[labels["t"] == line["t_us"]]) for line in lines]
    right, wrong = (sum(both[k] for both in counts) for k in (0, 1))
    print(f"{args.out}: {right} right, {wrong} wrong, {len(labels) - right} missed", file=sys.stderr)


if __name__ == "__main__":
    main()
