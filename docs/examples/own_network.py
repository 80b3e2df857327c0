"""A PyTorch network of one's own, trained in one's own loop, as a burst-spiking network and as a weights file.

python docs/examples/own_network.py direction.safetensors

The network tells whether a bar moves to the left or to the right. `convert` is all that is specific to evburst.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evburst.data.representations.voxel_grid import VoxelConfig
from evburst.eval.energy import EnergyTotals
from evburst.models.bundle import Bundle
from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.graph import Runner
from evburst.models.spiking.convert.calibrate import Choice, calibrate, record_targets
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.network import SpikingNetwork

SIDE_PX = 32
VOXEL = VoxelConfig(bins=5, window_ms=50.0)


class Direction(nn.Module):
    """A classifier; grids `(N, 10, 32, 32)` in, a list of one map of class logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(VOXEL.channels, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classes = nn.Conv2d(16, 2, 1)

    def forward(self, grids: Tensor) -> list[Tensor]:
        """Return the map of class logits, `(N, 2, 4, 4)`; its mean decides."""
        return [self.classes(self.features(grids))]


def convert(module: nn.Module, grids: Tensor, timesteps: int = 1, phi_max: int = 8) -> Bundle:
    """Convert a trained classifier.

    Args:
        module: returns a list of raw maps; activations are ReLU.
        grids: `(N, 2 * bins, H, W)` float32 event counts of typical windows, for calibration; no labels.
        timesteps, phi_max: T, and the burst limit.
    """
    ann = trace(module, grids).in_float16()  # as the file stores it
    spiking, parameters = calibrate(ann, record_targets(ann, grids), timesteps, Choice(phi_max))
    head = HeadSpec("classes", strides=(8,), reg_max=0, classes=("left", "right"))
    return Bundle(ann, spiking, parameters, head, VOXEL, record={"dataset": "moving bars"})


def moving_bars(n: int) -> tuple[Tensor, Tensor]:
    """Draw event counts `(n, 10, 32, 32)` float32 of bars, ON at the front and OFF behind, and their labels `(n,)`."""
    labels = torch.randint(2, (n,))
    grids = (torch.rand(n, VOXEL.channels, SIDE_PX, SIDE_PX) < 0.02).float()
    for grid, label in zip(grids, labels.tolist(), strict=True):
        x, top, step = (int(torch.randint(low, high, ())) for low, high in ((10, 22), (0, 20), (1, 3)))
        for k in range(VOXEL.bins):
            front = x + (1 if label else -1) * step * k
            grid[VOXEL.bins + k, top : top + 10, front % SIDE_PX] += 3
            grid[k, top : top + 10, (front - (4 if label else -4)) % SIDE_PX] += 3
    return grids, labels


def train(module: nn.Module, steps: int) -> None:
    """Stand for your training."""
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(steps):
        grids, labels = moving_bars(32)
        optimizer.zero_grad()
        F.cross_entropy(module(grids)[0].mean((2, 3)), labels).backward()
        optimizer.step()


def main(path: str) -> None:
    """Train, convert, compare with the ANN on other windows, and save."""
    torch.manual_seed(0)
    module = Direction()
    train(module, 150)
    bundle = convert(module, moving_bars(64)[0])
    grids, labels = moving_bars(200)
    (expected,) = Runner(bundle.graph)(grids)
    (found,), stats = SpikingNetwork(bundle.spiking, bundle.parameters).run(grids)
    for name, maps in (("ANN", expected), ("SNN", found)):
        print(f"{name}  {100 * float((maps.mean((2, 3)).argmax(1) == labels).float().mean()):.1f} % right")
    totals = EnergyTotals(sum(stats.dense_macs.values()))
    totals.add(stats)
    print(f"energy of the SNN: {100 * (totals.report().energies().ratio or 0):.1f} % of the dense ANN's (INT8, arithmetic)")
    bundle.save(Path(path))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python own_network.py OUT.safetensors")
    main(sys.argv[1])
