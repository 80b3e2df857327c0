"""Files that are often mistaken for event recordings, and advice on what to do with them."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from evburst.data.errors import EventFileError

APPLE_DOUBLE = b"\x00\x05\x16\x07"
_DEVICES = {
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a disk",
    stat.S_IFSOCK: "a socket",
}
_PICTURE = "a picture, not an event recording"
_VIDEO = "a video, not an event recording: evburst live --video FILE converts it to events"
_PICKLE = "a Python pickle, which can execute arbitrary code when loaded and is not supported: save the events as .npz or .csv"
_UTF16 = "text in UTF-16: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"
_UTF32 = "text in UTF-32: save it as UTF-8 (iconv -f UTF-32 -t UTF-8)"

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (rb"\x1f\x8b\x08[\x00-\x1f]", "compressed with gzip: gunzip it first"),
    (rb"BZh[1-9]1AY&SY", "compressed with bzip2: bunzip2 it first"),
    (rb"\xfd7zXZ\x00", "compressed with xz: unxz it first"),
    (rb"\x28\xb5\x2f\xfd", "compressed with zstd: unzstd it first"),
    (rb"\x04\x22\x4d\x18", "compressed with lz4: unlz4 it first"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (rb"Rar!\x1a\x07", "a rar archive: unpack it first"),
    (rb".{257}ustar", "a tar archive: unpack it first"),
    (rb"PK\x03\x04.{26}[^/]{0,200}/(data\.pkl|\.data|byteorder|version)", "a PyTorch file without events: is it weights?"),
    (rb"PK[\x03\x05]", "a zip archive without arrays: unzip it first"),
    (rb"....ftyp", _VIDEO),
    (rb"RIFF....AVI ", _VIDEO),
    (rb"\x1a\x45\xdf\xa3", _VIDEO),
    (rb"GIF8[79]a", _VIDEO),
    (rb"\x89PNG\r\n\x1a\n", _PICTURE),
    (rb"\xff\xd8\xff", _PICTURE),
    (rb"RIFF....WEBP", _PICTURE),
    (re.escape(APPLE_DOUBLE), "a side file of macOS (AppleDouble) without events: use the file without '._' in its name"),
    (rb"\x80[\x02-\x05][\x95}\](c]", _PICKLE),
    (rb"version https://git-lfs", "a Git LFS pointer, not the recording itself: git lfs pull"),
    (rb"\s*<(!DOCTYPE|html|HTML|\?xml)", "a web page or XML, not an event recording: did the download fail?"),
    (rb"#ROSBAG V", "a ROS bag of another version than 2.0: rosbag fix converts it"),
    (rb"%PDF-", "a PDF, not an event recording"),
    (rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff|(\x00{3}[\t\r\n -~]){4}|([\t\r\n -~]\x00{3}){4}", _UTF32),
    (rb"\xff\xfe|\xfe\xff", _UTF16),
    (rb"([\t\r\n -~]\x00){8}|(\x00[\t\r\n -~]){8}", _UTF16),
)  # fmt: skip
_COMPILED = tuple((re.compile(pattern, re.DOTALL), meaning) for pattern, meaning in _SIGNATURES)


def describe_foreign(head: bytes) -> str | None:
    """Describe a file with these first bytes and what to do with it; returns None if its type is unknown."""
    return next((meaning for pattern, meaning in _COMPILED if pattern.match(head)), None)


def is_pipe(path: Path) -> bool:
    """Return whether `path` is a pipe rather than a regular file.

    Raises:
        EventFileError: `path` does not exist, or is neither of the two.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise EventFileError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise EventFileError(f"{path}: cannot be read ({reason})") from None
    if stat.S_ISDIR(mode):
        raise EventFileError(f"{path}: cannot be read: a folder, not a regular file; name a recording in it")
    if (kind := _DEVICES.get(stat.S_IFMT(mode))) is not None:
        raise EventFileError(f"{path}: cannot be read: {kind}, not a regular file")
    return stat.S_ISFIFO(mode)
