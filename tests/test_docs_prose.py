"""Every figure in the prose of README and docs/ stands in docs_prose.yaml with its source, and equals it."""

from __future__ import annotations

import importlib
import json
import re
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.test_docs import (
    _FIGURE,
    _LINK,
    _NO_FIGURE,
    PAGES,
    _name,
    _prose,
)  # private: what is prose, and a figure, is defined there

LISTED: dict[str, list[dict[str, Any]]] = yaml.safe_load((ROOT / "tests" / "docs_prose.yaml").read_text(encoding="utf-8"))
WORDS = LISTED.pop("words")
_NO_MEASUREMENT = re.compile(
    r"^\s*\d+\. |arXiv [\d.]+|(?:CVPR|ECCV|ICCV|IJCNN|ISSCC|ICONIP|AAAI|NeurIPS|VOC|COCO|CDnet) \d{4}", re.MULTILINE
)
"""Numbers of lists, and names of papers and data sets."""


def prose(text: str) -> str:
    """A page as running text: without code, tables and headings; links are their words."""
    text = re.sub(r"\[([^\]]*)\]\([^)\s]+\)", r"\1", _prose(text).replace("CODE", ""))
    lines = [line for line in _LINK.sub("", text).splitlines() if not line.startswith(("|", "#"))]
    return " ".join(_NO_MEASUREMENT.sub("", "\n".join(lines)).split())


def unlisted(text: str, known: list[str]) -> list[str]:
    """Figures of a text, with their surroundings, that are in none of the known phrases."""
    for phrase in known:
        text = text.replace(phrase, re.sub(r"\d", "_", phrase))
    text = _NO_FIGURE.sub("", text)
    return [text[max(0, found.start() - 40) : found.end() + 20] for found in _FIGURE.finditer(text)]


@cache
def results(name: str) -> Any:
    return json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def looked_up(name: str, path: list[Any]) -> float:
    """The figure at a path of a results file; of a list the sum."""
    value = results(name)
    for key in path:
        value = value[key]
    return sum(value) if isinstance(value, list) else value


def constant(place: str) -> Any:
    """A constant by `module:NAME.attribute`."""
    module, _, names = place.partition(":")
    value = importlib.import_module(module)
    for name in names.split("."):
        value = getattr(value, name)
    return value


def phrase(entry: dict[str, Any]) -> str:
    """The text of an entry with the figure of its source."""
    if "reason" in entry:
        return str(entry["text"])
    value = constant(entry["code"]) if "code" in entry else looked_up(entry["file"], entry["path"])
    return str(entry["text"]).format(value * entry["scale"] if "scale" in entry else value)


def test_entries_have_one_source_and_a_figure() -> None:
    assert set(LISTED) <= {_name(page) for page in PAGES}
    for entry in (entry for entries in LISTED.values() for entry in entries):
        assert len({"file", "code", "reason"} & set(entry)) == 1, entry
        fields = [name for _, name, _, _ in Formatter().parse(entry["text"]) if name is not None]
        assert len(fields) == (0 if "reason" in entry else 1), entry
        assert ("path" in entry) == ("file" in entry), entry


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_figures_are_listed_and_equal_their_source(page: Path) -> None:
    text = prose(page.read_text(encoding="utf-8"))
    known = [phrase(entry) for entry in LISTED.get(_name(page), [])]
    assert [one for one in known if one not in text] == []
    assert unlisted(text, known) == []


@pytest.mark.parametrize("entry", WORDS, ids=lambda entry: entry["text"])
def test_measurements_in_words_hold(entry: dict[str, Any]) -> None:
    text = (ROOT / entry["page"]).read_text(encoding="utf-8")
    assert entry["text"] in " ".join(text.split())  # in prose, or in the words of a table
    low, high = entry["between"]
    value = looked_up(entry["file"], entry["path"])
    if "by" in entry:
        value /= looked_up(entry["file"], entry["by"])
    if "by_sum" in entry:
        value /= sum(looked_up(entry["file"], path) for path in entry["by_sum"])
    assert low <= value <= high, value


@pytest.mark.parametrize(
    ("text", "known", "found"),
    [
        ("It has an AP of 31.6.", [], 1),
        ("It has an AP of 31.6.", ["an AP of 31.6"], 0),
        ("It has an AP of 31.6, and 4 ms.", ["an AP of 31.6"], 1),
        ("| 31.6 |\n\n    31.6\n\n`31.6`", [], 0),  # tables and code
        ("[31.6](results.md) at T = 1 in 8 bits", [], 1),  # the words of a link
        ("Published (CVPR 2024, arXiv 2403.15192).", [], 0),
    ],
)
def test_a_figure_that_is_not_listed_is_found(text: str, known: list[str], found: int) -> None:
    assert len(unlisted(prose(f"{text}\n"), known)) == found
