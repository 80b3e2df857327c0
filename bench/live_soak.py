"""Soak test of live detection under twice its maximum load: python bench/live_soak.py --minutes 10

The time per window is measured first; then windows arrive twice as fast. The source fails and returns five times. The page is
served to one client that reads, one that never reads, and others that disconnect in mid-message. Exits with 1 unless:

- memory: the last third of the run needs no more than 5 % above the middle third;
- latency: the last third's 99th percentile is at most twice the middle third's, and lies below the bound (the queue's
  windows, the one in the network and one more, at the slowest network time seen);
- every window was either processed or dropped and counted (but for those during the source's absences);
- the source was lost, and came back, five times; the watching client was served to the end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evburst.app.detect import DetectConfig
from evburst.app.inference import BinnedWindow, WindowResult
from evburst.app.live.pipeline import LiveConfig, LivePipeline
from evburst.app.live.server import PageServer, Site
from evburst.app.live.sources import Packet, RecordingSource
from evburst.app.runs import open_inference
from evburst.data.errors import SourceError
from evburst.data.readers import open_events
from evburst.data.samples import STREET
from evburst.models.bundle import Bundle

DEATHS, AWAY_S = 5, 0.7


class DyingSource(RecordingSource):
    """A looped recording whose device goes away now and then."""

    def __init__(self, path: Path, window_us: int, lives_s: list[float]) -> None:
        super().__init__(path, window_us, loop=True)
        self._lives_s, self._dies_s, self._back_s = lives_s, float("inf"), 0.0

    def open(self) -> None:
        """See LiveSource."""
        if time.perf_counter() < self._back_s:
            raise SourceError(f"{self.name}: not there")
        super().open()
        self._dies_s = float("inf")

    def read(self) -> Packet | None:
        """See LiveSource."""
        if self._dies_s == float("inf") and self._lives_s:
            self._dies_s = time.perf_counter() + self._lives_s.pop(0)
        if time.perf_counter() >= self._dies_s:
            self._back_s = time.perf_counter() + AWAY_S
            raise SourceError(f"{self.name}: pulled out")
        return super().read()


class Log:
    """A viewer that notes (time, latency in ms) of every window."""

    paused = None

    def __init__(self) -> None:
        self.rows: list[tuple[float, float]] = []

    def show(self, result: WindowResult) -> None:
        """See Viewer."""
        self.rows.append((time.perf_counter(), result.latency_ms))


def window_time_s(detect: DetectConfig) -> float:
    """Median time of one window of the sample."""
    source = RecordingSource(STREET, 50_000)
    inference = open_inference(Bundle.load(detect.weights), detect, source.sensor_size)
    window = next(iter(open_events(STREET).windows(50_000)))
    inference.warm_up(window)
    grid = inference.new_grid()
    times = []
    for _ in range(15):
        started = time.perf_counter()
        inference.run([inference.bin(window, grid)])
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def resident_mb() -> float:
    """Memory of this process."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


class Clients:
    """The page's visitors: one that watches, one that never reads, and others that vanish."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").rstrip("/").split(":")
        self._address, self._stop = (host, int(port)), threading.Event()
        self.watched, self.vanished = 0, 0
        self._stalled = self._shake_hands()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._watch, self._vanish)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """All leave."""
        self._stop.set()
        for thread in self._threads:
            thread.join(15)
        self._stalled.close()

    def _shake_hands(self) -> socket.socket:
        client = socket.create_connection(self._address)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(
            f"GET /live HTTP/1.1\r\nHost: {self._address[0]}:{self._address[1]}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        return client

    def _watch(self) -> None:
        from websockets.sync.client import connect

        with connect(f"ws://{self._address[0]}:{self._address[1]}/live", proxy=None) as client:
            while not self._stop.is_set():
                self.watched += isinstance(client.recv(timeout=30), bytes)

    def _vanish(self) -> None:
        while not self._stop.wait(2.0):
            with suppress(OSError):
                client = self._shake_hands()
                client.sendall(b"\x82\xfe")  # the beginning of a message that never comes
                client.close()
                self.vanished += 1


def soak(minutes: float, detect: DetectConfig) -> dict[str, Any]:
    """One run's figures."""
    alone_s = window_time_s(detect)
    window_ms = max(1000 * alone_s / 2, 1.0)
    seconds = 60 * minutes
    source = DyingSource(STREET, round(1000 * window_ms), [seconds / (DEATHS + 1) - AWAY_S] * DEATHS)
    config = LiveConfig(DetectConfig(**{**vars(detect), "window_ms": window_ms}))
    pipeline = LivePipeline(source, config, lambda line: print(line, file=sys.stderr))
    log, slowest_s = Log(), [0.0]
    quick = pipeline.inference.run

    def timed(batch: Sequence[BinnedWindow], size: int = 0) -> list[WindowResult]:
        began = time.perf_counter()
        results = quick(batch, size)
        slowest_s[0] = max(slowest_s[0], time.perf_counter() - began)
        return results

    pipeline.inference.run = timed  # type: ignore[method-assign]
    pipeline.viewers.append(log)
    server = PageServer(pipeline, Site("127.0.0.1:0"))
    clients = Clients(server.url)
    pipeline.start()
    memory = []
    while not pipeline.wait(1.0) and time.perf_counter() - pipeline.started_s < seconds:
        memory.append(resident_mb())
    wall_s = time.perf_counter() - pipeline.started_s
    clients.close()
    pipeline.stop()
    server.stop()
    return figures(pipeline, log, memory, clients, wall_s, window_ms, alone_s, slowest_s[0])


def figures(
    pipeline: LivePipeline,
    log: Log,
    memory: list[float],
    clients: Clients,
    wall_s: float,
    window_ms: float,
    alone_s: float,
    slowest_s: float,
) -> dict[str, Any]:
    """What was seen, and whether it is as it should be."""
    third = wall_s / 3

    def p99(part: int) -> float:
        late = [ms for at, ms in log.rows if part * third <= at - pipeline.started_s < (part + 1) * third]
        return float(np.percentile(late, 99)) if late else float("nan")

    middle_mb, last_mb = (float(np.mean(memory[len(memory) * k // 3 : len(memory) * (k + 1) // 3])) for k in (1, 2))
    bound_ms = 1000 * slowest_s * 2 + (pipeline.config.queue_windows + 1) * window_ms
    present_s = wall_s - pipeline.capture.lost * (AWAY_S + 0.5)
    handled = pipeline.figures.windows + pipeline.dropped
    behind_s = pipeline.source.behind_s
    checks = {
        "memory is flat": last_mb <= 1.05 * middle_mb,
        "latency does not grow": p99(2) <= 2 * p99(1),
        "latency is bounded": pipeline.figures.latency.highest_ms <= bound_ms,
        "every window is accounted for": handled >= 0.95 * 1000 * (present_s - behind_s) / window_ms,
        "windows were dropped": pipeline.dropped > 0.2 * handled,
        "the source came back": pipeline.capture.lost == DEATHS and pipeline.capture.status == "running",
        "the watcher was served": clients.watched > 0.3 * pipeline.figures.windows,
    }
    return {
        "seconds": round(wall_s, 1),
        "window_ms": round(window_ms, 1),
        "network_ms": {"alone": round(1000 * alone_s, 1), "slowest": round(1000 * slowest_s, 1)},
        "windows": pipeline.figures.windows,
        "dropped": pipeline.dropped,
        "source_lost": pipeline.capture.lost,
        "source_behind_s": round(behind_s, 2),
        "latency_ms": {
            "p50": round(pipeline.figures.latency.quantile_ms(0.5) or 0, 1),
            "p99_by_thirds": [round(p99(k), 1) for k in range(3)],
            "longest": round(pipeline.figures.latency.highest_ms, 1),
            "bound": round(bound_ms, 1),
        },
        "memory_mb": {"middle_third": round(middle_mb, 1), "last_third": round(last_mb, 1)},
        "clients": {"messages_watched": clients.watched, "vanished": clients.vanished, "stalled": 1},
        "checks": checks,
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--ann", action="store_true", help="the ANN")
    args = parser.parse_args()
    result = soak(args.minutes, DetectConfig(ann=args.ann))
    print(json.dumps(result, indent=1))
    return 0 if all(result["checks"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
