"""`evburst events info|convert|cut`: describe, convert and cut recordings."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evburst.app.console import LOG, run
from evburst.app.flags import Parser, named_path, recording
from evburst.app.outputs.paths import refuse_overwriting
from evburst.data.arrays import as_events
from evburst.data.encoding import unpack
from evburst.data.errors import ConfigError, DataError, EvburstError, EventFileError, SensorSizeUnknownError
from evburst.data.events import (
    MAX_SENSOR_PIXELS,
    MAX_SENSOR_SIDE,
    PACKET_EVENTS,
    EventArray,
    Events,
    EventStream,
    Faults,
    SensorSize,
    check_order,
    check_sensor_size,
    list_counts,
    no_usable_events,
)
from evburst.data.random_access import MAX_HELD_EVENTS
from evburst.data.readers import READERS, ReadOptions, open_events, stream_format
from evburst.data.readers.columns import UNIT_SYMBOLS
from evburst.data.readers.dat import DatFile
from evburst.data.readers.foreign import is_pipe
from evburst.data.readers.options import TIME_UNITS
from evburst.data.slicing import MAX_START_S, first_sound_us, first_us
from evburst.data.text import number_of
from evburst.data.writers import write_events, writer_for

RATE_WINDOW_US = 10_000
HOT_DEVIATIONS = 10.0
HOT_LISTED = 5
_CUT_WINDOW_US = 1_000_000


def main(argv: Sequence[str] | None = None, prog: str = "python -m evburst.app.events") -> int:
    """Run `evburst events`."""
    parser = Parser(prog=prog, description="Describe, convert and cut event recordings.")
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
    add_read_options(parser)
    return parser


def _recording(text: str) -> Path:
    return Path(recording(text))


def add_read_options(parser: argparse.ArgumentParser) -> None:
    """Add flags for what text, NumPy and HDF5 files leave open; `read_options` reads them."""
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


def read_options(args: argparse.Namespace) -> ReadOptions:
    """Return the values of `add_read_options`'s flags; raise ConfigError for invalid columns."""
    return ReadOptions(args.time_unit, args.columns, args.allow_external)


def _open(args: argparse.Namespace, path: Path | None = None) -> EventStream:
    size = SensorSize.parse(args.sensor_size) if args.sensor_size else None
    return open_events(path or args.file, size, args.format, options=read_options(args))


def _open_any(args: argparse.Namespace, path: Path) -> tuple[EventStream, bool]:
    """Open a recording; one that does not state its sensor's size has the smallest size that holds all of its events.

    Returns:
        The stream, and whether the file or the flags state the size.
    """
    try:
        return _open(args, path), True
    except SensorSizeUnknownError:
        if is_pipe(path):  # it can be read only once
            raise
        options = read_options(args)
        unlimited = open_events(path, SensorSize(MAX_SENSOR_SIDE, MAX_SENSOR_SIDE), args.format, options=options)
        width, height = 1, 1
        for packet in unlimited.packets():
            width, height = max(width, int(packet["x"].max()) + 1), max(height, int(packet["y"].max()) + 1)
        if max(width, height) > MAX_SENSOR_SIDE or width * height > MAX_SENSOR_PIXELS:
            raise
        return open_events(path, SensorSize(width, height), args.format, options=options), False


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
    stream = _open(args)
    return _write(args, stream, _sorted(stream, args.file) if args.sort else stream.packets())


def _sorted(stream: EventStream, path: Path) -> Iterator[Events]:
    """Yield all events in order of time, faulty times included; raises DataError if they are too many for the memory."""
    parts, total = list[Events](), 0
    for packet in stream.unsorted() if isinstance(stream, DatFile) else stream.packets():
        parts.append(packet)
        total += len(packet)
        if total > MAX_HELD_EVENTS:
            raise DataError(f"{path}: more than {MAX_HELD_EVENTS:,} events, too many to sort in memory")
    yield from EventArray(as_events(np.concatenate(parts)), stream.sensor_size).packets()


def _cut(args: argparse.Namespace) -> str:
    stop_s = math.inf if args.stop_s is None else args.stop_s
    if not 0 <= args.start_s < stop_s or args.start_s > MAX_START_S:
        expected = f"0 <= FROM < TO, and FROM at most {MAX_START_S:g}, in seconds"
        raise ConfigError(f"--from {args.start_s:g} --to {stop_s:g}: expected {expected}")
    stream = _open(args)
    t0_us = first_us(stream) or 0
    stop_us = math.inf if math.isinf(stop_s) else t0_us + round(stop_s * 1e6)
    return _write(args, stream, _between(stream, t0_us + round(args.start_s * 1e6), stop_us))


def _write(args: argparse.Namespace, stream: EventStream, packets: Iterator[Events]) -> str:
    """Write the file, log repairs, and return the line for stdout."""
    writer_for(args.out)
    refuse_overwriting(args.out, [args.file], args.overwrite)
    packets = _from_zero(packets, stream.faults) if args.from_zero else packets
    written = write_events(args.out, _checked(packets, args, stream), stream.sensor_size)
    stream.faults.outside_sensor += written.outside_sensor
    if stream.faults.found():
        LOG.warning("%s: repaired: %s", args.file, stream.faults)
    return f"{args.out}: {number_of(written.events, 'event')}, {stream.sensor_size}"


def _checked(packets: Iterator[Events], args: argparse.Namespace, stream: EventStream) -> Iterator[Events]:
    """Yield the packets unchanged; raise at the end, so that the writer discards its file, if too few events were usable."""
    total, outside, late_before = 0, 0, 0
    width, height = stream.sensor_size
    for packet in packets:
        if not total and getattr(args, "start_s", None):  # late events before the start do not count
            late_before = stream.faults.late_events
        total += len(packet)
        outside += int(np.count_nonzero((packet["x"] >= width) | (packet["y"] >= height)))
        yield packet
    if not total:
        raise EventFileError(f"{args.file}: no events in this part; nothing was written")
    check_sensor_size(str(args.file), stream.sensor_size, total - outside, outside)
    if stream.finite:
        check_order(str(args.file), total, stream.faults.late_events - late_before)


def _between(stream: EventStream, start_us: int, stop_us: float) -> Iterator[Events]:
    """Yield the events of [start, stop) on the recording's clock, sorted within each second; later stragglers are dropped."""
    for window in stream.windows(_CUT_WINDOW_US, start_us):
        if window.t0_us >= stop_us:
            return
        events = unpack(window)
        inside = events[(events["t"] >= start_us) & (events["t"] < stop_us)]
        if len(inside):
            yield inside


def _from_zero(packets: Iterator[Events], faults: Faults) -> Iterator[Events]:
    """Yield the events with the first sound time subtracted; events before it are dropped and counted as late."""
    t0_us = None
    for packet in packets:
        t0_us = first_sound_us(packet["t"]) if t0_us is None else t0_us
        shifted = packet[packet["t"] >= t0_us]
        faults.late_events += len(packet) - len(shifted)
        shifted["t"] -= t0_us
        yield shifted


@dataclass
class _Totals:
    """Running totals of a recording; memory is one event count per pixel, independent of the length."""

    sensor_size: SensorSize
    events: int = 0
    on: int = 0
    outside: int = 0
    first_us: int | None = None
    last_us: int = 0
    peak: int = 0
    gap_us: int = 0
    gap_at_us: int = 0
    per_pixel: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.per_pixel = np.zeros(self.sensor_size.width * self.sensor_size.height, np.int64)

    def add(self, events: Events) -> None:
        """Add the events of whole windows, all inside the sensor; they need not be sorted."""
        width, height = self.sensor_size
        t = np.sort(events["t"])
        previous_us = t[0] if self.first_us is None else self.last_us
        gaps = np.diff(t, prepend=previous_us)
        if gaps.max() > self.gap_us:
            widest = int(gaps.argmax())
            self.gap_us, self.gap_at_us = int(gaps[widest]), int(t[widest] - gaps[widest])
        self.first_us, self.last_us = int(t[0]) if self.first_us is None else self.first_us, int(t[-1])
        self.events += len(events)
        self.on += int(np.count_nonzero(events["p"]))
        pixels = events["y"].astype(np.int64) * width + events["x"]
        self.per_pixel += np.bincount(pixels, minlength=width * height)

    def smallest_size(self) -> list[int] | None:
        """Return the smallest [W, H] that holds all events inside the sensor; None if there are none."""
        active = self.per_pixel.reshape(self.sensor_size.height, self.sensor_size.width) > 0
        if not active.any():
            return None
        return [int(np.flatnonzero(active.any(axis)).max()) + 1 for axis in (0, 1)]

    def hot_pixels(self) -> tuple[int, list[dict[str, int]]]:
        """Return the number of hot pixels and the HOT_LISTED hottest.

        A pixel is hot if its event count exceeds the mean of the active pixels by HOT_DEVIATIONS standard deviations.
        """
        active = self.per_pixel[self.per_pixel > 0]
        if not len(active):
            return 0, []
        hot = np.flatnonzero(self.per_pixel > active.mean() + HOT_DEVIATIONS * active.std())
        worst = hot[np.argsort(-self.per_pixel[hot], kind="stable")][:HOT_LISTED]
        y, x = np.divmod(worst, self.sensor_size.width)
        counts = self.per_pixel[worst]
        return len(hot), [{"x": int(a), "y": int(b), "events": int(c)} for a, b, c in zip(x, y, counts, strict=True)]


def describe(stream: EventStream, path: Path) -> dict[str, Any]:
    """Describe a recording in the form that `info --json` prints.

    `smallest_sensor` is the smallest size that holds all events. Rates are in events per second; the peak rate is taken over
    windows of 10 ms on the recording's clock. Events outside the sensor, and those that arrive after their window, are dropped
    and counted as faults, as in detection.

    Raises:
        NoEventsError: the recording contains no usable events.
    """
    totals = _Totals(stream.sensor_size)
    for events in _batches(stream, totals):
        totals.add(events)
    stream.faults.outside_sensor += totals.outside
    if totals.first_us is None:
        raise no_usable_events(path, stream.faults)
    duration_s = (totals.last_us - totals.first_us) * 1e-6
    mean_rate = totals.events / duration_s if duration_s else 0.0
    hot, worst = totals.hot_pixels()
    return {
        "sensor": list(stream.sensor_size),
        "smallest_sensor": totals.smallest_size(),
        "events": totals.events,
        "first_us": totals.first_us,
        "last_us": totals.last_us,
        "duration_s": round(duration_s, 6),
        "mean_rate": round(mean_rate) if duration_s else None,
        "peak_rate": round(max(totals.peak / (RATE_WINDOW_US * 1e-6), mean_rate)),
        "on_share": round(totals.on / totals.events, 4) if totals.events else None,
        "longest_gap_us": totals.gap_us,
        "longest_gap_after_s": round((totals.gap_at_us - totals.first_us) * 1e-6, 6) if totals.gap_us else None,
        "hot_pixels": hot,
        "hottest": worst,
        "faults": stream.faults.found(),
    }


def _batches(stream: EventStream, totals: _Totals) -> Iterator[Events]:
    """Yield the events inside the sensor, of several windows at a time to amortise the pass over all pixels; update the peak
    window count and the number of events outside."""
    pending: list[Events] = []
    count = 0
    width, height = stream.sensor_size
    for window in stream.windows(RATE_WINDOW_US):
        if not len(window):
            continue
        events = unpack(window)
        inside = events[(events["x"] < width) & (events["y"] < height)]
        totals.peak = max(totals.peak, len(inside))
        totals.outside += len(events) - len(inside)
        if len(inside):
            pending.append(inside)
            count += len(inside)
        if count >= PACKET_EVENTS:
            yield np.concatenate(pending)
            pending, count = [], 0
    if pending:
        yield np.concatenate(pending)


def human_description(info: dict[str, Any]) -> str:
    """Format `describe`'s result as lines for the terminal."""
    hottest = "; ".join(f"({pixel['x']}, {pixel['y']}) {pixel['events']}" for pixel in info["hottest"])
    gap = "none" if info["longest_gap_after_s"] is None else f"{info['longest_gap_us'] / 1000:.3f} ms"
    sensor, smallest = ("x".join(map(str, info[key] or ())) for key in ("sensor", "smallest_sensor"))
    unknown = f"unknown: the file does not state it; all events fit in {smallest}; other commands need --sensor-size WxH"
    lines = {
        "format": info["format"],
        "time unit": UNIT_SYMBOLS[info["time_unit"]],
        "sensor": sensor or unknown,
        "events": f"{info['events']}",
        "duration": f"{info['duration_s']:.6f} s, from {info['first_us']} to {info['last_us']} µs",
        "mean rate": _rate(info["mean_rate"]),
        "peak rate": f"{_rate(info['peak_rate'])} in 10 ms",
        "ON share": "unknown" if info["on_share"] is None else f"{100 * info['on_share']:.2f} %",
        "longest gap": gap if gap == "none" else f"{gap}, {info['longest_gap_after_s']:.6f} s after the first event",
        "hot pixels": f"{info['hot_pixels']}" + (f": {hottest}" if hottest else ""),
        "faults": list_counts(info["faults"]) or "none",
    }
    return "\n".join(f"{name:<12} {value}" for name, value in lines.items())


def _rate(per_second: int | None) -> str:
    return "unknown" if per_second is None else f"{per_second / 1e6:.3f} million events/s"


if __name__ == "__main__":
    sys.exit(main())
