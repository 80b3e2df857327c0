"""Settings of simulated data out of range are errors that name them, before any window is simulated."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from evburst.data.datasets.simulated import SimulatedConfig
from evburst.data.errors import SettingValueError
from evburst.data.simulation.scenes.saccades import SaccadeConfig
from evburst.data.simulation.scenes.stills import StillSceneConfig
from evburst.data.simulation.sensor import SimulatorConfig

REFUSED: list[tuple[Any, str, Any]] = [
    *((SimulatedConfig, "step_ms", value) for value in (0.0, -5.0, math.nan, 1e6)),
    *((SimulatedConfig, "sets", value) for value in ({"a": -1.0}, {"a": 0.0}, {"a": math.inf})),
    (SimulatedConfig, "min_visible", 7.0),
    (SimulatedConfig, "min_side_px", -1.0),
    (SimulatedConfig, "sequence", 3),
    (StillSceneConfig, "mosaic", -3.0),
    (StillSceneConfig, "pan_px", math.inf),
    (StillSceneConfig, "closest", 0.5),
    (StillSceneConfig, "most_walkers", 0),
    *((StillSceneConfig, "walker_px", value) for value in ((0.0, 5.0), (0.0, -5.0), (9.0, 5.0))),
    *((SaccadeConfig, "zoom", value) for value in ((0.0, -1.0), (2.0, 1.0))),
    (SaccadeConfig, "amplitude_px", (-1.0, 9.0)),
    (SaccadeConfig, "rotate_deg", 400.0),
    (SaccadeConfig, "stretch", 1.0),
    *((SimulatorConfig, "threshold_on", value) for value in (0.0, math.inf, math.nan)),
    (SimulatorConfig, "cutoff_hz", math.inf),
]


@pytest.mark.parametrize(("config", "name", "value"), REFUSED)
def test_settings_out_of_range_are_refused(config: Any, name: str, value: Any) -> None:
    with pytest.raises(SettingValueError, match=rf"\b{name}\b.* must "):
        config(**{name: value})


@pytest.mark.parametrize("config", [SimulatedConfig, StillSceneConfig, SaccadeConfig, SimulatorConfig])
def test_no_number_may_be_missing(config: Any) -> None:
    """NaN is in no range."""
    for field in fields(config):
        if isinstance(getattr(config(), field.name), float):
            with pytest.raises(SettingValueError, match=field.name):
                config(**{field.name: math.nan})
