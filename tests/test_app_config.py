"""Settings: order of precedence, and errors that name the nearest key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from evburst.app.classify import ClassifyConfig
from evburst.app.config import load_config, to_dict
from evburst.app.convert.config import ConvertConfig
from evburst.app.detect import DetectConfig
from evburst.app.evaluate.config import EvaluateConfig
from evburst.app.flags import as_assignments
from evburst.app.live.pipeline import LiveConfig
from evburst.app.tracking import TrackConfig
from evburst.app.train.config import ScheduleConfig, TrainConfig
from evburst.data.datasets.class_windows import HeldTime
from evburst.data.datasets.simulated import SimulatedConfig
from evburst.data.errors import ConfigError, EvburstError
from evburst.data.filters import FiltersConfig
from evburst.data.representations.time_surface import TimeSurfaceConfig
from evburst.data.representations.voxel_grid import VoxelConfig
from evburst.data.simulation.sensor import SimulatorConfig
from evburst.eval.scoring import ScoreConfig
from evburst.models.detectors.postprocess import PostConfig
from tests.conftest import ROOT


@dataclass(frozen=True)
class Inner:
    bins: int = 5
    scale: float = 1.0


@dataclass(frozen=True)
class Outer:
    name: str = "a"
    size: tuple[int, ...] = (1,)
    limit: int | None = None
    on: bool = False
    choice: Literal["a", "b"] = "a"
    voxel: Inner = field(default_factory=Inner)


def test_defaults_then_file_then_set(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: file\nvoxel: {bins: 7, scale: 2}\n")
    config = load_config(Outer, tmp_path / "c.yaml", ["voxel.bins=9", "limit=3"])
    assert config == Outer("file", limit=3, voxel=Inner(9, 2.0))
    assert to_dict(config)["voxel"] == {"bins": 9, "scale": 2.0}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("voxel.bin=5", r"'voxel\.bin'; did you mean 'voxel\.bins'"),
        ("bins=5", r"'bins'; did you mean 'voxel\.bins'"),
        ("voxels.bins=5", r"'voxels\.bins'; did you mean 'voxel\.bins'"),
        ("choice=z", r"'choice': expected a or b, received 'z'"),
        ("nam=x", "did you mean 'name'"),
        ("zzz=1", "known: name, size"),
        ("voxel.bins=five", r"'voxel\.bins': expected a whole number, received 'five'"),
        ("voxel.bins=true", r"'voxel\.bins': expected a whole number"),
        ("on=1", "'on': expected true or false"),
        ("voxel=3", "expected a section"),
        ("name", "write it as name=value"),
        ("name.x.y=1", "unknown|expected|not a section"),
        ("name=[1", "invalid YAML"),
    ],
)
def test_wrong_settings_are_one_clear_error(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(Outer, None, [assignment])


def test_a_number_may_lack_its_decimal_point() -> None:
    """YAML 1.1 reads 1e-3 as text."""
    assert load_config(Outer, None, ["voxel.scale=1e-3"]).voxel.scale == 1e-3


@pytest.mark.parametrize("value", ["\U0001f600 #1.csv", "\udcff.dat", "1e5", 'a "b"', "- x: [y"])
def test_a_flag_keeps_every_character(value: str) -> None:
    """`\\udcff` stands for a byte of a name that is not UTF-8."""
    assert load_config(Outer, None, as_assignments({"name": value})).name == value


def test_a_setting_without_default_must_be_given() -> None:
    with pytest.raises(ConfigError, match="setting 'weights' is missing"):
        load_config(ConvertConfig, None, ["out=x"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such"),
        ("- a\n", r"c\.yaml: contains \['a'\]; expected settings, one a line"),
        ("# nothing\n", r"c\.yaml: is empty; expected settings"),
        ("name: x\nlimit: [1\n", r"c\.yaml, line 3: invalid YAML \(expected"),
        ("name: x\nlimit: 1\nname: y\n", r"c\.yaml, line 3: 'name' is also in line 1; remove one"),
        ("voxel:\n  bins: 3\n  bins: 4\n", r"c\.yaml, line 3: 'voxel\.bins' is also in line 2"),
        (
            "name: x\nvoxel:\n  bins: many\n",
            r"c\.yaml, line 3: setting 'voxel\.bins': expected a whole number, received 'many'",
        ),
        ("name: x\nvoxel:\n  scale: none\n", r"c\.yaml, line 3: setting 'voxel\.scale': expected a number"),
        ("\nnam: x\n", r"c\.yaml, line 2: unknown setting 'nam'; did you mean 'name'"),
        ("&a {name: *a}", "invalid YAML"),
        ("name: x\n1: 2\n", r"c\.yaml, line 2: unknown setting '1'; known: name"),
        ("yes: 2\n", r"c\.yaml, line 1: unknown setting 'yes'"),
        ("null: 2\n", r"c\.yaml, line 1: unknown setting 'null'"),
        ("2026-01-02: 2\n", r"c\.yaml, line 1: unknown setting '2026-01-02'"),
        ("voxel.bins: 2\n", r"c\.yaml, line 1: unknown setting 'voxel\.bins': in a file, write it as voxel: \{bins: \.\.\.\}$"),
        ("voxel.bin: 2\n", r"unknown setting 'voxel\.bin'; did you mean 'voxel\.bins'\?$"),
        ("voxel: {1: 2}\n", r"c\.yaml, line 1: unknown setting 'voxel\.1'"),
    ],
)
def test_bad_files(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_config(Outer, path, [])


@pytest.mark.parametrize(
    ("content", "assignment", "message"),
    [
        ("ann: false\ntimesteps: 65\n", "", "c.yaml, line 2: settings: timesteps must be 1 to 64"),
        ("post:\n  nms_iou: 2\n", "", "c.yaml, line 2: post: nms_iou must be 0 to 1, received 2.0"),
        ("tracking:\n  lost_s: 1\n  hold_s: -1\n", "", "c.yaml, line 3: tracking: hold_s must be 0 to 86400"),
        ("energy_table: int7\n", "", "c.yaml, line 1: settings: energy_table must be one of"),
        ("\nsinks: [tape]\n", "", "c.yaml, line 2: settings: sinks: 'tape' is unknown (known: "),
        ("\nengine: steam\n", "", "c.yaml, line 2: engine 'steam' is unknown (known: auto, "),
        ("reading:\n  columns: x,y\n", "", "c.yaml, line 2: --columns 'x,y': name t, x, y and p"),
        ("slow: 2\nann: false\nfps: 3\n", "", "c.yaml, lines 1, 3: settings: slow and fps both set"),
        ("timesteps: 4\n", "timesteps=65", "settings: timesteps must be 1 to 64"),
        ("post: {nms_iou: 0.5}\n", "post={nms_iou: 2}", "post: nms_iou must be 0 to 1"),
        ("fps: 3\n", "timesteps=65", "settings: timesteps must be 1 to 64"),
    ],
)
def test_values_out_of_range_name_their_line(tmp_path: Path, content: str, assignment: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_config(DetectConfig, tmp_path / "c.yaml", [assignment] if assignment else [])
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(message)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (DetectConfig, {"batch": 1000}, "batch must be 0 to 256"),
        (DetectConfig, {"slow": 0.0}, "slow must be"),
        (DetectConfig, {"sinks": ("xml",)}, "sinks: 'xml' is unknown"),
        (DetectConfig, {"sinks": ("csv", "csv")}, "name each sink only once"),
        (DetectConfig, {"sinks": "jsonl"}, r"sinks: expected names, such as \('jsonl', 'csv'\), received 'jsonl'"),
        (DetectConfig, {"sinks": (["jsonl"],)}, "sinks: expected names"),
        (ClassifyConfig, {"start_s": -1.0}, "start_s must be"),
        (DetectConfig, {"lead_ms": 20.0, "sinks": ("crops",)}, "crops are what is in the boxes"),
        (EvaluateConfig, {"limit": -1}, "limit, .* must not be"),
        (EvaluateConfig, {"workers": -1}, "workers .* must not be"),
        (EvaluateConfig, {"streaming_windows": -1}, "streaming_windows must not be"),
        (EvaluateConfig, {"seed": -1}, "seed must be 0 to"),
        (ScoreConfig, {"classes": ()}, "classes must be names"),
        (ScoreConfig, {"classes": ("car", " ")}, "classes must be names, none of them empty, received .'car', ' '"),
        (ScoreConfig, {"classes": ("car", "car")}, "classes must differ"),
        (ConvertConfig, {"weights": "a", "out": "b", "timesteps": 0}, "timesteps must be"),
        (ConvertConfig, {"weights": "a", "out": "b", "continues": True, "phi_max": 3}, "continue keeps T, burst limits"),
        (ConvertConfig, {"weights": "a", "out": "b", "continues": True, "pick": 3}, "it takes budget only"),
        (ConvertConfig, {"weights": "a", "out": "b", "continues": True, "level": "none"}, "leave level out"),
        (
            ConvertConfig,
            {"weights": "a", "out": "b", "continues": True, "budget": 0.1, "advanced_windows": 0},
            "continue without a descent keeps the energy",
        ),
        (ConvertConfig, {"weights": "a", "out": "b", "noise": 0.7}, "burst and noise are limits of the gradient descent"),
        (ConvertConfig, {"weights": "a", "out": "b", "prune": 0.4}, "prune is a part of the gradient descent"),
        (ConvertConfig, {"weights": "a", "out": "b", "level": "advanced", "prune": 1.0}, "prune must be above 0.125"),
        (
            ConvertConfig,
            {"weights": "a", "out": "b", "level": "advanced", "prune": 0.4, "advanced_weights": False},
            "prune changes weights",
        ),
        (ConvertConfig, {"weights": "a", "out": "b", "calibration_windows": -1}, "calibration_windows, advanced_windows"),
        (ConvertConfig, {"weights": "a", "out": "b", "sensitivity_windows": 0}, "sensitivity_windows must"),
        (ConvertConfig, {"weights": "a", "out": "b", "advanced_windows": -1}, "advanced_windows and"),
        (ConvertConfig, {"weights": "a", "out": "b", "tuning_windows": -1}, "tuning_windows must"),
        (ConvertConfig, {"weights": "a", "out": "b", "check_windows": -2}, "check_windows must"),
        (ConvertConfig, {"weights": "a", "out": "b", "seed": -1}, "seed must"),
        (ScheduleConfig, {"seed": -1}, "seed must"),
        (TrainConfig, {"out": ""}, "out is empty"),
        (ScheduleConfig, {"epochs": 0}, "epochs and batch"),
        (ScheduleConfig, {"seed": 1 << 64}, "seed must be 0 to"),
        (LiveConfig, {"queue_windows": 0}, "queue_windows"),
        (LiveConfig, {"detect": DetectConfig(batch=4)}, "live detection has no detect.batch"),
        (LiveConfig, {"seconds": 0.0}, "seconds must be"),
        (TrackConfig, {"hold_s": -1.0}, "hold_s must"),
        (PostConfig, {"score": 2.0}, "score must be"),
        (PostConfig, {"nms_iou": 2.0}, "nms_iou must be"),
        (PostConfig, {"max_detections": 0}, "max_detections must be"),
        (FiltersConfig, {"background_us": -1}, "must not be negative"),
        (VoxelConfig, {"bins": 0}, "bins must be"),
        (TimeSurfaceConfig, {"tau_ms": 0.0}, "tau_ms must be"),
        (SimulatorConfig, {"threshold_on": 0.0}, "threshold_on"),
        (SimulatorConfig, {"leak_hz": -1.0}, "leak_hz"),
        (SimulatedConfig, {"sequence": 3}, "sequence must be"),
        (HeldTime, {"blocks": 1}, r"held\.blocks must be"),
        (HeldTime, {"blocks": 4, "gap_s": -1.0}, r"held\.gap_s must"),
    ],
)
def test_settings_classes_raise_an_error_of_the_library(kind: type, settings: dict[str, Any], message: str) -> None:
    """Which is also the ValueError that dataclasses usually raise."""
    with pytest.raises(EvburstError, match=message) as caught:
        kind(**settings)
    assert isinstance(caught.value, ConfigError)
    assert isinstance(caught.value, ValueError)


def test_an_error_that_names_no_setting_names_the_file(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Odd:
        size: int = 1

        def __post_init__(self) -> None:
            if self.size % 2 == 0:
                raise ValueError("an even number")

    (tmp_path / "c.yaml").write_text("size: 2\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: settings: an even number"):
        load_config(Odd, tmp_path / "c.yaml", [])


def test_a_file_may_be_json(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{\n\t"name": "file",\n\t"voxel": {"bins": 7}\n}\n')
    assert load_config(Outer, tmp_path / "c.json", []) == Outer("file", voxel=Inner(7))


def test_an_error_of_an_assignment_names_no_line(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("limit: 3\n")
    with pytest.raises(ConfigError, match=r"^setting 'limit': expected a whole number, received 'x'$"):
        load_config(Outer, tmp_path / "c.yaml", ["limit=x"])


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("train_*.yaml")), ids=lambda p: p.name)
def test_shipped_training_configs_load_and_open_with_their_command(path: Path) -> None:
    load_config(TrainConfig, path, [])
    assert path.read_text().startswith("# python train.py --config configs/" + path.name)
    assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize(
    "assignment",
    [
        "post.nms_iou=.nan",
        "post.nms_iou=inf",
        "start_s=-inf",
        "window_ms=" + "9" * 400,
        "timesteps=0x" + "9" * 5000,
        "timesteps=" + "9" * 5000,
        "timesteps=" + "[" * 100_000,
        "post.nms_iou=1.5",
        "post.max_detections=0",
        "sinks=[jsonl,jsonl]",
    ],
)
def test_numbers_that_are_none_are_one_short_error(assignment: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(DetectConfig, None, [assignment])
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("kind", "assignment", "message"),
    [
        (LiveConfig, "simulator.threshold_on=0", "threshold_on and threshold_off must be at least 0.01"),
        (LiveConfig, "simulator.leak_hz=-1", "must not be negative"),
        (TrainConfig, "voxel.bins=0", "bins must be 1 to 64"),
        (TrainConfig, "voxel.max_count=300", "max_count must be 1 to 255"),
        (TrainConfig, "voxel.window_ms=0", "window_ms must be 0.1 to 60000"),
        (EvaluateConfig, "post.score=5", "score must be 0 to 1, received 5.0"),
    ],
)
def test_impossible_values_are_named(kind: type, assignment: str, message: str) -> None:
    base = {"weights": "street"} if kind is EvaluateConfig else None
    with pytest.raises(ConfigError, match=message):
        load_config(kind, None, [assignment], base)


def test_a_file_of_settings_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# " + "x" * (2 << 20))
    with pytest.raises(ConfigError, match=r"a.yaml: larger than 1048576 bytes, so it is not a settings file"):
        load_config(DetectConfig, tmp_path / "a.yaml", [])
