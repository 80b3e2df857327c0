"""Command lines. stdout carries results, stderr everything else; exit 0 ok, 1 data or model error, 2 usage."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from evburst.app.provenance import installed_version
from evburst.data.errors import ConfigError, EvburstError


def run(parser: argparse.ArgumentParser, main: Callable[[argparse.Namespace], None], argv: Sequence[str] | None) -> int:
    """Parse, run, and turn this project's errors into one line on stderr and exit code 1."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    try:
        main(args)
    except EvburstError as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what was written so far is complete and readable", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return 1
    return 0


COMMANDS = {
    "detect": ("evburst.app.cli", "detect_main", "boxes and energy of a recording"),
    "evaluate": ("evburst.app.cli", "evaluate_main", "average precision, energy and latency on labelled data"),
    "train": ("evburst.app.cli", "train_main", "train a network on labelled recordings or pictures"),
    "convert": ("evburst.app.cli", "convert_main", "convert a trained network into a burst-spiking one"),
    "live": ("evburst.app.cli", "live_main", "detect in events of a camera, a stream or a video"),
    "events": ("evburst.app.events", "main", "describe, convert and cut recordings"),
    "export": ("evburst.app.export", "main", "write a network as ONNX or NIR"),
    "engines": ("evburst.app.engines", "main", "which engines run here, and how fast"),
}
"""Commands of `evburst`: module and function of each, and what it does."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of `evburst`: the first argument names the command, which parses the others."""
    commands = "\n".join(f"  {name:<10} {text}" for name, (_, _, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="evburst",
        description="Burst-spiking vision for event cameras.",
        epilog=f"commands:\n{commands}\n\n`evburst COMMAND --help` shows the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"evburst {installed_version()}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    module, function, _ = COMMANDS[args.command]
    command: Callable[[Sequence[str]], int] = getattr(import_module(module), function)
    return command(args.arguments)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="one setting, e.g. --set voxel.bins=5; repeatable"
    )


def train_main(argv: Sequence[str] | None = None) -> int:
    """The command line of train.py."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train a detector on labelled recordings, or on events simulated from labelled pictures.",
        epilog="example: python train.py --config configs/train_gen1.yaml --root GEN1 --init street",
    )
    _add_config(parser)
    parser.add_argument("--root", metavar="DIR", help="folder of the data (same as --set data.root=DIR)")
    parser.add_argument(
        "--init", metavar="NAME|FILE", help="weights to start from: bundled ones, a run's checkpoint, a converted file"
    )
    parser.add_argument(
        "--relu-from", metavar="FILE", help="fine-tune a checkpoint trained with SiLU to ReLU, so that it can spike"
    )
    parser.add_argument("--out", metavar="DIR", help="output folder; an unfinished run found there is resumed")

    def main(args: argparse.Namespace) -> None:
        from evburst.app.config import load_config
        from evburst.app.train import TrainConfig, train

        flags = as_assignments({"data.root": args.root, "out": args.out, "init": args.relu_from or args.init})
        if args.relu_from:
            flags.append("activation=relu")
        print(train(load_config(TrainConfig, args.config, args.set + flags)))

    return run(parser, main, argv)


def detect_main(argv: Sequence[str] | None = None) -> int:
    """The command line of detect.py."""
    parser = argparse.ArgumentParser(
        prog="detect.py",
        description="Find objects in an event recording with a burst-spiking network, and say what it cost.",
        epilog="example: python detect.py --events recording_td.dat",
    )
    parser.add_argument(
        "--events",
        type=Path,
        required=True,
        metavar="FILE",
        help="the recording: .dat, .raw, .bin, .aedat4, .h5, .npy, .npz, .csv",
    )
    parser.add_argument("--format", metavar="NAME", help="format of the recording (default: by content, then by name)")
    parser.add_argument(
        "--weights", metavar="NAME|FILE", help="bundled weights by name, or a file made by convert.py (default: street)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="output folder (default: runs/detect/<name of the recording>)")
    parser.add_argument(
        "--window-ms", type=float, metavar="MS", help="length of a window (default: what the weights were trained with)"
    )
    parser.add_argument(
        "--timesteps",
        type=int,
        metavar="T",
        help="timesteps of the spiking network (default: what the weights were calibrated for)",
    )
    parser.add_argument("--adaptive", type=float, nargs="?", const=0.8, metavar="TAU", help="stop a window's timesteps once its "
                        "boxes agree this much, 0 to 1 (default without a value: 0.8; convert.py tells what loses nothing)")  # fmt: skip
    parser.add_argument("--carry-state", action="store_true", help="neurons keep their membrane potentials between windows")
    parser.add_argument("--score", type=float, metavar="S", help="lowest score of a box (default: 0.3)")
    parser.add_argument("--ann", action="store_true", help="run the ordinary network the spiking one was made of")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--no-video", action="store_true", help="do not write annotated.mp4")
    parser.add_argument("--start-s", type=float, metavar="S", help="begin S seconds after the first event")
    parser.add_argument("--max-windows", type=int, metavar="N", help="stop after N windows")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where to run (default: auto)")
    parser.add_argument(
        "--engine",
        metavar="NAME",
        help="how the spiking network is run: reference, int8, cuda (default: auto, the fastest that was measured)",
    )
    parser.add_argument(
        "--batch", type=_batch, metavar="auto|N", help="windows that go through the network together: auto for the most windows "
        "per second (default: 1, for the lowest latency)"
    )  # fmt: skip
    parser.add_argument(
        "--sensor-size", metavar="WxH", help="sensor size in pixels, for files that do not say it, e.g. 304x240"
    )
    _add_config(parser)

    def main(args: argparse.Namespace) -> None:
        from evburst.app.config import load_config
        from evburst.app.detect import DetectConfig, detect_file, human_summary

        flags = {
            "format": args.format,
            "weights": args.weights,
            "window_ms": args.window_ms,
            "timesteps": args.timesteps,
            "adaptive": args.adaptive,
            "carry_state": args.carry_state or None,
            "post.score": args.score,
            "ann": args.ann or None,
            "video": False if args.no_video else None,
            "start_s": args.start_s,
            "max_windows": args.max_windows,
            "device": args.device,
            "engine": args.engine,
            "batch": args.batch,
            "sensor_size": args.sensor_size,
        }
        config = load_config(DetectConfig, args.config, args.set + as_assignments(flags))
        out = args.out or Path("runs") / "detect" / args.events.stem
        summary = detect_file(args.events, out, config)
        print(json.dumps(summary, indent=1) if args.json else human_summary(summary, out))

    return run(parser, main, argv)


def _batch(text: str) -> int:
    """auto is 0."""
    return 0 if text == "auto" else int(text)


def as_assignments(flags: dict[str, object]) -> list[str]:
    """Flags that were given, as `--set` assignments."""
    return [f"{name}={json.dumps(value)}" for name, value in flags.items() if value is not None]


def convert_main(argv: Sequence[str] | None = None) -> int:
    """The command line of convert.py."""
    parser = argparse.ArgumentParser(
        prog="convert.py",
        description="Convert a trained network into a burst-spiking one; no labels are needed.",
        epilog="example: python convert.py --weights runs/train/street/best.safetensors --max-loss 1.0 --out street.safetensors",
    )
    parser.add_argument(
        "--weights", required=True, metavar="NAME|FILE", help="best.safetensors of train.py, or weights to convert anew"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the weights file to write")
    parser.add_argument(
        "--calibration", metavar="DIR", help="folder of the data to calibrate on (default: the one it was trained with)"
    )
    parser.add_argument("--timesteps", type=int, metavar="T", help="timesteps (default: 1)")
    parser.add_argument("--phi-max", type=int, metavar="N", help="most spikes of a neuron in one timestep (default: 8)")
    point = parser.add_mutually_exclusive_group()
    point.add_argument("--budget", type=float, metavar="SHARE", help="choose burst limits and thresholds per layer for at most "
                       "this share of the ANN's energy, e.g. 0.1")  # fmt: skip
    point.add_argument("--max-loss", type=float, metavar="AP", help="choose the cheapest that loses at most so many points of AP "
                       "on calibration windows")  # fmt: skip
    point.add_argument("--compress", type=float, metavar="TOL", help="choose the cheapest whose divergence from the ANN, summed over "
                       "layers, is at most this (NAME_frontier.csv lists it)")  # fmt: skip
    point.add_argument("--pick", type=int, metavar="N", help="choose point N of NAME_frontier.csv, without measuring again")
    parser.add_argument("--level", choices=("none", "light", "advanced"), help="of calibration (default: light; "
                        "advanced: weights as well, some minutes, loses less)")  # fmt: skip
    parser.add_argument("--thresholds", choices=("error", "typical"), help="of least squared error, or as training with rounding rounds "
                        "to, for networks that were trained so (default: error)")  # fmt: skip
    parser.add_argument("--signed", action="store_true", default=None, help="neurons that take back what they fired too early: a smaller "
                        "loss from T = 2 on, more spikes")  # fmt: skip
    parser.add_argument("--note", help="text for the record, e.g. where the pictures come from")
    _add_config(parser)

    def main(args: argparse.Namespace) -> None:
        from evburst.app.config import load_config
        from evburst.app.convert import ConvertConfig, convert

        flags = {
            "weights": args.weights,
            "out": args.out,
            "root": args.calibration,
            "timesteps": args.timesteps,
            "phi_max": args.phi_max,
            "budget": args.budget,
            "max_loss": args.max_loss,
            "compress": args.compress,
            "pick": args.pick,
            "level": args.level,
            "thresholds": args.thresholds,
            "signed": args.signed,
            "note": args.note,
        }
        record = convert(load_config(ConvertConfig, args.config, args.set + as_assignments(flags)))
        print(json.dumps(record.get("check", {}), indent=1))

    return run(parser, main, argv)


def evaluate_main(argv: Sequence[str] | None = None) -> int:
    """The command line of evaluate.py."""
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description="Average precision by a named protocol, energy and latency: of a detector on a dataset, or of anybody's boxes.",
        epilog="example: python evaluate.py --dataset gen1 --root GEN1 --split test --weights street --both",
    )
    parser.add_argument("--dataset", metavar="KIND", help="gen1, ncaltech101, simulated, pedro or folder (default: simulated)")
    parser.add_argument("--root", metavar="DIR", help="folder of the data")
    parser.add_argument("--split", metavar="S", help="train, val or test (default: val)")
    parser.add_argument("--weights", metavar="NAME|FILE", help="bundled weights by name, or a file (default: street)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ann", action="store_true", help="evaluate the ordinary network the spiking one was made of")
    which.add_argument("--both", action="store_true", help="evaluate both networks")
    parser.add_argument(
        "--timesteps", metavar="T[,T...]", help="timesteps, one result for each (default: what the weights were calibrated for)"
    )
    parser.add_argument("--protocol", metavar="NAME", help="prophesee, prophesee-toolbox, cordone or coco "
                        "(default: prophesee for gen1 and for box files, else coco)")  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="at most N windows, spread evenly")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that simulate (default: as many as cores)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where to run (default: auto)")
    parser.add_argument("--engine", metavar="NAME", help="how the spiking network is run, as for detect.py (default: auto)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--out", type=Path, metavar="DIR", help="output folder; an evaluation interrupted there goes on")
    parser.add_argument("--sensor-size", metavar="WxH", help="sensor size in pixels, where the data do not say it")
    files = parser.add_argument_group("box files of any detector, in Prophesee's format, instead of a dataset")
    files.add_argument("--predictions", type=Path, nargs="+", metavar="NPY", help="*_bbox.npy with scores, or a folder of them")
    files.add_argument("--labels", type=Path, nargs="+", metavar="NPY", help="as many, matched by name, or else in order")
    files.add_argument("--classes", metavar="A,B", help="names of the classes 0, 1, ... (default: car,pedestrian)")
    _add_config(parser)

    def main(args: argparse.Namespace) -> None:
        if bool(args.predictions) != bool(args.labels):
            parser.error("--predictions and --labels belong together")
        from evburst.eval.scoring import without_details

        results = _score_files(args) if args.predictions else _evaluate(args)
        if results is not None:
            text, summary = results
            print(json.dumps(without_details(summary), indent=1) if args.json else text)

    return run(parser, main, argv)


def live_main(argv: Sequence[str] | None = None) -> int:
    """The command line of live.py."""
    parser = argparse.ArgumentParser(
        prog="live.py",
        description="Find objects in live events, from a camera, a stream, or video that events are simulated from.",
        epilog="example: python live.py --camera fake --serve",
    )
    _add_source(parser)
    parser.add_argument("--serve", nargs="?", const="127.0.0.1:8000", metavar="HOST:PORT",
                        help="show it on a page (default: 127.0.0.1:8000); without a source, the page's own camera is used")  # fmt: skip
    parser.add_argument("--window", action="store_true", help="show it in a window")
    parser.add_argument("--headless", action="store_true", help="show nothing (the default without --serve and --window)")
    parser.add_argument("--seconds", type=float, metavar="N", help="stop after N seconds")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the events as they come, as .dat")
    parser.add_argument(
        "--weights", metavar="NAME|FILE", help="bundled weights by name, or a file made by convert.py (default: street)"
    )
    parser.add_argument(
        "--window-ms", type=float, metavar="MS", help="length of a window (default: as the weights were trained)"
    )
    parser.add_argument(
        "--timesteps", type=int, metavar="T", help="timesteps of the spiking network (default: 1, the quickest)"
    )
    parser.add_argument("--score", type=float, metavar="S", help="lowest score of a box (default: 0.3)")
    parser.add_argument("--ann", action="store_true", help="run the ordinary network the spiking one was made of")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where to run (default: auto)")
    parser.add_argument(
        "--engine",
        metavar="NAME",
        help="how the spiking network is run: reference, int8, cuda (default: auto, the fastest that was measured)",
    )
    parser.add_argument("--sensor-size", metavar="WxH", help="of the simulated sensor, or of a file that does not say it")
    parser.add_argument(
        "--preset", metavar="NAME", help="sensor to simulate: dvs346, evk4, gen1, dvxplorer (thresholds, noise)"
    )
    _add_config(parser)

    def main(args: argparse.Namespace) -> None:
        from evburst.app.config import load_config
        from evburst.app.live.pipeline import LiveConfig
        from evburst.app.live.run import LiveRequest, human_summary, preset_settings, run_live

        request = LiveRequest(_source(args), args.record, args.serve, args.window)
        if args.headless and (args.serve or args.window):
            raise ConfigError("--headless shows nothing: leave out --serve and --window, or --headless")
        flags = {
            "detect.weights": args.weights,
            "detect.window_ms": args.window_ms,
            "detect.timesteps": args.timesteps,
            "detect.post.score": args.score,
            "detect.ann": args.ann or None,
            "detect.device": args.device,
            "detect.engine": args.engine,
            "detect.sensor_size": args.sensor_size,
            "seconds": args.seconds,
        }
        preset = as_assignments(preset_settings(args.preset)) if args.preset else []
        summary = run_live(
            request,
            load_config(LiveConfig, args.config, preset + args.set + as_assignments(flags), {"detect": {"timesteps": 1}}),
        )
        print(json.dumps(summary, indent=1) if args.json else human_summary(summary))

    return run(parser, main, argv)


def _score_files(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from evburst.app.config import load_config, to_dict
    from evburst.app.provenance import provenance
    from evburst.eval.report.write import write_report
    from evburst.eval.scoring import ScoreConfig, human_scores, score_files

    classes = args.classes.split(",") if args.classes else None
    flags = as_assignments({"protocol": args.protocol, "sensor_size": args.sensor_size, "classes": classes})
    config = load_config(ScoreConfig, args.config, args.set + flags)
    scored = score_files(args.predictions, args.labels, config)
    summary = {**scored, "config": to_dict(config), "provenance": provenance()}
    if args.out:
        write_report(summary, args.out)
    return human_scores(summary), summary


def _evaluate(args: argparse.Namespace) -> tuple[str, dict[str, Any]] | None:
    from evburst.app.evaluate.run import evaluate, human_table, load_evaluation

    flags = {
        "data.kind": args.dataset,
        "data.root": args.root,
        "data.sensor_size": args.sensor_size,
        "split": args.split,
        "weights": args.weights,
        "ann": args.ann or args.both or None,
        "snn": False if args.ann else None,
        "protocol": args.protocol,
        "limit": args.limit,
        "workers": args.workers,
        "device": args.device,
        "engine": args.engine,
    }
    assignments = args.set + as_assignments(flags)
    if args.timesteps:
        assignments.append(f"timesteps=[{args.timesteps}]")
    config, bundle = load_evaluation(args.config, assignments)
    out = args.out or Path("runs") / "evaluate" / f"{config.data.kind}_{Path(config.weights).stem}"
    results = evaluate(config, bundle, out)
    return None if results is None else (human_table(results, out), results)


def _add_source(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--camera", metavar="N", help="webcam number N, or `fake` for the drawn street that comes with this project"
    )
    source.add_argument("--video", metavar="FILE", help="a video file at its own pace")
    source.add_argument("--events", metavar="FILE", help="a recording at its own pace; with --realtime")
    source.add_argument("--stream", metavar="tcp://HOST:PORT", help="a network stream of DV or dv-processing")
    source.add_argument("--sensor", choices=("evk4", "evk3", "dvxplorer", "davis346"), help="an event camera on USB")
    parser.add_argument("--realtime", action="store_true", help="play --events at its own pace")


def _source(args: argparse.Namespace) -> tuple[str, str]:
    """(kind, value) of the source that the flags name; ConfigError where there is none."""
    for kind in ("camera", "video", "events", "stream", "sensor"):
        value = getattr(args, kind)
        if value is None:
            continue
        if kind == "events" and not args.realtime:
            raise ConfigError("--events: add --realtime to play the recording at its own pace, or use detect.py")
        if kind == "camera" and value != "fake" and not (value.isascii() and value.isdigit()):
            raise ConfigError(f"--camera {value}: expected a number, 0 for the first camera, or `fake`")
        return kind, value
    if args.serve is None:
        raise ConfigError(
            "no source: pass one of --camera, --video, --events, --stream, --sensor; or --serve for the page's camera"
        )
    return "browser", ""
