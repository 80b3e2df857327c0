"""The commands of `evburst`, and the flags of detect and classify. `python detect.py` calls the same function."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from evburst.app.console import parse, run
from evburst.app.flags import WEIGHTS, CommandParser, Flag, Parser, given, named_path, recording
from evburst.app.provenance import installed_version
from evburst.data.errors import EvburstError

COMMANDS = {
    "detect": ("evburst.app.cli", "detect_main", "detect objects in recordings and report the energy"),
    "classify": ("evburst.app.cli", "classify_main", "classify recordings and report the energy"),
    "evaluate": (
        "evburst.app.evaluate.cli",
        "evaluate_main",
        "measure average precision or top-1, energy and latency on labelled data",
    ),
    "train": ("evburst.app.train.cli", "train_main", "train a network on labelled recordings or pictures"),
    "convert": ("evburst.app.convert.cli", "convert_main", "convert a trained network into a burst-spiking one"),
    "live": ("evburst.app.live.cli", "live_main", "detect objects in events from a camera, a stream or a video"),
    "events": ("evburst.app.events", "main", "describe, convert, cut and draw recordings"),
    "export": ("evburst.app.export", "main", "export a network to ONNX or NIR"),
    "results": ("evburst.app.results", "results_main", "make tables from the results.json files of evaluations"),
    "engines": ("evburst.app.engines", "main", "list the engines that run on this machine, and their speed"),
}
"""Commands of `evburst`: name to (module, function, description)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command named by the first argument; it parses the remaining arguments."""
    commands = "\n".join(f"  {name:<10} {text}" for name, (_, _, text) in COMMANDS.items())
    parser = Parser(
        prog="evburst",
        description="Burst-spiking vision for event cameras.",
        epilog=f"commands:\n{commands}\n\n`evburst COMMAND --help` shows the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"evburst {installed_version()}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        parser.print_help(sys.stderr)
        return 2
    args = parse(parser, argv)
    module, function, _ = COMMANDS[args.command]
    command: Callable[[Sequence[str], str], int] = getattr(import_module(module), function)
    return command(args.arguments, f"evburst {args.command}")


def _batch(text: str) -> int:
    """Parse a batch size in windows; "auto" is 0."""
    return 0 if text == "auto" else int(text)


_NETWORK_FLAGS = (
    Flag("weights", metavar=WEIGHTS),
    Flag("format", metavar="NAME"),
    Flag("window_ms"),
    Flag("window_events"),
    Flag("stride_ms"),
    Flag("timesteps", metavar="T"),
    Flag("adaptive", metavar="TAU", extra={"nargs": "?", "const": 0.8}),
)
_RUN_FLAGS = (
    Flag("ann"),
    Flag("start_s"),
    Flag("max_windows"),
    Flag("device"),
    Flag("engine", metavar="NAME"),
    Flag("count_every", metavar="N"),
    Flag("batch", metavar="auto|N", extra={"type": _batch}),
    Flag("sensor_size", metavar="WxH"),
    Flag("downsample", metavar="N"),
    Flag("reading.time_unit", "--time-unit"),
    Flag("reading.columns", "--columns", "ORDER"),
    Flag("reading.allow_external", "--allow-external"),
)
"""Of detect and classify; further flags of detect stand between and after them."""


def detect_main(argv: Sequence[str] | None = None, prog: str = "detect.py") -> int:
    """Run `evburst detect`."""
    parser = CommandParser(
        prog,
        "Detect objects in event recordings with a burst-spiking network and report its energy.",
        "--events recording_td.dat",
    )
    parser.add_argument("--events", type=recording, nargs="+", action="extend", required=True, metavar="FILE",
                        help="recordings (.dat, .raw, .bin, .aedat, .aedat4, .h5, .hdf5, .bag, .mcap, .db3, .npy, .npz, .csv, "
                        ".txt; - is standard input), folders of recordings, or quoted glob patterns")  # fmt: skip
    parser.add_argument("--out", type=named_path, metavar="DIR", help="output folder (default: runs/detect/NAME_OF_THE_"
                        "RECORDING); for several recordings it receives summary.csv and a folder for each, at its path below "
                        "the deepest folder that holds them all")  # fmt: skip
    parser.add_argument("--skip-existing", action="store_true", help="skip recordings that have not changed since they were "
                        "processed with the same weights and settings; name the same recordings again, because others can "
                        "move their folders, see --out")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--no-video", action="store_true", help="do not write annotated.mp4")
    parser.add_argument("--crops", action="store_true", help="write what is in each box as a picture, crops/*.png")
    parser.add_settings(
        "evburst.app.detect:DetectConfig",
        [
            *_NETWORK_FLAGS,
            Flag("post.score", "--score", "S"),
            Flag("classes", "--class", "NAME", {"action": "extend"}),
            Flag("track"),
            Flag("memory"),
            Flag("lead_ms"),
            *_RUN_FLAGS,
            Flag("sinks"),
            Flag("slow", metavar="FACTOR"),
            Flag("fps", metavar="N"),
            Flag("overwrite"),
        ],
        example="post.nms_iou=0.6",
    )

    def main(args: argparse.Namespace) -> Iterator[str]:
        from evburst.app.batch import BatchError, detect_many, detect_or_skip
        from evburst.app.config import load_config
        from evburst.app.detect import DetectConfig, DetectInterrupted, detect_file, human_summary
        from evburst.app.recordings import find_recordings, one_file
        from evburst.app.runs import refuse_ignored

        def outputs(config: DetectConfig) -> dict[str, Any]:
            sinks = [*config.sinks, *(["crops"] if args.crops else [])]
            return {"sinks": [name for name in dict.fromkeys(sinks) if name != "video" or not args.no_video]}

        config = load_config(DetectConfig, args.config, args.set + given(args), adjust=outputs)
        refuse_ignored(config)
        found: tuple[Any, str] | None
        try:
            if one_file(args.events):
                detect = detect_or_skip if args.skip_existing else detect_file
                summary = detect(Path(args.events[0]), args.out, config)
                found = summary, human_summary(summary)
            else:
                found = detect_many(find_recordings(args.events), args.out, config, args.skip_existing)
        except (BatchError, DetectInterrupted) as error:
            yield json.dumps(error.summary, indent=1) if args.json else error.text
            raise
        if found is not None:
            yield json.dumps(found[0], indent=1) if args.json else found[1]

    return run(parser, main, argv)


def classify_main(argv: Sequence[str] | None = None, prog: str = "classify.py") -> int:
    """Run `evburst classify`."""
    parser = CommandParser(
        prog,
        "Classify event recordings with a burst-spiking network and report its energy: one line per recording.",
        "--events 00001.bin --weights nmnist",
    )
    parser.add_argument(
        "--events",
        type=recording,
        nargs="+",
        action="extend",
        required=True,
        metavar="FILE",
        help="recordings (- is standard input), folders of recordings, or quoted glob patterns",
    )
    parser.add_argument("--windows", action="store_true", help="print a line for each window, too")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print class, score, top5, energy, memory and windows as JSON; a list if there are several recordings",
    )
    parser.add_settings(
        "evburst.app.classify:ClassifyConfig",
        [*_NETWORK_FLAGS, *_RUN_FLAGS],
        example="idle_events=100",
    )

    def main(args: argparse.Namespace) -> str | Iterator[str]:
        from evburst.app.classify import ClassifyConfig, classify_many, human_line
        from evburst.app.config import load_config
        from evburst.app.recordings import below_common_folder, find_recordings, one_file
        from evburst.app.runs import load_weights, refuse_ignored

        config = load_config(ClassifyConfig, args.config, args.set + given(args))
        refuse_ignored(config)
        recordings, bundle = find_recordings(args.events), load_weights(config)
        found = classify_many(recordings, config, bundle)
        if args.json:
            return _as_json((summary for _, summary in found), one_file(args.events))
        names = dict(zip(recordings, map(str, below_common_folder(recordings)), strict=True))
        widths = max(map(len, names.values())), max(map(len, bundle.head.classes))
        return (human_line(summary, args.windows, names[path], widths) for path, summary in found)

    return run(parser, main, argv)


def _as_json(found: Iterator[dict[str, Any]], single: bool) -> Iterator[str]:
    """Yield the results as one text, a list unless `single`, before an error of some recordings or Ctrl-C is raised."""
    results = list[dict[str, Any]]()
    failure: BaseException | None = None
    try:
        for result in found:
            results.append(result)
    except (EvburstError, KeyboardInterrupt) as error:
        failure = error
    if results or not single:
        yield json.dumps(results[0] if single else results, indent=1)
    if failure is not None:
        raise failure
