"""Figures of the README: all in its table and in the output of its command, which other tests look up."""

from __future__ import annotations

import re

from tests.conftest import ROOT
from tests.test_docs import _FIGURE, _NO_FIGURE, _prose  # private: what counts as a figure is defined there


def test_the_prose_of_the_readme_has_no_figures() -> None:
    text = re.sub(r"^\|.*$", "", _prose((ROOT / "README.md").read_text()), flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)|^#.*$|arXiv [\d.]+|\d+ %(?= \[)", "", text, flags=re.MULTILINE)
    assert _FIGURE.findall(_NO_FIGURE.sub("", text)) == []
