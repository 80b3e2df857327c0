"""Flags of `evburst train`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from evburst.app.console import run
from evburst.app.flags import WEIGHTS, CommandParser, Flag, as_assignments, given


def train_main(argv: Sequence[str] | None = None, prog: str = "train.py") -> int:
    """Run `evburst train`."""
    parser = CommandParser(
        prog,
        "Train a detector or a classifier on labelled recordings, or on events simulated from labelled pictures.",
        "--dataset folder --root mine --own-classes drone,bird --init street --out runs/mine",
    )
    parser.add_argument("--relu-from", metavar="FILE",
                        help="fine-tune a checkpoint trained with SiLU to use ReLU, which conversion requires")  # fmt: skip
    parser.add_settings(
        "evburst.app.train.config:TrainConfig",
        [
            Flag("data.kind", "--dataset", "KIND"),
            Flag("data.root", "--root", "DIR"),
            Flag("data.labels", "--labels", "CSV"),
            Flag("data.own_classes", "--own-classes", "A,B,..."),
            Flag("data.sensor_size", "--sensor-size", "WxH"),
            Flag("data.reading.time_unit", "--time-unit"),
            Flag("data.reading.columns", "--columns", "ORDER"),
            Flag("init", metavar=WEIGHTS),
            Flag("out", metavar="DIR"),
        ],
        example="schedule.epochs=4",
    )

    def main(args: argparse.Namespace) -> str | None:
        from evburst.app.config import load_config
        from evburst.app.train.config import TrainConfig
        from evburst.app.train.run import human_summary, train

        relu_settings = as_assignments({"init": args.relu_from, "activation": "relu"}) if args.relu_from else []
        best = train(load_config(TrainConfig, args.config, args.set + given(args) + relu_settings))
        return None if best is None else human_summary(best)

    return run(parser, main, argv)
