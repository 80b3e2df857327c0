"""Text: one event per line, `t x y p` separated by commas, semicolons, tabs or spaces, streamed in blocks.

- A first line of names ("timestamp,x,y,polarity", also after a '#') gives the order of the columns. Without one it is t x y p,
  or that of `ReadOptions.columns`, or x y p t in CSVs of Prophesee's tools, which begin with `%geometry:W,H`.
  Further columns are ignored, but every line must have as many as the first: any other number means two merged lines.
  Lines that begin with '#' or '%' are comments before the first event only; blank lines are skipped.
- The sensor's size may be in a comment (`# sensor_size 304x240`, `%geometry:304,240`) or, as in E2VID's files, alone in the
  first line (`240 180`).
- Times are microseconds, or seconds if they have fractions, as in `events.txt` of the DAVIS recordings; see `columns`.
- p may be 0 and 1, -1 and 1, True and False, on and off. Numbers may have decimal commas if ',' is not the separator.
- An unreadable last line without a line end is treated as truncated and counted in `truncated_bytes`; any other unreadable line
  is an error.

Text can be read from a pipe, once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evburst.data.errors import EventFileError, NoEventsError
from evburst.data.events import Events, SensorSize
from evburst.data.readers import reader
from evburst.data.readers.columns import COLUMN_NAMES, SAMPLE_EVENTS, Unit, columns_to_events, judge_order, judge_times
from evburst.data.readers.options import DEFAULT_OPTIONS, ReadOptions
from evburst.data.readers.packets import PacketFile, settle_size, split_packet
from evburst.data.readers.pipes import Pipe
from evburst.data.readers.text_header import POLARITY_WORDS, TextHeader, is_text, parse_text_header

BLOCK_BYTES = 1 << 22
MAX_LINE_BYTES = 1 << 16
_HEAD_BYTES = 1 << 16
_MAX_COORDINATE = 1 << 31
_MAX_TIME = 1 << 62
_OWN = re.compile(rb"# sensor_size \d+x\d+\r?\nt,x,y,p\r?\n")
"""The first lines of a file of evburst's own writer, whose times are in µs."""
_MARKS = re.compile(rb"[.eE]")
_MARKS_OF_FRACTIONS = (b".", b"e", b"E", b"n", b"N")
"""Numbers that are not integers contain one of these: 1.5, 1e3, nan, inf."""
_WORDS = re.compile(rb"\b(true|on|false|off)\b", re.IGNORECASE)


class TextFile(PacketFile):
    """A recording in text form; an EventStream.

    Args:
        path: the file.
        sensor_size: (W, H) px, if the text does not state it.
        options: unit of time and order of columns.
        pipe: read instead of the file at `path`; its packets can be read only once.

    Attributes:
        time_unit: unit of the times in the file.
    """

    def __init__(
        self,
        path: Path,
        sensor_size: SensorSize | None = None,
        options: ReadOptions = DEFAULT_OPTIONS,
        pipe: Pipe | None = None,
    ) -> None:
        super().__init__(path)
        self._pipe, self._is_read = pipe, False
        self.finite = pipe is None
        if pipe is None:
            with path.open("rb") as file:
                head = file.read(_HEAD_BYTES)
        else:
            head = pipe.head[:_HEAD_BYTES]
        self._newline = b"\n" if b"\n" in head or b"\r" not in head else b"\r"
        self._is_own = _OWN.match(head) is not None
        if len(head) == _HEAD_BYTES and self._newline not in head:
            raise self._too_long(1)
        header = parse_text_header(path, head)
        self._start, self._header_lines = header.start, header.n_lines
        self._places = header.places(path, options)
        self._n_columns, self._separator = len(header.fields), header.separator
        self._has_quotes = b'"' in header.first
        self._has_commas = self._separator != "," and b"," in head[header.start :]
        self._has_words = header.fields[self._places["p"]].lower() in POLARITY_WORDS
        whole_lines = head.rfind(self._newline) + 1 if len(head) == _HEAD_BYTES else len(head)
        lines = self._normalise(head[header.start : whole_lines]).splitlines()
        times = [fields[self._places["t"]] for fields in self._split(lines)]
        # A decimal point among whole times is a corrupt line, unless the caller states the unit.
        self._has_float_times = any(_MARKS.search(t) for t in (times[:1] if options.time_unit == "auto" else times))
        self._unit = self._infer_unit(lines, options, header)
        self.time_unit = self._unit.name
        self.sensor_size = settle_size(path, header.size, sensor_size, self.packets)

    def packets(self) -> Iterator[Events]:
        """See EventStream.packets.

        Raises:
            EventFileError: a line cannot be read (the message states which), or a pipe is read again.
        """
        line, count = self._header_lines + 1, 0
        for block, is_last in self._blocks():
            columns = self._parse(block, line, is_last)
            n_events = len(columns["t"])
            if n_events:
                place = f"{self.path}: events {count} to {count + n_events - 1}, from line {line}"
                yield from split_packet(columns_to_events(columns, place, self.faults, self._unit))
            count += n_events
            line += block.count(self._newline)
        if count == 0:
            raise NoEventsError(f"{self.path}: no event in the whole file")

    def _blocks(self) -> Iterator[tuple[bytes, bool]]:
        """Yield complete lines: a few MB at a time, of a pipe what has arrived; the last ones may lack their last line end."""
        if self._is_read and self._pipe is not None:
            raise EventFileError(f"{self.path}: a pipe can be read only once: save it to a file first")
        self._is_read = True
        with self.path.open("rb") if self._pipe is None else nullcontext(self._pipe) as file:
            for position in range(0, self._start, BLOCK_BYTES):
                file.read(min(BLOCK_BYTES, self._start - position))
            rest, line = b"", self._header_lines + 1
            while data := file.read1(BLOCK_BYTES):
                data = rest + data
                cut = data.rfind(self._newline) + 1
                if cut:
                    line += data.count(self._newline)
                    yield data[:cut], False
                rest = data[cut:]
                if len(rest) > MAX_LINE_BYTES:
                    raise self._too_long(line)
            if rest:
                yield rest, True

    def _too_long(self, line: int) -> EventFileError:
        return EventFileError(f"{self.path}: line {line} is longer than {MAX_LINE_BYTES} bytes: not a text file of events")

    def _split(self, lines: list[bytes]) -> Iterator[list[bytes]]:
        """Yield the fields of those lines that have as many as the first."""
        separator = self._separator.encode() if self._separator else None
        for fields in (line.split(separator) for line in lines):
            if len(fields) == self._n_columns:
                yield fields

    def _infer_unit(self, lines: list[bytes], options: ReadOptions, header: TextHeader) -> Unit:
        """Infer the unit of time from the first events; raises EventFileError if they are implausible."""
        fields = list(self._split(lines))[:SAMPLE_EVENTS]
        try:
            sample = np.array(fields, "S32").reshape(len(fields), -1).astype(np.float64)
        except ValueError:
            # A column of words, or a corrupt line, which `packets` will report.
            if options.time_unit == "auto" and not header.unit:
                return Unit("s" if self._has_float_times else "us", stated=False)
            sample = np.empty((0, self._n_columns))
        columns = list(sample.T)
        if not header.names and not header.metavision:
            judge_order(self.path, columns, self._places, options)
        taken = {name: columns[place] for name, place in self._places.items()}
        return judge_times(self.path, taken, options, "us" if self._is_own else header.unit, doubted=not self._is_own)

    def _normalise(self, block: bytes) -> bytes:
        """Rewrite quotes, decimal commas and words for the polarity so that NumPy can read the lines."""
        if self._has_quotes:
            block = block.replace(b'"', b"")
        if self._has_commas:
            block = block.replace(b",", b".")
        return _WORDS.sub(lambda word: POLARITY_WORDS[word[0].lower()], block) if self._has_words else block

    def _parse(self, block: bytes, first_line: int, is_last: bool) -> dict[str, NDArray[Any]]:
        lines = self._normalise(block).splitlines()
        try:
            return self._columns(lines)
        except ValueError as error:
            number = self._first_bad(lines)
            as_written = block.splitlines(keepends=True)
            if is_last and number == len(lines) - 1:
                self.faults.truncated_bytes = len(as_written[-1])
                return self._columns(lines[:-1])
            text = as_written[number].rstrip(b"\r\n").decode("latin-1")
            raise EventFileError(
                f"{self.path}: line {first_line + number} is {text[:60]!r}; expected numbers t x y p ({error})"
            ) from None

    def _columns(self, lines: list[bytes]) -> dict[str, NDArray[Any]]:
        """Parse lines into columns; raises ValueError if a line is not numeric."""
        order = [self._places[column] for column in COLUMN_NAMES]
        lines = [line for line in lines if line.strip()]
        if not lines:
            return {column: np.empty(0, np.int64) for column in COLUMN_NAMES}
        separator = self._separator.encode() if self._separator else None
        if not {len(line.split(separator)) for line in lines} <= {self._n_columns}:
            raise ValueError(f"{self._n_columns} columns as in the first line")
        if not self._has_float_times:
            self._check_whole_times(lines)
        types = np.dtype([("t", np.float64 if self._has_float_times else np.int64), ("x", "f8"), ("y", "f8"), ("p", "f8")])
        try:
            rows = np.loadtxt(lines, types, None, self._separator, usecols=order, ndmin=1, encoding="latin-1")
        except DeprecationWarning as warning:  # an error if the program's filters say so
            raise ValueError(str(warning)) from None
        limit = _MAX_TIME if self._has_float_times else np.iinfo(np.int64).max
        if not ((-limit < rows["t"]) & (rows["t"] < limit)).all():
            raise ValueError("a time is not a number, or too large")
        return {column: rows[column] if column == "t" else _whole(rows[column], column) for column in COLUMN_NAMES}

    def _check_whole_times(self, lines: list[bytes]) -> None:
        """Raise ValueError if a time is a number, but not a whole one.

        NumPy before 2.4 reads '1.5' as the integer 1 and only warns; filters that make this warning an error would hold in all
        threads of the program. Of integers beyond 64 bits it makes the largest or the smallest one.
        """
        text = b"\n".join(lines)
        if not any(mark in text for mark in _MARKS_OF_FRACTIONS):
            return
        times = (fields[self._places["t"]] for fields in self._split(lines))
        if any(not time.isdigit() and _is_fraction(time) for time in times):
            raise ValueError("a time is not a whole number; pass --time-unit if it is not in µs")

    def _first_bad(self, lines: list[bytes]) -> int:
        """Return the index of the first line that cannot be read, by bisection."""
        low, high = 0, len(lines)
        while high - low > 1:
            middle = (low + high) // 2
            try:
                self._columns(lines[low:middle])
            except ValueError:
                high = middle
            else:
                low = middle
        return low


def _open_pipe(pipe: Pipe, sensor_size: SensorSize | None, options: ReadOptions) -> TextFile:
    return TextFile(pipe.path, sensor_size, options, pipe)


@reader("csv", recognise=is_text, suffixes=(".csv", ".txt"), signature=False, defined=False, pipe=_open_pipe)
def open_text(path: Path, sensor_size: SensorSize | None = None, options: ReadOptions = DEFAULT_OPTIONS) -> TextFile:
    """Open a text file; see TextFile."""
    return TextFile(path, sensor_size, options)


def _is_fraction(field: bytes) -> bool:
    """Return whether a text is a number, but not an integer."""
    with suppress(ValueError):
        int(field)
        return False
    with suppress(ValueError):
        float(field)
        return True
    return False


def _whole(values: NDArray[np.float64], name: str) -> NDArray[np.int64]:
    if not ((np.abs(values) < _MAX_COORDINATE) & (np.rint(values) == values)).all():
        raise ValueError(f"{name} is not a whole number")
    return values.astype(np.int64)
