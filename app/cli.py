"""Command lines. stdout carries results, stderr everything else; exit 0 ok, 1 data or model error, 2 usage."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from data.errors import EvburstError


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


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="one setting, e.g. --set voxel.bins=5; repeatable"
    )


def train_main(argv: Sequence[str] | None = None) -> int:
    """The command line of train.py."""
    parser = argparse.ArgumentParser(prog="train.py", description="Train a detector on events simulated from labelled pictures.")
    _add_config(parser)
    parser.add_argument("--root", metavar="DIR", help="folder with boxes.csv and images/ (same as --set data.root=DIR)")
    parser.add_argument("--out", metavar="DIR", help="output folder; an unfinished run found there is resumed")

    def main(args: argparse.Namespace) -> None:
        from app.config import load_config
        from app.train import TrainConfig, train

        extra = [f"data.root={args.root}"] if args.root else []
        extra += [f"out={args.out}"] if args.out else []
        print(train(load_config(TrainConfig, args.config, args.set + extra)))

    return run(parser, main, argv)
