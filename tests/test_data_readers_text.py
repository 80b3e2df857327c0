"""Text: separators, headers, seconds, lines cut short and lines that are wrong."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evburst.data.errors import EventFileError, SensorSizeError
from evburst.data.readers import ReadOptions, open_events, text
from tests.event_files import SAMPLE, SIZE, collect

LINES = ["1000 3 4 1", "1000 31 0 0", "1750 0 23 1", "62000 7 9 0", "62001 7 9 1"]


def read(path: Path, content: str | bytes) -> tuple[list[tuple[int, int, int, int]], dict[str, int]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    stream = open_events(path, SIZE)
    return collect(stream).tolist(), stream.faults.found()


@pytest.mark.parametrize("separator", [" ", ",", ", ", "\t", ";", "   "])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("header", ["", "t x y p", "#t x y p", "\n", "# recorded in a park\n# at night"])
def test_separators_headers_and_newlines(tmp_path: Path, separator: str, newline: str, header: str) -> None:
    lines = [header, *LINES] if header else LINES
    content = newline.join(lines).replace(" ", separator) + newline
    if header.startswith("# rec"):
        content = f"{header}\n" + newline.join(LINES).replace(" ", separator) + newline
    assert read(tmp_path / "a.csv", content) == (SAMPLE.tolist(), {})


@pytest.mark.parametrize(
    ("header", "order"), [("x,y,p,t", (1, 2, 3, 0)), ("polarity,Timestamp,y,x", (3, 0, 2, 1)), ("# p t x y", (3, 0, 1, 2))]
)
def test_the_header_says_the_order(tmp_path: Path, header: str, order: tuple[int, ...]) -> None:
    rows = [",".join(str(event[i]) for i in order) for event in SAMPLE.tolist()]
    assert read(tmp_path / "a.csv", "\n".join([header, *rows])) == (SAMPLE.tolist(), {})


@pytest.mark.parametrize("blank", ["", "   ", "\t"])
@pytest.mark.parametrize("separator", [" ", ",", ";"])
def test_blank_lines_are_passed_over(tmp_path: Path, separator: str, blank: str) -> None:
    first, *others = (line.replace(" ", separator) for line in LINES)
    assert read(tmp_path / "a.csv", "\n".join([first, blank, *others, blank, ""])) == (SAMPLE.tolist(), {})


def test_decimal_commas_from_the_second_time_on(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("t;x;y;p\n0;1;2;1\n0,000001;1;1;1\n1,5;3;4;0\n")
    stream = open_events(tmp_path / "a.csv", SIZE, options=ReadOptions(time_unit="s"))
    assert collect(stream)["t"].tolist() == [0, 1, 1_500_000]


def test_further_columns_are_passed_over(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", ",t,x,y,p,note\n0,5,1,2,1,park\n1,6,1,2,0,night\n")[0] == [(5, 1, 2, 1), (6, 1, 2, 0)]


@pytest.mark.parametrize("content", ["5 1 2 -1\n6 1 2 1\n", "5 1 2 0\n6 1 2 1", "5 1 2 0.0\n6 1.0 2 1"])
def test_spellings_of_numbers(tmp_path: Path, content: str) -> None:
    assert read(tmp_path / "a.txt", content) == ([(5, 1, 2, 0), (6, 1, 2, 1)], {})


def test_times_with_a_decimal_point_are_seconds(tmp_path: Path) -> None:
    content = "0.000007 1 2 0\n1.5 1 2 1\n1674050002.090794 3 4 1\n"
    assert [t for t, *_ in read(tmp_path / "events.txt", content)[0]] == [7, 1_500_000, 1_674_050_002_090_794]


def test_epoch_times_stay_64_bits_wide(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", "1674050002090794,1,2,1\n")[0] == [(1_674_050_002_090_794, 1, 2, 1)]


def test_a_byte_order_mark_is_none_of_the_events(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", b"\xef\xbb\xbft,x,y,p\n5,1,2,1\n")[0] == [(5, 1, 2, 1)]
    assert read(tmp_path / "b.csv", b"\xef\xbb\xbf5,1,2,1\n")[0] == [(5, 1, 2, 1)]


def test_faults_are_stated_as_written(tmp_path: Path) -> None:
    """Quotes are left out before numbers are parsed, but belong to what was cut off and to what an error shows."""
    quoted = [",".join(f'"{field}"' for field in line.split()) for line in LINES]
    assert read(tmp_path / "a.csv", "\n".join([*quoted, '"70000","1"'])) == (SAMPLE.tolist(), {"truncated_bytes": 11})
    with pytest.raises(EventFileError, match=f'line {len(quoted) + 1} is \'"70000","1","zz","1"\''):
        read(tmp_path / "b.csv", "\n".join([*quoted, '"70000","1","zz","1"', *quoted]))


@pytest.mark.parametrize("block", [1, 7, 11, 40])
def test_blocks_join(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", block)
    assert read(tmp_path / "a.csv", "\n".join(LINES)) == (SAMPLE.tolist(), {})


@pytest.mark.parametrize(("end", "lost"), [("70000 1", 7), ("70000 1 2 ", 10), ("7", 1), ("70000 1 2 -", 11), ("70000 1\r", 8)])
def test_truncated(tmp_path: Path, end: str, lost: int) -> None:
    assert read(tmp_path / "a.csv", "\n".join([*LINES, end])) == (SAMPLE.tolist(), {"truncated_bytes": lost})
    stream = open_events(tmp_path / "a.csv", SIZE)
    assert [len(collect(stream)), len(collect(stream)), stream.faults.truncated_bytes] == [5, 5, lost]


@pytest.mark.parametrize(
    ("line", "shown"), [("70000 1 2", "'70000 1 2'"), ("# park", "'# park'"), ("70000 one 2 1", "'70000 one 2 1'")]
)
@pytest.mark.parametrize("place", [0, 1, 4])
def test_a_corrupt_line_is_named(tmp_path: Path, line: str, shown: str, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", 25)
    lines = [*LINES[: place + 1], line, *LINES[place + 1 :]]
    with pytest.raises(EventFileError) as error:
        read(tmp_path / "a.csv", "t x y p\n" + "\n".join(lines) + "\n")
    assert f": line {place + 3} is {shown}; expected numbers t x y p" in str(error.value)


@pytest.mark.parametrize("line", ["1750 0 23 1 1800 0 3 1", "1750 0 23 1,1800 0 3 1", "1750 0 23 1 7"])
def test_two_lines_run_together_are_no_event(tmp_path: Path, line: str) -> None:
    with pytest.raises(EventFileError, match=r"line 2 is .*4 columns as in the first line"):
        read(tmp_path / "a.csv", f"1000 3 4 1\n{line}\n1900 3 4 1\n")


def test_errors_do_not_hand_control_characters_to_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(EventFileError) as error:
        read(tmp_path / "a.csv", b"t,x,y,\x1b[2J\x07\n1,2,3,1\n")
    assert str(error.value).endswith("line 1: no column p; found t, x, y, \\x1b[2J\\x07")


@pytest.mark.parametrize("line", ["1800.5 1 2 1", "1800 1.5 2 1", "nan 1 2 1", "1800 1e300 2 1", "99999999999999999999 1 2 1"])
def test_numbers_that_are_not_whole(tmp_path: Path, line: str) -> None:
    with pytest.raises(EventFileError, match="line 2 is"):
        read(tmp_path / "a.csv", f"1000 3 4 1\n{line}\n")


@pytest.mark.parametrize("line", ["1800.0 1 2 1", "1.8e3 1 2 1", "inf 1 2 1"])
def test_numbers_that_are_no_integers_among_whole_times(tmp_path: Path, line: str) -> None:
    with pytest.raises(EventFileError, match=r"line 2 is .*\(a time is not a whole number; pass --time-unit"):
        read(tmp_path / "a.csv", f"1000 3 4 1\n{line}\n")


@pytest.mark.filterwarnings("ignore:of the program")
def test_a_program_may_warn_while_text_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters of warnings hold in all threads: other ones, for reading, would make an exception of it."""
    warned, loadtxt = list[int](), np.loadtxt

    def loading(lines: list[bytes], *args: Any, **options: Any) -> Any:
        warnings.warn("of the program", stacklevel=1)
        warned.append(len(lines))
        return loadtxt(lines, *args, **options)

    monkeypatch.setattr(np, "loadtxt", loading)
    assert read(tmp_path / "a.csv", "1000 3 4 1\n1800 1.0 2 1\n")[0] == [(1000, 3, 4, 1), (1800, 1, 2, 1)]
    assert warned


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("t,x,y,p\n", "no line of numbers 't x y p' within its first 8 bytes"),
        ("# only words\n", "no line of numbers 't x y p' within its first 13 bytes"),
        ("t,x,y\n1,2,3\n", "line 1: no column p; found t, x, y"),
        (",t,x,y,p\n5,1,2,1\n", "the header names 5 columns, the first event has 4"),
        ("1 2 3\n", "the first event has 3 columns, expected t x y p"),
        ("x,y,p,t\n1,2,0\n", "the header names 4 columns, the first event has 3"),
        ("1 2 3 7\n", "events 0 to 0, from line 1: polarity 7 at index 0 of these; expected 0 and 1, or -1 and 1"),
    ],
)
def test_text_that_is_no_events(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(EventFileError) as error:
        read(tmp_path / "a.csv", content)
    assert str(error.value) == f"{tmp_path / 'a.csv'}: {message}"


def test_the_size_is_asked_for_with_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\n".join(LINES))
    with pytest.raises(SensorSizeError, match="pass --sensor-size 32x24"):
        open_events(tmp_path / "a.csv")


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2**62), st.integers(0, 65_535), st.integers(0, 65_535), st.integers(0, 1)),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from([",", " ", "\t"]),
)
def test_any_events(tmp_path_factory: pytest.TempPathFactory, events: list[tuple[int, int, int, int]], separator: str) -> None:
    content = "".join(separator.join(map(str, event)) + "\n" for event in events)
    assert read(tmp_path_factory.getbasetemp() / "any.txt", content)[0] == events
