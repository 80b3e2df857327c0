"""`evburst events info|convert|cut|frames`: describe, convert and cut recordings, and draw them for labelling."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evburst.app.console import LOG, add_common_flags, run, warn_of_repairs
from evburst.app.event_summary import RATE_WINDOW_US, describe, human_description
from evburst.app.flags import Parser, named_path, recording
from evburst.app.outputs.paths import refuse_overwriting
from evburst.data.arrays import as_events
from evburst.data.encoding import unpack
from evburst.data.errors import ConfigError, DataError, EvburstError, EventFileError, SensorSizeUnknownError
from evburst.data.events import (
    MAX_SENSOR_PIXELS,
    MAX_SENSOR_SIDE,
    EventArray,
    Events,
    EventStream,
    Faults,
    SensorSize,
    check_order,
    check_sensor_size,
    joined,
)
from evburst.data.random_access import MAX_HELD_EVENTS
from evburst.data.readers import READERS, ReadOptions, open_events, stream_format
from evburst.data.readers.dat import DatFile
from evburst.data.readers.foreign import is_pipe
from evburst.data.readers.options import TIME_UNITS
from evburst.data.readers.packets import extent
from evburst.data.slicing import GLITCH_US, MAX_START_S, first_sound_us, first_us
from evburst.data.text import number_of
from evburst.data.writers import write_events, writer_for

_CUT_WINDOW_US, _LATE_US = 100_000, 1_000_000
_FEW_FALLS = 16
"""Times that fall by `_LATE_US` so often at most are corrupt ones or restarts of a clock, not events in no order."""


def main(argv: Sequence[str] | None = None, prog: str = "python -m evburst.app.events") -> int:
    """Run `evburst events`."""
    parser = Parser(prog=prog, description="Describe, convert, cut and draw event recordings.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    info_parser = _command(commands, "info", "describe recordings: format, sensor, duration, rates, faults", True)
    info_parser.add_argument("--json", action="store_true", help="print the description as JSON")
    info_parser.set_defaults(action=_info)
    convert_parser = _command(commands, "convert", "write a recording in another format (.dat, .npz, .csv)")
    convert_parser.add_argument("--sort", action="store_true", help="sort the events by time, each time taken as it is")
    convert_parser.set_defaults(action=_convert)
    cut_parser = _command(commands, "cut", "write a part of a recording; timestamps are kept")
    cut_parser.add_argument(
        "--from", dest="start_s", type=float, default=0.0, metavar="S", help="start, in seconds after the first event"
    )
    cut_parser.add_argument(
        "--to", dest="stop_s", type=float, metavar="S", help="end, in seconds after the first event (exclusive)"
    )
    cut_parser.set_defaults(action=_cut)
    frames_parser = _command(commands, "frames", "draw windows of a recording as pictures, to label the objects in them")
    frames_parser.add_argument("folder", type=named_path, metavar="DIR", help="folder of the pictures; created if necessary")
    frames_parser.add_argument("--window-ms", type=float, default=50.0, metavar="MS", help="length of a window (default: 50)")
    every = "time from picture to picture, a multiple of the window's length (default: the one nearest to 500)"
    frames_parser.add_argument("--every-ms", type=float, metavar="MS", help=every)
    frames_parser.set_defaults(action=_frames)
    for command in (convert_parser, cut_parser):
        command.add_argument("out", type=named_path, metavar="OUT", help="the file to write; its suffix selects the format")
        command.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
        command.add_argument("--from-zero", action="store_true", help="shift timestamps so that the first event is at 0")
    return run(parser, lambda args: args.action(args), argv)


def _command(commands: Any, name: str, text: str, several: bool = False) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    if several:
        parser.add_argument("files", type=_recording, metavar="FILE", nargs="+", help="the recordings; - is standard input")
    else:
        parser.add_argument("file", type=_recording, metavar="FILE", help="the recording; - is standard input")
    parser.add_argument(
        "--sensor-size", metavar="WxH", help="sensor size in pixels, for files that do not state it, e.g. 304x240"
    )
    parser.add_argument("--format", metavar="NAME", help=f"format, instead of recognising it: {', '.join(sorted(READERS))}")
    parser.add_argument(
        "--time-unit",
        choices=TIME_UNITS,
        default="auto",
        help="unit of the times in text, NumPy and HDF5 files (default: auto)",
    )
    parser.add_argument(
        "--columns", metavar="ORDER", default="", help="order of unnamed columns, e.g. x,y,p,t; '-' skips a column"
    )
    parser.add_argument(
        "--allow-external", action="store_true", help="follow links from HDF5 files to other files; only for trusted files"
    )
    add_common_flags(parser, of_subcommand=True)
    return parser


def _recording(text: str) -> Path:
    return Path(recording(text))


def _open(args: argparse.Namespace, path: Path, size: SensorSize | None = None) -> EventStream:
    """Open a recording; `size` precedes that of the flags."""
    stated = SensorSize.of_setting(args.sensor_size)
    options = ReadOptions(args.time_unit, args.columns, args.allow_external)
    return open_events(path, size or stated, args.format, options=options)


def _open_any(args: argparse.Namespace, path: Path) -> tuple[EventStream, bool]:
    """Open a recording; one that does not state its sensor's size has the smallest size that holds its events (`extent`).

    Returns:
        The stream, and whether the file or the flags state the size.
    """
    try:
        return _open(args, path), True
    except SensorSizeUnknownError:
        if is_pipe(path):  # it can be read only once
            raise
        unlimited = _open(args, path, SensorSize(MAX_SENSOR_SIDE, MAX_SENSOR_SIDE))
        size = extent(unlimited.packets())
        if size is None or math.prod(size) > MAX_SENSOR_PIXELS:
            raise
        return _open(args, path, size), False


def _info(args: argparse.Namespace) -> Iterator[str]:
    """Yield a description of the files. Unreadable ones are reported after it, and the command then fails."""
    summaries, errors = [], []
    for path in args.files:
        try:
            stream, size_stated = _open_any(args, path)
            described = describe(stream, path)
        except EvburstError as error:
            errors.append(error)
            continue
        unit = getattr(stream, "time_unit", "us")
        sensor = {} if size_stated else {"sensor": None}
        summaries.append({"file": str(path), "format": stream_format(stream), "time_unit": unit} | described | sensor)
    if not summaries:
        raise errors[0] if len(errors) == 1 else EventFileError("; ".join(map(str, errors)))
    if args.json:
        yield json.dumps(summaries[0] if len(args.files) == 1 else summaries, indent=1)
    elif len(args.files) == 1:
        yield human_description(summaries[0])
    else:
        yield "\n\n".join(f"{summary['file']}\n{human_description(summary)}" for summary in summaries)
    if errors:
        for failure in errors:
            LOG.error("%s", failure)
        raise DataError(f"{len(errors)} of {len(args.files)} recordings cannot be read")


def _convert(args: argparse.Namespace) -> str:
    stream = _open(args, args.file)
    return _write(args, stream, _sorted(stream, args.file) if args.sort else stream.packets())


def _sorted(stream: EventStream, path: Path) -> Iterator[Events]:
    """Yield all events in order of time, faulty times included; raises DataError if they are too many for the memory."""
    parts, total = list[Events](), 0
    for packet in stream.unsorted() if isinstance(stream, DatFile) else stream.packets():
        parts.append(packet)
        total += len(packet)
        if total > MAX_HELD_EVENTS:
            raise DataError(f"{path}: more than {MAX_HELD_EVENTS:,} events, too many to sort in memory")
    yield from EventArray(as_events(joined(parts)), stream.sensor_size).packets()


def _cut(args: argparse.Namespace) -> str:
    stop_s = math.inf if args.stop_s is None else args.stop_s
    if not 0 <= args.start_s < stop_s or args.start_s > MAX_START_S:
        expected = f"0 <= FROM < TO, and FROM at most {MAX_START_S:g}, in seconds"
        raise ConfigError(f"--from {args.start_s:g} --to {stop_s:g}: expected {expected}")
    stream = _open(args, args.file)
    t0_us = first_us(stream) if stream.finite or args.start_s else None
    return _write(args, stream, _between(stream, t0_us, args.start_s, stop_s))


def _write(args: argparse.Namespace, stream: EventStream, packets: Iterator[Events]) -> str:
    """Write the file, log repairs, and return the line for stdout."""
    writer_for(args.out)
    refuse_overwriting(args.out, [args.file], args.overwrite)
    packets = _from_zero(packets, stream.faults) if args.from_zero else packets
    written = write_events(args.out, _checked(packets, args, stream), stream.sensor_size)
    stream.faults.outside_sensor += written.outside_sensor
    warn_of_repairs(args.file, stream.faults)
    return f"{args.out}: {number_of(written.events, 'event')}, {stream.sensor_size}"


def _checked(packets: Iterator[Events], args: argparse.Namespace, stream: EventStream) -> Iterator[Events]:
    """Yield the packets unchanged; raise at the end, so that the writer discards its file, if too few events were usable."""
    total, outside, late_before, falls, disorder, last_us = 0, 0, 0, 0, 0, 0
    width, height = stream.sensor_size
    for packet in packets:
        if not total and getattr(args, "start_s", None):  # late events before the start do not count
            late_before = stream.faults.late_events
        total += len(packet)
        outside += int(np.count_nonzero((packet["x"] >= width) | (packet["y"] >= height)))
        if len(packet):  # readers of text, NumPy and HDF5 files leave late events to the windows
            steps = np.diff(packet["t"], prepend=last_us)
            falls += int(np.count_nonzero(steps < -_LATE_US))
            disorder += int(np.count_nonzero(steps < -RATE_WINDOW_US))
            last_us = int(packet["t"][-1])
        yield packet
    if not total:
        since = "; --from and --to count from its first event" if hasattr(args, "start_s") else ""
        raise EventFileError(f"{args.file}: no events in this part; nothing was written{since}")
    check_sensor_size(str(args.file), stream.sensor_size, total - outside, outside)
    if stream.finite:
        check_order(str(args.file), total, stream.faults.late_events - late_before + (falls if falls > _FEW_FALLS else 0))
    if disorder:
        LOG.warning(
            "%s: time falls by more than %g ms %s; events are written in the order of the file, and windows leave late ones "
            "out; pass --sort to write them in order of time",
            *(args.file, RATE_WINDOW_US / 1000, "once" if disorder == 1 else f"{disorder:,} times"),
        )


def _frames(args: argparse.Namespace) -> str:
    from evburst.app.event_frames import write_frames
    from evburst.data.datasets.labels import labelled_name

    stream = _open(args, args.file)
    written = write_frames(stream, args.file, args.folder, args.window_ms, args.every_ms)
    warn_of_repairs(args.file, stream.faults)
    labels: Path | str = args.file.with_name(f"{labelled_name(args.file)}.json")
    if not stream.finite:
        labels = "NAME.json, beside a file NAME.csv with these events"
    return (
        f"{args.folder}: {number_of(len(written), 'picture')}, {written[0].name} to {written[-1].name}\n"
        f"next: label the objects, and save them in COCO's format as {labels}"
    )


def _between(stream: EventStream, t0_us: int | None, start_s: float, stop_s: float) -> Iterator[Events]:
    """Yield the events of [start, stop) in seconds after the first event, sorted within tenths of a second.

    Stragglers are dropped. Those before the first event belong to a part from 0 on.

    Args:
        stream: the recording.
        t0_us: time of the first event; None: that of the first one that is read, for a pipe.
        start_s, stop_s: the part.
    """
    start_us = round(start_s * 1e6) + (t0_us or 0) if start_s else None
    for window in stream.windows(_CUT_WINDOW_US, start_us):
        events = unpack(window)
        t0_us = int(events["t"][0]) if t0_us is None else t0_us
        stop_us = math.inf if math.isinf(stop_s) else t0_us + round(stop_s * 1e6)
        if window.t0_us >= stop_us:
            return
        inside = events[events["t"] < stop_us]
        inside = inside if start_us is None else inside[inside["t"] >= start_us]
        if len(inside):
            yield inside


def _earliest_us(t: NDArray[np.int64]) -> int:
    first = first_sound_us(t)
    return int(t[t >= first - GLITCH_US].min())


def _from_zero(packets: Iterator[Events], faults: Faults) -> Iterator[Events]:
    """Yield the events with the earliest time at the beginning subtracted; later ones before it are dropped, and counted.

    This is the earliest time of the first packet; times more than a second before its first sound one are wrong.
    """
    t0_us = None
    for packet in packets:
        t0_us = _earliest_us(packet["t"]) if t0_us is None else t0_us
        shifted = packet[packet["t"] >= t0_us]
        faults.late_events += len(packet) - len(shifted)
        shifted["t"] -= t0_us
        yield shifted


if __name__ == "__main__":
    sys.exit(main())
