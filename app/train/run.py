"""A training run from the settings to its best weights."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from evburst.app.config import build
from evburst.app.console import show_progress
from evburst.app.processes import process_group
from evburst.app.train.config import TrainConfig
from evburst.app.train.trainer import BEST, FILES, SOURCES, Trainer, is_training
from evburst.app.train.windows import has_split
from evburst.data.datasets.registry import reported_split
from evburst.data.files import only_writer, refuse_foreign
from evburst.data.text import number_of
from evburst.models.architectures import task_of_architecture
from evburst.models.bundle import load_tensors

_FIGURES = ("ap", "ap50", "top1", "top5")


def train(config: TrainConfig) -> Path | None:
    """Train, or resume an unfinished run in the output folder, and return the path of the best epoch's weights.

    Returns None in all but the first of several processes.

    Under torchrun, every process takes its share of each batch; the first one also validates the epochs and writes all files.

    Raises:
        EvburstError: the data or the initial weights cannot be used; another process writes into the folder; or the folder
            holds a run with other settings, or files of these names that evburst has not written.
    """
    out = Path(config.out)
    config = replace(config, name=config.name or out.resolve().name)
    with (
        process_group("nccl" if torch.cuda.is_available() else "gloo") as (rank, _),
        only_writer(out) if rank == 0 else nullcontext(),
    ):
        refuse_foreign((out / name for name in FILES), is_training(out))
        Trainer(config, show_progress()).run()
    return out / BEST if rank == 0 else None


def human_summary(best: Path) -> str:
    """Two lines for the user: the score of the best epoch of a finished run, and the next command to type.

    That command measures its result on the split that is reported, unless the data lack it.
    """
    _, record = load_tensors(best, "ann")
    config = build(TrainConfig, record["config"])
    task = task_of_architecture(config.architecture)
    unmeasured = "" if has_split(config, task, reported_split(config.data, task)) else " --set check_windows=-1"
    scored = ", ".join(f"{name} {value:.1f}" for name, value in record["validation"].items() if name in _FIGURES)
    chosen = record["chosen_on"]
    sources = next(number_of(chosen[kind], kind.removesuffix("s")) for kind in SOURCES if kind in chosen)
    out = shlex.quote(f"{best.resolve().parent.name}.safetensors")
    return (
        f"written   {best}: {scored} on the split {chosen['split']!r} ({number_of(chosen['windows'], 'window')}, {sources}), "
        f"epoch {record['epoch']} (the best)\n"
        f"next      evburst convert --weights {shlex.quote(str(best))} --out {out}{unmeasured}"
    )
