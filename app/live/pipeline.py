"""Capture, binning and inference, each on its own thread, with bounded queues between them (see evburst.app.live)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from queue import Empty, Full, Queue
from threading import Event, Lock, Thread
from typing import NamedTuple, Protocol

from evburst.app.detect import DetectConfig
from evburst.app.inference import BinnedWindow, Inference, WindowResult
from evburst.app.live.builder import Builder
from evburst.app.live.networks import Prepared, kernels_turn, prepare
from evburst.app.live.recorder import LiveRecorder
from evburst.app.live.slicing import DropOldest, DueWindow, WindowAssembler
from evburst.app.live.sources import LiveSource
from evburst.app.live.totals import Figures
from evburst.data.encoding import columns
from evburst.data.errors import DataError, EvburstError, SourceError
from evburst.data.events import Events, EventWindow
from evburst.data.filters import EventFilter
from evburst.data.simulation.sensor import SimulatorConfig

_LOG = logging.getLogger(__name__)
_PACKETS = 64
_RETRY_S = 0.5


@dataclass(frozen=True)
class LiveConfig:
    """Settings of live, apart from its source and its outputs.

    Attributes:
        detect: as in detect.py (the command line asks for one timestep, for latency); `video`, `start_s` and `max_windows` mean nothing here.
        simulator: the sensor that events from video are simulated for.
        upsample: put frames between frames of video, along the motion.
        queue_windows: most windows that wait for inference; one more drops the oldest.
        seconds: stop after this many seconds; None: never.
    """

    detect: DetectConfig = field(default_factory=DetectConfig)
    simulator: SimulatorConfig = field(default_factory=SimulatorConfig)
    upsample: bool = True
    queue_windows: int = 2
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.queue_windows <= 100:
            raise ValueError("queue_windows must be 1 to 100")
        if self.seconds is not None and not 0 < self.seconds <= 1e9:
            raise ValueError("seconds must be 0 to 1e9")


class Viewer(Protocol):
    """Somebody who watches. `show` is called on the inference thread and must return at once."""

    def show(self, result: WindowResult, window: EventWindow) -> None:
        """Take one window's result; the arrays are not written to again."""
        ...


class _Binned(NamedTuple):
    network: Prepared
    binned: BinnedWindow
    due: DueWindow


class _Captured(NamedTuple):
    events: Events
    until_us: int
    due_s: float
    fresh: bool


class LivePipeline:
    """One live run.

    Args:
        source: where the events come from; has been opened once, so that its sensor's size is known, and closed again.
        config: see LiveConfig.
        say: is told, in a line, when the source dies and comes back, and when a recording stops.

    Attributes:
        figures: totals.
        status: what the source does: "running", "waiting for camera 0: ...", "ended".
        lost: how often the source died.
        paused: nothing is detected while this is set; the source runs on.
        network: the network that windows are binned for; replaced whole, on the inference thread.
        shown: the network of the result that viewers are being shown.
        wanted: settings of the network that was asked for last.
        problem: why that could not be prepared; empty where it could.
    """

    def __init__(self, source: LiveSource, config: LiveConfig, say: Callable[[str], None] | None = None) -> None:
        self.config, self.source = config, source
        self._say = say or _LOG.info
        self.network = prepare(config.detect, source.sensor_size, source.faults)
        self.shown, self.wanted, self.problem = self.network, config.detect, ""
        self._settings = Lock()
        self._builder = Builder[DetectConfig, Prepared](self._prepare, self._cannot)
        self.figures = Figures(self.network)
        self.viewers: list[Viewer] = []
        self.status, self.lost, self.paused = "starting", 0, False
        self.started_s = time.perf_counter()
        self._until_us = 0
        self._filter = EventFilter(config.detect.filters, source.sensor_size)
        self._recorders: list[LiveRecorder] = []
        self._recording = Lock()
        self._packets: Queue[_Captured | None] = Queue(_PACKETS)
        self._binned: DropOldest[_Binned] = DropOldest(config.queue_windows)
        self._stop, self._done = Event(), Event()
        self._failure: BaseException | None = None
        self._threads = [
            Thread(target=self._guarded, args=(work,), name=work.__name__.strip("_"), daemon=True)
            for work in (self._capture, self._bin, self._infer)
        ]

    @property
    def dropped(self) -> int:
        """Windows that were dropped because inference was late."""
        return self._binned.dropped

    def start(self) -> None:
        """Begin."""
        self.started_s = time.perf_counter()
        for thread in self._threads:
            thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait until the source has ended, at most so long; returns whether it has. Raises what a thread died of."""
        done = self._done.wait(timeout_s)
        if self._failure is not None:
            raise self._failure
        return done

    def stop(self) -> None:
        """End: what has been captured is worked off, recordings are closed. May be called twice."""
        self._stop.set()
        self._builder.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(10.0)
        with self._recording:
            for recorder in self._recorders:
                recorder.close()
            self._recorders.clear()

    def use(self, source: LiveSource) -> None:
        """Go on with another source of the same sensor size."""
        if source.sensor_size != self.source.sensor_size:
            raise ValueError(f"source: expected a sensor of {self.source.sensor_size}, received {source.sensor_size}")
        self.source = source

    def set_score(self, score: float) -> None:
        """Lowest score of a box, from the next window on."""
        with self._settings:
            self.wanted = replace(self.wanted, post=replace(self.wanted.post, score=score))

    def set_network(self, **settings: object) -> None:
        """Other `timesteps`, `ann` or `weights` (see DetectConfig); the present network runs until the new one is ready."""
        with self._settings:
            self.wanted = replace(self.wanted, **settings)  # type: ignore[arg-type]
            self.problem = ""
            self._builder.want(self.wanted)

    @property
    def preparing(self) -> bool:
        """Whether another network is being prepared."""
        return self._builder.busy

    @property
    def inference(self) -> Inference:
        """What runs the present network."""
        return self.network.inference

    def record(self, recorder: LiveRecorder) -> None:
        """Write every window from now on, also those that are dropped."""
        with self._recording:
            self._recorders.append(recorder)

    def stop_recording(self, recorder: LiveRecorder) -> None:
        """Write no more, and close the file."""
        with self._recording:
            if recorder in self._recorders:
                self._recorders.remove(recorder)
            recorder.close()

    def _prepare(self, detect: DetectConfig) -> Prepared:
        return prepare(detect, self.source.sensor_size, self.source.faults, self.network)

    def _cannot(self, error: Exception) -> None:
        """What was asked for cannot be prepared: the present network runs on. Something unforeseen ends the run."""
        if not isinstance(error, EvburstError):
            self._fail(error)
            return
        with self._settings:
            score = self.wanted.post.score
            self.wanted = replace(self.network.detect, post=replace(self.network.detect.post, score=score))
            self.problem = str(error)
        self._say(f"warning: {error}")

    def _guarded(self, work: Callable[[], None]) -> None:
        """A thread that dies of something unforeseen ends the run."""
        try:
            work()
        except BaseException as error:
            self._fail(error)
        finally:
            if work == self._infer:
                self._done.set()

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._stop.set()
        self._done.set()

    def _capture(self) -> None:
        """Read the source until it ends; what dies is opened again. Its clock is shifted to this run's."""
        source: LiveSource | None = None
        shift_us: int | None = None
        while not self._stop.is_set():
            try:
                if source is not self.source:
                    self._close(source)
                    shift_us, wanted = None, self.source
                    wanted.open()
                    source = wanted
                    self._becomes("running")
                packet = source.read()
            except SourceError as error:
                self._close(source)
                source = None
                self._becomes(f"waiting for {self.source.name}: {error}")
                self._stop.wait(_RETRY_S)
                continue
            if packet is None:
                self._becomes("ended")
                break
            if packet.until_us is None:
                continue
            fresh = shift_us is None
            if shift_us is None:
                shift_us = self._shift(packet.events, packet.until_us, packet.due_s)
            packet.events["t"] += shift_us
            self._until_us = packet.until_us + shift_us
            self._put(_Captured(packet.events, self._until_us, packet.due_s, fresh))
        self._close(source)
        self._put(None)

    def _close(self, source: LiveSource | None) -> None:
        if source is not None:
            source.close()

    def _becomes(self, status: str) -> None:
        """Note what the source does, and say so where that is news."""
        before, self.status = self.status, status
        if status.startswith("waiting") and not before.startswith("waiting"):
            self.lost += 1
            self._say(status)
        elif status == "running" and before.startswith("waiting"):
            self._say(f"{self.source.name} is back")

    def _shift(self, events: Events, until_us: int, due_s: float) -> int:
        """What takes the source's clock to this run's: whole windows, so that no window becomes shorter."""
        window_us = self.inference.voxel.window_us
        first_us = int(events["t"][0]) if len(events) else until_us
        elapsed_us = max(round(1e6 * (due_s - self.started_s)) - (until_us - first_us), self._until_us)
        return (-(-elapsed_us // window_us) - first_us // window_us) * window_us

    def _put(self, item: _Captured | None) -> None:
        """Wait for binning, which waits for nobody; not without end, should it have died."""
        while not self._done.is_set():
            with suppress(Full):
                self._packets.put(item, timeout=0.2)
                return

    def _take(self) -> _Captured | None:
        """The next packet; None at the end, or should inference have died."""
        while not self._done.is_set():
            with suppress(Empty):
                return self._packets.get(timeout=0.2)
        return None

    def _bin(self) -> None:
        assembler = WindowAssembler(self.inference.voxel.window_us, self.source.faults)
        while (item := self._take()) is not None:
            if item.fresh:
                assembler.restart()
            network = self.network
            assembler.set_window(network.inference.voxel.window_us)
            for due in assembler.push(item.events, item.until_us, item.due_s):
                self._write(due.window.words)
                if not self.paused:
                    self._binned.put(self._binned_window(network, due))
        self._binned.close()

    def _binned_window(self, network: Prepared, due: DueWindow) -> _Binned:
        window = due.window
        if self.config.detect.filters.any_on:
            keep = self._filter.keep(*columns(window)[:3])
            window = replace(window, words=window.words.compress(keep, 0))
        grid = network.inference.new_grid()
        return _Binned(network, network.inference.bin(window, grid), DueWindow(window, due.due_s))

    def _write(self, events: Events) -> None:
        with self._recording:
            for recorder in list(self._recorders):
                try:
                    recorder.write(events)
                except DataError as error:
                    self._recorders.remove(recorder)
                    recorder.close()
                    self._say(f"warning: {error}")

    def _infer(self) -> None:
        while not self._binned.finished:
            self._apply_settings()
            item = self._binned.get(0.1)
            if item is None:
                continue
            window, due_s = item.due
            waited = replace(item.binned, seconds=time.perf_counter() - due_s)
            with kernels_turn():
                (result,) = item.network.inference.run([waited])
            self.figures.add(result, item.network)
            self.shown = item.network
            for viewer in self.viewers:
                viewer.show(result, window)

    def _apply_settings(self) -> None:
        """Take over a network that has been prepared, and the score that is wanted."""
        network = self._builder.take() or self.network
        if network.detect.post.score != self.wanted.post.score:
            network = network.with_score(self.wanted.post.score)
        if network is not self.network:
            self.network = network
            self.config = replace(self.config, detect=network.detect)
