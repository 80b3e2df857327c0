"""Kernels where numba finds no folder to keep them in."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba.core import caching

from evburst.data._numba import njit, private_folder
from tests.conftest import ROOT, in_new_process

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs users")


def triple(x: int) -> int:
    """A kernel."""
    return 3 * x


def ratio(a: float, b: float) -> float:
    """A kernel that divides."""
    return a / b


def another(x: int) -> int:
    """A kernel of its own cache file."""
    return 4 * x


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """numba may write neither beside the source nor to the user's cache; the temporary folder is `tmp_path`."""

    def refused(*_: Any) -> None:
        return None

    for name in ("InTreeCacheLocator", "UserWideCacheLocator", "_InTreeCacheLocator", "_UserWideCacheLocator"):
        if hasattr(caching, name):
            monkeypatch.setattr(getattr(caching, name), "from_function", refused)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_without_a_folder_numba_raises_and_ours_keeps_kernels_in_a_private_one(nowhere: Path) -> None:
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(triple)
    assert njit(cache=True)(triple)(2) == 6
    (folder,) = nowhere.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    assert list(folder.rglob("*.nbi"))
    assert numba.config.CACHE_DIR == ""


def test_kernels_divide_as_numpy_does() -> None:
    """A check before every division would keep their loops from being vectorised."""
    assert njit()(ratio)(1.0, 0.0) == np.inf
    with pytest.raises(ZeroDivisionError):
        njit(error_model="python")(ratio)(1.0, 0.0)


def test_a_folder_that_others_can_write_to_is_not_used(nowhere: Path) -> None:
    folder = nowhere / f"evburst-numba-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    assert private_folder() is None
    assert njit(cache=True)(triple)(2) == 6
    assert not list(folder.iterdir())
    folder.rmdir()
    (nowhere / "else").mkdir()
    folder.symlink_to(nowhere / "else")
    assert private_folder() is None
    folder.unlink()
    folder.write_text("")
    assert private_folder() is None


def test_without_a_temporary_folder_kernels_are_compiled(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(nowhere / "gone"))
    assert private_folder() is None
    assert njit(cache=True, nogil=True)(triple)(2) == 6


def test_a_folder_that_is_given_comes_first(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(nowhere / "given"))
    assert njit(cache=True)(triple)(2) == 6
    assert list((nowhere / "given").rglob("*.nbi"))
    assert private_folder() not in [nowhere / "given", None]


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_damaged_files_of_a_kernel_are_replaced(nowhere: Path, suffix: str, content: bytes) -> None:
    """As a power failure or a full disk leaves them."""
    assert njit(cache=True)(triple)(2) == 6
    (file,) = nowhere.rglob(f"*{suffix}")
    file.write_bytes(content)
    assert njit(cache=True)(triple)(3) == 9
    kernel = njit(cache=True)(triple)
    assert kernel(4) == 12
    assert sum(kernel.stats.cache_hits.values()) == 1


def test_where_a_kernel_cannot_be_kept_it_runs_with_one_warning(nowhere: Path, caplog: pytest.LogCaptureFixture) -> None:
    kernels = njit(cache=True)(triple), njit(cache=True)(another)
    (folder,) = {Path(kernel.stats.cache_path) for kernel in kernels}
    folder.rmdir()
    folder.write_text("")
    assert [kernel(2) for kernel in kernels] == [6, 8]
    (message,) = caplog.messages
    assert message.startswith(f"{folder}: compiled kernels cannot be kept there (")
    assert message.endswith("set NUMBA_CACHE_DIR to a writable folder to do so only once")


@pytest.mark.parametrize(
    "variables",
    [
        {"NUMBA_CPU_NAME": "generic"},
        {"NUMBA_DISABLE_JIT": "1"},
        pytest.param({"NUMBA_CPU_FEATURES": "+sse2,-avx2"}, marks=pytest.mark.slow),
    ],
)
def test_auto_follows_what_numba_compiles_for(tmp_path: Path, variables: dict[str, str]) -> None:
    """int8 needs AVX2; networks that are not in integer form then have the reference engine only."""
    code = "from evburst.models.runtime import choose; print(choose('auto', integer=False))"
    assert in_new_process(code, EVBURST_CACHE=str(tmp_path), **variables).strip() == "reference"


def test_a_long_compilation_is_announced_and_a_cached_kernel_is_not(nowhere: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "evburst")
    assert njit(cache=True)(triple)(2) == 6
    assert caplog.messages == []
    first = njit(cache=True, slow=True)(another)
    assert (first(2), first(3)) == (8, 12)
    assert njit(cache=True, slow=True)(another)(4) == 16  # from the cache
    assert caplog.messages == ["compiling the network's kernels for this machine, once; this takes up to a minute"]
    assert list(nowhere.rglob("*another*.nbi"))


def test_a_long_compilation_that_cannot_be_cached_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "evburst")
    assert njit(slow=True)(another)(2) == 8
    assert ["set NUMBA_CACHE_DIR to a writable folder" in message for message in caplog.messages] == [True]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--quiet"]])
def test_detect_announces_the_compilation_without_a_terminal(tmp_path: Path, flags: list[str]) -> None:
    """The network's kernel is replaced by a small one, because the real one takes long."""
    script = """
import sys
from evburst.app import detect
from evburst.app.cli import detect_main
from evburst.data._numba import njit

@njit(cache=True, slow=True)
def kernel(x):
    return x

detect.detect_file = lambda *_: sys.exit(int(kernel(0)))
detect_main(["--events", "a.dat", *sys.argv[1:]])
"""
    (tmp_path / "script.py").write_text(script)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "script.py"), *flags]
    texts = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr for _ in range(2)]
    announced = "" if flags else "compiling the network's kernels for this machine, once; this takes up to a minute\n"
    assert texts == [announced, ""]
