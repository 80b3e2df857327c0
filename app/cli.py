"""Commands and their flags. `evburst detect` and `python detect.py` call the same function."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from evburst.app.console import run
from evburst.app.flags import CommandParser, Flag, Parser, as_assignments, given, named_path, recording
from evburst.app.provenance import installed_version
from evburst.data.errors import ConfigError, EvburstError

COMMANDS = {
    "detect": ("evburst.app.cli", "detect_main", "detect objects in recordings and report the energy"),
    "classify": ("evburst.app.cli", "classify_main", "classify recordings and report the energy"),
    "evaluate": ("evburst.app.cli", "evaluate_main", "measure average precision or top-1, energy and latency on labelled data"),
    "train": ("evburst.app.cli", "train_main", "train a network on labelled recordings or pictures"),
    "convert": ("evburst.app.cli", "convert_main", "convert a trained network into a burst-spiking one"),
    "live": ("evburst.app.cli", "live_main", "detect objects in events from a camera, a stream or a video"),
    "events": ("evburst.app.events", "main", "describe, convert and cut recordings"),
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
    args = parser.parse_args(argv)
    module, function, _ = COMMANDS[args.command]
    command: Callable[[Sequence[str], str], int] = getattr(import_module(module), function)
    return command(args.arguments, f"evburst {args.command}")


_WEIGHTS = "NAME|FILE"


def _batch(text: str) -> int:
    """Parse a batch size in windows; "auto" is 0."""
    return 0 if text == "auto" else int(text)


_NETWORK_FLAGS = (
    Flag("weights", metavar=_WEIGHTS),
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
    parser.add_argument("--events", type=recording, nargs="+", required=True, metavar="FILE", help="recordings (.dat, .raw, "
                        ".bin, .aedat4, .h5, .npy, .npz, .csv; - is standard input), folders of recordings, or quoted glob "
                        "patterns")  # fmt: skip
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
        from evburst.app.batch import BatchError, detect_many, detect_or_skip, find_recordings, one_file
        from evburst.app.config import load_config
        from evburst.app.detect import DetectConfig, DetectInterrupted, detect_file, human_summary
        from evburst.app.runs import refuse_ignored

        assignments = args.set + given(args)
        sinks = [*load_config(DetectConfig, args.config, assignments).sinks, *(["crops"] if args.crops else [])]
        wanted = [name for name in dict.fromkeys(sinks) if name != "video" or not args.no_video]
        config = load_config(DetectConfig, args.config, assignments + as_assignments({"sinks": wanted}))
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
    """The command line of classify."""
    parser = CommandParser(
        prog,
        "Tell what event recordings show with a burst-spiking network, and report the energy it takes: one line a recording.",
        "--events 00001.bin --weights nmnist",
    )
    parser.add_argument(
        "--events",
        type=recording,
        nargs="+",
        required=True,
        metavar="FILE",
        help="recordings (- is standard input), folders of them, or quoted patterns",
    )
    parser.add_argument("--windows", action="store_true", help="a line for each window, too")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print class, score, top5, energy and windows as JSON; a list if there are several recordings",
    )
    parser.add_settings(
        "evburst.app.classify:ClassifyConfig",
        [*_NETWORK_FLAGS, *_RUN_FLAGS],
        example="idle_events=100",
    )

    def main(args: argparse.Namespace) -> str | Iterator[str]:
        from evburst.app.batch import find_recordings, one_file
        from evburst.app.classify import ClassifyConfig, classify_many, human_line
        from evburst.app.config import load_config
        from evburst.app.runs import load_weights, refuse_ignored

        config = load_config(ClassifyConfig, args.config, args.set + given(args))
        refuse_ignored(config)
        recordings, bundle = find_recordings(args.events), load_weights(config)
        found = classify_many(recordings, config, bundle)
        if args.json:
            return _as_json(found, one_file(args.events))
        widths = max(len(path.name) for path in recordings), max(map(len, bundle.head.classes))
        return (human_line(summary, args.windows, widths) for summary in found)

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


def train_main(argv: Sequence[str] | None = None, prog: str = "train.py") -> int:
    """Run `evburst train`."""
    parser = CommandParser(
        prog,
        "Train a detector or a classifier on labelled recordings, or on events simulated from labelled pictures.",
        "--config configs/train_gen1.yaml --root GEN1 --init street",
    )
    parser.add_argument("--relu-from", metavar="FILE",
                        help="fine-tune a checkpoint trained with SiLU to use ReLU, which conversion requires")  # fmt: skip
    parser.add_settings(
        "evburst.app.train.config:TrainConfig",
        [
            Flag("data.kind", "--dataset", "KIND"),
            Flag("data.root", "--root", "DIR"),
            Flag("data.labels", "--labels", "CSV"),
            Flag("init", metavar=_WEIGHTS),
            Flag("out", metavar="DIR"),
        ],
        example="schedule.epochs=4",
    )

    def main(args: argparse.Namespace) -> str:
        from evburst.app.config import load_config
        from evburst.app.train.config import TrainConfig
        from evburst.app.train.run import human_summary, train

        relu_settings = as_assignments({"init": args.relu_from, "activation": "relu"}) if args.relu_from else []
        return human_summary(train(load_config(TrainConfig, args.config, args.set + given(args) + relu_settings)))

    return run(parser, main, argv)


def convert_main(argv: Sequence[str] | None = None, prog: str = "convert.py") -> int:
    """Run `evburst convert`."""
    parser = CommandParser(
        prog,
        "Convert a trained network into a burst-spiking network. Labels are not needed.",
        "--weights runs/train/street/best.safetensors --max-loss 1.0 --out street.safetensors",
    )
    parser.add_argument("--json", action="store_true", help="print what was measured as JSON")
    parser.add_settings(
        "evburst.app.convert.config:ConvertConfig",
        [
            Flag("weights", metavar=_WEIGHTS),
            Flag("out", metavar="FILE"),
            Flag("root", "--calibration", "DIR"),
            Flag("unlabelled"),
            Flag("sensor_size", metavar="WxH"),
            Flag("timesteps", metavar="T"),
            Flag("phi_max"),
            Flag("budget", metavar="SHARE"),
            Flag("max_loss", metavar="POINTS"),
            Flag("compress", metavar="TOL"),
            Flag("pick"),
            Flag("level"),
            Flag("continues", "--continue"),
            Flag("burst"),
            Flag("thresholds"),
            Flag("signed"),
            Flag("note"),
        ],
        example="calibration_windows=128",
        exclusive=("budget", "max_loss", "compress", "pick"),
    )

    def main(args: argparse.Namespace) -> str:
        from evburst.app.config import load_config
        from evburst.app.convert.config import ConvertConfig
        from evburst.app.convert.run import convert, human_line

        config = load_config(ConvertConfig, args.config, args.set + given(args))
        record = convert(config)
        measured = record.get("check") or record["conversion"].get("divergence", {})
        return json.dumps(measured, indent=1) if args.json else human_line(config, record)

    return run(parser, main, argv)


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
        "--out", type=named_path, metavar="DIR", help="output folder; an unfinished evaluation in it is resumed"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_settings(
        "evburst.app.evaluate.config:EvaluateConfig",
        [
            Flag("data.kind", "--dataset", "KIND"),
            Flag("data.root", "--root", "DIR"),
            Flag("split", metavar="S"),
            Flag("weights", metavar=_WEIGHTS),
            Flag("timesteps", metavar="T[,T...]"),
            Flag("protocol", metavar="NAME"),
            Flag("limit"),
            Flag("workers"),
            Flag("device"),
            Flag("engine", metavar="NAME"),
            Flag("data.sensor_size", "--sensor-size", "WxH"),
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
    files.add_argument("--predictions", type=Path, nargs="+", metavar="NPY", help="*_bbox.npy with scores, or a folder of them")
    files.add_argument("--labels", type=Path, nargs="+", metavar="NPY",
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
    flags = [names[key] + "=" + value for key, _, value in (text.partition("=") for text in given(args)) if key in names]
    flags += as_assignments({"classes": args.classes.split(",") if args.classes else None})
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
    out = args.out or Path("runs") / "evaluate" / f"{config.data.kind.replace(':', '_')}_{Path(config.weights).stem}"
    results = evaluate(config, bundle, out)
    return None if results is None else (human_table(results, out), results)


def live_main(argv: Sequence[str] | None = None, prog: str = "live.py") -> int:
    """Run `evburst live`."""
    parser = CommandParser(
        prog,
        "Detect objects in live events from an event camera, a stream, or video from which events are simulated.",
        "--camera fake --serve",
    )
    _add_source(parser)
    parser.add_argument("--serve", nargs="?", const="127.0.0.1:8000", metavar="HOST:PORT", help="show the result on a web page "
                        "(default: 127.0.0.1:8000); without a source, the page's camera is used")  # fmt: skip
    parser.add_argument("--root-path", default="", metavar="/FOLDER", help="path prefix of the page behind a reverse proxy")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME",
                        help="host name of the page behind a reverse proxy; repeatable")  # fmt: skip
    parser.add_argument("--window", action="store_true", help="show the result in a desktop window")
    parser.add_argument("--headless", action="store_true", help="show nothing (the default without --serve and --window)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--record", type=named_path, metavar="FILE", help="record the incoming events in a .dat file")
    parser.add_argument("--overwrite", action="store_true", help="let --record replace an existing file")
    parser.add_argument("--preset", metavar="NAME",
                        help="sensor whose thresholds and noise are simulated: dvs346, evk4, gen1, dvxplorer")  # fmt: skip
    parser.add_settings(
        "evburst.app.live.pipeline:LiveConfig",
        [
            Flag("seconds", metavar="N"),
            Flag("detect.weights", "--weights", _WEIGHTS),
            Flag("detect.window_ms", "--window-ms"),
            Flag("detect.timesteps", "--timesteps", "T"),
            Flag("detect.post.score", "--score", "S"),
            Flag("detect.memory", "--memory"),
            Flag("detect.lead_ms", "--lead-ms"),
            Flag("detect.ann", "--ann"),
            Flag("detect.device", "--device"),
            Flag("detect.engine", "--engine", "NAME"),
            Flag("detect.sensor_size", "--sensor-size", "WxH"),
        ],
        example="detect.post.nms_iou=0.6",
    )

    def main(args: argparse.Namespace) -> str:
        from evburst.app.config import load_config
        from evburst.app.live.pipeline import LiveConfig
        from evburst.app.live.run import LiveRequest, human_summary, preset_settings, run_live

        request = LiveRequest(
            _source(args),
            args.record,
            args.overwrite,
            args.serve,
            args.window,
            args.root_path,
            tuple(args.allow_host),
            args.speed,
        )
        if args.headless and (args.serve or args.window):
            raise ConfigError("--headless contradicts --serve and --window: leave out one or the other")
        preset_assignments = as_assignments(preset_settings(args.preset)) if args.preset else []
        assignments = preset_assignments + args.set + given(args)
        summary = run_live(request, load_config(LiveConfig, args.config, assignments, {"detect": {"timesteps": 1}}))
        return json.dumps(summary, indent=1) if args.json else human_summary(summary)

    return run(parser, main, argv)


def _add_source(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--camera", metavar="N", help="webcam number N, or `fake` for a simulated street scene")
    source.add_argument("--video", metavar="FILE|DEVICE|URL", help="video file, played in real time, a camera "
                        "such as /dev/video1, or a stream, e.g. rtsp://HOST/1")  # fmt: skip
    source.add_argument("--events", metavar="FILE", help="recording, played in real time; requires --realtime")
    source.add_argument("--stream", metavar="tcp://HOST:PORT", help="network stream from DV or dv-processing")
    source.add_argument("--sensor", choices=("evk4", "evk3", "dvxplorer", "davis346"), help="event camera on USB")
    parser.add_argument("--speed", type=float, default=1.0, metavar="X", help="play a file at X times real time, e.g. 0.1")
    parser.add_argument("--realtime", action="store_true", help="play --events in real time")


def _source(args: argparse.Namespace) -> tuple[str, str]:
    """Return (kind, value) of the source given by the flags; raise ConfigError if there is none."""
    for kind in ("camera", "video", "events", "stream", "sensor"):
        value = getattr(args, kind)
        if value is None:
            continue
        if kind == "events" and not args.realtime:
            raise ConfigError("--events: add --realtime to play the recording in real time, or use evburst detect")
        if kind == "camera" and value != "fake" and not (value.isascii() and value.isdigit()):
            raise ConfigError(f"--camera {value}: expected a number, 0 for the first camera, or `fake`")
        return kind, value
    if args.serve is None:
        raise ConfigError(
            "no source: pass one of --camera, --video, --events, --stream, --sensor; or --serve to use the page's camera"
        )
    return "browser", ""
