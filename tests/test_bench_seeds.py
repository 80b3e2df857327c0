"""The bench of conversions with several seeds: its table, and what it continues; a file of other settings stays as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.seeds import begun, summary, table

ROWS = [
    {"seed": seed, "lost_ap": lost, "energy_int8": 0.14 + 0.01 * seed, "seconds": 300}
    for seed, lost in enumerate((0.5, 1.0, 1.5))
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "seeds.json"
    identity = {"weights": "caltech6", "settings": ["budget=0.14"], "limit": 0}
    path.write_text(json.dumps(identity | {"windows": 317, "ann_ap": 66.4, "rows": ROWS, "summary": summary(ROWS)}))
    return path


def test_the_table_is_of_the_files_figures(file: Path) -> None:
    assert table([file]).splitlines()[2] == (
        "| caltech6 | `budget=0.14` | 3 | 317 | 66.40 | 1.00 ± 0.50 | 0.50 to 1.50 | 15.00 ± 1.00 % | 5 |"
    )


def test_one_seed_has_no_spread() -> None:
    assert summary(ROWS[:1])["lost_ap"] == {"mean": 0.5, "sd": 0.0, "least": 0.5, "most": 0.5}


def test_a_run_continues_with_the_same_settings_only(file: Path, tmp_path: Path) -> None:
    same = {"weights": "caltech6", "settings": ["budget=0.14"], "limit": 0}
    assert begun(file, same) == ROWS
    assert begun(tmp_path / "none.json", same) == []
    with pytest.raises(SystemExit, match=r"seeds\.json: holds results of other settings"):
        begun(file, same | {"settings": []})
