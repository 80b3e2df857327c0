"""The choice of burst limits and thresholds: sensitivities, the Pareto frontier, and the point that meets a criterion.

Beside the weights file lie NAME_sensitivity.npz, from which an interrupted measurement resumes and `pick` reads, and
NAME_frontier.csv and .png.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from tqdm import tqdm

from evburst.app.console import show_progress
from evburst.app.convert.conversion import Conversion
from evburst.app.convert.scores import score
from evburst.app.plots.conversion import OtherTable, draw_frontier, load_table, save_table, table_identity, write_frontier
from evburst.data.errors import ConfigError
from evburst.eval.energy import HEADLINE
from evburst.models.bundle import Bundle
from evburst.models.spiking.convert.allocate import Frontier, pareto_frontier
from evburst.models.spiking.convert.sensitivity import SensitivityTable, default_choices, measure

Network = Callable[[int], Bundle]
"""Returns the calibrated network of a point of the frontier."""
_ROUNDS = 6
"""Points measured at most in the search for one within a loss or a budget."""


def choose(conversion: Conversion) -> tuple[Bundle, dict[str, Any]]:
    """Choose a point of the frontier by the criterion in the settings.

    Returns:
        The network of the chosen point, calibrated; and the record of the search: point, expected_share of the ANN's energy,
        which is the sum over single layers, and tried, the points whose networks were measured.

    Raises:
        ConfigError: no point meets the criterion.
    """
    frontier = pareto_frontier(sensitivity_table(conversion))
    share = frontier.cost * conversion.share_per_operation()

    @cache
    def network(index: int) -> Bundle:
        return conversion.calibrated(frontier.point(index))

    index, tried = _point(conversion, frontier, share, network)
    write_frontier(frontier, share, conversion.beside("frontier.csv"))
    draw_frontier(frontier, share, index, tried, conversion.scoring.unit, conversion.beside("frontier.png"))
    return network(index), {"point": index, "expected_share": round(float(share[index]), 4), "tried": tried}


def _point(
    conversion: Conversion, frontier: Frontier, share: np.ndarray, network: Network
) -> tuple[int, list[dict[str, float]]]:
    """Return the index of the point that meets the criterion, and the points that were measured to find it."""
    c = conversion.config
    if c.pick is not None:
        if not 0 <= c.pick < len(frontier):
            raise ConfigError(f"pick {c.pick}: the frontier has points 0 to {len(frontier) - 1}")
        return c.pick, []
    if c.budget is not None:
        if share[0] > c.budget:
            cheapest = f"the cheapest choice costs {share[0]:.4f} of the dense ANN's energy ({HEADLINE.upper()})"
            raise ConfigError(f"budget {c.budget:g}: {cheapest}; give a higher budget or fewer timesteps")
        start = frontier.within_budget(c.budget / conversion.share_per_operation())
        if c.distils:  # the descent keeps the budget
            return start, []
        return _within_budget(conversion, share, start, network)
    if c.compress is not None:
        return frontier.within_tolerance(c.compress), []
    return _cheapest_within_loss(conversion, share, float(c.max_loss or 0.0), network)


def _within_budget(
    conversion: Conversion, share: np.ndarray, start: int, network: Network
) -> tuple[int, list[dict[str, float]]]:
    """Find a point whose network keeps the budget on the calibration grids, from `start` on towards cheaper ones.

    The frontier's energies are of single layers that spike among others that do not, without max-pools, so that a network
    takes more than its point says. The ratio of both is taken off the budget until the network keeps it.

    Raises:
        ConfigError: no network that was measured keeps the budget.
    """
    tried, index, budget = list[dict[str, float]](), start, float(conversion.config.budget or 0.0)
    for _ in tqdm(range(_ROUNDS), desc="search", disable=not show_progress()):
        measured = conversion.share_of(network(index))
        tried.append({"share": measured, "point": index})
        if measured <= budget:
            return index, tried
        if index == 0:
            break
        index = int(np.clip(np.searchsorted(share, share[index] * budget / measured, "right") - 1, 0, index - 1))
    least = min(point["share"] for point in tried)
    raise ConfigError(
        f"budget {budget:g}: the cheapest network measured takes {least:.4f} of the dense ANN's energy ({HEADLINE.upper()}); "
        "give a higher budget or fewer timesteps"
    )


def _cheapest_within_loss(
    conversion: Conversion, share: np.ndarray, max_loss: float, network: Network
) -> tuple[int, list[dict[str, float]]]:
    """Find the cheapest point within a loss, by bisection of the logarithm of the cost; the dearest is tried last.

    Raises:
        ConfigError: no point that was measured is within the loss.
    """
    tried = list[dict[str, float]]()

    def holds(index: int) -> bool:
        scored, operations = score(network(index), conversion.tuning)
        lost = conversion.tuning_score - scored.value
        measured_share = float(operations * conversion.share_per_operation())
        tried.append({"share": measured_share, "lost": round(lost, 2), "point": index})
        return bool(lost <= max_loss)

    too_lossy, best = -1, len(share)
    for _ in tqdm(range(_ROUNDS), desc="search", disable=not show_progress()):
        if best - too_lossy <= 1:
            break
        low, high = share[max(too_lossy, 0)], share[min(best, len(share) - 1)]
        middle = int(np.clip(np.searchsorted(share, np.sqrt(low * high)), too_lossy + 1, best - 1))
        if holds(middle):
            best = middle
        else:
            too_lossy = middle
    dearest = len(share) - 1
    if best > dearest and (too_lossy == dearest or not holds(dearest)):
        least = min(point["lost"] for point in tried)
        raise ConfigError(
            f"max_loss {max_loss:g}: the smallest loss measured is {least:g}; allow a higher loss, or give more timesteps"
        )
    return min(best, dearest), tried


def sensitivity_table(conversion: Conversion) -> SensitivityTable:
    """Measure the sensitivities, or read them from a file if the same network was measured before on the same grids."""
    c, path = conversion.config, conversion.beside("sensitivity.npz")
    grids, choices = conversion.grids[: c.sensitivity_windows], default_choices(c.phi_max, c.signed, c.uniform.typical)
    batches = [grids[i : i + 8] for i in range(0, len(grids), 8)]
    identity = table_identity(conversion.graph, c.timesteps, choices, grids)
    try:
        start = load_table(path, identity, choices)
    except OtherTable:
        if c.pick is not None:
            raise ConfigError(
                f"pick {c.pick}: {path} and its frontier were measured on other windows or another network: pass the settings "
                "of that conversion again (calibration_windows, sensitivity_windows, seed, ...), or choose by budget"
            ) from None
        start = None
    layers = sum(node.op == "relu" for node in conversion.graph.nodes)
    done = start.batches if start else 0
    with tqdm(total=layers * len(batches), initial=layers * done, desc="sensitivity", disable=not show_progress()) as bar:
        save: Callable[[SensitivityTable], None] = lambda table: save_table(path, table, identity)  # noqa: E731
        return measure(conversion.graph, conversion.head, batches, c.timesteps, choices, start, save, bar.update)
