"""The import rule of the house: data imports nobody; models and eval import data only and never meet; app imports all."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter

import pytest

from tests.conftest import ROOT, in_new_process

ALLOWED = {"data": {"data"}, "models": {"models", "data"}, "eval": {"eval", "data"}, "app": {"app", "models", "eval", "data"}}


def imported(path: str) -> set[str]:
    """Packages a file imports, anywhere in it; of this project, the folder."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {_top(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(_top(node.module))
    return names


def _top(module: str) -> str:
    """The first part of a module's name; of this project's own, the one after `evburst`."""
    return module.removeprefix("evburst.").partition(".")[0]


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_keep_to_their_neighbours(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        strangers = imported(str(path.relative_to(ROOT))) & (ALLOWED.keys() - ALLOWED[package])
        assert not strangers, f"{path} imports {strangers}"


@pytest.mark.parametrize("folder", ["readers", "representations", "simulation"])
def test_nothing_below_data_sets_imports_them(folder: str) -> None:
    for path in (ROOT / "data" / folder).rglob("*.py"):
        assert "evburst.data.datasets" not in path.read_text(), path


@pytest.mark.parametrize("package", ["data", "models", "eval"])
def test_only_app_reads_yaml_and_argv(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert not imported(str(path.relative_to(ROOT))) & {"yaml", "argparse"}, path


def test_nothing_but_its_own_tests_imports_bench() -> None:
    for folder in (*ALLOWED, "evburst", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            assert path.name.startswith("test_bench_") or "bench" not in imported(str(path.relative_to(ROOT))), path


def test_importing_the_command_line_is_light() -> None:
    """`detect.py --help` must not wait for torch, numba or OpenCV."""
    modules = ", ".join(f"evburst.app{command}.cli" for command in ("", ".train", ".convert", ".evaluate", ".live"))
    heavy = ("torch", "numba", "cv2", "ultralytics", "tonic")
    code = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
    assert in_new_process(code).strip() == "[]"


def test_detection_does_not_import_the_training_libraries() -> None:
    """Weights files hold the network's structure: running one needs neither ultralytics nor torchvision."""
    extras = ("ultralytics", "torchvision", "tonic", "pycocotools")
    code = f"import sys, evburst.app.detect; print([m for m in {extras} if m in sys.modules])"
    assert in_new_process(code).strip() == "[]"


def test_the_version_is_that_of_the_project() -> None:
    code = "import sys, evburst; print(evburst.__version__, 'torch' in sys.modules, '__version__' in dir(evburst))"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert in_new_process(code).split() == [version, "False", "True"]


def test_an_older_python_ends_with_one_line() -> None:
    """As for `python detect.py` in a checkout, which no pip has refused."""
    code = "import pathlib, sys; sys.version_info = (3, 10, 13, 'final', 0); import evburst.app.cli"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: evburst needs Python 3.11 or newer, and this is Python 3.10.13: ")


def test_no_module_imports_itself_in_a_circle() -> None:
    """At their top; an import inside a function is made when both are whole."""
    files = {"evburst." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
             for package in ALLOWED for path in (ROOT / package).rglob("*.py")}  # fmt: skip
    graph = {name: set[str]() for name in files}
    for name, path in files.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module in files:
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & files.keys()
                graph[name] |= inner or {str(node.module)}
            elif isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & files.keys()
    # No circle to break: a package imports its members so that they register themselves, and they import its registry.
    for name, needed in graph.items():
        graph[name] = {other for other in needed if not other.startswith(f"{name}.")}
    assert tuple(TopologicalSorter(graph).static_order())
