"""Flags of `evburst live`, and the source that they name."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence

from evburst.app.console import run
from evburst.app.flags import WEIGHTS, CommandParser, Flag, as_assignments, given, named_path, recording
from evburst.app.live.recording_settings import OF_RECORDINGS
from evburst.data.errors import ConfigError, DataError
from evburst.data.text import number_of


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
            Flag("detect.weights", "--weights", WEIGHTS),
            Flag("detect.window_ms", "--window-ms"),
            Flag("detect.timesteps", "--timesteps", "T", {"help": "timesteps T of the spiking network (1 to 64; default: 1)"}),
            Flag("detect.post.score", "--score", "S"),
            Flag("detect.memory", "--memory"),
            Flag("detect.lead_ms", "--lead-ms"),
            Flag("detect.ann", "--ann"),
            Flag("detect.device", "--device"),
            Flag("detect.engine", "--engine", "NAME"),
            Flag("detect.sensor_size", "--sensor-size", "WxH"),
        ],
        example="detect.post.nms_iou=0.6",
        unlisted=[f"detect.{name}" for name in OF_RECORDINGS],
    )

    def main(args: argparse.Namespace) -> Iterator[str]:
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
        if args.preset and request.source[0] in ("events", "stream", "sensor"):
            raise ConfigError(
                "--preset: events come from a real sensor here; it is for --camera, --video and the page's camera"
            )
        if args.headless and (args.serve or args.window):
            raise ConfigError("--headless contradicts --serve and --window: leave out one or the other")
        preset_assignments = as_assignments(preset_settings(args.preset)) if args.preset else []
        assignments = preset_assignments + args.set + given(args)
        summary = run_live(request, load_config(LiveConfig, args.config, assignments, {"detect": {"timesteps": 1}}))
        yield json.dumps(summary, indent=1) if args.json else human_summary(summary)
        if reason := summary["recording_stopped"]:
            held = number_of(summary["recorded_events"], "event")
            raise DataError(f"{args.record}: recording stopped early ({reason}); it holds the first {held}")

    return run(parser, main, argv)


def _add_source(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--camera", metavar="N", help="webcam number N, or `fake` for a simulated street scene")
    source.add_argument("--video", metavar="FILE|DEVICE|URL", help="video file, played in real time, a camera "
                        "such as /dev/video1, or a stream, e.g. rtsp://HOST/1")  # fmt: skip
    source.add_argument("--events", type=recording, metavar="FILE", help="recording, played in real time; `-`: standard input")
    source.add_argument("--stream", metavar="tcp://HOST:PORT", help="network stream from DV or dv-processing")
    source.add_argument("--sensor", choices=("evk4", "evk3", "dvxplorer", "davis346"), help="event camera on USB")
    parser.add_argument("--speed", type=float, default=1.0, metavar="X", help="play a file at X times real time, e.g. 0.1")
    parser.add_argument("--realtime", action="store_true", help=argparse.SUPPRESS)  # as recordings play anyway; scripts name it


def _source(args: argparse.Namespace) -> tuple[str, str]:
    """Return (kind, value) of the source given by the flags; raise ConfigError if there is none."""
    for kind in ("camera", "video", "events", "stream", "sensor"):
        value = getattr(args, kind)
        if value is None:
            continue
        if kind == "camera" and value != "fake" and not (value.isascii() and value.isdigit()):
            raise ConfigError(f"--camera {value}: expected a number, 0 for the first camera, or `fake`")
        return kind, value
    if args.serve is None:
        raise ConfigError(
            "no source: pass one of --camera, --video, --events, --stream, --sensor; or --serve to use the page's camera"
        )
    return "browser", ""
