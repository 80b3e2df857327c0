"""An evaluation from its settings to the written results. The pipeline behind evaluate.py."""

from __future__ import annotations

import time
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from evburst.app.evaluate.boxes import BoxEvaluation
from evburst.app.evaluate.classes import ClassEvaluation
from evburst.app.evaluate.config import EvaluateConfig
from evburst.app.evaluate.distributed import gather
from evburst.app.processes import process_group
from evburst.data.classification import CLASSIFICATION, DETECTION
from evburst.data.files import only_writer
from evburst.models.bundle import Bundle
from evburst.models.tasks import task_of

_EVALUATIONS = {DETECTION: BoxEvaluation, CLASSIFICATION: ClassEvaluation}


def evaluate(config: EvaluateConfig, bundle: Bundle, out: Path) -> dict[str, Any] | None:
    """Evaluate, write results.json, results.md and report.html to `out`, and return the content of results.json.

    Returns None in all but the first of several processes.

    Under torchrun every process takes its share of the recordings; the first one gathers, measures latency and writes.

    Raises:
        EvburstError: the data cannot be used, or do not go with the weights; another process writes into `out`.
    """
    with process_group() as (rank, world), only_writer(out) if rank == 0 else nullcontext():
        started = time.perf_counter()
        evaluation = _EVALUATIONS[task_of(bundle.head).name](config, bundle, out, rank, world)
        parts = gather(evaluation.predict(), world)
        if rank > 0:
            return None
        results = evaluation.results(parts)
        results["timing"] = {
            "wall_s": round(time.perf_counter() - started, 2),
            "processes": world,
            "threads": torch.get_num_threads(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        evaluation.write(results, parts, out)
        return results
