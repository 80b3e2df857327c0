"""Flags of `evburst evaluate`, which evaluates networks on a dataset, or scores box files."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evburst.app.console import run
from evburst.app.flags import WEIGHTS, CommandParser, Flag, as_assignments, given, named_path
from evburst.data.errors import ConfigError

if TYPE_CHECKING:
    from evburst.app.evaluate.config import EvaluateConfig

_NAME, _DIGEST = 40, 8
"""Characters of the data's and of the weights' name, and of a digest, in the name of an output folder."""


def evaluate_main(argv: Sequence[str] | None = None, prog: str = "evaluate.py") -> int:
    """Run `evburst evaluate`."""
    parser = CommandParser(
        prog,
        "Measure average precision under a named protocol (of a classifier: top-1, confusion and calibration), energy "
        "and latency of a network on a dataset, or score the box files of any detector.",
        "--dataset gen1 --root GEN1 --split test --weights street --both",
    )
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--ann", action="store_true", help="evaluate the ANN that the spiking network was converted from")
    network.add_argument("--both", action="store_true", help="evaluate the spiking network and its ANN")
    parser.add_argument(
        "--out",
        type=named_path,
        metavar="DIR",
        help="output folder (default: one below runs/evaluate for these data, this split and these weights); an unfinished "
        "evaluation in it is resumed",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_settings(
        "evburst.app.evaluate.config:EvaluateConfig",
        [
            Flag("data.kind", "--dataset", "KIND"),
            Flag("data.root", "--root", "DIR"),
            Flag("split", metavar="S"),
            Flag("weights", metavar=WEIGHTS),
            Flag("timesteps", metavar="T[,T...]"),
            Flag("protocol", metavar="NAME"),
            Flag("limit"),
            Flag("workers"),
            Flag("device"),
            Flag("engine", metavar="NAME"),
            Flag("data.sensor_size", "--sensor-size", "WxH"),
            Flag("data.reading.time_unit", "--time-unit"),
            Flag("data.reading.columns", "--columns", "ORDER"),
            Flag("downsample", metavar="N"),
            Flag("memory"),
            Flag("lead_ms"),
            Flag("stride_ms"),
        ],
        example="latency_windows=20",
        hidden=("ann", "snn"),
    )
    files = parser.add_argument_group("scoring box files of any detector, in Prophesee's format, instead of a dataset",
                                      "Of the flags above, only --protocol and --sensor-size apply.")  # fmt: skip
    files.add_argument(
        "--predictions",
        type=Path,
        nargs="+",
        action="extend",
        metavar="NPY",
        help="*_bbox.npy with scores, or a folder of them",
    )
    files.add_argument("--labels", type=Path, nargs="+", action="extend", metavar="NPY",
                       help="one label file per prediction file, matched by name or else by order; "
                       "without --predictions: a CSV "
                       "file with columns file and class, for recordings of a classifier")  # fmt: skip
    parser.add_argument(
        "--classes",
        metavar="A,B",
        help="for box files: names of the classes 0, 1, ... (default: car,pedestrian); for a dataset: mapping from the "
        'names in its label files to classes or to "ignore", e.g. Car=car,Van=ignore',
    )

    def main(args: argparse.Namespace) -> str | None:
        table = args.labels if args.labels and len(args.labels) == 1 and args.labels[0].suffix.lower() == ".csv" else None
        if table and not args.predictions:
            args.set = args.set + as_assignments({"data.labels": str(table[0])})
        elif bool(args.predictions) != bool(args.labels):
            parser.error("--predictions and --labels must be given together")
        from evburst.eval.scoring import without_details

        results = _score_files(args) if args.predictions else _evaluate(args)
        if results is None:
            return None
        text, summary = results
        return json.dumps(without_details(summary), indent=1) if args.json else text

    return run(parser, main, argv)


def _score_files(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from evburst.app.config import load_config, to_dict
    from evburst.app.provenance import provenance
    from evburst.eval.report.write import write_report
    from evburst.eval.scoring import ScoreConfig, human_scores, score_files

    names = {"protocol": "protocol", "data.sensor_size": "sensor_size"}
    settings = [text.partition("=")[::2] for text in given(args)]
    others = [key for key, _ in settings if key not in names] + [key for key in ("ann", "both") if getattr(args, key)]
    if others:
        raise ConfigError(
            f"{', '.join(others)}: nothing that box files are scored by; leave it out, or --predictions and --labels"
        )
    if args.classes and "=" in args.classes:
        raise ConfigError(
            f"--classes {args.classes}: of box files, the names of the classes 0, 1, ... are wanted, not a mapping"
        )
    flags = [names[key] + "=" + value for key, value in settings if key in names]
    flags += as_assignments({"classes": None if args.classes is None else args.classes.split(",")})
    config = load_config(ScoreConfig, args.config, args.set + flags)
    scored = score_files(args.predictions, args.labels, config)
    summary = {**scored, "config": to_dict(config), "provenance": provenance()}
    text = human_scores(summary)
    if args.out:
        write_report(summary, args.out)
        text += f"\nwritten   {args.out}/: results.json, results.md, report.html"
    return text, summary


def _evaluate(args: argparse.Namespace) -> tuple[str, dict[str, Any]] | None:
    from evburst.app.evaluate.config import load_evaluation
    from evburst.app.evaluate.run import evaluate
    from evburst.app.evaluate.tables import human_table

    networks = as_assignments({"ann": args.ann or args.both or None, "snn": False if args.ann else None})
    if args.classes:
        from evburst.data.datasets.labels import parse_classes

        networks += as_assignments({"data.classes": parse_classes(args.classes)})
    config, bundle = load_evaluation(args.config, args.set + given(args) + networks)
    out = args.out or _default_folder(config)
    results = evaluate(config, bundle, out)
    return None if results is None else (human_table(results, out), results)


def _default_folder(config: EvaluateConfig) -> Path:
    """Return the output folder of an evaluation without --out, the same each time; other data or weights have another.

    Its name ends in a digest of the folder of the data, of the table of labels and of the weights' content, because folders
    and files of the same name may lie in several places.
    """
    from evburst.models.bundle import find_weights, weights_digest

    root = Path(config.data.root).resolve()
    places = f"{root}\0{Path(config.data.labels).resolve() if config.data.labels else ''}"
    digest = hashlib.sha256(f"{places}\0{weights_digest(config.weights)}".encode(errors="surrogatepass")).hexdigest()[:_DIGEST]
    names = (
        config.data.kind.replace(":", "_"),
        root.name[:_NAME],
        config.split,
        find_weights(config.weights).stem[:_NAME],
        digest,
    )
    return Path("runs") / "evaluate" / "_".join(filter(None, names))
