"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import pytest
from filelock import FileLock

from evburst.data.errors import ConfigError, DataError
from evburst.data.files import LOCK, make_folder, only_writer, part_of, replacing


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
    assert list(tmp_path.iterdir()) == []  # nothing was written


@pytest.mark.skipif(os.name == "nt", reason="Windows refuses to delete a file that is open")
def test_the_lock_of_a_deleted_file_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file was deleted by its holder before it could be locked, and another process holds a new one."""
    acquire, other = FileLock.acquire, FileLock(tmp_path / LOCK, timeout=0)

    def late(lock: FileLock) -> None:
        monkeypatch.setattr(FileLock, "acquire", acquire)
        lock.acquire()
        (tmp_path / LOCK).unlink()
        other.acquire()

    monkeypatch.setattr(FileLock, "acquire", late)
    with pytest.raises(ConfigError, match="another process is writing"), only_writer(tmp_path):
        pass
    assert (tmp_path / LOCK).exists()
    other.release()
    with only_writer(tmp_path):
        pass


@pytest.mark.skipif(os.name == "nt", reason="Windows refuses to delete a file that is open")
def test_the_file_is_deleted_before_another_process_can_lock_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, release = list[bool](), FileLock.release
    monkeypatch.setattr(FileLock, "release", lambda lock: (found.append((tmp_path / LOCK).exists()), release(lock)))
    with only_writer(tmp_path):
        pass
    assert found == [False]


def refused_run(folder: Path, name: str, written: Path | None = None) -> None:
    with only_writer(folder, name):
        if written:
            written.write_text("kept")
        raise DataError("refused")


@pytest.mark.parametrize("name", ["", "a.safetensors"])
def test_a_folder_without_results_does_not_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "mine", tmp_path / "mine" / "new" / "run"):
        with pytest.raises(DataError):
            refused_run(folder, name)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]
    with pytest.raises(DataError):
        refused_run(tmp_path / "mine" / "new" / "run", name, tmp_path / "mine" / "new" / "part.txt")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "new", "part.txt"]


def interrupted_run(folder: Path, name: str, written: tuple[str, ...], appended: bool) -> None:
    with only_writer(folder, name):
        for file in written:
            with nullcontext(folder / file) if appended else replacing(folder / file) as part, part.open("ab") as open_file:
                open_file.write(b"written")
        raise KeyboardInterrupt


def note_of_an_interruption(folder: Path, name: str, *written: str, appended: bool = False) -> str:
    """What an interrupted run says that has replaced these files, or appended to them."""
    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted_run(folder, name, written, appended)
    return "; ".join(getattr(caught.value, "__notes__", []))


def test_an_interruption_says_which_outputs_were_written(tmp_path: Path) -> None:
    out, beside = tmp_path / "a.safetensors", tmp_path / "a_report.json"
    assert note_of_an_interruption(tmp_path, out.name) == ""
    readable = "so far is complete and readable"
    assert note_of_an_interruption(tmp_path, out.name, beside.name) == f"what was written to {beside} {readable}"
    assert note_of_an_interruption(tmp_path, out.name) == "", "an earlier file beside it is not the output"
    assert note_of_an_interruption(tmp_path, out.name, out.name) == f"what was written to {out} {readable}"
    assert note_of_an_interruption(tmp_path, out.name) == f"{out} is unchanged"
    assert note_of_an_interruption(tmp_path, out.name, beside.name) == (
        f"what was written to {beside} {readable}; {out} is unchanged"
    )
    both = note_of_an_interruption(tmp_path, out.name, beside.name, out.name)
    assert both == f"what was written to {out}, {beside} {readable}"
    assert note_of_an_interruption(tmp_path, "ab.safetensors") == "", "files of another name do not count"
    assert note_of_an_interruption(tmp_path, out.name, "ab.safetensors") == f"{out} is unchanged"


def test_an_interruption_says_whether_a_folder_was_written_to(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert note_of_an_interruption(out, "") == ""
    readable = f"what was written to {out} so far is complete and readable"
    assert note_of_an_interruption(out, "", "parts/a.npz") == readable
    assert note_of_an_interruption(out, "") == f"{out}: its files are unchanged"
    assert note_of_an_interruption(out, "", "parts/a.npz") == readable
    assert note_of_an_interruption(out, "", "parts/a.npz", appended=True) == readable
