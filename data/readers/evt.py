"""Prophesee RAW: `%` header, then EVT2, EVT2.1, EVT3 or EVT4 words. Memory-mapped, and decoded packet by packet by our kernels.

Sources: docs.prophesee.ai, "Data encoding formats" and "RAW file format"; of EVT4 the decoder in OpenEB 5 (Apache 2.0). The
words are described in `evt_kernels`.

The header states the encoding (`% evt 3.0`, or `% format EVT3;height=720;width=1280`, which takes precedence) and in newer
files the sensor's size (in `% format`, or `% geometry 1280x720`). Older files do not state it, so the caller must pass it.

EVT2.1 words of 64 bits come in two orders: "little" (GenX320: one little-endian word) and "legacy" (IMX636, Gen4.1: two
little-endian halves, the high one first). The header may state the `endianness`; otherwise the order is the one in which the
first words read as TIME_HIGH (type 8 in the high half, zero in the low one). Big-endian files are rejected.

Dropped and counted:

- bytes after the last complete word (`faults.truncated_bytes`);
- events before the first TIME_HIGH (`faults.untimed_events`), and EVT3 events before the first row or base column
  (`faults.unplaced_events`). EVT3 events between TIME_HIGH and the next TIME_LOW use 0 for the low bits;
- time words that the next one contradicts (`faults.contradicted_times`), words of undefined type
  (`faults.undefined_words`), and valid words that are not events (`skipped_words`, by name).

Kept: events outside the sensor (a representation counts them), and times as stored in the file. EVT3 does not order events
of different readout sources, so TIME_LOW, and hence t, may fall by some microseconds. This is no new period of the low bits;
decoders that treat it as one are 4096 µs off from there on. `windows` handles it as any other disorder.
A file with words but without a single usable event has no packets and no windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evburst.data.errors import EventFileError, NoEventsError
from evburst.data.events import EVENT_DTYPE, PACKET_EVENTS, Events, Faults, SensorSize
from evburst.data.readers import evt_kernels as kernels
from evburst.data.readers import reader
from evburst.data.readers.header import MAX_HEADER_BYTES, is_raw, parse_header
from evburst.data.readers.mapping import MappedWords
from evburst.data.readers.options import DEFAULT_OPTIONS, ReadOptions
from evburst.data.readers.packets import PacketFile, settle_size

ENCODINGS = {"2.0": "EVT2", "2.1": "EVT2.1", "3.0": "EVT3", "EVT2": "EVT2", "EVT21": "EVT2.1", "EVT3": "EVT3", "EVT4": "EVT4"}
"""Encoding by the value of `% evt` or the name in `% format`."""

WORD_BYTES = {"EVT2": 4, "EVT2.1": 8, "EVT3": 2, "EVT4": 4}
SKIPPED_WORDS = {
    "EVT2": {0xA: "EXT_TRIGGER", 0xE: "OTHERS", 0xF: "CONTINUED"},
    "EVT2.1": {0xA: "EXT_TRIGGER", 0xE: "OTHERS", 0xF: "CONTINUED"},
    "EVT3": {0x7: "CONTINUED_4", 0xA: "EXT_TRIGGER", 0xE: "OTHERS", 0xF: "CONTINUED_12"},
    "EVT4": {0x6: "OTHERS", 0x7: "CONTINUED", 0x9: "EXT_TRIGGER", 0xF: "PADDING"},
}
ORDER_WORDS = 1 << 16


class RawFile(PacketFile):
    """A memory-mapped RAW recording; an EventStream.

    Attributes:
        path: the file.
        encoding: "EVT2", "EVT2.1", "EVT3" or "EVT4".
        sensor_size: (W, H) px.
        word_order: "little" or, for EVT2.1 only, "legacy".
        words: memory map of the words: `(n, 1)` uint32 for EVT2 and EVT4, `(n, 2)` uint32 for EVT2.1, `(n,)` uint16 for EVT3.
        faults: counts of what was dropped or repaired so far.
        skipped_words: counts of valid words that are not events (triggers, extensions) so far, by name.
    """

    def __init__(self, path: Path, sensor_size: SensorSize | None = None) -> None:
        super().__init__(path)
        header, offset = _read_header(path)
        self.encoding, options = _encoding(path, header)
        word_bytes = WORD_BYTES[self.encoding]
        n_words, self.faults.truncated_bytes = divmod(path.stat().st_size - offset, word_bytes)
        if n_words == 0:
            raise NoEventsError(f"{path}: no complete word after the header, which ends at byte {offset}")
        self.words: NDArray[np.uint16] | NDArray[np.uint32]
        if self.encoding == "EVT3":
            self._mapped = MappedWords(path, "<u2", offset, (n_words,))
        else:
            self._mapped = MappedWords(path, "<u4", offset, (n_words, word_bytes // 4))
        self.words = self._mapped.array
        self.word_order = _word_order(path, header, options, self._mapped.array) if self.encoding == "EVT2.1" else "little"
        self.skipped_words = dict.fromkeys(SKIPPED_WORDS[self.encoding].values(), 0)
        self.sensor_size = settle_size(path, _stated_size(header, options), sensor_size, self.packets)

    def packets(self, max_events: int = PACKET_EVENTS) -> Iterator[Events]:
        """Yield the events in file order, as EVENT_DTYPE arrays of 1 to `max_events` (at least 32, the maximum per word).

        Raises:
            ValueError: max_events is below 32.
        """
        if max_events < kernels.MAX_EVENTS_PER_WORD:
            raise ValueError(f"max_events must be at least {kernels.MAX_EVENTS_PER_WORD}, received {max_events}")
        self._mapped.rewind()
        state, start = kernels.new_state(), 0
        self._mapped.check()
        while start < len(self.words):
            events = np.empty(max_events, EVENT_DTYPE)
            counts = kernels.new_counts()
            start, n_events = self._decode(start, state, counts, events)
            count_faults(self.encoding, counts, self.faults, self.skipped_words)
            self._mapped.read_until(start)
            if n_events:
                yield events[:n_events]

    def _decode(self, start: int, state: NDArray[np.int64], counts: NDArray[np.int64], out: Events) -> tuple[int, int]:
        """Decode from word `start` until `out` is full; returns the index of the next word and the number of events."""
        columns = out["t"], out["x"], out["y"], out["p"]
        if self.encoding == "EVT3":
            stop, n_events = kernels.decode_evt3(self.words, start, state, counts, *columns)
        elif self.encoding == "EVT4":
            stop, n_events = kernels.decode_evt4(self.words, start, state, counts, *columns)
        else:
            control = 1 if self.encoding == "EVT2.1" and self.word_order == "little" else 0
            stop, n_events = kernels.decode_evt2(self.words, control, start, state, counts, *columns)
        return int(stop), int(n_events)


def count_faults(encoding: str, counts: NDArray[np.int64], faults: Faults, skipped: dict[str, int] | None = None) -> None:
    """Add what a kernel counted.

    Args:
        encoding: "EVT2", "EVT2.1", "EVT3" or "EVT4".
        counts: of the kernel.
        faults: of the recording; updated.
        skipped: counts of valid words that are not events, by name; updated. None: they are not wanted.
    """
    undefined = int(counts[:16].sum())
    for kind, name in SKIPPED_WORDS[encoding].items():
        undefined -= int(counts[kind])
        if skipped is not None:
            skipped[name] += int(counts[kind])
    faults.undefined_words += undefined
    faults.untimed_events += int(counts[kernels.UNTIMED])
    faults.unplaced_events += int(counts[kernels.UNPLACED])
    faults.contradicted_times += int(counts[kernels.CONTRADICTED])
    faults.time_wraps += int(counts[kernels.WRAPS])


@reader("evt", recognise=is_raw, suffixes=(".raw",))
def open_evt(path: Path, sensor_size: SensorSize | None = None, options: ReadOptions = DEFAULT_OPTIONS) -> RawFile:
    """Open a Prophesee RAW file; see RawFile.

    Raises:
        EventFileError: the file has no words, or an encoding other than EVT2, EVT2.1, EVT3 and EVT4.
        SensorSizeError: neither the header nor the caller states the sensor's size, or they contradict each other.
    """
    return RawFile(path, sensor_size)


def _read_header(path: Path) -> tuple[dict[str, str], int]:
    with path.open("rb") as file:
        head = file.read(MAX_HEADER_BYTES)
    header, offset = parse_header(head)
    if offset == 0:
        raise EventFileError(f"{path}: no '%' header: not a Prophesee RAW file")
    return header, offset


def _encoding(path: Path, header: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Return the encoding's name, and the options in the format line."""
    name, *pairs = header.get("format", "").split(";")
    options = {key.strip(): value.strip() for key, _, value in (pair.partition("=") for pair in pairs)}
    stated = name.strip() or header.get("evt", "")
    if stated not in ENCODINGS:
        raise EventFileError(f"{path}: encoding {stated[:40]!r} is not supported (known: EVT2, EVT2.1, EVT3, EVT4)")
    return ENCODINGS[stated], options


def _stated_size(header: dict[str, str], options: dict[str, str]) -> str | None:
    """Return the sensor's size from the format line, or else from the geometry line."""
    if {"width", "height"} <= options.keys():
        return f"{options['width']}x{options['height']}"
    return header.get("geometry")


def _word_order(path: Path, header: dict[str, str], options: dict[str, str], words: NDArray[np.uint32]) -> str:
    """Return the order of halves in EVT2.1 words: from the header, else the one in which the first words are TIME_HIGH."""
    stated = options.get("endianness") or header.get("endianness", "")
    if stated in ("little", "legacy"):
        return stated
    if stated:
        raise EventFileError(f"{path}: EVT2.1 words of endianness {stated[:40]!r} are not supported (known: little, legacy)")
    first, second = words[:ORDER_WORDS, 0], words[:ORDER_WORDS, 1]
    legacy = np.count_nonzero((first >> 28 == 8) & (second == 0))
    little = np.count_nonzero((second >> 28 == 8) & (first == 0))
    return "legacy" if legacy > little else "little"
