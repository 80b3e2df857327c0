"""Tables of many evaluations: the command behind `evburst results` and bench/results.py."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from evburst.app.console import run
from evburst.data.errors import ConfigError, DataError

log = logging.getLogger(__name__)


def results_main(argv: Sequence[str] | None = None, prog: str = "results.py") -> int:
    """The command line of results: tables on stdout (or into a file), what is missing on stderr."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Every table of docs/results.md from the results.json files that evaluate.py writes; no figure is typed by hand.",
        epilog=f"example: {prog} runs/evaluate --out tables.md",
    )
    parser.add_argument("places", type=Path, nargs="*", metavar="FOLDER|FILE", help="where to look for results.json, below too")
    parser.add_argument(
        "--format", choices=("markdown", "csv", "latex"), default="markdown", help="of the tables (default: markdown)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the tables into a file")
    parser.add_argument("--weights", metavar="A,B", help="weights that should be there (default: the bundled ones)")
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of results.json instead")

    def main(args: argparse.Namespace) -> str | None:
        from evburst.eval.results import json_schema

        if args.schema:
            return json.dumps(json_schema(), indent=1)
        if not args.places:
            parser.error("give at least one folder, e.g. runs/evaluate")
        text = tables(args.places, args.format, args.weights.split(",") if args.weights else None)
        if args.out is None:
            return text.rstrip("\n")
        try:
            args.out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{args.out}: cannot be written ({error.strerror})") from None
        return None

    return run(parser, main, argv)


def tables(places: Sequence[Path], form: str = "markdown", expected: Sequence[str] | None = None) -> str:
    """All tables of the results below these places; what is missing is logged, too.

    Args:
        places: folders or files.
        form: markdown, csv or latex.
        expected: weights that should have results; None: the bundled ones.

    Raises:
        DataError: there is no results.json that can be read.
    """
    from evburst.eval.report.collect import find, gaps, render, summary_tables

    found = find(places)
    for problem in found.problems:
        log.warning("left out: %s", problem)
    if not found.files:
        raise DataError(f"{', '.join(map(str, places))}: no results.json that can be read; evaluate.py writes them")
    if expected is None:
        expected = sorted(
            path.stem for path in (Path(__file__).resolve().parents[1] / "models" / "weights").glob("*.safetensors")
        )
    missing = [f"left out: {problem}" for problem in found.problems] + gaps(found.files, expected)
    for line in missing[len(found.problems) :]:
        log.info("missing: %s", line)
    return render(summary_tables(found.files), missing, form)
