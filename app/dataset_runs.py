"""Runs through data sets: the results of networks on labelled windows, for evaluate, the validation in train and convert."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from evburst.app.inference import BATCH, BinnedWindow, Inference, Stats, WindowResult
from evburst.data.boxes import Detections
from evburst.data.datasets import Dataset, LabelledWindow
from evburst.data.datasets.recorded import RecordedWindows
from evburst.models.tasks import Prediction


@dataclass(frozen=True)
class DatasetBatch:
    """A batch of items of a data set, and the results of one or more networks for them.

    Attributes:
        items: indices of the items.
        labels: labelled boxes of each item, clipped to the sensor.
        names: the recording or picture of each item.
        events, outside: number of events in these windows that lie on the sensor, and outside it.
        results: results of each network, for each item.
    """

    items: Sequence[int]
    labels: list[Detections]
    names: list[str]
    events: int
    outside: int
    results: list[list[WindowResult]]


def run_batches(
    networks: Sequence[Inference], dataset: Dataset, items: Iterable[int], batch: int = BATCH
) -> Iterator[DatasetBatch]:
    """Yield the results of networks on items of a data set, batch by batch; each window is read and binned only once.

    The networks must use the same binning and the same stride. Networks with memory begin with an empty one, and also run the
    windows between the items, which must belong to one recording.
    """
    steps = _steps(dataset, items, networks[0].network.has_memory)
    groups = [steps[start : start + batch] for start in range(0, len(steps), batch)]
    for network in networks:
        network.begin()

    def read(group: Sequence[_Step]) -> tuple[list[LabelledWindow], list[BinnedWindow]]:
        windows = [step.read() for step in group]
        return windows, [networks[0].bin(one.window, networks[0].new_grid()) for one in windows]

    with ThreadPoolExecutor(1, "reading") as pool:
        waiting = deque(pool.submit(read, group) for group in groups[:2])
        for number, group in enumerate(groups):
            windows, binned = waiting.popleft().result()
            if number + 2 < len(groups):
                waiting.append(pool.submit(read, groups[number + 2]))
            results = [network.run(binned) for network in networks]
            own = [k for k, step in enumerate(group) if step.item is not None]
            yield DatasetBatch(
                [step.item for step in group if step.item is not None],
                [windows[k].boxes for k in own],
                [windows[k].name for k in own],
                sum(binned[k].events for k in own),
                sum(binned[k].outside for k in own),
                [[found[k] for k in own] for found in results],
            )


class _Step(NamedTuple):
    """One window to run: that of an item, or one between two items (`item` None), without labels."""

    item: int | None
    read: Callable[[], LabelledWindow]


def _steps(dataset: Dataset, items: Iterable[int], between: bool) -> list[_Step]:
    """Return the windows of the items, in order; with `between` also those that fill the time before each in its recording."""
    steps: list[_Step] = []
    before: int | None = None
    for i in items:
        if between and isinstance(dataset, RecordedWindows):
            steps += [_Step(None, partial(dataset.window_before, i, end_us)) for end_us in dataset.ends_between(before, i)]
        steps.append(_Step(i, partial(dataset.__getitem__, i)))
        before = i
    return steps


@dataclass
class DatasetResults:
    """The results of a network on a whole data set.

    Attributes:
        predictions: boxes or class scores of each item; no boxes if the window was idle.
        labels: the labelled boxes, or the class, of each item.
        names: the recording or picture of each item.
        stats: operation counts of the windows that were not idle.
    """

    predictions: list[Prediction] = field(default_factory=list)
    labels: list[Detections] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    stats: list[Stats] = field(default_factory=list)


def run_dataset(
    network: Inference, dataset: Dataset, progress: Callable[[int], object] = lambda windows: None, batch: int = 2 * BATCH
) -> DatasetResults:
    """Return a network's results on a whole data set, with the labels."""
    collected = DatasetResults()
    parts = [part.items for part in dataset.parts()] if network.network.has_memory else [range(len(dataset))]
    for done in chain.from_iterable(run_batches([network], dataset, items, batch) for items in parts):
        collected.predictions += [result.prediction for result in done.results[0]]
        collected.stats += [result.stats for result in done.results[0] if result.stats is not None]
        collected.labels += done.labels
        collected.names += done.names
        progress(len(done.items))
    return collected


def concatenate(stats: Sequence[Stats]) -> Stats:
    """Return the counts of one network on several batches as one object."""
    kind: Any = type(stats[0])
    return kind.concatenate(stats)  # type: ignore[no-any-return]
