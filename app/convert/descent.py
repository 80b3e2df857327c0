"""The driver of distillation in convert: fresh windows, checks on the split "select", and a state to resume from.

Every training window shows a random training picture in a new way. Windows are simulated in blocks, one block ahead of the
one that the network learns from. Two files lie beside the weights file: NAME_descent.csv has divergence, energy and lost AP
against minutes; NAME_descent.safetensors exists until the descent is finished, and the same command resumes from it.
"""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from evburst.app.console import show_progress
from evburst.app.convert.scores import Measurement
from evburst.data.datasets import Dataset
from evburst.data.errors import CheckpointError
from evburst.models.bundle import load_tensors, save_tensors
from evburst.models.spiking.convert.distil import Distillation, Progress

_LOG = logging.getLogger(__name__)
BATCH = 2
"""Windows per step."""
BLOCK = 512
"""Windows per simulated block."""
FIRST_SHOWING = 1000
"""First number of a showing that nothing else uses."""
KIND = "descent"


@dataclass
class Course:
    """History of a descent.

    Attributes:
        seconds: time spent so far, over all runs.
        rows: lines of NAME_descent.csv.
    """

    seconds: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)


def fresh_batches(
    opened: Callable[[int, int], Dataset],
    grids: Callable[[Dataset, Sequence[int]], Tensor],
    windows: int,
    done: int,
    block: int = BLOCK,
) -> Iterator[Tensor]:
    """Yield batches of windows, each used once, beginning after the first `done` windows.

    Args:
        opened: opens a dataset, given the number of windows and the number of the showing.
        grids: makes grids of the windows with the given indices.
        windows: number of windows in total; a dataset smaller than a block is used again in another order.
        done: number of windows that were learned from before.
        block: windows per showing.
    """
    with ThreadPoolExecutor(1) as pool:

        def open_ahead(number: int, left: int) -> Future[Dataset]:
            return pool.submit(opened, min(block, left), FIRST_SHOWING + number)

        upcoming = open_ahead(0, windows)
        seen = number = 0
        while seen < windows:
            data = upcoming.result()
            held = min(len(data), windows - seen)
            after = seen + -(-held // BATCH) * BATCH  # a step counts as a whole batch, even if a small dataset does not fill it
            if after < windows:
                upcoming = open_ahead(number + 1, windows - after)
            order = np.random.default_rng(number).permutation(len(data))[:held]
            for i in range(max(0, done - seen), held, BATCH):
                yield grids(data, order[i : i + BATCH].tolist())
            seen, number = after, number + 1


def descend(
    learning: Distillation,
    batches: Callable[[int], Iterator[Tensor]],
    check: Callable[[], Measurement],
    beside: Path,
    identity: str,
    every: int,
) -> Course:
    """Run a distillation to its end, resuming an interrupted one with the same identity.

    Args:
        learning: the distillation at its start.
        batches: yields batches, beginning after a number of windows.
        check: measures the present network on the split "select".
        beside: path of the files of the descent, without suffix.
        identity: digest of network, data and settings.
        every: steps between checks. At a check the state is saved, and the limits are adjusted so that they hold for its
            measurements.
    """
    state, log = beside.with_suffix(".safetensors"), beside.with_suffix(".csv")
    wanted, steps = learning.descent, learning.descent.steps
    course = _resumed(learning, state, identity)
    began, before = time.perf_counter(), course.seconds
    if not course.rows:
        course.rows.append({"minutes": 0.0, "windows": 0} | _selected(check()))
    recent: list[Progress] = []
    with tqdm(total=steps, initial=learning.step, desc="distil", disable=not show_progress()) as bar:
        for grids in batches(learning.step * BATCH):
            recent.append(learning.learn(grids))
            bar.set_postfix(divergence=f"{recent[-1].divergence:.2f}", refresh=False)
            bar.update()
            if learning.step % every == 0 or learning.step == steps:
                checked = check()
                course.seconds = before + time.perf_counter() - began
                course.rows.append(_row(course.seconds, learning, recent) | _selected(checked))
                if wanted.operations is not None:
                    learning.operations = wanted.operations * _mean(recent, "operations") / checked.operations
                if wanted.burst is not None:
                    learning.burst = 1 + (wanted.burst - 1) * (_mean(recent, "burst") - 1) / max(checked.burst - 1, 0.01)
                recent.clear()
                write_course(log, course.rows)
                tensors, numbers = learning.state()
                save_tensors(state, KIND, tensors, {"identity": identity, "learning": numbers, "course": asdict(course)})
    state.unlink(missing_ok=True)
    return course


def _mean(recent: list[Progress], name: str) -> float:
    """Mean over the last quarter of the steps, whose network is close to the one that was checked."""
    return float(np.mean([getattr(progress, name) for progress in recent[-(len(recent) // 4 or 1) :]]))


def _row(seconds: float, learning: Distillation, recent: list[Progress]) -> dict[str, float]:
    means = np.mean([(p.divergence, p.operations, p.burst, *p.multipliers) for p in recent], 0)
    names = "divergence", "train_operations", "train_burst", "multiplier", "burst_multiplier"
    return {"minutes": seconds / 60, "windows": learning.step * BATCH, **dict(zip(names, means.tolist(), strict=True))}


def _selected(checked: Measurement) -> dict[str, float]:
    return {f"select_{name}": value for name, value in asdict(checked).items() if value is not None}


def write_course(path: Path, rows: list[dict[str, float]]) -> None:
    """Write the history as NAME_descent.csv."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[-1])
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)


def _resumed(learning: Distillation, state: Path, identity: str) -> Course:
    if not state.exists():
        return Course()
    tensors, saved = load_tensors(state, KIND)
    if saved.get("identity") != identity:
        raise CheckpointError(
            f"{state}: belongs to an interrupted conversion with other settings; delete it, or use another --out"
        )
    learning.resume(tensors, saved["learning"])
    course: dict[str, Any] = saved["course"]
    _LOG.info("%s: resuming after %d windows", state, learning.step * BATCH)
    return Course(**course)
