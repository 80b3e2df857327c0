"""Event cameras and network streams as live sources, through optional packages."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from subprocess import DEVNULL, PIPE
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from evburst.app.live import relay
from evburst.app.live.addresses import masked
from evburst.app.live.sources import NO_EVENTS, POLL_S, Packet, check_size
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
_UNKNOWN = SensorSize(0, 0)

HEADER_TIMEOUT_S = 5.0
"""Longest time to connect to a network stream, and to wait for its header."""


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
        self.name, self.faults, self.sensor_size = masked(address), Faults(), _UNKNOWN
        self._host, self._port = _host_port(address)
        self._dv = require("dv_processing", "dv", f"--stream {masked(address)}")
        self._reader: Any = None
        self._relay: Relay | None = None
        self._clock = DeviceClock(self.faults)

    def open(self) -> None:
        """See LiveSource."""
        self._relay = Relay(self._host, self._port, self.name)
        try:
            size = self._connect(self._relay.port)
            if self.sensor_size == _UNKNOWN:
                self.sensor_size = size
            check_size(self.sensor_size, size)
        except BaseException:
            self.close()
            raise
        self._clock = DeviceClock(self.faults)

    def read(self) -> Packet | None:
        """See LiveSource."""
        stop_s = time.perf_counter() + POLL_S
        while time.perf_counter() < stop_s:
            try:
                batch = self._reader.getNextEventBatch()
                alive = batch is not None or self._reader.isRunning()
            except RuntimeError as error:
                raise SourceError(f"{self.name}: the stream was interrupted ({_message(error)})") from None
            if not alive:
                corrupt = self._relay.end() if self._relay else ""
                reason = f"the stream is corrupt ({corrupt})" if corrupt else "the stream has ended"
                raise SourceError(f"{self.name}: {reason}")
            if batch is not None and batch.size():
                return self._clock.packet(_as_events(batch.numpy(), self.name, self.faults))
            time.sleep(0.001)
        return self._clock.packet(NO_EVENTS)

    def close(self) -> None:
        """See LiveSource."""
        if self._relay is not None:  # first, because the reader waits for its stream
            self._relay.close()
        self._relay = self._reader = None

    def _connect(self, port: int) -> SensorSize:
        """Open the reader on a port of this machine; return the size that the stream states."""
        try:
            self._reader = self._dv.io.NetworkReader("127.0.0.1", port)
        except Exception as error:  # of any kind: dv-processing passes on whatever its C++ code throws
            raise SourceError(f"{self.name}: not a stream that dv-processing can read ({_message(error)})") from None
        size = self._reader.getEventResolution()
        if size is None:
            raise SourceError(f"{self.name}: the stream has no events; is it an event stream?")
        return SensorSize(int(size[0]), int(size[1]))


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
            raise SourceError(f"{self.name}: the camera cannot be opened ({_message(error)}); is it plugged in?") from None
        self._clock = DeviceClock(self.faults)

    def read(self) -> Packet | None:
        """See LiveSource."""
        try:
            _, packet = next(self._device)
        except (RuntimeError, StopIteration) as error:
            raise SourceError(f"{self.name}: the camera was disconnected ({_message(error)})") from None
        raw = None if packet is None else packet.polarity_events
        if raw is None or not len(raw):
            return self._clock.packet(NO_EVENTS)
        return self._clock.packet(_as_events(raw, self.name, self.faults))

    def close(self) -> None:
        """See LiveSource."""
        device, self._device = self._device, None
        if device is not None:
            device.close()


class Relay:
    """A running relay (relay.py) of a stream in DV's network protocol.

    Args:
        host, port: the server.
        name: name of the stream in errors.

    Attributes:
        port: port of this machine on which the stream is offered to one reader.

    Raises:
        SourceError: the connection fails, times out, or does not follow the protocol.
    """

    def __init__(self, host: str, port: int, name: str) -> None:
        command = [sys.executable, "-I", "-S", relay.__file__, host, str(port), f"{HEADER_TIMEOUT_S:g}"]
        # A session of its own: Ctrl-C ends the run, and the run ends the relay.
        self._process = subprocess.Popen(command, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, start_new_session=True)
        try:
            assert self._process.stdout is not None
            answer = self._process.stdout.readline().decode(errors="replace").strip()
            if not answer.isdigit():
                raise SourceError(f"{name}: {answer or 'cannot connect (the server was not found in time)'}")
        except BaseException:
            self.close()
            raise
        self.port = int(answer)

    def end(self) -> str:
        """End the relay and with it the stream; return what was corrupt in it, empty if nothing was."""
        assert self._process.stdout is not None
        self._process.kill()
        return self._process.stdout.read().decode(errors="replace").strip()

    def close(self) -> None:
        """End the relay and with it the stream; may be called twice."""
        with self._process:  # closes its output and waits
            self._process.kill()


def _host_port(address: str) -> tuple[str, int]:
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme != "tcp" or not host or not port:
        raise ConfigError(f"--stream {masked(address)}: write it as tcp://HOST:PORT, e.g. tcp://127.0.0.1:7777")
    try:
        return host.encode("idna").decode(), port
    except UnicodeError:
        raise ConfigError(f"--stream {masked(address)}: {host!r} is not the name of a host") from None


def _as_events(raw: Any, place: str, faults: Faults) -> Events:
    names = find_columns(raw.dtype.names, place)
    return columns_to_events({column: raw[name] for column, name in names.items()}, place, faults)


def _message(error: BaseException) -> str:
    """Return the message of a driver's error, without the place in C++ before it and the codes and lines behind it."""
    message = re.sub(r"^\S+\(\d+\): .*\n\w+: ", "", str(error))
    return message.partition("\n")[0].partition(" [")[0].rstrip(".")[:200]
