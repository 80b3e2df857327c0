"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evburst.data.errors import ConfigError, DataError
from evburst.data.files import make_folder, only_writer, part_of, replacing


def test_the_file_is_there_at_the_end_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as part:
        part.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half(error: Exception) -> None:
        with replacing(path) as part:
            part.write_text("half")
            raise error

    with pytest.raises(DataError, match=r"a.txt: cannot be written \(No space left on device\)"):
        write_half(OSError(28, "No space left on device"))
    with pytest.raises(ValueError, match="a bug"):
        write_half(ValueError("a bug"))
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file: cannot be written into \(File exists\)"), replacing(tmp_path / "file" / "a"):
        pass
    with pytest.raises(DataError, match="cannot be written into"):
        make_folder(tmp_path / "file" / "deeper")


@pytest.mark.parametrize("name", ["a.dat", "b" * 255, os.fsdecode(b"\xff.npz"), "\u4e2d" * 80 + ".csv"])
def test_parts_are_hidden_of_one_process_and_short_enough(tmp_path: Path, name: str) -> None:
    part = part_of(tmp_path / name)
    assert part.name.startswith(".")
    assert str(os.getpid()) in part.name
    assert part.suffix == Path(name).suffix or not Path(name).suffix
    part.write_text("")


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with only_writer(tmp_path / "run"), only_writer(tmp_path / "run", "a.safetensors"):
        with (
            pytest.raises(ConfigError, match="run: another process is writing its results there"),
            only_writer(tmp_path / "run"),
        ):
            pass
        with (
            pytest.raises(ConfigError, match=r"a.safetensors: another process"),
            only_writer(tmp_path / "run", "a.safetensors"),
        ):
            pass
    assert list((tmp_path / "run").iterdir()) == []
    with only_writer(tmp_path / "run"):
        pass


@pytest.mark.parametrize("name", ["", "a.safetensors"])
def test_an_interruption_says_what_was_written_if_anything_was(tmp_path: Path, name: str) -> None:
    for written in ([], ["a_sensitivity.npz"]):
        for file in written:
            (tmp_path / file).write_bytes(b"")
        with pytest.raises(KeyboardInterrupt) as caught, only_writer(tmp_path, name):
            raise KeyboardInterrupt
        notes = [f"what was written to {tmp_path / name} so far is complete and readable"] if written else []
        assert getattr(caught.value, "__notes__", []) == notes
    with pytest.raises(KeyboardInterrupt) as caught, only_writer(tmp_path, "b.safetensors"):
        raise KeyboardInterrupt
    assert not hasattr(caught.value, "__notes__")
