"""`evburst export`: write a weights file as ONNX (`--onnx`, `--onnx-snn`) or NIR (`--nir`)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from evburst.app.console import LOG, run
from evburst.app.flags import WEIGHTS, Parser, named_path
from evburst.app.outputs.paths import refuse_overwriting
from evburst.data.errors import ConfigError, require_all
from evburst.data.events import SensorSize

if TYPE_CHECKING:
    from evburst.models.bundle import Bundle

_SENSOR = SensorSize(304, 240)


def main(argv: Sequence[str] | None = None, prog: str = "python -m evburst.app.export") -> int:
    """Run `evburst export`."""
    parser = Parser(
        prog=prog,
        description="Write the ANN of a weights file as ONNX, or its spiking network as ONNX or NIR.",
        epilog="example: %(prog)s --weights street --onnx-snn street_snn.onnx --with-boxes",
    )
    parser.add_argument("--weights", default="street", metavar=WEIGHTS,
                        help="name of bundled weights, or a file that evburst convert wrote; with --onnx also one of "
                        "evburst train (default: street)")  # fmt: skip
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--onnx", type=named_path, metavar="FILE",
                        help="write the ANN, for any batch and grid size; outputs are the head's raw maps")  # fmt: skip
    target.add_argument("--onnx-snn", type=named_path, metavar="FILE",
                        help="write the spiking network, for any batch and grid size; input is "
                        "uint8 counts, outputs are the head's raw maps")  # fmt: skip
    target.add_argument("--nir", type=named_path, metavar="FILE", help="write the spiking network, for one grid size")
    parser.add_argument("--timesteps", type=int, metavar="T", help="with --onnx-snn or --nir: number of timesteps "
                        "(1 to 64; default: that for which the weights were calibrated)")  # fmt: skip
    parser.add_argument("--memory", action="store_true", help="with --onnx-snn: give a YOLO detector a memory, as "
                        "evburst detect --memory does; the program that runs the file passes on what it holds")  # fmt: skip
    parser.add_argument("--sensor-size", metavar="WxH", help="sensor size in pixels, for NIR, --with-boxes and --totals; the "
                        f"grid is padded to the network's stride (default: of the training data, else {_SENSOR})")  # fmt: skip
    parser.add_argument("--with-boxes", action="store_true",
                        help="with --onnx-snn: output boxes, scores and labels (of a classifier: scores and label) instead "
                        "of raw maps, batch size 1")  # fmt: skip
    parser.add_argument("--score", type=float, metavar="S", help="with --with-boxes: minimum score (default: 0.3)")
    parser.add_argument("--totals", action="store_true",
                        help="with --onnx-snn: also output the spikes and synaptic operations of every layer")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.add_argument("--part", action="store_true", help="with --nir: write only the part that NIR can express, up to the "
                        "first max-pools and upsamplings, whose inputs become outputs")  # fmt: skip
    return run(parser, _export, argv)


def _check_flags(args: argparse.Namespace) -> None:
    """Raise ConfigError for a flag without the one that it needs."""
    needs = {
        "--with-boxes and --totals need --onnx-snn": args.onnx_snn or not (args.with_boxes or args.totals),
        "--score needs --with-boxes": args.score is None or args.with_boxes,
        "--sensor-size needs --nir, --with-boxes or --totals: this file is for any size": not args.sensor_size
        or args.nir
        or args.with_boxes
        or args.totals,
        "--part needs --nir": args.nir or not args.part,
        "--memory needs --onnx-snn": args.onnx_snn or not args.memory,
        "--timesteps needs --onnx-snn or --nir: the ANN has none": args.timesteps is None or not args.onnx,
    }
    require_all(needs, args)


def _export(args: argparse.Namespace) -> str:
    from evburst.app.runs import RunConfig, with_memory_if_asked
    from evburst.data.classification import CLASSIFICATION
    from evburst.models.bundle import Bundle, find_weights
    from evburst.models.detector import resolve_timesteps
    from evburst.models.export.onnx import write_onnx
    from evburst.models.tasks import task_of

    _check_flags(args)
    RunConfig(timesteps=args.timesteps)  # refuses what detect refuses
    refuse_overwriting(args.onnx or args.onnx_snn or args.nir, [find_weights(args.weights)], args.overwrite)
    bundle = with_memory_if_asked(Bundle.load(args.weights), args.memory, None)
    if args.timesteps:
        bundle = replace(bundle, parameters=replace(bundle.parameters, timesteps=args.timesteps))
    if args.score is not None and task_of(bundle.head).name == CLASSIFICATION:
        raise ConfigError("--score needs a detector: a classifier outputs the scores of all classes")
    if args.onnx:
        write_onnx(bundle, args.onnx)
        return f"written {args.onnx}: {len(bundle.graph.nodes)} nodes, outputs {', '.join(bundle.graph.outputs)}"
    sensor = SensorSize.of_setting(args.sensor_size) or bundle.sensor_size or _SENSOR
    resolve_timesteps(bundle, False, None)
    return _write_snn(args, bundle, sensor) if args.onnx_snn else _write_nir(args, bundle, sensor)


def _write_snn(args: argparse.Namespace, bundle: Bundle, sensor: SensorSize) -> str:
    """Write the spiking network as ONNX, in integer form."""
    from evburst.app.config import build
    from evburst.app.runs import block_side
    from evburst.data.representations.voxel_grid import blocked_size, padded_size
    from evburst.models.detectors.postprocess import PostConfig
    from evburst.models.export.onnx_boxes import DECODED, BoxOptions
    from evburst.models.export.onnx_snn import SnnOptions, after_of, write_onnx_snn
    from evburst.models.spiking.integer_form import integer_form, is_integer, without_integer_form
    from evburst.models.tasks import task_of

    if not is_integer(bundle.spiking, bundle.parameters):
        spiking, parameters = integer_form(bundle.spiking, bundle.parameters)
        bundle = replace(bundle, spiking=spiking, parameters=parameters)
        LOG.info("note: these weights were not in integer form and were rounded: boxes may differ slightly")
    if inexact := without_integer_form(bundle.spiking, bundle.parameters):
        LOG.info(
            "note: %d of %d layers of neurons have no integer form (from %r on): spikes there can depend on the runtime",
            len(inexact), len(bundle.parameters.neurons), inexact[0],
        )  # fmt: skip
    width, height = padded_size(sensor, bundle.stride)
    size = (height, width) if args.with_boxes or args.totals else None
    post = {} if args.score is None else {"score": args.score}
    if args.with_boxes and (block := block_side(0, sensor, bundle.trained_size)) > 1:
        LOG.info(
            "note: detect shows this network a %s sensor in blocks of %dx%d pixels, this file in single ones: for the same "
            "boxes, export for %s and multiply them by %d", sensor, block, block, blocked_size(sensor, block), block,
        )  # fmt: skip
    boxes = BoxOptions(sensor, build(PostConfig, post)) if args.with_boxes else None
    write_onnx_snn(bundle, args.onnx_snn, SnnOptions(totals=args.totals, size=size, boxes=boxes))
    outputs = DECODED[task_of(bundle.head).name] if boxes else bundle.graph.outputs
    names = ", ".join([*outputs, *map(after_of, bundle.graph.memories)])
    totals = "; NAME.spikes and NAME.synaptic_ops of every layer" if args.totals else ""
    return f"written {args.onnx_snn}: T = {bundle.parameters.timesteps}, outputs {names}{totals}"


def _write_nir(args: argparse.Namespace, bundle: Bundle, sensor: SensorSize) -> str:
    """Write the spiking network, or the part of it that NIR can express."""
    from evburst.data.representations.voxel_grid import padded_size
    from evburst.models.export.nir import to_nir, write_nir

    width, height = padded_size(sensor, bundle.stride)
    translated = to_nir(bundle.spiking, bundle.parameters, (bundle.voxel.channels, height, width), args.part)
    write_nir(args.nir, translated)
    omitted = f"; left out: {len(translated.left_out)} nodes, from {translated.left_out[0]} on" if translated.left_out else ""
    largest = max(layer.phi for layer in bundle.parameters.neurons.values())
    if largest > 1 and not translated.bursts:
        LOG.info("note: up to %d spikes per timestep here, but only one in NIR; the limits are in its metadata", largest)
    return f"written {args.nir}: {len(translated.graph.nodes)} nodes for grids of {width}x{height}{omitted}"


if __name__ == "__main__":
    sys.exit(main())
