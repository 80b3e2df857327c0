"""Where a result comes from: commit, versions, machine."""

from __future__ import annotations

import platform
import subprocess
import tomllib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def provenance() -> dict[str, Any]:
    """Commit (with "+changes" if the tree differs from it), package versions, processor."""
    packages = ("evburst", "torch", "ultralytics", "numpy", "numba", "opencv-python", "opencv-python-headless")
    found = {name: version_of(name) for name in packages}
    return {
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{name: v for name, v in found.items() if v is not None}},
        "machine": _processor(),
    }


def installed_version() -> str:
    """Version of this project: of the installed package, or of the checkout's pyproject.toml."""
    with suppress(OSError, KeyError, ValueError):
        return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])
    return version_of("evburst") or "unknown"


def version_of(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    if not (ROOT / "pyproject.toml").is_file():  # installed: the folder above is not a checkout of this project
        return "unknown"

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
