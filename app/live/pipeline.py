"""The live pipeline: capture, binning and inference threads with bounded queues between them (see evburst.app.live)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from queue import Empty, Full, Queue
from threading import Event, Lock, Thread
from typing import NamedTuple, Protocol

from evburst.app.detect import DetectConfig, result_filter
from evburst.app.inference import BinnedWindow, Inference, WindowResult
from evburst.app.live.builder import Builder
from evburst.app.live.capture import Capture, Captured
from evburst.app.live.frames import LONGEST_GAP_US
from evburst.app.live.networks import Prepared, prepare
from evburst.app.live.recorder import Recorders
from evburst.app.live.recording_settings import OF_RECORDINGS, refusal
from evburst.app.live.slicing import DropOldest, DueWindow, WindowAssembler
from evburst.app.live.sources import LiveSource
from evburst.app.live.totals import RunTotals
from evburst.data.encoding import columns
from evburst.data.errors import EvburstError, SettingValueError
from evburst.data.filters import EventFilter
from evburst.data.simulation.sensor import SimulatorConfig

_LOG = logging.getLogger(__name__)
_PACKETS = 64
_LAST_READ_S = 1.0
"""Once a run is stopped, the longest time that it waits for the packet being read: reading a pipe may never return."""

_DEFAULTS = DetectConfig()


@dataclass(frozen=True)
class LiveConfig:
    """Settings of live detection, apart from its source and outputs.

    Attributes:
        detect: settings of detection, except for those of recordings (`OF_RECORDINGS`); one timestep is the default.
        simulator: sensor that is simulated for video.
        upsample: interpolate video frames along the motion.
        queue_windows: maximum number of windows waiting for inference; beyond it the oldest is dropped. Windows that become
            complete with the same packet, as with a camera's pictures that are further apart than a window, count as one, and
            those more than a second before the newest one are dropped at once.
        seconds: duration of the run; without it, run until stopped.
    """

    detect: DetectConfig = field(default_factory=DetectConfig)
    simulator: SimulatorConfig = field(default_factory=SimulatorConfig)
    upsample: bool = True
    queue_windows: int = 2
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in OF_RECORDINGS if getattr(self.detect, name) != getattr(_DEFAULTS, name)]
        if given:
            raise SettingValueError(refusal(given))
        if not 1 <= self.queue_windows <= 100:
            raise SettingValueError(f"queue_windows must be between 1 and 100, received {self.queue_windows}")
        if self.seconds is not None and not 0 < self.seconds <= 1e9:
            raise SettingValueError(f"seconds must be above 0 and at most 1e9, received {self.seconds:g}")


class Viewer(Protocol):
    """A receiver of results. `show` is called on the inference thread and must return at once."""

    @property
    def paused(self) -> bool | None:
        """Whether everybody who watches has paused; None if nobody watches."""
        ...

    def show(self, result: WindowResult) -> None:
        """Receive one window's result, whose arrays are not modified later."""
        ...


class _Binned(NamedTuple):
    network: Prepared
    binned: BinnedWindow
    due_s: float
    scene: int


class LivePipeline:
    """One live run.

    Args:
        source: source of the events; it must have been opened and closed once, so that its sensor size is known.
        config: see LiveConfig.
        notify: called with a line of text when the source is lost or returns, and when a recording stops.

    Attributes:
        capture: reads the source.
        recorders: receive every window's events.
        figures: totals of the run.
        network: network for which events are captured; only the inference thread replaces it.
        shown: network that made the result being shown.
        wanted: settings requested last.
        problem: why the requested network could not be prepared; empty if it could.
    """

    def __init__(self, source: LiveSource, config: LiveConfig, notify: Callable[[str], None] | None = None) -> None:
        self.config = config
        self._notify = notify or _LOG.info
        self.network = prepare(config.detect, source.sensor_size, source.faults)
        self.shown, self.wanted, self.problem = self.network, config.detect, ""
        self._settings = Lock()
        self._builder = Builder[DetectConfig, Prepared](self._prepare, self._preparation_failed)
        self.figures = RunTotals(self.network)
        self.viewers: list[Viewer] = []
        self.capture = Capture(source, lambda: self.network, self._put, self._is_held, self._notify)
        self.recorders = Recorders(self._notify)
        self._filter = self._new_filter()
        self._packets: Queue[Captured | None] = Queue(_PACKETS)
        self._binned: DropOldest[_Binned] = DropOldest(config.queue_windows)
        self._result_filter: tuple[Inference, Callable[[WindowResult], WindowResult]] | None = None
        self._stop, self._done, self._joined = Event(), Event(), False
        self._failure: BaseException | None = None
        self._threads = [
            Thread(target=self._run_thread, args=(work,), name=work.__name__.strip("_"), daemon=True)
            for work in (self._capture, self._bin, self._infer)
        ]

    @property
    def dropped(self) -> int:
        """Number of windows dropped because inference could not keep up."""
        return self._binned.dropped

    @property
    def source(self) -> LiveSource:
        """The present source."""
        return self.capture.source

    @property
    def started_s(self) -> float:
        """When the run started, on the clock of `time.perf_counter`."""
        return self.capture.started_s

    def _is_held(self) -> bool:
        """Whether a replay stands still, because everybody who watches has paused."""
        paused = [viewer.paused for viewer in self.viewers]
        return True in paused and False not in paused

    def start(self) -> None:
        """Start the threads."""
        self.capture.started_s = time.perf_counter()
        for thread in self._threads:
            thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait until the source ends or the timeout expires; return whether it ended. Re-raise a thread's exception."""
        done = self._done.wait(timeout_s)
        if self._failure is not None:
            raise self._failure
        return done

    def stop(self) -> None:
        """Stop capture, process what has been captured, and close the recordings. May be called twice.

        A source that does not return from `read` is not waited for: its thread ends with the program.
        """
        self._stop.set()
        self._builder.close()
        if not self._joined:
            self._joined = True
            capture, *others = self._threads
            for thread, longest_s in [*((thread, 10.0) for thread in others), (capture, _LAST_READ_S)]:
                if thread.is_alive():
                    thread.join(longest_s)
        self.recorders.close()

    def use(self, source: LiveSource) -> None:
        """Switch to another source; raise ValueError if its sensor size differs."""
        expected = self.inference.sensor_size
        if source.sensor_size != expected:
            raise ValueError(f"source: expected a sensor size of {expected}, received {source.sensor_size}")
        self.capture.source = source

    def set_score(self, score: float) -> None:
        """Set the minimum score of a box, from the next window on."""
        with self._settings:
            self.wanted = replace(self.wanted, post=replace(self.wanted.post, score=score))

    def set_network(self, **settings: object) -> None:
        """Request other `timesteps`, `ann` or `weights` (see DetectConfig); the current network runs until it is ready."""
        with self._settings:
            self.wanted = replace(self.wanted, **settings)  # type: ignore[arg-type]
            self.problem = ""
            self._builder.request(self.wanted)

    @property
    def preparing(self) -> bool:
        """Whether another network is being prepared."""
        return self._builder.busy

    @property
    def inference(self) -> Inference:
        """Inference of the current network."""
        return self.network.inference

    def _prepare(self, detect: DetectConfig) -> Prepared:
        return prepare(detect, self.inference.sensor_size, self.source.faults, self.network)

    def _preparation_failed(self, error: Exception) -> None:
        """Report the error and keep the current network; an unexpected exception ends the run."""
        if not isinstance(error, EvburstError):
            self._fail(error)
            return
        with self._settings:
            score = self.wanted.post.score
            self.wanted = replace(self.network.detect, post=replace(self.network.detect.post, score=score))
            self.problem = str(error)
        self._notify(f"warning: {error}")

    def _run_thread(self, work: Callable[[], None]) -> None:
        """Run a thread's function; an unexpected exception in it ends the run."""
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
        self.capture.run(self._stop)
        self._put(None)

    def _put(self, item: Captured | None) -> None:
        """Queue a packet for binning; give up once the run is done, because binning may have failed."""
        while not self._done.is_set():
            with suppress(Full):
                self._packets.put(item, timeout=0.2)
                return

    def _take(self) -> Captured | None:
        """Return the next packet; None at the end, if inference has failed, or if a stopped run has none in time."""
        while not self._done.is_set():
            stopped = self._stop.is_set()
            with suppress(Empty):
                return self._packets.get(timeout=_LAST_READ_S if stopped else 0.2)
            if stopped:
                break
        return None

    def _bin(self) -> None:
        assembler, scene = WindowAssembler(self.inference.voxel.window_us, self.source.faults), 0
        while (item := self._take()) is not None:
            if item.cut:
                assembler.restart()
                self._filter, scene = self._new_filter(), scene + 1
            assembler.set_window(item.network.inference.voxel.window_us)
            complete = assembler.push(item.events, item.until_us, item.due_s)
            for due in complete:
                self.recorders.write(due.window.words)
            newest = [due for due in complete if complete[-1].window.t1_us - due.window.t1_us < LONGEST_GAP_US]
            binned = (self._bin_window(item.network, due, scene) for due in newest)
            self._binned.put(binned, dropped=len(complete) - len(newest))
        self._binned.close()

    def _bin_window(self, network: Prepared, due: DueWindow, scene: int) -> _Binned:
        window = due.window
        if self.config.detect.filters.any_on:
            keep = self._filter.keep(*columns(window)[:3])
            window = replace(window, words=window.words.compress(keep, 0))
        return _Binned(network, network.inference.bin(window, network.inference.new_grid()), due.due_s, scene)

    def _new_filter(self) -> EventFilter:
        return EventFilter(self.config.detect.filters, self.inference.sensor_size)

    def _infer(self) -> None:
        scene = 0
        while not self._binned.finished:
            self._apply_settings()
            item = self._binned.get(0.1)
            if item is None:
                continue
            if item.scene != scene:  # a number, because the first window of a scene may have been dropped
                scene, self._result_filter = item.scene, None
                item.network.inference.begin()
            binned = replace(item.binned, seconds=time.perf_counter() - item.due_s)
            (result,) = item.network.inference.run([binned])
            result = self._filtered(item.network, result)
            self.figures.add(result, item.network)
            self.shown = item.network
            for viewer in self.viewers:
                viewer.show(result)

    def _filtered(self, network: Prepared, result: WindowResult) -> WindowResult:
        """Apply the settings that concern consecutive windows; they start anew with another network."""
        inference, apply = self._result_filter or (None, None)
        if apply is None or inference is not network.inference:
            apply = result_filter(network.inference, network.detect)
            self._result_filter = network.inference, apply
        return apply(result)

    def _apply_settings(self) -> None:
        """Switch to a newly prepared network and apply the requested score."""
        network = self._builder.take() or self.network
        if network.detect.post.score != self.wanted.post.score:
            network = network.with_score(self.wanted.post.score)
        if network is not self.network:
            self.network = network
            self.config = replace(self.config, detect=network.detect)
