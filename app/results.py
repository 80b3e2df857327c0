"""`evburst results`: tables of many evaluations."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from evburst.app.console import run
from evburst.app.flags import Parser, named_path
from evburst.app.outputs.folder import write_text
from evburst.app.outputs.paths import refuse_overwriting
from evburst.data.errors import DataError

_LOG = logging.getLogger(__name__)


def results_main(argv: Sequence[str] | None = None, prog: str = "results.py") -> int:
    """Run `evburst results`: write tables to stdout or a file, and list missing results on stderr."""
    parser = Parser(
        prog=prog,
        description="Make tables of accuracy, energy and latency from the results.json files that evburst evaluate writes.",
        epilog=f"example: {prog} runs/evaluate --out tables.md",
    )
    parser.add_argument("places", type=Path, nargs="*", metavar="FOLDER|FILE",
                        help="results.json files, or folders to search recursively")  # fmt: skip
    parser.add_argument(
        "--format", choices=("markdown", "csv", "latex"), default="markdown", help="format of the tables (default: markdown)"
    )
    parser.add_argument("--out", type=named_path, metavar="FILE", help="write the tables to a file instead of stdout")
    parser.add_argument("--overwrite", action="store_true", help="let --out replace an existing file")
    parser.add_argument("--weights", metavar="A,B", help="weights whose results are expected; those that are missing are named")
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of results.json instead of tables")

    def main(args: argparse.Namespace) -> str | None:
        from evburst.eval.results import json_schema

        if args.schema:
            return json.dumps(json_schema(), indent=1)
        if not args.places:
            parser.error("give at least one folder, e.g. runs/evaluate")
        if args.out is not None:
            refuse_overwriting(args.out, args.places, args.overwrite)
        text = tables(args.places, args.format, args.weights.split(",") if args.weights else ())
        if args.out is None:
            return text.rstrip("\n")
        write_text(args.out, text)
        return None

    return run(parser, main, argv)


def tables(places: Sequence[Path], form: str = "markdown", expected: Sequence[str] = ()) -> str:
    """Make all tables of the results found in these places, and log which results are missing.

    Args:
        places: results.json files, or folders that are searched recursively.
        form: markdown, csv or latex.
        expected: weights whose results have to be there.

    Raises:
        DataError: no readable results.json was found.
    """
    from evburst.eval.report.collect import find, gaps, render, summary_tables

    collected = find(places)
    for problem in collected.problems:
        _LOG.warning("left out: %s", problem)
    if not collected.files:
        raise DataError(f"{', '.join(map(str, places))}: no readable results.json; evburst evaluate writes them")
    missing = gaps(collected.files, expected)
    for line in missing:
        _LOG.info("missing: %s", line)
    left_out = [f"left out: {problem}" for problem in collected.problems]
    return render(summary_tables(collected.files), left_out + missing, form)
