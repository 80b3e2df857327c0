"""Command-line flags generated from the frozen dataclasses that hold the settings.

A setting is defined once, in its dataclass: name, type, default and a line under `Attributes:`. Its flag, its help text and
its name in `--set` and YAML files are derived from that. The dataclasses are in modules that import torch and numba. To keep
`--help` and usage errors fast, this module reads them from the source text (`ast`) instead of importing them.
`evburst.app.config` checks the values against the imported class.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import evburst
from evburst.data.errors import ConfigError, range_text, require_within

_SCALARS: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}
_METAVARS = {"int": "N", "float": "X", "str": "TEXT", "tuple": "A,B,...", "dict": "'{NAME: X}'"}
_UNITS = ("ms", "us", "s", "hz", "px", "rad", "deg")
_DESTINATION = "setting "

WEIGHTS = "NAME|FILE"
"""Placeholder for bundled weights or a weights file in the help text."""


@dataclass(frozen=True)
class Setting:
    """One field of a settings dataclass.

    Attributes:
        name: path from the command's own dataclass, e.g. "post.nms_iou".
        annotation: type as written in the source, without "None".
        default: default value as written in the source; None for a required setting.
        help: text from the class's docstring.
        limits: values that the class accepts, as its errors state them, e.g. "0 to 1"; "": not stated.
    """

    name: str
    annotation: str
    default: str | None
    help: str
    limits: str = ""


@dataclass(frozen=True)
class Section:
    """A settings dataclass: its path ("" for the command's own), the first paragraph of its docstring, and its fields."""

    name: str
    help: str
    settings: tuple[Setting, ...]


def read_settings(config: str, prefix: str = "", defaults: Mapping[str, str] | None = None) -> list[Section]:
    """Read the settings of a dataclass, followed by those of the dataclasses nested in it.

    Args:
        config: "module:Class"; the module may define the class or import it from this project.
        prefix: prefix of the names, e.g. "post.".
        defaults: defaults that the enclosing class overrides, by field, as source text.
    """
    module, node = _find_class(*config.split(":"))
    fields, helps = _fields(module, node)
    limits = _limits(module, node)
    settings, nested = list[Setting](), list[Section]()
    for name, (module, statement) in fields.items():
        annotation = ast.unparse(statement.annotation).removesuffix(" | None")
        if isinstance(statement.annotation, ast.Name) and annotation not in (*_SCALARS, "bool"):
            nested += read_settings(f"{module}:{annotation}", f"{prefix}{name}.", _factory_arguments(statement.value))
            continue
        default = (defaults or {}).get(name, _default(module, statement.value))
        settings.append(Setting(prefix + name, annotation, default, helps.get(name, ""), limits.get(name, "")))
    return [Section(prefix.rstrip("."), _first_sentence(ast.get_docstring(node) or ""), tuple(settings)), *nested]


def _fields(module: str, node: ast.ClassDef) -> tuple[dict[str, tuple[str, ast.AnnAssign]], dict[str, str]]:
    """Return the fields of a dataclass, inherited ones first, each with the module that defines it, and their help texts."""
    fields, helps = dict[str, tuple[str, ast.AnnAssign]](), dict[str, str]()
    for base in node.bases:
        inherited, texts = _fields(*_find_class(module, ast.unparse(base)))
        fields, helps = fields | inherited, helps | texts
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            fields[statement.target.id] = module, statement
    return fields, helps | attribute_texts(ast.get_docstring(node) or "")


def _limits(module: str, node: ast.ClassDef) -> dict[str, str]:
    """Return the accepted values of settings, by name, from the class's __post_init__: the arguments of `require_within`, and
    messages "NAME must be LIMITS"."""
    limits = dict[str, str]()
    for base in node.bases:
        limits |= _limits(*_find_class(module, ast.unparse(base)))
    checks = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__post_init__"]
    parts = [part for check in checks for part in ast.walk(check)]
    for call in (part for part in parts if isinstance(part, ast.Call) and ast.unparse(part.func) == require_within.__name__):
        limits |= {str(keyword.arg): range_text(*_value(module, keyword.value)) for keyword in call.keywords}
    inner = [piece for part in parts if isinstance(part, ast.JoinedStr) for piece in part.values]
    for text in (_text(module, part) for part in parts if part not in inner):
        if stated := re.fullmatch(r"((?:\w+, )*\w+(?: and \w+)?) must (not )?be (.+)", text):
            limits |= dict.fromkeys(re.split(", | and ", stated[1]), (stated[2] or "") + stated[3])
    return limits


def _text(module: str, value: ast.AST) -> str:
    """Return the text of a string or an f-string, up to the value that was received; "" if it is not known without running."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return value.value
    text = ""
    for part in value.values if isinstance(value, ast.JoinedStr) else ():
        if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name):
            try:
                known = _value(module, part.value)
            except (LookupError, NameError, TypeError):
                return ""
            text += f"{known:g}" if isinstance(known, float) else str(known)
        elif isinstance(part, ast.Constant):
            text += str(part.value)
        elif ", received " not in text:
            return ""
    return text.partition(", received ")[0]


def attribute_texts(docstring: str) -> dict[str, str]:
    """Return the texts under `Attributes:` in a docstring, by name; names that share an entry share its text."""
    block = re.search(r"^Attributes:\n((?:    .*\n?|\n)*)", docstring + "\n", re.MULTILINE)
    entries = re.findall(r"^    ((?:\w+, )*\w+): (.*(?:\n {5,}.*)*)", block[1] if block else "", re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


def _first_sentence(docstring: str) -> str:
    return " ".join(docstring.partition("\n\n")[0].split())


@cache
def _parse(module: str) -> ast.Module:
    *folders, name = module.split(".")[1:]
    for root in evburst.__path__:
        for path in (Path(root, *folders, f"{name}.py"), Path(root, *folders, name, "__init__.py")):
            if path.is_file():
                return ast.parse(path.read_text(encoding="utf-8"))
    raise ModuleNotFoundError(module)


def _find_class(module: str, name: str) -> tuple[str, ast.ClassDef]:
    """Find a class by name; return the module that defines it and its definition."""
    for node in _parse(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and name in (alias.name for alias in node.names):
            return _find_class(str(node.module), name)
    raise LookupError(f"{module} neither defines nor imports {name}")


def _default(module: str, value: ast.expr | None) -> str | None:
    if isinstance(value, ast.Call):  # field(default_factory=...): empty
        return ""
    if isinstance(value, ast.Name):
        return _constant(module, value.id)
    return None if value is None else ast.unparse(value)


def _constant(module: str, name: str) -> str:
    """Return a constant's value as source text, following imports within this project."""
    for node in _parse(module).body:
        if isinstance(node, ast.Assign) and name in (target.id for target in node.targets if isinstance(target, ast.Name)):
            return ast.unparse(node.value)
        if isinstance(node, ast.ImportFrom) and name in (alias.name for alias in node.names):
            return _constant(str(node.module), name)
    raise LookupError(f"{module} neither defines nor imports {name}")


def _value(module: str, node: ast.expr) -> Any:
    """Return the value of an expression of numbers, tuples and constants."""
    if isinstance(node, ast.Tuple):
        return tuple(_value(module, item) for item in node.elts)
    return eval(_constant(module, node.id) if isinstance(node, ast.Name) else ast.unparse(node), {"__builtins__": {}})


def _factory_arguments(value: ast.expr | None) -> dict[str, str]:
    """Return the keyword arguments of `Class(...)` in `field(default_factory=lambda: Class(...))`."""
    factory = value.keywords[0].value if isinstance(value, ast.Call) and value.keywords else None
    call = factory.body if isinstance(factory, ast.Lambda) else None
    keywords = call.keywords if isinstance(call, ast.Call) else []
    return {str(keyword.arg): ast.unparse(keyword.value) for keyword in keywords}


@dataclass(frozen=True)
class Flag:
    """A flag that is listed first or overrides the form derived from its setting.

    Attributes:
        setting: name of the setting.
        name: shorter alternative to the flag named after the setting; both work.
        metavar: placeholder for the value in the help text.
        extra: further arguments for `add_argument`.
    """

    setting: str
    name: str = ""
    metavar: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


class Parser(argparse.ArgumentParser):
    """argparse's parser; the error for a misspelt command, choice or flag suggests the nearest one."""

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Parse as argparse does; the error for an unknown flag suggests the nearest known one."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = next((text for text in unknown if text.startswith("--")), "--").partition("=")[0]
            commands = [action.choices for action in self._actions if isinstance(action.choices, Mapping)]
            parsers = [self, *(choices[text] for choices in commands for text in args or () if text in choices)]
            known = {option.lstrip("-"): option for parser in parsers for option in parser._option_string_actions}
            suggestion = _suggestion(flag.lstrip("-"), known)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{suggestion}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """See argparse."""
        if wrong := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)$", message):
            choices = re.findall(r"[^\s,']+", wrong[2])  # depending on Python's version, each is in quotes
            message += _suggestion(wrong[1], dict(zip(choices, choices, strict=True)))
        super().error(message)


def _suggestion(text: str, known: Mapping[str, str]) -> str:
    """Return a question for the nearest of the known names, each with the form in which it is shown; "" if none is near."""
    near = difflib.get_close_matches(text, known, 1)
    return f"; did you mean {known[near[0]]}?" if near else ""


def named_path(text: str) -> Path:
    """Return the path of an output, which has to have a name; the `type` of an argument."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty; is a shell variable unset?")
    return Path(text)


def recording(text: str) -> str:
    """Return the name of a recording, where `-` is standard input; the `type` of an argument."""
    if text != "-":
        return text
    if sys.platform == "win32":
        raise argparse.ArgumentTypeError("standard input cannot be read on Windows: save the events to a file")
    if sys.platform != "linux" and stat.S_ISREG(os.fstat(0).st_mode):  # there, /dev/stdin continues where it was read before
        raise argparse.ArgumentTypeError("standard input is a file: pass its name, or a pipe")
    return "/dev/stdin"


class CommandParser(Parser):
    """Parser of a command: its own flags, the common settings, then all other settings in groups.

    Args:
        prog: program name shown in messages, e.g. "evburst detect" or "detect.py".
        description: one sentence for the help text.
        example: arguments of a typical call.
    """

    def __init__(self, prog: str, description: str, example: str) -> None:
        super().__init__(prog=prog, description=description, epilog=f"example: %(prog)s {example}")

    def add_settings(
        self,
        config: str,
        common: Sequence[Flag],
        example: str,
        exclusive: Sequence[str] = (),
        hidden: Sequence[str] = (),
        unlisted: Sequence[str] = (),
    ) -> None:
        """Add `--config`, `--set` and a flag for every setting. Call this after adding the command's own flags.

        Args:
            config: "module:Class" of the settings.
            common: settings listed first, in this order.
            example: example value for `--set`.
            exclusive: settings of which at most one may be given.
            hidden: settings without a flag of their own because other flags set them.
            unlisted: settings and sections that the help leaves out, because the command refuses them.
        """
        sections = read_settings(config)
        known = {setting.name: setting for section in sections for setting in section.settings}
        exclusive_group = self.add_mutually_exclusive_group() if exclusive else self
        for flag in common:
            _add(exclusive_group if flag.setting in exclusive else self, known[flag.setting], flag)
        self.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings")
        self.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                          help=f"change one setting, e.g. --set {example}; repeatable")  # fmt: skip
        self.shorten_usage()
        handled = {*hidden, *(flag.setting for flag in common)}
        for section in sections:
            remaining = [setting for setting in section.settings if setting.name not in handled]
            is_listed = section.name not in unlisted
            text = section.help if section.name and is_listed else None  # without text, a group of no listed flag is not shown
            group = self.add_argument_group(section.name or "more settings", text)
            for setting in remaining:
                without_help = {} if is_listed and setting.name not in unlisted else {"help": argparse.SUPPRESS}
                _add(group, setting, Flag(setting.name, extra=without_help))

    def shorten_usage(self) -> None:
        """Freeze the usage line: flags added after this call do not appear in it."""
        self.usage = self.format_usage().removeprefix("usage: ").rstrip() + " [--SETTING VALUE ...]"


def given(args: argparse.Namespace) -> list[str]:
    """Return the settings given by flags, as `--set` assignments."""
    values = {name.removeprefix(_DESTINATION): value for name, value in vars(args).items() if name.startswith(_DESTINATION)}
    return as_assignments(values)


def as_assignments(values: Mapping[str, object]) -> list[str]:
    """Return the values that are not None, as `--set` assignments; a date, which JSON lacks, as text."""
    return [f"{name}={json.dumps(value, default=str)}" for name, value in values.items() if value is not None]


def _add(parser: Any, setting: Setting, flag: Flag) -> None:
    """Add a setting's flag to a parser or an argument group."""
    long = "--" + setting.name.replace("_", "-")
    names = [flag.name, long] if flag.name and flag.name != long else [long]
    options: dict[str, Any] = {"dest": _DESTINATION + setting.name, "default": argparse.SUPPRESS}
    kind, _, inner = setting.annotation.partition("[")
    limits = "" if kind == "Literal" or setting.limits in setting.help else setting.limits
    alone = f"without a value: {flag.extra['const']}" if "const" in flag.extra else ""
    notes = [limits, _default_text(setting.default), alone]
    shown = "; ".join(filter(None, notes))
    options["help"] = (setting.help.rstrip(".") + (f" ({shown})" if shown else "")).replace("%", "%%")
    if kind == "bool":
        names, options["action"] = names[:1], argparse.BooleanOptionalAction
    else:
        options["metavar"] = flag.metavar or _metavar(setting.name, kind)
        options["type"] = _value_parser(kind, inner.rstrip("]"))
    if kind == "Literal":
        options["choices"] = list(ast.literal_eval(f"[{inner}"))
        del options["metavar"]
    if setting.default is None:
        options["required"] = True
    parser.add_argument(*names, **{**options, **flag.extra})


def _default_text(default: str | None) -> str:
    shown = (default or "").strip("'\"")
    if shown.startswith("("):  # a tuple, as it is typed
        shown = ",".join(map(str, ast.literal_eval(shown)))
    return "" if shown in ("", "None", "False") else f"default: {'yes' if shown == 'True' else shown}"


def _metavar(name: str, kind: str) -> str:
    unit = name.rpartition("_")[2]
    return unit.upper() if unit in _UNITS and kind in ("int", "float") else _METAVARS.get(kind, "TEXT")


def _value_parser(kind: str, inner: str) -> Callable[[str], Any]:
    """Return the function that converts a flag's text into a value; its `__name__` appears in argparse's errors."""
    if kind == "tuple":
        element = _SCALARS.get(inner.partition(",")[0].strip(), str)

        def values(text: str) -> list[Any]:
            return [element(part.strip()) for part in text.strip("[]()").split(",") if part.strip()]

        values.__name__ = "A,B,..."
        return values
    if kind == "dict":

        def mapping(text: str) -> Any:
            from evburst.app.config import parse_yaml

            try:
                return parse_yaml(text, "")
            except ConfigError:
                raise ValueError(text) from None

        mapping.__name__ = "YAML"
        return mapping
    return _SCALARS.get(kind, str)
