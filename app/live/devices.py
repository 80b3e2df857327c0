"""Event cameras and network streams as live sources, through optional packages."""

from __future__ import annotations

import socket
import time
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from evburst.app.live.addresses import masked
from evburst.app.live.sources import NO_EVENTS, POLL_S, Packet
from evburst.data.errors import ConfigError, SourceError
from evburst.data.events import Events, Faults, SensorSize
from evburst.data.extras import require
from evburst.data.readers.columns import columns_to_events, find_columns
from evburst.data.slicing import GLITCH_US, ClockWatch

SENSORS = {
    "evk4": "prophesee_evk4",
    "evk3": "prophesee_evk3_hd",
    "dvxplorer": "inivation_dvxplorer",
    "davis346": "inivation_davis346",
}
"""Names accepted by `--sensor`, and their modules in neuromorphic-drivers."""

_TRANSPORT_US = 20_000
_HEADER_TIMEOUT_S = 5.0
_SMALLEST_HEADER, _LARGEST_HEADER = 16, 1 << 20


class DeviceClock:
    """Estimates the device time up to which all events have been delivered.

    That time is the timestamp of the last event. While no events arrive, it is advanced by this computer's clock, minus 20 ms
    for events in transit. The two clocks are compared only within one pause, so that their drift does not accumulate.

    If the device's clock is reset (see `evburst.data.slicing.clock_runs`), it is followed to the new time. An event more than a
    second ahead is held back until the eight events after it tell whether its time is wrong.

    Args:
        faults: counters; `clock_resets` and `time_glitches` are incremented.
    """

    def __init__(self, faults: Faults) -> None:
        self._faults, self._watch = faults, ClockWatch()
        self._until_us: int | None = None
        self._arrived_s = 0.0
        self._held = NO_EVENTS

    def packet(self, events: Events) -> Packet:
        """Make a packet of the events that have just arrived, which may be none; without those before a reset of the clock."""
        now_s, until_us = time.perf_counter(), self._until_us
        if until_us is not None:
            pause_us = round(1e6 * (now_s - self._arrived_s)) - _TRANSPORT_US
            until_us += max(pause_us, 0)
        if not len(events):
            return Packet(events, until_us, now_s)
        begin = self._watch.find(events["t"], self._faults)
        if begin is not None:
            events, self._held = events[begin:], NO_EVENTS
            until_us = self._until_us = self._watch.latest_us
        events = self._sound(np.concatenate([self._held, events]), until_us)
        if len(events):
            self._until_us, self._arrived_s = max(int(events["t"].max()) + 1, self._until_us or 0), now_s
        return Packet(events, self._until_us, now_s, begin is not None)

    def _sound(self, events: Events, until_us: int | None) -> Events:
        """Return the events that are not too far ahead; the others are held back, or dropped if they are decided."""
        known = [time_us for time_us in (until_us, self._watch.latest_us) if time_us is not None]
        ahead = events["t"] > max(known, default=int(events["t"].max())) + GLITCH_US
        undecided = np.isin(events["t"], self._watch.undecided)
        self._faults.time_glitches += int(np.count_nonzero(ahead & ~undecided))
        self._held = events[ahead & undecided]
        return events[~ahead]


class NetworkSource:
    """A stream in iniVation's network protocol (DV, dv-processing): `--stream tcp://HOST:PORT`."""

    simulated, finite, behind_s, kind = False, False, 0.0, "measured"

    def __init__(self, address: str) -> None:
        self.name, self.faults, self.sensor_size = masked(address), Faults(), SensorSize(0, 0)
        self._host, self._port = _host_port(address)
        self._dv = require("dv_processing", "dv", f"--stream {masked(address)}")
        self._reader: Any = None
        self._clock = DeviceClock(self.faults)

    def open(self) -> None:
        """See LiveSource."""
        await_header(self._host, self._port, self.name)
        try:
            self._reader = self._dv.io.NetworkReader(self._host, self._port)
        except RuntimeError as error:
            raise SourceError(f"{self.name}: cannot connect ({_first_line(error)}); is the server running?") from None
        size = self._reader.getEventResolution()
        if size is None:
            raise SourceError(f"{self.name}: the stream has no events; is it an event stream?")
        self.sensor_size, self._clock = SensorSize(int(size[0]), int(size[1])), DeviceClock(self.faults)

    def read(self) -> Packet | None:
        """See LiveSource."""
        stop_s = time.perf_counter() + POLL_S
        while time.perf_counter() < stop_s:
            try:
                batch = self._reader.getNextEventBatch()
                alive = batch is not None or self._reader.isRunning()
            except RuntimeError as error:
                raise SourceError(f"{self.name}: the stream was interrupted ({_first_line(error)})") from None
            if not alive:
                raise SourceError(f"{self.name}: the stream has ended")
            if batch is not None and batch.size():
                return self._clock.packet(_as_events(batch.numpy(), self.name, self.faults))
            time.sleep(0.001)
        return self._clock.packet(NO_EVENTS)

    def close(self) -> None:
        """See LiveSource."""
        self._reader = None


class SensorSource:
    """An event camera on USB, through neuromorphic-drivers: `--sensor evk4`."""

    simulated, finite, behind_s, kind = False, False, 0.0, "measured"

    def __init__(self, kind: str) -> None:
        self.name, self.faults = kind, Faults()
        self._drivers = require("neuromorphic_drivers", "sensors", f"--sensor {kind}")
        self._module = getattr(self._drivers, SENSORS[kind])
        properties = self._module.Properties()
        self.sensor_size = SensorSize(int(properties.width), int(properties.height))
        self._device: Any = None
        self._clock = DeviceClock(self.faults)

    def open(self) -> None:
        """See LiveSource."""
        try:
            self._device = self._drivers.open(configuration=self._module.Configuration(), iterator_timeout=POLL_S)
        except RuntimeError as error:
            raise SourceError(f"{self.name}: the camera cannot be opened ({_first_line(error)}); is it plugged in?") from None
        self._clock = DeviceClock(self.faults)

    def read(self) -> Packet | None:
        """See LiveSource."""
        try:
            _, packet = next(self._device)
        except (RuntimeError, StopIteration) as error:
            raise SourceError(f"{self.name}: the camera was disconnected ({_first_line(error)})") from None
        raw = None if packet is None else packet.polarity_events
        if raw is None or not len(raw):
            return self._clock.packet(NO_EVENTS)
        return self._clock.packet(_as_events(raw, self.name, self.faults))

    def close(self) -> None:
        """See LiveSource."""
        device, self._device = self._device, None
        if device is not None:
            device.close()


def await_header(host: str, port: int, name: str) -> None:
    """Wait until a peer sends the header of DV's protocol: a length (4 bytes, little-endian) and that number of bytes.

    dv-processing would wait for the header indefinitely while holding the GIL, which blocks all threads and Ctrl-C.

    Raises:
        SourceError: the connection fails, times out, or does not follow the protocol.
    """
    try:
        with socket.create_connection((host, port), _HEADER_TIMEOUT_S) as peer:
            stop_s, received, expected = time.perf_counter() + _HEADER_TIMEOUT_S, b"", 4
            while len(received) < expected:
                peer.settimeout(max(stop_s - time.perf_counter(), 0.001))
                part = peer.recv(expected - len(received))
                if not part:
                    raise SourceError(f"{name}: the server closed the connection; is it a DV stream?")
                received += part
                if len(received) == 4:
                    expected = 4 + int.from_bytes(received, "little")
                    if not _SMALLEST_HEADER <= expected <= _LARGEST_HEADER:
                        raise SourceError(f"{name}: the server does not use DV's network protocol")
    except TimeoutError:
        raise SourceError(f"{name}: connected, but no stream within {_HEADER_TIMEOUT_S:g} s; is it a DV stream?") from None
    except OSError as error:
        raise SourceError(f"{name}: cannot connect ({error.strerror or error}); is the server running?") from None


def _host_port(address: str) -> tuple[str, int]:
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme != "tcp" or not host or not port:
        raise ConfigError(f"--stream {masked(address)}: write it as tcp://HOST:PORT, e.g. tcp://127.0.0.1:7777")
    return host, port


def _as_events(raw: Any, place: str, faults: Faults) -> Events:
    names = find_columns(raw.dtype.names, place)
    return columns_to_events({column: raw[name] for column, name in names.items()}, place, faults)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].partition(" [")[0][:200]
