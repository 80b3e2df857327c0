"""Flags of `evburst convert`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from evburst.app.console import run
from evburst.app.flags import WEIGHTS, CommandParser, Flag, given


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
            Flag("weights", metavar=WEIGHTS),
            Flag("out", metavar="FILE"),
            Flag("root", "--calibration", "DIR"),
            Flag("unlabelled"),
            Flag("sensor_size", metavar="WxH"),
            Flag("reading.time_unit", "--time-unit"),
            Flag("reading.columns", "--columns", "ORDER"),
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
