"""Write the tables of README.md and docs/ that results files hold.

    python bench/doc_tables.py                                 rewrite every table in its page
    python bench/doc_tables.py --format latex --out tables     write each as tables/NAME.tex (or csv)

The results files are those in docs/results/, which the other benches and `evburst evaluate` write. A table is found by the
heading above it and its number below that heading.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import (  # noqa: E402
    conversion,
    downsample,
    events,
    gpu,
    inference,
    int8_ann,
    labels,
    late,
    margin,
    memory,
    network_tables,
    quiet,
    real,
    seeds,
    silence,
    simulator,
    spikes,
    tracks,
    tradeoff,
    voting,
)
from bench.network_tables import (  # noqa: E402
    CLASSIFIERS,
    DETECTORS,
    OTHER_DRIVES,
    RESULTS,
    TRAINED_QNN,
    evaluation,
    read,
)
from evburst.data.errors import DataError  # noqa: E402
from evburst.eval.report import collect  # noqa: E402
from evburst.eval.report.tables import Table  # noqa: E402

_TABLE = re.compile(r"^\|.*\n(?:\|.*\n)+", re.MULTILINE)
_SUFFIXES = {"csv": "csv", "latex": "tex"}


@dataclass(frozen=True)
class DocTable:
    """A table of the documentation.

    Attributes:
        name: of its file, with --out.
        page: path from the root of the repository.
        heading: the heading above it.
        make: returns it as Markdown, without a newline at its end.
        number: its number among the tables below that heading, from 0.
    """

    name: str
    page: str
    heading: str
    make: Callable[[], str]
    number: int = 0

    def place(self, text: str) -> tuple[int, int]:
        """Return where the table begins and ends in the text of its page.

        Raises:
            DataError: the page has no such heading, or no such table below it.
        """
        section = re.search(rf"^#+ {re.escape(self.heading)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
        found = list(_TABLE.finditer(section.group(1))) if section else []
        if section is None or len(found) <= self.number:
            raise DataError(f"{self.page}: no table {self.number} below the heading {self.heading!r}")
        return section.start(1) + found[self.number].start(), section.start(1) + found[self.number].end()


def _tracks(number: int) -> str:
    return tracks.document_tables(read("tracks_choice"), read("tracks_check"))[number]


TABLES = (
    DocTable("headline", "README.md", "Results", network_tables.headline),
    DocTable(
        "other_drives",
        "docs/results.md",
        "Without a known drive",
        partial(evaluation, ("street" + OTHER_DRIVES, TRAINED_QNN + OTHER_DRIVES), "Average precision"),
    ),
    DocTable("other_networks", "docs/results.md", "By network", network_tables.other_networks),
    DocTable("ap", "docs/results.md", "Average precision", partial(evaluation, DETECTORS, "Average precision")),
    DocTable("ap_by_iou", "docs/results.md", "AP by IoU", partial(evaluation, DETECTORS, "AP by IoU")),
    DocTable("voting", "docs/results.md", "Box voting", lambda: voting.table(read("voting"))),
    DocTable("energy", "docs/results.md", "Energy per window", partial(evaluation, DETECTORS, "Energy per window")),
    DocTable("multipliers", "docs/results.md", "Energy per window", network_tables.multipliers, 1),
    DocTable(
        "memory_traffic",
        "docs/results.md",
        "Energy with memory traffic",
        partial(evaluation, DETECTORS, "Energy with memory traffic"),
    ),
    DocTable("int8", "docs/results.md", "The ANN in 8 bits", lambda: int8_ann.table(read("int8_ann"))),
    DocTable("trained_qnn", "docs/results.md", "A network without a limit on energy", network_tables.trained_qnn),
    DocTable("classification", "docs/classify.md", "Results", partial(evaluation, CLASSIFIERS, "Classification")),
    DocTable("classification_energy", "docs/classify.md", "Results", partial(evaluation, CLASSIFIERS, "Energy per window"), 1),
    DocTable("cards", "docs/models.md", "Figures", network_tables.cards),
    DocTable("burst_limits", "docs/models.md", "Figures", network_tables.burst_limits, 1),
    DocTable("street", "docs/models.md", "street", network_tables.street_card, 1),
    DocTable(
        "real",
        "docs/results.md",
        "Recordings of real sensors",
        lambda: real.table([read(f"real_street_{network}") for network in ("ann", "snn")]),
    ),
    DocTable("tradeoff", "docs/results.md", "AP against energy", lambda: tradeoff.table(read("tradeoff"))),
    DocTable("epochs", "docs/results.md", "How the weights were made", network_tables.epochs, 1),
    DocTable(
        "margin",
        "docs/convert.md",
        "Margin of silence",
        lambda: margin.table([read("margin_street")]),
    ),
    DocTable("margin_noise", "docs/convert.md", "Noise", lambda: margin.table([read("margin_street_noise")])),
    DocTable(
        "seeds",
        "docs/convert.md",
        "Spread",
        lambda: seeds.table([RESULTS / f"seeds_{weights}.json" for weights in ("caltech6", "street")]),
    ),
    DocTable("labels", "docs/train.md", "Labels", lambda: labels.table(read("labels"))),
    DocTable("tracks_choice", "docs/detect.md", "Tracks", partial(_tracks, 0)),
    DocTable("tracks_check", "docs/detect.md", "Tracks", partial(_tracks, 1), 1),
    DocTable("memory", "docs/detect.md", "Objects that stand still", lambda: memory.table(read("memory"))),
    DocTable("memory_pictures", "docs/detect.md", "Objects that stand still", lambda: memory.picture_table(read("memory")), 1),
    DocTable("memory_adl", "docs/detect.md", "Objects that stand still", lambda: memory.adl_table(read("memory")), 2),
    DocTable("late_fixed", "docs/detect.md", "Boxes for a moment ahead", lambda: late.fixed_table(read("late"))),
    DocTable("late_measured", "docs/detect.md", "Boxes for a moment ahead", lambda: late.measured_table(read("late")), 1),
    DocTable("silence", "docs/method.md", "Silence as the reference", lambda: silence.table(read("silence"))),
    DocTable("grids", "docs/benchmarks.md", "File to grid", lambda: events.grids_table(read("events"))),
    DocTable("reading", "docs/benchmarks.md", "Reading", lambda: events.reading_table(read("events"))),
    DocTable(
        "simulator",
        "docs/benchmarks.md",
        "The simulator compared with real recordings",
        lambda: simulator.document_table([read(f"simulator_{spec}") for spec in ("street", "caltech6")]),
    ),
    DocTable(
        "conversion",
        "docs/benchmarks.md",
        "Other converters",
        lambda: conversion.document_table([read(f"conversion_{weights}") for weights in ("nmnist", "caltech6")]),
    ),
    DocTable(
        "inference",
        "docs/benchmarks.md",
        "One window by every network",
        lambda: inference.table(read("inference")["results"]),
    ),
    DocTable("avx2", "docs/benchmarks.md", "One window by every network", lambda: inference.table(read("avx2")["results"]), 1),
    DocTable(
        "quiet",
        "docs/benchmarks.md",
        "Quiet windows",
        lambda: quiet.table([quiet.Row(**row) for row in read("quiet")["rows"]]),
    ),
    DocTable("gpu", "docs/benchmarks.md", "On a GPU", lambda: gpu.table(read("gpu_street"))),
    DocTable(
        "spikes",
        "docs/benchmarks.md",
        "Spikes of every engine",
        lambda: spikes.table([spikes.Agreement(**row) for row in read("spikes")["results"]]),
    ),
    DocTable("downsample", "docs/benchmarks.md", "Larger sensors", lambda: downsample.table(read("downsample"))),
)


def rewrite() -> list[str]:
    """Rewrite the tables that differ from their results; return their names."""
    changed = []
    for one in TABLES:
        path = ROOT / one.page
        text = path.read_text(encoding="utf-8")
        start, end = one.place(text)
        if text[start:end] != (made := f"{one.make()}\n"):
            path.write_text(text[:start] + made + text[end:], encoding="utf-8")
            changed.append(one.name)
    return changed


def parsed(markdown: str) -> Table:
    """Return a Markdown table as cells of text, without the marks of code."""
    lines = [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    return Table(lines[0], lines[2:])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], epilog="Without --out, the pages are rewritten."
    )
    parser.add_argument("--format", choices=tuple(_SUFFIXES), default="csv", help="of the files (default: csv)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write a file for each table there, and no page")
    args = parser.parse_args()
    if args.out is None:
        print(f"changed: {', '.join(rewrite()) or 'none'}")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    for one in TABLES:
        table = collect.TitledTable(one.heading, parsed(one.make()), "")
        text = collect.render([table], [], args.format)
        (args.out / f"{one.name}.{_SUFFIXES[args.format]}").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
