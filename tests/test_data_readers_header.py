"""Headers of DAT and RAW files with text in any encoding: no header byte becomes an event, no event becomes header."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evburst.data.readers import open_events
from tests.event_files import SAMPLE, SIZE, collect, dat_bytes, encode_evt2, encode_evt3

TEXTS = {
    "ascii": b"plain",
    "UTF-8, Latin": "Müller à é ß 20 °C µ".encode(),
    "UTF-8, Chinese": "中 – Straße".encode(),
    "UTF-8, no-break space and separators": "a\u00a0b\u2028c\u200b\u0085".encode(),
    "Latin-1": "Müller 20 °C".encode("latin-1"),
    "Windows-1252": "“x” – €".encode("cp1252"),
    "GBK": "中文标签".encode("gbk"),
    "Shift JIS": "日本語".encode("shift_jis"),
    "UTF-16": "Müller".encode("utf-16-le"),
    "control characters": b"\x00\x01\x1b[31m\x7f\x0b\x0c\x1c\x85",
    "every byte but the line's end": bytes(set(range(256)) - {10}),
    "a number and a percent sign": b"100 % of % end",
    "nothing": b"",
}
LABELS = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())


def check(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    stream = open_events(path)
    assert stream.sensor_size == SIZE
    assert collect(stream).tolist() == SAMPLE.tolist()
    assert stream.faults.found() == {}


@LABELS
@pytest.mark.parametrize("end", [b"% end\n", b"%end\r\n", b""])
@pytest.mark.parametrize(("encoding", "encode"), [(b"% evt 2.0\n", encode_evt2), (b"% evt 3.0\n", encode_evt3)])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_raw(tmp_path: Path, text: bytes, end: bytes, encoding: bytes, encode: object, place: int) -> None:
    lines = [encoding, b"% geometry 32x24\n"]
    lines.insert(place, b"% label " + text + b"\n")
    check(tmp_path / "a.raw", b"".join(lines) + end + encode(SAMPLE))  # type: ignore[operator]


@LABELS
@pytest.mark.parametrize("place", [0, 1, 4])
def test_dat(tmp_path: Path, text: bytes, place: int) -> None:
    content = dat_bytes(SAMPLE)
    lines = content[: content.index(b"\x0c\x08")].splitlines(keepends=True)
    lines.insert(place, b"% label " + text + b"\n")
    check(tmp_path / "a.dat", b"".join(lines) + content[content.index(b"\x0c\x08") :])


def test_text_without_a_percent_sign_before_the_end_is_header(tmp_path: Path) -> None:
    header = b"% evt 3.0\n% label two\nlines, caf\xe9\n% geometry 32x24\n% end\n"
    check(tmp_path / "a.raw", header + encode_evt3(SAMPLE))


@pytest.mark.parametrize("word", ["Straße", "中文"])
def test_keywords_of_other_alphabets(tmp_path: Path, word: str) -> None:
    check(tmp_path / "a.raw", f"% evt 3.0\n% geometry 32x24\n% {word} 7\n".encode() + encode_evt3(SAMPLE))


def test_a_header_of_more_than_a_page_is_recognised(tmp_path: Path) -> None:
    note = "".join(f"% note {k} ä\n" for k in range(2000)).encode()
    check(tmp_path / "a.xyz", note + b"% evt 2.0\n% geometry 32x24\n% end\n" + encode_evt2(SAMPLE))


@pytest.mark.parametrize("first", [0x25, 0x0A25, 0x8025])
def test_words_that_begin_with_the_byte_of_the_percent_sign(tmp_path: Path, first: int) -> None:
    words = np.array([first, 0x0A00], "<u2").tobytes()
    (tmp_path / "a.raw").write_bytes(b"% evt 3.0\n% geometry 32x24\n" + words + encode_evt3(SAMPLE))
    assert collect(open_events(tmp_path / "a.raw")).tolist()[-5:] == SAMPLE.tolist()
