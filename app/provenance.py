"""Provenance of results: commit, package versions and processor."""

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
    """Return the commit (with "+changes" if the working tree differs from it), package versions and processor."""
    packages = ("evburst", "torch", "ultralytics", "numpy", "numba", "opencv-python", "opencv-python-headless")
    versions = {name: version_of(name) for name in packages}
    return {
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{name: v for name, v in versions.items() if v is not None}},
        "machine": _processor(),
    }


def installed_version() -> str:
    """Return this project's version, from the checkout's pyproject.toml or else from the installed package."""
    with suppress(OSError, KeyError, ValueError):
        return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])
    return version_of("evburst") or "unknown"


def version_of(package: str) -> str | None:
    """Return the version of an installed package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    if not (ROOT / "pyproject.toml").is_file():  # installed as a package: ROOT is not a checkout of this project
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
