"""Flags made from the frozen dataclasses that hold the settings.

A setting is written once, in its dataclass: name, type, default, and a line under `Attributes:`. The flags, their help and the
names that `--set` and YAML accept follow from it. The dataclasses stand beside the code that uses them, in modules that import
torch and numba; so that `--help` and a mistyped flag answer at once, they are read from the source text (`ast`), not imported.
The values are checked against the imported class, in `evburst.app.config`.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import evburst

_SCALARS: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}
_METAVARS = {"int": "N", "float": "X", "str": "TEXT", "tuple": "A,B,...", "dict": "'{NAME: X}'"}
_UNITS = ("ms", "us", "s", "hz", "px", "rad", "deg")
_DESTINATION = "setting "


@dataclass(frozen=True)
class Setting:
    """One field of a dataclass of settings.

    Attributes:
        name: its path from the command's own dataclass, e.g. "post.nms_iou".
        annotation: its type, as in the source without "None".
        default: its default value as in the source; None: it has to be given.
        help: its line in the class's docstring.
    """

    name: str
    annotation: str
    default: str | None
    help: str


@dataclass(frozen=True)
class Section:
    """A dataclass of settings: its path ("" for the command's own), the first sentence of its docstring, and its fields."""

    name: str
    help: str
    settings: tuple[Setting, ...]


def read_settings(config: str, prefix: str = "", defaults: Mapping[str, str] | None = None) -> list[Section]:
    """The settings of a dataclass and, after it, of those nested in it.

    Args:
        config: "module:Class"; the class is looked for in the module and in what it imports from this project.
        prefix: of the names, e.g. "post.".
        defaults: of fields for which the enclosing class has its own, as source text.
    """
    module, node = _find_class(*config.split(":"))
    text = ast.get_docstring(node) or ""
    helps, settings, nested = attribute_texts(text), list[Setting](), list[Section]()
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        name, annotation = statement.target.id, ast.unparse(statement.annotation).removesuffix(" | None")
        if isinstance(statement.annotation, ast.Name) and annotation not in (*_SCALARS, "bool"):
            nested += read_settings(f"{module}:{annotation}", f"{prefix}{name}.", _factory_arguments(statement.value))
            continue
        default = (defaults or {}).get(name, _default(module, statement.value))
        settings.append(Setting(prefix + name, annotation, default, helps.get(name, "")))
    return [Section(prefix.rstrip("."), _first_sentence(text), tuple(settings)), *nested]


def attribute_texts(docstring: str) -> dict[str, str]:
    """The lines under `Attributes:` of a docstring, by name; names that share a line share the text."""
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
    """The module that defines a class, and its definition."""
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
    """The value of a constant of a module, or of the one of this project that it is imported from, as source text."""
    for node in _parse(module).body:
        if isinstance(node, ast.Assign) and name in (target.id for target in node.targets if isinstance(target, ast.Name)):
            return ast.unparse(node.value)
        if isinstance(node, ast.ImportFrom) and name in (alias.name for alias in node.names):
            return _constant(str(node.module), name)
    raise LookupError(f"{module} neither defines nor imports {name}")


def _factory_arguments(value: ast.expr | None) -> dict[str, str]:
    """Arguments of `Class(...)` in `field(default_factory=lambda: Class(...))`."""
    factory = value.keywords[0].value if isinstance(value, ast.Call) and value.keywords else None
    call = factory.body if isinstance(factory, ast.Lambda) else None
    keywords = call.keywords if isinstance(call, ast.Call) else []
    return {str(keyword.arg): ast.unparse(keyword.value) for keyword in keywords}


@dataclass(frozen=True)
class Flag:
    """A flag that is listed first, or that differs from what follows from its setting.

    Attributes:
        setting: name of the setting.
        name: a shorter flag than the one named after the setting; both work.
        metavar: placeholder of the value in the help.
        extra: further arguments of `add_argument`.
    """

    setting: str
    name: str = ""
    metavar: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


class CommandParser(argparse.ArgumentParser):
    """A command's parser: its own flags, the common settings, then every other setting in groups.

    Args:
        prog: how the command was started, e.g. "evburst detect" or "detect.py".
        description: one sentence.
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
    ) -> None:
        """Add `--config`, `--set` and a flag for every setting; call it after the command's own flags were added.

        Args:
            config: "module:Class" of the settings.
            common: settings listed first, in this order.
            example: of `--set`.
            exclusive: settings of which at most one may be given.
            hidden: settings without a flag of their own, since other flags set them.
        """
        sections = read_settings(config)
        known = {setting.name: setting for section in sections for setting in section.settings}
        one_of = self.add_mutually_exclusive_group() if exclusive else self
        for flag in common:
            _add(one_of if flag.setting in exclusive else self, known[flag.setting], flag)
        self.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
        self.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                          help=f"one setting, e.g. --set {example}; repeatable")  # fmt: skip
        self.shorten_usage()
        shown = {*hidden, *(flag.setting for flag in common)}
        for section in sections:
            rest = [setting for setting in section.settings if setting.name not in shown]
            group = self.add_argument_group(section.name or "more settings", section.help if section.name else None)
            for setting in rest:
                _add(group, setting, Flag(setting.name))

    def shorten_usage(self) -> None:
        """Keep flags that are added from here on out of the usage line."""
        self.usage = self.format_usage().removeprefix("usage: ").rstrip() + " [--SETTING VALUE ...]"

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """See argparse; an unknown flag is a usage error that names the nearest known one."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = next((text for text in unknown if text.startswith("--")), "")
            near = difflib.get_close_matches(flag.partition("=")[0], self._option_string_actions, 1)
            self.error(f"unrecognized arguments: {' '.join(unknown)}" + (f"; did you mean {near[0]}?" if near else ""))
        return parsed


def given(args: argparse.Namespace) -> list[str]:
    """Settings that were given by flags, as assignments of `--set`."""
    values = {name.removeprefix(_DESTINATION): value for name, value in vars(args).items() if name.startswith(_DESTINATION)}
    return as_assignments(values)


def as_assignments(values: Mapping[str, object]) -> list[str]:
    """Values other than None, as assignments of `--set`."""
    return [f"{name}={json.dumps(value)}" for name, value in values.items() if value is not None]


def _add(parser: Any, setting: Setting, flag: Flag) -> None:
    """Add the flag of a setting to a parser or a group."""
    long = "--" + setting.name.replace("_", "-")
    names = [flag.name, long] if flag.name and flag.name != long else [long]
    options: dict[str, Any] = {"dest": _DESTINATION + setting.name, "default": argparse.SUPPRESS}
    options["help"] = (setting.help.rstrip(".") + _default_text(setting.default)).replace("%", "%%")
    kind, _, inner = setting.annotation.partition("[")
    if kind == "bool":
        names, options["action"] = names[:1], argparse.BooleanOptionalAction
    else:
        options["metavar"] = flag.metavar or _metavar(setting.name, kind)
        options["type"] = _reader(kind, inner.rstrip("]"))
    if kind == "Literal":
        options["choices"] = list(ast.literal_eval(f"[{inner}"))
        del options["metavar"]
    if setting.default is None:
        options["required"] = True
    parser.add_argument(*names, **{**options, **flag.extra})


def _default_text(default: str | None) -> str:
    shown = (default or "").strip("'\"")
    return "" if shown in ("", "None", "()", "False") else f" (default: {'yes' if shown == 'True' else shown})"


def _metavar(name: str, kind: str) -> str:
    unit = name.rpartition("_")[2]
    return unit.upper() if unit in _UNITS and kind in ("int", "float") else _METAVARS.get(kind, "TEXT")


def _reader(kind: str, inner: str) -> Callable[[str], Any]:
    """What turns a flag's text into a value; argparse names the function in its errors."""
    if kind == "tuple":
        element = _SCALARS.get(inner.partition(",")[0].strip(), str)

        def values(text: str) -> list[Any]:
            return [element(part.strip()) for part in text.strip("[]()").split(",") if part.strip()]

        values.__name__ = "A,B,..."
        return values
    if kind == "dict":

        def mapping(text: str) -> Any:
            import yaml

            try:
                return yaml.safe_load(text)
            except (yaml.YAMLError, RecursionError):
                raise ValueError(text) from None

        mapping.__name__ = "YAML"
        return mapping
    return _SCALARS.get(kind, str)
