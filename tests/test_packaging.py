"""The wheel: nothing but `evburst` in site-packages, every package and data file inside, usable from any folder; extras."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from evburst.data.errors import MissingPackageError
from evburst.data.extras import pip_install, require
from evburst.models.runtime import ENGINES
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("evburst", "app", "data", "eval", "models")
BASE = {"cv2": "opencv-python-headless", "yaml": "pyyaml"}
NEEDED = {
    "av",
    "evburst",
    "filelock",
    "numba",
    "llvmlite",
    "numpy",
    "opencv-python-headless",
    "pyyaml",
    "safetensors",
    "torch",
    "tqdm",
}
"""What a module may import at its top; llvmlite belongs to numba."""
APART = {"app/live/access.py": {"fastapi", "starlette"}, "app/live/server.py": {"fastapi", "starlette", "uvicorn"},
         "app/live/connections.py": {"uvicorn"}, "models/runtime/cuda.py": {"triton"}}  # fmt: skip
"""Modules that are imported only where these are: behind `--serve`, and beside torch's CUDA build."""


def test_every_package_is_declared() -> None:
    packages = {f"evburst.{path.parent.relative_to(ROOT)}".replace("/", ".") for path in ROOT.glob("*/**/__init__.py")
                if path.relative_to(ROOT).parts[0] in FOLDERS[1:]}  # fmt: skip
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages | {"evburst"}


def test_the_version_is_the_same_everywhere() -> None:
    """In CITATION.cff, the newest entry of the changelog and the README's BibTeX; the date is that of the release."""
    version = re.escape(PROJECT["project"]["version"])
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^version: {version}$", citation, re.MULTILINE)
    date = re.search(r"^date-released: (\d{4}-\d\d-\d\d)$", citation, re.MULTILINE)
    newest = re.search(r"^## \[(.+)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert date
    assert newest
    assert (re.escape(newest.group(1)), newest.group(2)) == (version, date.group(1))
    assert re.search(rf"version = \{{{version}\}}", (ROOT / "README.md").read_text())


def run(*words: str, cwd: Path, **environment: str) -> str:
    """stdout of a command that has to succeed, run with no other environment than PATH and what is given."""
    variables = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), **environment}
    done = subprocess.run(words, cwd=cwd, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(copy of the sources, folder into which their wheel is installed)."""
    folder = tmp_path_factory.mktemp("wheel")
    sources, target = folder / "sources", folder / "site"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file() and (path.name in ("pyproject.toml", PROJECT["project"]["readme"]) or "LICEN" in path.name):
            shutil.copy(path, sources)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(sources), cwd=folder)
    (wheel,) = folder.glob("*.whl")
    run(*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel), cwd=folder)
    return sources, target


@pytest.mark.slow
def test_the_wheel_installs_nothing_but_evburst(installed: tuple[Path, Path]) -> None:
    version = PROJECT["project"]["version"]
    assert {path.name for path in installed[1].iterdir()} == {"evburst", f"evburst-{version}.dist-info", "bin"}
    assert [path.name for path in (installed[1] / "bin").iterdir()] == ["evburst"]


@pytest.mark.slow
def test_the_wheel_holds_every_file(installed: tuple[Path, Path]) -> None:
    """Weights, sample, live page, templates: whatever lies in a folder of the package."""
    sources, target = installed
    expected = {path.relative_to(sources) for name in FOLDERS[1:] for path in (sources / name).rglob("*") if path.is_file()}
    expected |= {path.relative_to(sources / "evburst") for path in (sources / "evburst").rglob("*") if path.is_file()}
    found = {path.relative_to(target / "evburst") for path in (target / "evburst").rglob("*") if path.is_file()}
    assert {path for path in found if "__pycache__" not in path.parts} == expected
    assert Path("models/weights/street.safetensors") in found


@pytest.mark.slow
def test_the_wheel_works_from_any_folder(installed: tuple[Path, Path], tmp_path: Path) -> None:
    target = str(installed[1])
    output = run(sys.executable, "-m", "evburst", "--version", cwd=tmp_path, PYTHONPATH=target)
    assert output == f"evburst {PROJECT['project']['version']}\n"
    code = "import evburst.data.events, evburst.app; print(evburst.__file__, evburst.app.__file__)"
    assert run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=target).count(target) == 2
    shown = run(sys.executable, "-m", "evburst", "detect", "--help", cwd=tmp_path, PYTHONPATH=target)
    assert shown.startswith("usage: evburst detect")
    assert "--post.nms-iou" in shown
    sample = installed[1] / "evburst" / "data" / "samples" / "street_td.dat"
    info = run(sys.executable, "-m", "evburst", "events", "info", str(sample), cwd=tmp_path, PYTHONPATH=target)
    assert "format       dat" in info


@pytest.mark.slow
def test_the_source_archive_holds_what_a_checkout_does(tmp_path: Path) -> None:
    """The pages that README links to, the settings that they name, and what `make test` needs."""
    ignored = shutil.ignore_patterns(
        "__pycache__", ".git", ".venv", "*.egg-info", "*cache", ".mypy_links", "runs", "dist", "site"
    )
    sources = shutil.copytree(ROOT, tmp_path / "sources", ignore=ignored)
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", str(tmp_path), str(sources), cwd=tmp_path)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        found = {Path(*Path(name).parts[1:]) for name in opened.getnames()}
    folders = (*FOLDERS, "bench", "configs", "docs", "tests")
    expected = {path.relative_to(sources) for name in folders for path in (sources / name).rglob("*") if path.is_file()}
    linked = re.findall(r"\]\(([^):#]+)[)#]", (ROOT / "README.md").read_text())
    expected |= {Path(name) for name in (*linked, "Makefile", "constraints.txt", "CHANGELOG.md", "detect.py", ".ci/run")}
    assert expected <= found


def imported_at_the_top(text: str) -> set[str]:
    """Top-level names of the packages that a module imports when it is imported."""
    names = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    return names


def base(machine: str) -> set[str]:
    """Names of the packages that a plain installation brings on a processor."""
    found = map(Requirement, PROJECT["project"]["dependencies"])
    return {one.name for one in found if one.marker is None or one.marker.evaluate({"platform_machine": machine})}


@pytest.mark.parametrize("machine", ["aarch64", "arm64", "ARM64"])
def test_without_the_engine_int8_onnx_is_installed(machine: str) -> None:
    assert base(machine) == base("x86_64") | {"onnx", "onnxruntime"}
    engines = PROJECT["project"]["optional-dependencies"]["engines"]
    assert {text.partition(";")[0] for text in PROJECT["project"]["dependencies"] if "onnx" in text} < set(engines)


def test_base_and_extras_are_what_the_code_asks_for() -> None:
    """Imports at the top of modules are the base; `require` names extras that bring the package."""
    assert base("x86_64") == base("AMD64") == NEEDED - {"evburst", "llvmlite"}
    extras = PROJECT["project"]["optional-dependencies"]
    calls = []
    for name in FOLDERS[1:]:
        for path in (ROOT / name).rglob("*.py"):
            text = path.read_text()
            calls += re.findall(r'require\("([\w.]+)", "(\w+)"', text)
            foreign = {BASE.get(word, word) for word in imported_at_the_top(text) - sys.stdlib_module_names} - NEEDED
            assert foreign <= APART.get(str(path.relative_to(ROOT)), set()), (path, foreign)
    assert len(calls) >= 8
    for module, extra in calls:
        package = module.partition(".")[0].replace("_", "-")
        brought = " ".join(extras[extra]) + "".join(
            " ".join(extras[inner]) for inner in re.findall(r"\[(\w+)\]", str(extras[extra]))
        )
        assert package in brought, (module, extra)


def test_a_missing_package_names_the_packages_of_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nowhere", None)
    with pytest.raises(MissingPackageError, match=r'^writing it needs nowhere: pip install "nir>=1.0.6" "onnx>=1.17"$'):
        require("nowhere", "export", "writing it")
    with pytest.raises(MissingPackageError, match="needs nowhere: pip"):
        require("nowhere.inside", "export", "writing it")
    assert require("json", "export", "x").__name__ == "json"


def test_the_command_for_an_extra_names_all_its_packages_and_not_evburst() -> None:
    """No package index knows evburst; extras within an extra are replaced by their packages."""
    extras = PROJECT["project"]["optional-dependencies"]
    for extra in ("aedat4", "dv", "engines", "eval", "export", "hdf5", "live", "sensors", "tonic", "track", "window"):
        assert pip_install(extra) == "pip install " + " ".join(f'"{package}"' for package in extras[extra])
    of_training = [*extras["eval"], *(package for package in extras["train"] if "evburst" not in package)]
    assert sorted(re.findall('"(.*?)"', pip_install("train"))) == sorted(of_training)
    assert "evburst" not in pip_install("all")


@pytest.mark.parametrize("quote", ["'", '"'])
def test_the_packages_of_an_extra_are_read_from_the_metadata(quote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    extras = {"base>=1": None, "a>=1,<3": "inner", "evburst[inner]": "outer", "b": "outer", "c": "out"}
    listed = [name + (f" ; extra == {quote}{extra}{quote}" if extra else "") for name, extra in extras.items()]
    monkeypatch.setattr("evburst.data.extras.requires", lambda name: listed)
    assert pip_install("outer") == 'pip install "a>=1,<3" "b"'
    assert pip_install("new") == 'pip install ".[new]" in the folder of the checkout'


def test_a_checkout_that_is_not_installed_is_named_by_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which only the dependencies are installed: pip does not know the name evburst."""

    def requires(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("evburst.data.extras.requires", requires)
    monkeypatch.setattr("evburst.models.runtime.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "nowhere", None)
    in_checkout = 'pip install ".[{}]" in the folder of the checkout'
    with pytest.raises(MissingPackageError, match=re.escape(f"writing it needs nowhere: {in_checkout.format('dv')}")):
        require("nowhere", "dv", "writing it")
    assert ENGINES["onnx"].available("cpu").endswith(in_checkout.format("engines"))


def test_a_package_that_does_not_load_is_distinguished_from_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "halfthere.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    (tmp_path / "needsmore.py").write_text("import nowhere_to_be_found")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingPackageError, match=r"needs halfthere, which is installed but does not load \(libGL"):
        require("halfthere", "live", "x")
    with pytest.raises(MissingPackageError, match=r"needs needsmore, which .* \(No module named 'nowhere_to_be_found'\)"):
        require("needsmore", "live", "x")
