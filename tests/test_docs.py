"""README and docs: links resolve, code compiles, commands, flags and named files exist, the English follows the rules."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from evburst.app.cli import COMMANDS
from evburst.app.cli import main as evburst_main
from evburst.data.datasets.class_layouts import CLASS_LAYOUTS
from evburst.data.datasets.layouts import LAYOUTS
from evburst.data.datasets.registry import CLASS_OPENERS, OPENERS
from evburst.data.events import Faults

PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "bench/README.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
README_BYTES = 6144
OTHER_FLAGS = {"--nproc-per-node", "--version", "--help"}
"""Of torchrun, and of `evburst` itself."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^\n|\A)((?:^ {4}.*\n|^\n)+)", re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|<(https?://[^>]+)>")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_OUR_FILE = re.compile(r"(?:app|bench|configs|data|docs|eval|evburst|models|tests)/[\w./-]+\.\w+")
_FLAG = re.compile(r"--[a-z][a-z-]*(?:\.[a-z-]+)*")

BANNED = (
    r"can be (?:told|said)", r"\btold\b", r"\bmade of\b", r"what is there", r"\balike\b", r"\bso many\b", r"of no use",
    r"\bgoes on\b", r"laid out anew", r"\bsure\b", r"\bformer(?:ly)?\b", r"as of now",
    r"\b(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{7,40}\b",
)  # fmt: skip
"""Banned from all pages: unidiomatic phrases, diary words, and commit hashes."""
CODE_FOLDERS = ("app", "bench", "configs", "data", "eval", "evburst", "models", "tests")
CODE_SUFFIXES = {".css", ".html", ".j2", ".js", ".py", ".toml", ".yaml", ".yml"}
BANNED_IN_CODE = (
    r"can be (?:told|said)", "told", "said", "made of", "what is there", "alike", "so many", "of no use", "goes on",
    "laid out anew", "sure", "former(?:ly)?", "as of now", "price", "worth", "things?",
)  # fmt: skip
"""Banned from code: in docstrings, comments, texts for users, and as words of names, such as `is_told`."""
BANNED_IN_MODELS = ("moved", "reach")
"""Banned where they would mean divergence and fan-out; in data they can mean motion."""
NOT_CHECKED = {"tests/test_docs.py"}

_NO_FIGURE = re.compile(
    r"\bT (?:=|>|<=) \d+|\bPython 3\.\d+|\b(?:19|20)\d\d\b|\b\d+-bit\b|\b\d+ bits\b|\bIoU \d\.\d+|\bAGPL-3\.0"
    r"|\b\d+(?=x\d)|\b\d+ nm\b|\bROS \d"
)
_FIGURE = re.compile(r"(?<![\w.,-])\d[\d.,]*")


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _prose(text: str) -> str:
    """A page without code blocks and inline code."""
    return _CODE.sub("CODE", _INDENTED.sub("\n", _FENCE.sub("", text)))


def _shell_commands(text: str) -> Iterator[list[str]]:
    """Commands of ours in code blocks and inline code, split into words."""
    blocks = [block for kind, block in _FENCE.findall(text) if kind in ("", "sh", "bash", "console")]
    blocks += [textwrap.dedent(block) for block in _INDENTED.findall(_FENCE.sub("", text))]
    lines = [line for block in blocks for line in block.splitlines()] + _CODE.findall(_FENCE.sub("", text))
    for line in lines:
        # What follows two spaces explains the command.
        words = shlex.split(re.split(r" {2,}", line.strip())[0]) if "'" not in line or line.count("'") % 2 == 0 else []
        if words and words[0] == "torchrun":
            words = words[next((k for k, word in enumerate(words) if word.endswith(".py")), 0) :]
        if words and words[0] in ("python", ".venv/bin/python", "python3"):
            words = words[1:]
        if len(words) > 1 and words[0] == "evburst" and not words[1].isupper() and words[1] != "|":
            yield words[1:]
        elif words and words[0].endswith(".py") and words[0].removesuffix(".py") in COMMANDS:
            yield [words[0].removesuffix(".py"), *words[1:]]


@cache
def _help(command: tuple[str, ...]) -> str:
    """What `evburst COMMAND --help` prints."""
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        evburst_main([*command, "--help"])
    assert ended.value.code == 0
    return printed.getvalue()


def _anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and mkdocs name them."""
    headings = _HEADING.findall(_FENCE.sub("", page.read_text()))
    return {re.sub(r"[ -]+", "-", re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()) for heading in headings}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= README_BYTES


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_resolve(page: Path) -> None:
    for target, _ in _LINK.findall(_FENCE.sub("", page.read_text())):
        if not target or re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{_name(page)}: link to {target}, which does not exist"
        if anchor:
            assert anchor in _anchors(file), f"{_name(page)}: {target}: no such heading (there are {sorted(_anchors(file))})"


def test_docstrings_cite_headings_that_exist() -> None:
    """`docs/method.md#energy` in a docstring or a comment."""
    cited = [
        (_name(file), page, anchor)
        for folder in ("app", "bench", "data", "eval", "evburst", "models", "tests")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for page, anchor in re.findall(r"(docs/[\w-]+\.md)#([\w-]+)", file.read_text())
    ]
    assert len(cited) > 5
    for name, page, anchor in cited:
        assert anchor in _anchors(ROOT / page), f"{name}: {page} has no heading {anchor}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "docs"], ids=_name)
def test_the_site_links_only_to_its_own_files(page: Path) -> None:
    """Pages below docs/ are also a site, on which files outside docs/ do not exist."""
    for target, _ in _LINK.findall(_FENCE.sub("", page.read_text())):
        assert not target.startswith("../"), f"{_name(page)}: {target} leaves docs/"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_files_that_are_named_exist(page: Path) -> None:
    for name in {found for code in _CODE.findall(page.read_text()) for found in _OUR_FILE.findall(code)}:
        assert (ROOT / name).exists(), f"{_name(page)}: {name} does not exist"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_python_blocks_compile(page: Path) -> None:
    for kind, block in _FENCE.findall(page.read_text()):
        if kind == "python":
            compile(block, _name(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_and_flags_exist(page: Path) -> None:
    for words in _shell_commands(page.read_text()):
        command, *rest = words
        assert command in COMMANDS, f"{_name(page)}: evburst {command}: no such command"
        subcommand = [rest.pop(0)] if command == "events" and rest else []
        known = set(_FLAG.findall(_help((command, *subcommand))))
        for flag in rest:
            if flag.startswith("--"):
                assert flag.partition("=")[0] in known, f"{_name(page)}: evburst {' '.join(words)}: no flag {flag}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_flags_in_the_text_exist(page: Path) -> None:
    """Of those that stand in inline code alone, without a command."""
    known = {flag for command in COMMANDS if command != "events" for flag in _FLAG.findall(_help((command,)))} | OTHER_FLAGS
    known |= {flag for command in ("info", "convert", "cut", "frames") for flag in _FLAG.findall(_help(("events", command)))}
    for code in _CODE.findall(_FENCE.sub("", page.read_text())):
        if not code.startswith(("python bench/", "pip", ".venv/bin/pip", ".venv/bin/python -m pytest")):
            for flag in _FLAG.findall(code):
                assert flag in known, f"{_name(page)}: `{code}`: no command has {flag}"


def test_commands_are_found() -> None:
    """The test above is not empty: the commands of the README, by script and by name, are among those it looks at."""
    found = list(_shell_commands((ROOT / "README.md").read_text()))
    assert found.count(["detect", "--events", "data/samples/street_td.dat"]) == 2
    fenced = "```\ntorchrun --nproc-per-node 2 evaluate.py --both\n```\n"
    text = f"{fenced}\n    evburst train --root X    explained\n\nand `evburst events info FILE`."
    assert list(_shell_commands(text)) == [["evaluate", "--both"], ["train", "--root", "X"], ["events", "info", "FILE"]]


def test_every_fault_is_described() -> None:
    table = (ROOT / "docs" / "formats.md").read_text().partition("## Faults")[2]
    assert [name for name in vars(Faults()) if f"`{name}`" not in table] == []


@pytest.mark.parametrize(("page", "kinds"), [("train.md", (LAYOUTS, OPENERS)), ("classify.md", (CLASS_LAYOUTS, CLASS_OPENERS))])
def test_every_kind_of_data_is_described(page: str, kinds: tuple[dict[str, Any], ...]) -> None:
    table = (ROOT / "docs" / page).read_text().partition("| `data.kind` |")[2]
    functions = {name: getattr(entry, "find", entry) for own in kinds for name, entry in own.items()}
    bundled = [name for name, function in functions.items() if function.__module__.startswith("evburst.")]
    assert len(bundled) > 5
    assert [name for name in bundled if not re.search(rf"^\| `{name}(:NAME)?` \|", table, re.MULTILINE)] == []


def test_every_bench_is_described() -> None:
    text = (ROOT / "bench" / "README.md").read_text()
    assert [path.name for path in sorted((ROOT / "bench").glob("[a-z]*.py")) if path.name not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_plain_english(page: Path) -> None:
    prose = _prose(page.read_text())
    for words in BANNED:
        found = re.search(words, prose, re.IGNORECASE)
        assert found is None, f"{_name(page)}: {found.group()!r}"


def test_results_name_no_folder_of_a_machine() -> None:
    """A path from the root of a file system says where somebody measured, not what."""
    files = sorted((ROOT / "docs" / "results").rglob("*.json"))
    assert len(files) > 30
    absolute = re.compile(r'"(?:/|[A-Za-z]:\\\\)[^"]*"')
    assert {_name(file): found for file in files if (found := absolute.findall(file.read_text(encoding="utf-8")))} == {}


def _code_files() -> list[Path]:
    files = [file for folder in CODE_FOLDERS for file in (ROOT / folder).rglob("*") if file.suffix in CODE_SUFFIXES]
    return sorted(file for file in files if _name(file) not in NOT_CHECKED and "results" not in file.parts)


def _banned_in(text: str, words: tuple[str, ...]) -> list[str]:
    """Banned words in a text, also as a part of a name between underscores."""
    pattern = re.compile(rf"(?<![a-z])(?:{'|'.join(words)})(?![a-z])".replace(" ", "[ _]"), re.IGNORECASE)
    return [f"line {number}: {line.strip()}" for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)]


def test_plain_english_in_code() -> None:
    files = _code_files()
    assert len(files) > 200
    found = {_name(file): _banned_in(file.read_text(encoding="utf-8"), BANNED_IN_CODE) for file in files}
    for folder in ("eval", "models"):
        for file in (file for file in files if file.is_relative_to(ROOT / folder)):
            found[_name(file)] += _banned_in(file.read_text(encoding="utf-8"), BANNED_IN_MODELS)
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("def is_told(): ...", ["line 1: def is_told(): ..."]),  # a word of a name
        ("def goes_on(): ...", ["line 1: def goes_on(): ..."]),
        ("a\n  # So many words", ["line 2: # So many words"]),
        ("measure, unsaid, pressure", []),  # only a part of a word
    ],
)
def test_banned_words_are_found_in_names_and_comments(text: str, lines: list[str]) -> None:
    assert _banned_in(text, BANNED_IN_CODE) == lines


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_sentence_holds_at_most_one_figure(page: Path) -> None:
    """Of prose: tables hold the others. Units, versions, years, T and the widths of numbers are no figures."""
    text = _LINK.sub("", _prose(page.read_text()))
    lines = [line for line in text.splitlines() if not line.startswith(("|", "#"))]
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:- |\d+\. ))", "\n".join(lines)):
        plain = re.sub(r"^\s*\d+\. ", "", paragraph)
        for sentence in re.split(r"(?<=[.!?:])\s+", plain):
            figures = _FIGURE.findall(_NO_FIGURE.sub("", sentence))
            assert len(figures) <= 1, f"{_name(page)}: {len(figures)} figures in {sentence!r}"
