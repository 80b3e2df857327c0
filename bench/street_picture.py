"""Make the README's moving picture of the bundled recording: python bench/street_picture.py --out docs/street_sample.gif

Detects in the recording and writes its annotated video, slowed down. Compares the boxes of every window with its labels and
prints how many are right, wrong and missing, by which the caption was chosen. Run it on an idle machine, because the picture
shows the latency.
"""

from __future__ import annotations

import argparse
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
from evburst.data.boxes import load_prophesee_boxes  # noqa: E402
from evburst.data.samples import STREET, STREET_LABELS  # noqa: E402
from evburst.eval.matching import match_predictions  # noqa: E402
from evburst.eval.protocol import Frame  # noqa: E402

GIF_WIDTH, GIF_MS, GIF_COLOURS = 400, 150, 48


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
    labels = load_prophesee_boxes(STREET_LABELS)
    with tempfile.TemporaryDirectory() as folder:
        if detect_main(["--events", str(STREET), "--out", folder, "--sinks", "bbox,video"]):
            raise SystemExit(1)
        boxes = load_prophesee_boxes(Path(folder) / "bbox.npy")
        video = cv2.VideoCapture(str(Path(folder) / "annotated.mp4"))
        pictures = [np.asarray(video.read()[1], np.uint8) for _ in range(int(video.get(cv2.CAP_PROP_FRAME_COUNT)))]
        video.release()
    write_gif(args.out, pictures)
    times = np.union1d(boxes["t"], labels["t"]).tolist()
    frames = [Frame(t, labels[labels["t"] == t], boxes[boxes["t"] == t]) for t in times]
    right = int(match_predictions(frames, 2).correct.sum())
    print(f"{args.out}: {right} right, {len(boxes) - right} wrong, {len(labels) - right} missed", file=sys.stderr)


if __name__ == "__main__":
    main()
