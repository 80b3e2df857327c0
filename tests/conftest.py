"""Fixtures shared by the tests: tiny recordings, and small networks that have every operation a graph knows."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

os.environ["GOMP_SPINCOUNT"] = "2000"  # as every command sets it: before torch is loaded
if "PYTEST_XDIST_WORKER" in os.environ:  # a process for each core: threads would only get in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")

# isort: split
import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from evburst.data.events import EVENT_DTYPE, Events, SensorSize
from evburst.models.graph import Graph, Node, Runner
from evburst.models.spiking.convert.calibrate import Choice, calibrate, record_targets
from evburst.models.spiking.network import SpikingParameters

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "data" / "samples"
SAMPLE = SAMPLES / "street_td.dat"


settings.register_profile("quick", max_examples=25, deadline=None)
settings.register_profile("thorough", max_examples=400, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

_TOGETHER = {
    "test_app_classify": "classify",
    "test_app_descent": "descent",
    "test_app_library": "library",
    "test_app_live": "live",
    "test_app_report": "report",
    "test_app_train": "train",
    "test_models_bundle_damaged": "damaged",
    "test_models_detectors_ssd": "ssd",
    "test_models_detectors_yolo": "yolo",
    "test_models_export": "export",
    "test_models_spiking_convert_distil": "distil",
    "test_packaging": "packaging",
}
"""Files whose tests run in one process, by the beginning of their name: they share what is made once, or the machine's clock.

pytest-xdist starts with the largest groups; single tests come last, so that both processes end at the same time.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `shared` are skipped where there is no ../shared, `gpu` ones where there is no CUDA."""
    for item in items:
        group = next((name for start, name in _TOGETHER.items() if item.path.name.startswith(start)), None)
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))
        if "shared" in item.keywords and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason="../shared is not here"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def without_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations write an empty report.html: its charts, which take seconds, are the subject of test_app_report.py."""
    monkeypatch.setattr("evburst.eval.report.write.html_report", lambda *_: "")


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="tests/helpers/two.py forks")


def in_new_process(code: str, **environment: str) -> str:
    """What Python code prints, run in the project's folder."""
    command, variables = [sys.executable, "-c", code], {**os.environ, **environment}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_events(t: list[int] | np.ndarray, x: object = 0, y: object = 0, p: object = 0) -> Events:
    """Events from columns; scalars are repeated."""
    events = np.zeros(len(t), EVENT_DTYPE)
    events["t"], events["x"], events["y"], events["p"] = t, x, y, p
    return events


def random_events(n: int, size: SensorSize, duration_us: int, seed: int = 0) -> Events:
    """Uniformly random events, sorted by time."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, duration_us, n))
    return make_events(t, rng.integers(0, size.width, n), rng.integers(0, size.height, n), rng.integers(0, 2, n))


class Block(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels_out)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class EveryOperation(nn.Module):
    """A detector in miniature: split, shortcut, concat, max-pool chain, upsample, two read-outs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Block(4, 8, 3, 2)
        self.deep = Block(4, 4)
        self.down = Block(12, 8, 3, 2)
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.out_a = nn.Conv2d(8 + 8 + 8, 3, 1)
        self.out_b = nn.Conv2d(8 + 8, 2, 3, padding=1)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of strides 4 and 2: 24 and 16 channels."""
        stem = self.stem(x)
        first, second = stem.chunk(2, 1)
        shortcut = second + self.deep(second)
        down = self.down(torch.cat([first, second, shortcut], 1))
        once = self.pool(down)
        twice = self.pool(once)
        return torch.cat([down, once, twice], 1), torch.cat([self.up(down), stem], 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        a, b = self.features(x)
        return [self.out_a(a), self.out_b(b)]


class FurtherOperations(nn.Module):
    """What EveryOperation lacks: other activations, ReLU after a residual sum, parallel convolutions, average pools, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.signed = Block(4, 8, 3, 2), Block(8, 8)
        self.stem.act, self.signed.act = nn.ReLU6(), nn.LeakyReLU(0.1)
        self.residual = Block(8, 8)
        self.residual.act = nn.Identity()
        self.relu = nn.ReLU()
        self.wide, self.narrow = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.max_pool, self.avg_pool = nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(2, 1)
        self.squeeze, self.linear = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 3)
        self.out = nn.Conv2d(6 + 8, 2, 3, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        stem = self.stem(x)
        signed = self.signed(stem)
        residual = self.relu(self.residual(signed) + stem)
        branches = self.relu(self.wide(residual) + self.narrow(residual))
        pooled = self.avg_pool(torch.cat([branches, self.max_pool(signed)], 1))
        return [self.out(pooled), self.linear(self.squeeze(residual).flatten(1))]


class Residual(nn.Module):
    """Neurons driven by sums of a convolution and spikes, summed spikes, or a second convolution; 20 channels fill no block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.wide = Block(4, 20, 3, 2), Block(20, 20), Block(20, 24, 3, 2)
        self.first, self.again, self.second, self.third = Block(20, 20), Block(20, 20), Block(20, 20, 1), Block(24, 24)
        self.beside, self.out = Block(20, 24, 1, 2), nn.Conv2d(24, 3, 1)
        for block in (self.first, self.second, self.third, self.beside):
            block.act = nn.Identity()
        self.relu, self.relu6 = nn.ReLU(), nn.ReLU6()

    def features(self, x: Tensor) -> Tensor:
        """Of stride 4: 24 channels."""
        x = self.stem(x)
        x = self.again(self.relu6(x + self.first(self.inner(x))))
        summed = x + self.inner(x)
        x = self.relu(self.second(x) + summed)
        out: Tensor = self.relu(self.third(self.wide(x)) + self.beside(x))
        return out

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        return self.out(self.features(x))


class Grouped(nn.Module):
    """Depthwise and grouped convolutions: of spikes, of a maximum, of a concatenation, of a sum, and beside spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise, self.wide = Block(4, 8, 3, 2), Block(8, 8), Block(8, 16, 1)
        self.depthwise.conv = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.same, self.more = nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.pool, self.relu, self.out = nn.MaxPool2d(3, 1, 1), nn.ReLU(), nn.Conv2d(32, 4, 3, padding=1, groups=2)

    def features(self, x: Tensor) -> Tensor:
        """Of stride 2: 32 channels."""
        stem = self.stem(x)
        summed = stem + self.depthwise(self.pool(stem))
        deep = self.wide(summed)
        return torch.cat([self.relu(self.more(summed)), self.relu(self.same(deep) + deep)], 1)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        return self.out(self.features(x))


@pytest.fixture
def network() -> nn.Module:
    """EveryOperation with weights and statistics drawn from a fixed seed."""
    return drawn(EveryOperation)


def drawn(kind: type[nn.Module]) -> nn.Module:
    """A network with weights and statistics drawn from a fixed seed."""
    torch.manual_seed(3)
    module = kind().eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.3)
    return module


@pytest.fixture
def grid() -> Tensor:
    """A batch of two count grids, (2, 4, 12, 20)."""
    return torch.poisson(torch.full((2, 4, 12, 20), 0.7), generator=torch.Generator().manual_seed(1))


def activations(graph: Graph, x: Tensor) -> dict[str, Tensor]:
    """Every node's value in the ANN."""
    found: dict[str, Tensor] = {}

    class Keep(Runner):
        def observe(self, node: Node, value: Tensor) -> None:
            found[node.name] = value

    Keep(graph)(x)
    return found


def spiking(
    graph: Graph, grids: Tensor, timesteps: int, phi: int, level: str = "light", signed: bool = False
) -> SpikingParameters:
    """Neurons for a graph, calibrated on the grids, with equal weight at all positions; the weights are not changed."""
    parameters = calibrate(graph, record_targets(graph, grids), timesteps, Choice(phi, signed=signed), level)[1]
    neurons = {name: replace(n, theta=n.theta.clone(), shift=n.shift.clone()) for name, n in parameters.neurons.items()}
    return replace(parameters, neurons=neurons)  # no inference tensors: tests write to them
