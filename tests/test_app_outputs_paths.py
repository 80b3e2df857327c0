"""Files that a run may not write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evburst.app.outputs.paths import may_coincide, refuse_overwriting, same_file
from evburst.data.errors import ConfigError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A recording."""
    (tmp_path / "in.dat").write_bytes(b"events")
    return tmp_path / "in.dat"


def test_a_new_file_may_be_written(source: Path) -> None:
    refuse_overwriting(source.with_name("out.dat"), [source, None, "street", "rtsp://host/1"])
    refuse_overwriting(source.parent / "gone" / "out.dat", [source])  # that the folder is missing, who writes will say


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_recognised_under_another_name(source: Path, overwrite: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    Path("soft.dat").symlink_to("in.dat")
    os.link("in.dat", "hard.dat")
    Path("folder").symlink_to(source.parent)
    for name in ("in.dat", "./in.dat", "soft.dat", "hard.dat", "folder/in.dat"):
        with pytest.raises(ConfigError, match="which this run reads"):
            refuse_overwriting(Path(name), [str(source)], overwrite)


def test_an_input_that_does_not_exist_yet_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "folder").symlink_to(tmp_path)
    assert same_file(tmp_path / "new.dat", tmp_path / "folder" / "new.dat")
    assert not same_file(tmp_path / "new.dat", tmp_path / "other.dat")
    assert not same_file("a\0b", "a")


def test_an_existing_file_is_overwritten_only_where_asked(source: Path) -> None:
    old = source.with_name("old.dat")
    old.write_bytes(b"old")
    (dangling := source.with_name("dangling.dat")).symlink_to("nowhere")
    for path in (old, dangling):
        with pytest.raises(ConfigError, match="--overwrite"):
            refuse_overwriting(path, [source])
        refuse_overwriting(path, [source], overwrite=True)


def test_folders_and_devices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        refuse_overwriting(tmp_path, [], overwrite=True)
    os.mkfifo(tmp_path / "pipe")
    for path in (Path(os.devnull), tmp_path / "pipe"):
        with pytest.raises(ConfigError, match="is a device or a pipe, which would be replaced"):
            refuse_overwriting(path, [], overwrite=True)
        refuse_overwriting(path, [], streams=True)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a.csv", "a.csv", True),
        ("a.csv", "b.csv", False),
        ("a*", "*b", True),
        ("a*c", "a?b*", True),
        ("a*.csv", "b*.csv", False),
        ("a?", "a", False),
        ("a**", "a", True),
        ("[ab].csv", "a.csv", True),
        ("a/x.csv", "x.csv", False),
        ("a/x.csv", "A\\X.csv", True),
        ("a/x.csv", "a", True),
        ("*/x.csv", "a/*.csv", True),
        ("a/**/x.csv", "a/b/c/x.csv", True),
        ("crops/*us_*.png", "crops/*_mask.png", True),
        ("crops/*us_*.png", "crops/index.csv", False),
    ],
)
def test_names_and_patterns_that_may_be_the_same_file(one: str, other: str, expected: bool) -> None:
    assert (may_coincide(one, other), may_coincide(other, one)) == (expected, expected)
