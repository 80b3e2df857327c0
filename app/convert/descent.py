"""The driver of distillation in convert: fresh windows, checks on the split "select", and a state to resume from.

Every training window shows a random training picture in a new way. Windows are simulated in blocks, one block ahead of the
one that the network learns from, and deleted after it; batches are binned one ahead as well. Two files lie beside the weights
file: NAME_descent.csv has divergence, energy, and the AP or top-1 lost, against minutes; NAME_descent.safetensors exists until
the conversion is finished, and the same command resumes from it.
"""

from __future__ import annotations

import csv
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from evburst.app.console import show_progress
from evburst.app.convert.scores import Measurement
from evburst.data.datasets import Dataset
from evburst.data.errors import CheckpointError
from evburst.data.files import replacing
from evburst.models.bundle import load_tensors, save_tensors
from evburst.models.spiking.convert.distil import Distillation, Progress

_LOG = logging.getLogger(__name__)
BLOCK = 512, 128
"""Windows per simulated block: at least the first number, and at least the second times those of a step, because every block
starts new processes."""
FIRST_SHOWING = 1000
"""First number of a showing that nothing else uses."""
KIND = "descent"
TUNED_BATCH = 2
"""Windows per step for which the learning rates were chosen."""


def rate_of(batch: int) -> float:
    """Factor on Adam's learning rates for a number of windows per step: the square root of the ratio to TUNED_BATCH.

    The noise of a gradient falls with the root of the batch, and Adam divides by it, so that this keeps the noise of the whole
    descent (Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", NeurIPS 2022; the decay rates
    of its means stay, because the rule for them would leave less than none at a batch of 20).
    """
    return math.sqrt(batch / TUNED_BATCH)


@dataclass
class Course:
    """History of a descent.

    Attributes:
        seconds: time spent so far, over all runs.
        rows: lines of NAME_descent.csv.
    """

    seconds: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Showings:
    """Source of windows for `fresh_batches`.

    Attributes:
        open: opens a dataset, given the number of windows and the number of the showing.
        grids: makes grids of the windows with the given indices.
        close: called when all windows of a dataset have been learned from.
        fresh: whether a showing holds as many windows as it is asked for; otherwise a showing that holds fewer is used again in
            another order.
    """

    open: Callable[[int, int], Dataset]
    grids: Callable[[Dataset, Sequence[int]], Tensor]
    close: Callable[[Dataset], object] = lambda _: None
    fresh: bool = True


def fresh_batches(source: Showings, windows: int, done: int, batch: int, block: int = 0) -> Iterator[Tensor]:
    """Yield batches of windows, each used once, beginning after the first `done` windows.

    A block that is over before that is skipped if windows are fresh. A step counts as a whole batch, even if a small dataset
    does not fill it.

    Args:
        source: opens the windows.
        windows: number of windows in total.
        done: number of windows that were learned from before, a multiple of `batch`.
        batch: windows per step.
        block: windows per showing, which is rounded up to whole batches; 0: see BLOCK.
    """
    block = _whole(block or max(BLOCK[0], BLOCK[1] * batch), batch)
    seen = number = 0
    while source.fresh and seen < windows and (after := seen + _whole(min(block, windows - seen), batch)) <= done:
        seen, number = after, number + 1
    if seen >= windows:
        return
    with ThreadPoolExecutor(1) as openers, ThreadPoolExecutor(1) as binners:
        upcoming = openers.submit(source.open, min(block, windows - seen), FIRST_SHOWING + number)
        while seen < windows:
            data = upcoming.result()
            held = min(len(data), windows - seen)
            after = seen + _whole(held, batch)
            if after < windows:
                upcoming = openers.submit(source.open, min(block, windows - after), FIRST_SHOWING + number + 1)
            order = np.random.default_rng(number).permutation(len(data))[:held]
            chosen = [order[i : i + batch].tolist() for i in range(max(0, done - seen), held, batch)]
            yield from _one_ahead(binners, partial(source.grids, data), chosen)
            source.close(data)
            seen, number = after, number + 1


def _whole(windows: int, batch: int) -> int:
    """Round up to a whole number of batches."""
    return -(-windows // batch) * batch


def _one_ahead(pool: ThreadPoolExecutor, make: Callable[[list[int]], Tensor], arguments: list[list[int]]) -> Iterator[Tensor]:
    """Yield the results of a function, computing each while the one before it is used."""
    upcoming: Future[Tensor] | None = None
    for argument in arguments:
        before, upcoming = upcoming, pool.submit(make, argument)
        if before is not None:
            yield before.result()
    if upcoming is not None:
        yield upcoming.result()


def descend(
    learning: Distillation,
    batches: Callable[[int], Iterator[Tensor]],
    check: Callable[[], Measurement],
    beside: Path,
    identity: str,
    every: int,
    batch: int,
) -> Course:
    """Run a distillation to its end, resuming an interrupted one with the same identity; its state stays.

    Args:
        learning: the distillation at its start.
        batches: yields batches, beginning after a number of windows.
        check: measures the present network on the split "select".
        beside: path of the files of the descent, without suffix.
        identity: digest of network, data and settings.
        every: steps between checks. At a check the state is saved, and the limits are adjusted so that they hold for its
            measurements.
        batch: windows per step.
    """
    state, log = beside.with_suffix(".safetensors"), beside.with_suffix(".csv")
    wanted, steps = learning.descent, learning.descent.steps
    course = _resumed(learning, state, identity, batch)
    began, before = time.perf_counter(), course.seconds
    if not course.rows:
        course.rows.append({"minutes": 0.0, "windows": 0} | _selected(check()))
    recent: list[Progress] = []
    with tqdm(total=steps, initial=learning.step, desc="distil", disable=not show_progress()) as bar:
        for grids in batches(learning.step * batch):
            recent.append(learning.learn(grids))
            bar.set_postfix(divergence=f"{recent[-1].divergence:.2f}", refresh=False)
            bar.update()
            if learning.step % every == 0 or learning.step == steps:
                checked = check()
                course.seconds = before + time.perf_counter() - began
                course.rows.append(_row(course.seconds, learning.step * batch, recent) | _selected(checked))
                if wanted.operations is not None:
                    learning.operations = wanted.operations * _mean(recent, "operations") / checked.operations
                if wanted.burst is not None:
                    learning.burst = 1 + (wanted.burst - 1) * (_mean(recent, "burst") - 1) / max(checked.burst - 1, 0.01)
                recent.clear()
                write_course(log, course.rows)
                tensors, numbers = learning.state()
                save_tensors(state, KIND, tensors, {"identity": identity, "learning": numbers, "course": asdict(course)})
    return course


def _mean(recent: list[Progress], name: str) -> float:
    """Mean over the last quarter of the steps, whose network is close to the one that was checked."""
    return float(np.mean([getattr(progress, name) for progress in recent[-(len(recent) // 4 or 1) :]]))


def _row(seconds: float, windows: int, recent: list[Progress]) -> dict[str, float]:
    means = np.mean([(p.divergence, p.operations, p.burst, p.noise, *p.multipliers) for p in recent], 0)
    names = "divergence", "train_operations", "train_burst", "noise", "multiplier", "burst_multiplier", "noise_multiplier"
    return {"minutes": seconds / 60, "windows": windows, **dict(zip(names, means.tolist(), strict=True))}


def _selected(checked: Measurement) -> dict[str, float]:
    return {f"select_{name}": value for name, value in asdict(checked).items() if value is not None}


def write_course(path: Path, rows: list[dict[str, float]]) -> None:
    """Write the history as NAME_descent.csv."""
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[-1])
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)


def _resumed(learning: Distillation, state: Path, identity: str, batch: int) -> Course:
    if not state.exists():
        return Course()
    tensors, saved = load_tensors(state, KIND)
    if saved.get("identity") != identity:
        raise CheckpointError(
            f"{state}: belongs to an interrupted conversion with other settings; delete it, or use another --out"
        )
    learning.resume(tensors, saved["learning"])
    course: dict[str, Any] = saved["course"]
    _LOG.info("%s: resuming after %d windows", state, learning.step * batch)
    return Course(**course)
