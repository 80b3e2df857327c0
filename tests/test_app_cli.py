"""Commands as a whole: flags follow from the settings, help, README's commands, signals, stdout and stderr that fail."""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import errno
import io
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import typing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from evburst.app import cli, console
from evburst.app.config import load_config, setting_names
from evburst.app.convert.cli import convert_main
from evburst.app.flags import attribute_texts, given, read_settings
from evburst.app.live.recording_settings import OF_RECORDINGS
from evburst.data.errors import ConfigError
from evburst.data.readers import READERS, recording_suffixes
from tests.conftest import ROOT, SAMPLE

CONFIGS = {
    "detect": "evburst.app.detect:DetectConfig",
    "evaluate": "evburst.app.evaluate.config:EvaluateConfig",
    "train": "evburst.app.train.config:TrainConfig",
    "convert": "evburst.app.convert.config:ConvertConfig",
    "live": "evburst.app.live.pipeline:LiveConfig",
    "score": "evburst.eval.scoring:ScoreConfig",
}
REQUIRED = {"detect": ["--events", "x.dat"], "convert": ["--weights", "a", "--out", "b"]}


def imported(config: str) -> Any:
    """The dataclass behind "module:Class"."""
    module, _, name = config.partition(":")
    return getattr(import_module(module), name)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that parses a command's arguments without running it."""

    def only_parse(parser: argparse.ArgumentParser, main: object, argv: list[str]) -> argparse.Namespace:
        console.add_common_flags(parser)
        return parser.parse_args(argv)

    for module in {name for name, _, _ in cli.COMMANDS.values()}:
        monkeypatch.setattr(f"{module}.run", only_parse)
    return lambda *argv: cli.main([*argv])


def leaves(config: object, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """(type without None, default) of each setting of a dataclass, nested ones by their full names."""
    found: dict[str, tuple[Any, Any]] = {}
    hints = typing.get_type_hints(type(config))
    for name, value in ((field.name, getattr(config, field.name)) for field in dataclasses.fields(config)):  # type: ignore[arg-type]
        if dataclasses.is_dataclass(value):
            found |= leaves(value, f"{prefix}{name}.")
        else:
            kinds = [kind for kind in typing.get_args(hints[name]) if kind is not type(None)]
            optional = type(None) in typing.get_args(hints[name])
            found[prefix + name] = (kinds[0] if optional else hints[name], value)
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_read_from_the_source_are_those_of_the_class(name: str) -> None:
    kind = imported(CONFIGS[name])
    required = {"weights": "w", "out": "o"} if name == "convert" else {}
    real = leaves(kind(**required))
    read = {setting.name: setting for section in read_settings(CONFIGS[name]) for setting in section.settings}
    assert read.keys() == real.keys() <= set(setting_names(kind))
    for setting in read.values():
        hint, default = real[setting.name]
        assert setting.annotation in (getattr(hint, "__name__", None), str(hint).replace("typing.", "")), setting
        assert setting.help, setting
        if setting.default:
            assert eval(setting.default) == default, setting
        elif setting.default is None:
            assert setting.name in required
        else:
            assert not default, setting


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "score"])
def test_limits_in_the_help_are_those_of_the_class(name: str) -> None:
    kind, read = imported(CONFIGS[name]), read_settings(CONFIGS[name])
    required = ["weights=w", "out=o"] if name == "convert" else []
    limits = {setting.name: setting.limits for section in read for setting in section.settings if setting.limits}
    assert len(limits) >= 8
    ranges = {known: re.fullmatch(r"([\d.]+) to ([\d.e]+)", text) for known, text in limits.items()}
    for known, found in ranges.items():
        for beyond in (-1, 2 * round(float(found[2])) + 1) if found else ():
            value = f"[{beyond}]" if (name, known) == ("evaluate", "timesteps") else beyond
            with pytest.raises(ConfigError, match=rf"\b{known.rpartition('.')[2]}\b.* must be {found[1]} to {found[2]}"):
                load_config(kind, None, [*required, f"{known}={value}"])


def test_the_help_states_limits_and_formats(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["detect", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "agree this well, 0 to 1; on the engine reference, which is many times slower. None: never" in shown
    assert "(0 to 1000; default: 0.0)" in shown
    assert f"format of the recording: {', '.join(sorted(READERS))};" in shown
    suffixes = shown[shown.index("recordings (") :].partition(";")[0]
    assert recording_suffixes() <= set(re.findall(r"\.\w+", suffixes))


def test_attribute_texts_of_a_docstring() -> None:
    text = "One.\n\nAttributes:\n    a, b: both,\n        over two lines.\n    c: see `x: y`.\n\nOther:\n    d: not this."
    assert attribute_texts(text) == {"a": "both, over two lines.", "b": "both, over two lines.", "c": "see `x: y`."}
    assert attribute_texts("One.") == {}


COMMANDS = [[name] for name in cli.COMMANDS] + [["events", name] for name in ("info", "convert", "cut", "frames")]


_SHORTER = {
    "detect": {"--reading.allow-external"},
    "convert": {"--continues"},
    "evaluate": {"--snn"},
    "live": {"--detect.ann", "--detect.memory"},
}
"""Settings that are yes or no, whose only flag has a shorter name, or another way of asking (--ann, --both)."""


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_flag_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([*command, "--help"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: evburst {' '.join(command)} ")
    entries = re.split(r"\n  (?=-)", shown.partition("options:")[2])[1:]
    for entry in entries:
        flags, _, text = re.sub(r"\n +", "  ", entry.partition("\n\n")[0]).partition("  ")
        assert len(text.split()) > 1, (flags, text)
    listed = {flag for entry in entries for flag in re.findall(r"--[\w.-]+", entry)}
    sections = read_settings(CONFIGS[command[0]]) if command[0] in CONFIGS else []
    settings = {"--" + setting.name.replace("_", "-") for section in sections for setting in section.settings}
    if command == ["live"]:  # it refuses these
        refused = tuple(f"--detect.{name.replace('_', '-')}" for name in OF_RECORDINGS)
        settings = {name for name in settings if name not in refused and not name.startswith("--detect.tracking.")}
    assert settings - listed == _SHORTER.get(command[0], set())


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name in CONFIGS])
def test_the_example_of_set_is_valid(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    example = re.search(r"e\.g\. --set (\S+);", text)
    assert example
    extra = ["weights=w", "out=o"] if command == "convert" else []
    assert example[1].split("=")[0] in setting_names(imported(CONFIGS[command]))
    load_config(imported(CONFIGS[command]), None, [example[1], *extra])


def documented_commands() -> list[str]:
    """Command lines in README.md and docs/*.md, without what is explained behind them."""
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))):
        for line in re.findall(r"(?:python \w+\.py|evburst (?:\w+)|python -m evburst\.app\.\w+) [^`\n]*", page.read_text()):
            found.append(re.split(r"  +| #|;|\|\s|$", line)[0].rstrip(" .,)"))
    return sorted({line for line in found if " --" in line and "..." not in line})


@pytest.mark.parametrize("line", documented_commands())
def test_documented_commands_parse(line: str, parsed: Any) -> None:
    words = shlex.split(re.sub(r"(\w+)(\|\w+)+", r"\1", line))
    words = words[1:] if words[0] == "evburst" else [re.sub(r"\.py$|^evburst\.app\.", "", word) for word in words[1:]]
    words = words[1:] if words[0] == "-m" else words
    command = re.sub(r"\.py$|^evburst\.app\.", "", words[0])
    required = REQUIRED.get(command, [])  # a page may name a flag of a command without the others
    parsed(command, *words[1:], *(required if required and required[0] not in words else []))


@pytest.mark.parametrize(
    ("command", "flags", "expected"),
    [
        ("detect", "--adaptive", ["adaptive=0.8"]),
        ("detect", "--adaptive 0.5 --ann", ["adaptive=0.5", "ann=true"]),
        ("detect", "--batch auto", ["batch=0"]),
        ("detect", "--batch 4 --no-ann", ["batch=4", "ann=false"]),
        ("detect", "--sinks jsonl,bbox --overwrite", ['sinks=["jsonl", "bbox"]', "overwrite=true"]),
        ("detect", "--score 0.4", ["post.score=0.4"]),
        ("detect", "--post.score 0.4 --post.nms-iou 1", ["post.score=0.4", "post.nms_iou=1.0"]),
        ("detect", "--weights 12", ['weights="12"']),
        ("evaluate", "--timesteps 1,2,4 --dataset gen1 --root D", ["timesteps=[1, 2, 4]", 'data.kind="gen1"', 'data.root="D"']),
        ("evaluate", "--data.simulated.sets {voc:\\ 0.5}", ['data.simulated.sets={"voc": 0.5}']),
        ("evaluate", "--data.classes {2026-01-02:\\ 2026-01-03}", ['data.classes={"2026-01-02": "2026-01-03"}']),
        ("train", "--augment.zoom-range 0.5,2 --root D", ["augment.zoom_range=[0.5, 2.0]", 'data.root="D"']),
        ("convert", "--calibration D --phi-max 4 --signed", ['root="D"', "phi_max=4", "signed=true"]),
        ("live", "--camera 0 --timesteps 2 --ann", ["detect.timesteps=2", "detect.ann=true"]),
        ("live", "--serve --detect.filters.refractory-us 7", ["detect.filters.refractory_us=7"]),
    ],
)
def test_flags_set_their_settings(command: str, flags: str, expected: list[str], parsed: Any) -> None:
    args = parsed(command, *REQUIRED.get(command, []), *shlex.split(flags))
    required = ['weights="a"', 'out="b"'] if command == "convert" else []
    assert sorted(given(args)) == sorted(expected + required)
    extra = [] if command == "convert" else required
    load_config(imported(CONFIGS[command]), None, given(args) + extra)


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("detect", "--window-ms five", "argument --window-ms: invalid float value: 'five'"),
        ("detect", "--post.nms-iuo 0.5", "unrecognized arguments: --post.nms-iuo 0.5; did you mean --post.nms-iou?"),
        ("classify", "--events a --out x", "unrecognized arguments: --out x\n"),
        ("detect", "--device gpu", "invalid choice: 'gpu'"),
        ("evaluate", "--timesteps 1,x", "argument --timesteps: invalid A,B,... value: '1,x'"),
        ("evaluate", "--ann --both", "not allowed with argument"),
        ("convert", "--budget 0.1 --pick 3", "not allowed with argument"),
        ("convert", "--level hard", "invalid choice: 'hard'"),
        ("detect", "--quiet --verbose", "not allowed with argument"),
    ],
)
def test_wrong_flags_are_exit_2(
    command: str, flags: str, message: str, parsed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parsed(command, *REQUIRED.get(command, []), *flags.split())
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["detect --events", "classify --events", "live --events", "events info", "events convert", "events cut"]
)
def test_a_dash_is_standard_input(command: str, parsed: Any) -> None:
    args = parsed(*command.split(), "-", *(["out.csv"] if command.split()[-1] in ("convert", "cut") else []))
    found = args.events if "--events" in command else getattr(args, "files", None) or [args.file]
    (found,) = [found] if isinstance(found, str) else found
    assert str(found) == "/dev/stdin"


@pytest.mark.parametrize(
    ("system", "message"),
    [("win32", "standard input cannot be read on Windows: save the events to a file"), ("darwin", "pass its name, or a pipe")],
)
def test_standard_input_where_it_cannot_be_read(
    system: str, message: str, parsed: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of a file, where /dev/stdin continues at the position of the first reader; a pipe has one reader."""
    kept, (reading, writing), file = os.dup(0), os.pipe(), os.open(SAMPLE, os.O_RDONLY)
    try:
        monkeypatch.setattr(sys, "platform", system)
        os.dup2(reading, 0)
        if system == "darwin":
            assert parsed("detect", "--events", "-").events == ["/dev/stdin"]
            os.dup2(file, 0)
        with pytest.raises(SystemExit, match="2"):
            parsed("detect", "--events", "-")
        assert message in capfd.readouterr().err
    finally:
        os.dup2(kept, 0)
        for descriptor in (kept, reading, writing, file):
            os.close(descriptor)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_is_printed_where_the_encoding_lacks_letters(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of East Asian versions of Windows, which has no µ."""
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii"))
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    assert shown.getvalue().startswith(b"usage: ")


def test_without_a_command_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("usage: evburst ")
    assert "detect objects in recordings" in shown.err


def test_a_missing_required_flag_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        convert_main(["--out", "x"])
    assert "convert.py: error: the following arguments are required: --weights" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "where"), [("--slow 10", ""), ("--fps 20", ""), ("--config {}", "{}, line 2: ")])
def test_flags_of_outputs_that_contradict_settings_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, where: str
) -> None:
    (file := tmp_path / "slow.yaml").write_text("ann: true\nslow: 3\n")
    assert cli.detect_main(["--events", "x.dat", "--no-video", *flags.format(file).split()]) == 1
    message = "slow and fps set the speed of the video: add video to the sinks, or leave them out"
    assert capsys.readouterr().err == f"error: {where.format(file)}settings: {message}\n"


@pytest.mark.parametrize(
    ("flags", "sinks"),
    [
        ("--no-video", ("jsonl", "bbox")),
        ("--crops", ("jsonl", "bbox", "video", "crops")),
        ("--crops --no-video --sinks crops,video", ("crops",)),
    ],
)
def test_flags_choose_outputs(monkeypatch: pytest.MonkeyPatch, flags: str, sinks: tuple[str, ...]) -> None:
    def detect_file(events: Path, out: Path, config: Any) -> dict[str, Any]:
        assert config.sinks == sinks
        raise ConfigError("enough")

    monkeypatch.setattr("evburst.app.detect.detect_file", detect_file)
    assert cli.detect_main(["--events", "x.dat", *flags.split()]) == 1


def test_defaults_then_file_then_set_then_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.yaml").write_text("post: {score: 0.1, nms_iou: 0.1, max_detections: 1}\nann: true\n")
    seen: list[Any] = []

    def detect_file(events: Path, out: Path, config: Any) -> dict[str, Any]:
        seen.append(config)
        raise ConfigError("enough")

    monkeypatch.setattr("evburst.app.detect.detect_file", detect_file)
    flags = ["--config", str(tmp_path / "c.yaml"), "--score", "0.3", "--no-ann"]
    assert cli.detect_main(["--events", "x.dat", *flags, "--set", "post.score=0.2", "--set", "post.nms_iou=0.2"]) == 1
    assert (seen[0].post.score, seen[0].post.nms_iou, seen[0].post.max_detections) == (0.3, 0.2, 1)
    assert (seen[0].ann, seen[0].weights) == (False, "street")


def test_settings_are_read_once_so_that_they_may_come_from_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"weights: from-the-pipe\n")
    os.close(writing)
    assert cli.detect_main(["--events", str(SAMPLE), "--config", f"/dev/fd/{reading}", "--crops"]) == 1
    os.close(reading)
    assert "from-the-pipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("detect --events a.dat --ann --timesteps 4 --engine int8", "the ANN has no timesteps, engine; leave out"),
        ("detect --events a.dat --set ann=true --adaptive", "the ANN has no adaptive"),
        ("classify --events a.dat --ann --timesteps 1", "the ANN has no timesteps"),
        ("detect --events a.dat --ann --count-every 3", "the ANN has no count_every; leave out"),
        ("classify --events a.dat --ann --count-every 3", "the ANN has no count_every"),
        ("evaluate --ann --engine int8", "the ANN has no timesteps and engine"),
    ],
)
def test_settings_that_the_ann_would_ignore(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command.split()) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["detect", "--events", "a.dat", "--out", ""],
        ["evaluate", "--out", ""],
        ["live", "--record", ""],
        ["export", "--onnx", ""],
        ["results", "runs", "--out", ""],
        ["events", "convert", "a.dat", ""],
    ],
    ids=lambda command: command[0],
)
def test_an_output_has_a_name(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(command)
    assert "the name is empty; is a shell variable unset?" in capsys.readouterr().err


def run_with(main: Any, *flags: str) -> int:
    """console.run with a parser of nothing but the common flags."""
    return console.run(argparse.ArgumentParser("x"), main, list(flags))


def test_messages_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    def main(args: argparse.Namespace) -> str:
        log = logging.getLogger("evburst.data.somewhere")
        log.debug("a")
        log.info("note: b")
        log.warning("c %d", 1)
        return "result"

    assert run_with(main) == 0
    assert capsys.readouterr() == ("result\n", "note: b\nwarning: c 1\n")
    assert run_with(main, "--quiet") == 0
    assert capsys.readouterr() == ("result\n", "warning: c 1\n")
    assert run_with(main, "--verbose") == 0
    assert capsys.readouterr() == ("result\n", "debug: a\nnote: b\nwarning: c 1\n")
    assert not console.LOG.handlers


def test_names_of_files_do_not_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def main(args: argparse.Namespace) -> str:
        logging.getLogger("evburst").warning("%s: repaired", "\x1b]0;a\x07.dat")
        return json.dumps("\x00\x1b\x7f\x9b") + "\x1b[31mä.dat:\n\tfine\x9b"

    assert run_with(main) == 0
    shown = capsys.readouterr()
    assert shown == (
        json.dumps("\x00\x1b\x7f\x9b") + "\\x1b[31mä.dat:\n\tfine\\x9b\n",
        "warning: \\x1b]0;a\\x07.dat: repaired\n",
    )


def test_errors_are_one_line_and_bugs_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(error: BaseException) -> Any:
        def main(args: argparse.Namespace) -> str:
            raise error

        return main

    assert run_with(fails(ConfigError("100% wrong"))) == 1
    assert capsys.readouterr().err == "error: 100% wrong\n"
    with pytest.raises(ConfigError):
        run_with(fails(ConfigError("x")), "--debug")
    with pytest.raises(ZeroDivisionError):
        run_with(fails(ZeroDivisionError()))
    assert run_with(fails(OSError(28, "No space left on device", "runs/x.npy"))) == 1
    assert capsys.readouterr().err.endswith(
        "error: runs/x.npy: cannot be written (No space left on device); what was written so far is readable\n"
    )
    for error, message in [
        (PermissionError(13, "Permission denied", "y.npy"), "y.npy: cannot be used (Permission denied)"),
        (OSError(36, "File name too long", "y" * 300), f"{'y' * 300}: cannot be used (File name too long)"),
        (
            MemoryError(),
            "there is not enough memory for this (MemoryError): a smaller sensor, batch or number of workers needs less",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes\nat"),
            "there is not enough memory for this (DefaultCPU",
        ),
        (
            ImportError("libtorch.so: failed to map segment from shared object"),
            "a library cannot be loaded (libtorch.so: failed to map segment from shared object): too little memory",
        ),
        (
            ImportError("libGL.so.1: cannot open shared object file"),
            "a library cannot be loaded (libGL.so.1: cannot open shared object file): for OpenCV on a system without a "
            "display, pip install --force-reinstall --no-deps opencv-python-headless\n",
        ),
    ]:
        assert run_with(fails(error)) == 1
        assert capsys.readouterr().err.startswith(f"error: {message}")
    for bug in (PermissionError(13, "x"), RuntimeError("x"), OSError(22, "Invalid argument", "y"), ImportError("no name x")):
        with pytest.raises(type(bug)):
            run_with(fails(bug))
    assert run_with(fails(KeyboardInterrupt())) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(signal, "pause"), reason="Windows sends itself no signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGBREAK"])
def test_signals_end_a_run_as_ctrl_c_does(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "SIGBREAK":  # of Windows: Ctrl-Break, and a window that is closed
        monkeypatch.setattr(signal, name, signal.SIGUSR1, raising=False)
    cleaned, number = list[bool](), getattr(signal, name)

    def main(args: argparse.Namespace) -> None:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            os.kill(os.getpid(), number)  # another one while the run ends changes nothing
            cleaned.append(True)

    outside = signal.signal(number, signal.SIG_DFL)  # under nohup it is ignored, and `main` would wait for ever
    try:
        assert run_with(main) == 128 + number
        assert (cleaned, signal.getsignal(number)) == ([True], signal.SIG_DFL)
    finally:
        signal.signal(number, outside)
    assert capsys.readouterr().err == "warning: interrupted\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("fails", [False, True])
def test_an_interruption_in_a_callback_ends_a_run(
    number: int, code: int, fails: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in numba's compiler, which ignores it or fails, because an exception cannot pass through C."""

    def main(args: argparse.Namespace) -> None:
        ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(number))()
        if fails:
            raise RuntimeError("no compiled object yet")
        while True:
            pass

    outside = signal.signal(signal.SIGTERM, signal.SIG_DFL), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run_with(main) == code
    finally:
        signal.signal(signal.SIGTERM, outside[0])
        signal.signal(signal.SIGINT, outside[1])
    assert capsys.readouterr().err == "warning: interrupted\n"


def test_ctrl_c_while_modules_are_imported_is_no_message() -> None:
    """Also where it leaves an `exec`, after which CPython would end by the signal itself."""
    code = """
import sys
from evburst.__main__ import main
class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "evburst.app.events":
            exec("raise KeyboardInterrupt")
sys.meta_path.insert(0, Interrupt())
sys.argv = ["evburst", "events", "info", "a.dat"]
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ignored_signals_stay_ignored() -> None:
    """As nohup starts a command."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with console.signals() as received:
            os.kill(os.getpid(), signal.SIGHUP)
        assert received == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_forked_process_dies_of_a_signal() -> None:
    with console.signals() as received:
        child = os.fork()
        if not child:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGTERM
    assert received == []


PRINTING = pytest.mark.parametrize("words", [["events", "info", str(SAMPLE)], ["--version"], ["--help"], ["detect", "--help"]])
COMMAND = [sys.executable, "-m", "evburst"]


@PRINTING
def test_a_full_disk_behind_stdout_is_one_line(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(COMMAND + words, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: standard output cannot be written (No space left on device)\n")


@PRINTING
def test_a_closed_stdout_is_no_message(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(COMMAND + words, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(("system", "message"), [("win32", ""), ("linux", "standard output cannot be written")])
def test_a_closed_stdout_is_no_message_on_windows(
    system: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EINVAL, "Invalid argument")  # as Windows says it

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(sys, "stdout", Closed())
    assert run_with(lambda args: "text") == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}") if message else err == ""


def test_closed_standard_streams_end_no_run_and_mix_nothing(tmp_path: Path) -> None:
    """The recording opens as number 2 if nothing else does, and a warning without stderr would be printed on stdout."""
    damaged = tmp_path / "a.dat"
    damaged.write_bytes(SAMPLE.read_bytes()[:50_002])
    words = [sys.executable, "-m", "evburst", "detect", "--events", str(damaged), "--out", str(tmp_path / "out"), "--json"]
    script = 'exec "$@" --no-video --ann --max-windows 1 <&- 2>&-'
    done = subprocess.run(["sh", "-c", script, "sh", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)["faults"] == {"truncated_bytes": 1}


def test_a_deleted_current_folder_is_one_line(tmp_path: Path) -> None:
    script = 'mkdir "$1" && cd "$1" && rmdir "$1" && exec "$2" "$3" --events x.dat'
    words = ["sh", "-c", script, "sh", str(tmp_path / "gone"), sys.executable, str(ROOT / "detect.py")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: the current folder no longer exists: change to another one\n")


def test_version_and_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert re.fullmatch(r"evburst \d+\.\d+\.\d+\n", capsys.readouterr().out)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["detekt"])
    assert "invalid choice: 'detekt'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        ("detct", "; did you mean detect?"),
        ("evaluat --help", "; did you mean evaluate?"),
        ("events inof a.dat", "; did you mean info?"),
        ("results --format markdwn", "; did you mean markdown?"),
        ("convert --level hrad", ""),
        ("detect --events a.dat --device cudda", "; did you mean cuda?"),
        ("xyzzy", ""),
    ],
)
def test_a_misspelt_command_or_choice_is_answered_with_the_nearest(
    words: str, suggestion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(words.split())
    assert capsys.readouterr().err.endswith(f"){suggestion}\n")


@pytest.mark.parametrize(
    ("words", "ending"),
    [
        ("events convert a.dat b.dat --srot", "arguments: --srot; did you mean --sort?"),
        ("results --fromat csv", "arguments: --fromat; did you mean --format?"),
        ("export --onnx-snn a.onnx --with-bxes", "arguments: --with-bxes; did you mean --with-boxes?"),
        ("engines --jsn", "arguments: --jsn; did you mean --json?"),
        ("engines --xyzzy", "arguments: --xyzzy"),
    ],
)
def test_a_misspelt_flag_is_answered_with_the_nearest(words: str, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of commands without settings too, and of the subcommand that was called."""
    with pytest.raises(SystemExit, match="2"):
        cli.main(words.split())
    assert capsys.readouterr().err.endswith(f" {ending}\n")


@pytest.mark.parametrize("threads", ["0", "-2"])
def test_a_number_of_threads_below_one_is_one_line(threads: str) -> None:
    words = [sys.executable, str(ROOT / "detect.py"), "--events", str(SAMPLE)]
    environment = os.environ | {"NUMBA_NUM_THREADS": threads}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    expected = f"error: NUMBA_NUM_THREADS is {threads}: set a number of threads from 1 on, or none\n"
    assert (done.returncode, done.stderr) == (1, expected)


@pytest.mark.parametrize("name", ["detect", "classify", "live", "train", "convert", "evaluate", "export", "engines", "results"])
def test_the_help_names_no_source_file(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An installed package has them elsewhere."""
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])
    shown = capsys.readouterr().out
    assert re.findall(r"\b[\w/]+/\w+\.py\b", shown) == []
