"""bench/downsample.py: the file that it writes is the one that its table is made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import downsample


def test_a_sensor_is_added_to_the_file_of_others_and_replaces_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(weights: str, size: Any, factor: int, drives: Any) -> dict[str, Any]:
        return {"downsample": factor, "ap": 40.0 + factor, "ap50": 70.0, "energy_uj": 100.0, "latency_ms": 9.5}

    monkeypatch.setattr(downsample, "measured", measured)
    monkeypatch.setattr(downsample, "drive", lambda size, seed: None)
    file = tmp_path / "downsample.json"
    for flags in ("", "--sensor-size 640x480 --factors 1 2", "--factors 2"):
        monkeypatch.setattr("sys.argv", ["downsample.py", *flags.split(), "--json", str(file)])
        downsample.main()
    assert downsample.table(json.loads(file.read_text())).splitlines()[2:] == [
        "| 1280x720 | 2, the default | 42.0 | 70.0 | 100 µJ | 9.5 |",
        "| 640x480 | 1, the default | 41.0 | 70.0 | 100 µJ | 9.5 |",
        "| 640x480 | 2 | 42.0 | 70.0 | 100 µJ | 9.5 |",
    ]
