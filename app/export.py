"""Take a weights file elsewhere: `python -m evburst.app.export --weights street --onnx FILE` or `--nir FILE`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from evburst.app.cli import run
from evburst.data.events import SensorSize


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of `python -m evburst.app.export`."""
    parser = argparse.ArgumentParser(
        prog="python -m evburst.app.export",
        description="Write the ordinary network of a weights file as ONNX, or its spiking network as NIR.",
        epilog="example: python -m evburst.app.export --weights street --onnx street.onnx",
    )
    parser.add_argument("--weights", default="street", metavar="NAME|FILE", help="bundled weights by name, or a file made by "
                        "convert.py (default: street)")  # fmt: skip
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--onnx", type=Path, metavar="FILE", help="the ANN: any batch, any size; outputs are the head's raw maps")
    what.add_argument("--nir", type=Path, metavar="FILE", help="the spiking network, for grids of one size")
    parser.add_argument("--sensor-size", default="304x240", metavar="WxH", help="NIR: sensor size in pixels; the grid is padded "
                        "to the network's stride (default: 304x240)")  # fmt: skip
    parser.add_argument("--part", action="store_true", help="NIR: only what it can express, up to the first max-pools and "
                        "upsamplings, whose inputs become outputs")  # fmt: skip
    return run(parser, _export, argv)


def _export(args: argparse.Namespace) -> None:
    from evburst.models.bundle import DetectorBundle
    from evburst.models.export.nir import to_nir, write_nir
    from evburst.models.export.onnx import write_onnx

    bundle = DetectorBundle.load(args.weights)
    if args.onnx:
        write_onnx(bundle, args.onnx)
        print(f"written {args.onnx}: {len(bundle.graph.nodes)} nodes, outputs {', '.join(bundle.graph.outputs)}")
        return
    width, height = SensorSize.parse(args.sensor_size)
    padded = tuple(-(-side // bundle.stride) * bundle.stride for side in (height, width))
    translated = to_nir(bundle.spiking, bundle.parameters, (bundle.voxel.channels, padded[0], padded[1]), args.part)
    write_nir(args.nir, translated)
    left = f"; left out: {len(translated.left_out)} nodes, from {translated.left_out[0]} on" if translated.left_out else ""
    print(f"written {args.nir}: {len(translated.graph.nodes)} nodes for grids of {padded[1]}x{padded[0]}{left}")
    largest = max(layer.phi for layer in bundle.parameters.neurons.values())
    if largest > 1:
        print(
            f"note: up to {largest} spikes per timestep here, one in NIR; each layer's limit is in its metadata",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
