"""Count the operations of each spike count, and estimate the energy of the same network as a QNN that shifts and adds.

    python bench/bursts.py street=STREET caltech6=CALTECH6 --json docs/results/bursts.json

An activation n meets a weight either as n additions (the spiking network), as one multiplication (a QNN), or as one shifted
addition for every binary digit of n that is 1 (a QNN that shifts and adds). With signed digits, which may also subtract, fewer
additions are needed: 7 w = 8 w - w. Shifts are free here, which favours the QNN. The windows are those of `val` that
`evburst evaluate` scores, at one timestep.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.int8_ann import measured
from evburst.app.evaluate.config import load_evaluation
from evburst.data.datasets.registry import Request, open_dataset
from evburst.data.errors import ConfigError
from evburst.data.representations.voxel_grid import voxel_batch
from evburst.eval.energy import COST_TABLES, synaptic_ops
from evburst.models.graph import Node
from evburst.models.spiking.cost import KINDS
from evburst.models.spiking.network import SpikingNetwork


class BurstHistogram(SpikingNetwork):
    """The reference, which adds up over all runs how many weights the bursts of each count meet.

    Attributes:
        operations: float64; item n is the number of weights that bursts of n spikes have met.
    """

    operations: NDArray[np.float64] = np.zeros(1)

    def observe(self, node: Node, value: Tensor) -> None:
        """See Runner."""
        if node.op not in KINDS:
            return
        size = self.sizes[node.name]
        counts = torch.round(value if size is None else value / size[:, None, None]).abs().long()
        weights = self._fan_out[node.name].double().expand(counts.shape)
        own = np.bincount(counts.flatten().numpy(), weights.flatten().numpy())
        longer = max(len(own), len(self.operations))
        self.operations = np.pad(self.operations, (0, longer - len(self.operations))) + np.pad(own, (0, longer - len(own)))


def binary_digits(n: int) -> int:
    """Return the number of digits of n that are 1."""
    return n.bit_count()


def signed_digits(n: int) -> int:
    """Return the smallest number of powers of two whose sum and difference is n (its non-adjacent form)."""
    return (n ^ (3 * n)).bit_count()


def figures(operations: NDArray[np.float64], windows: int) -> dict[str, Any]:
    """Return operations and energies per window in INT8 of the ways to meet a weight.

    Args:
        operations: as in BurstHistogram.
        windows: number of windows they are of.
    """
    costs, per_window = COST_TABLES["int8"], operations / windows
    additions = {
        "snn": sum(n * x for n, x in enumerate(per_window)),
        "qnn_binary": sum(binary_digits(n) * x for n, x in enumerate(per_window)),
        "qnn_signed": sum(signed_digits(n) * x for n, x in enumerate(per_window)),
    }
    bursts = float(per_window[1:].sum())
    return {
        "windows": windows,
        "operations_by_count": [round(float(x), 1) for x in per_window],
        "spikes_per_burst": additions["snn"] / bursts,
        "energy_pj": {"qnn": bursts * costs.mac_pj, **{name: float(n) * costs.ac_pj for name, n in additions.items()}},
    }


def measure(weights: str, root: str, cache: str, limit: int = 0) -> dict[str, Any]:
    """Return the figures of one weights file on the pictures in `root`."""
    config, bundle = load_evaluation(None, [f"weights={weights}", f"data.root={root}", f"cache={cache}"])
    if bundle.parameters.timesteps != 1:
        raise ConfigError(f"{weights}: only detectors of one timestep are the same network as a QNN")
    dataset = open_dataset(config.data, Request("val", bundle.voxel.window_us, limit, Path(cache), config.seed, spread=True))
    network, counted, windows = BurstHistogram(bundle.spiking, bundle.parameters), 0.0, 0
    for k in range(len(dataset)):
        window = dataset[k].window
        if len(window):
            grid = voxel_batch([window], bundle.voxel, dataset.spec.sensor_size, bundle.stride)
            _, stats = network.run(torch.from_numpy(grid))
            counted, windows = counted + float(synaptic_ops(stats).sum()), windows + 1
    found = sum(n * x for n, x in enumerate(network.operations))
    if not np.isclose(found, counted, rtol=1e-6):
        raise RuntimeError(f"{weights}: {found:.0f} operations by count, but the account has {counted:.0f}")
    return figures(network.operations, windows)


def main() -> None:
    """Command line."""
    for name, one in measured((__doc__ or "").splitlines()[0], measure).items():
        shares = ", ".join(f"{kind} {pj / one['energy_pj']['qnn']:.1%}" for kind, pj in one["energy_pj"].items())
        print(f"{name}: {one['windows']} windows, {one['spikes_per_burst']:.2f} spikes per burst; of the QNN: {shares}")


if __name__ == "__main__":
    main()
