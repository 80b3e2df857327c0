"""Build settings dataclasses from YAML files, `--set` assignments and flags.

Precedence, lowest first: defaults, `--config FILE`, `--set section.name=value` and flags. The error for an unknown key suggests
the nearest known one. A command whose defaults depend on a file (such as a network's own settings) passes them as `base`, which
overrides the defaults only.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import yaml

from evburst.data.errors import ConfigError

T = TypeVar("T")
_MOST_BYTES = 1 << 20
"""Of a file of settings."""


class _SettingError(ConfigError):
    """Settings that cannot be used; `names` are their full names, empty if they are not known."""

    def __init__(self, message: str, *names: str) -> None:
        super().__init__(message)
        self.names = names


class _Loader(yaml.SafeLoader):
    """SafeLoader, except that every key is the text in the file: `1`, `yes` or a date would be no name."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        """See yaml.composer.Composer."""
        node = super().compose_mapping_node(anchor)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                key.tag = "tag:yaml.org,2002:str"
        return node


def load_config(
    kind: type[T],
    file: Path | None,
    assignments: list[str],
    base: dict[str, Any] | None = None,
    adjust: Callable[[T], dict[str, Any]] | None = None,
) -> T:
    """Build a `kind` from a YAML file and `section.name=value` assignments whose values are YAML.

    Args:
        kind: the dataclass.
        file: the YAML file, which is read once, so that it may be a pipe; None for no file.
        assignments: see above.
        base: defaults that differ from those of `kind`.
        adjust: returns, for the settings so far, those to replace; they are checked in the same way.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value has the wrong type.
    """
    settings, lines = deepcopy(base or {}), dict[str, int]()
    if file is not None:
        content, lines = _read_yaml(file)
        settings = _merge(settings, content)
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment[:100]!r}: write it as name=value")
        *parents, leaf = key.strip().split(".")
        target = settings
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {assignment[:100]!r}: {parent!r} is not a section")
        target[leaf] = parse_yaml(value, f"--set {assignment[:100]!r}")
        lines = {name: line for name, line in lines.items() if not f"{name}.".startswith(f"{key.strip()}.")}
    try:
        config = build(kind, settings)
        return config if adjust is None else build(kind, to_dict(config) | adjust(config))
    except _SettingError as error:
        found = sorted({lines[name] for name in error.names if name in lines})
        if file is None or (error.names and not found):
            raise
        where = f", line{'s' if found[1:] else ''} {', '.join(map(str, found))}" if found else ""
        raise ConfigError(f"{file}{where}: {error}") from None


def build(kind: type[T], settings: dict[str, Any], where: str = "") -> T:
    """Build a dataclass from a nested mapping and check names and types.

    Raises:
        ConfigError: a name is unknown or missing, or a value has the wrong type or is out of range.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    for name, value in settings.items():
        if name not in fields:
            raise _SettingError(_unknown_message(kind, str(name), value, where), f"{where}{name}")
    for name, field in fields.items():
        if name not in settings and field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"setting {where + name!r} is missing: it has no default")
    values = {name: _convert(hints[name], value, where + name) for name, value in settings.items()}
    try:
        return kind(**values)
    except (ValueError, ConfigError) as error:
        message = f"{where.rstrip('.') or 'settings'}: {error}" if isinstance(error, ValueError) else str(error)
        words = re.findall(r"[\w-]+", str(error))
        names = [where + word for word in (word.strip("-").replace("-", "_") for word in words) if word in fields]
        raise _SettingError(message, *names) from None


def setting_names(kind: type) -> list[str]:
    """Return the names of all settings and sections of a dataclass, e.g. "post" and "post.nms_iou"."""
    hints, names = typing.get_type_hints(kind), list[str]()
    for name in (field.name for field in dataclasses.fields(kind)):
        inner = setting_names(hints[name]) if dataclasses.is_dataclass(hints[name]) else []  # type: ignore[arg-type]
        names += [name, *(f"{name}.{below}" for below in inner)]
    return names


def _unknown_message(kind: type, name: str, value: object, where: str) -> str:
    """Return the error message for an unknown name, with the full name of the nearest setting of `kind`."""
    names, is_dotted = setting_names(kind), "." in name
    while isinstance(value, dict) and len(value) == 1:  # section.name=value: extend the name while it is unambiguous
        ((inner, value),) = value.items()
        name = f"{name}.{inner}"
    if is_dotted and name in names:  # in a file; --set divides names at their dots
        *sections, setting = (where + name).split(".")
        text = f"{setting}: ..."
        for section in reversed(sections):
            text = f"{section}: {{{text}}}"
        return f"unknown setting {where + name!r}: in a file, write it as {text}"
    near = difflib.get_close_matches(name, names, 1) or [known for known in names if known.endswith("." + name)]
    near = near or difflib.get_close_matches(name.partition(".")[0], names, 1)
    top = [known for known in names if "." not in known]
    return f"unknown setting {where + name!r}" + (
        f"; did you mean {where + near[0]!r}?" if near else f"; known: {', '.join(top)}"
    )


def to_dict(config: object) -> dict[str, Any]:
    """Return a configuration as plain types, to be saved with the results."""
    return dataclasses.asdict(config)  # type: ignore[call-overload, no-any-return]


def _merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """Merge two nested mappings; values of `override` win."""
    merged = dict(base)
    for name, value in override.items():
        both_sections = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both_sections else value
    return merged


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise _SettingError(f"setting {where!r}: expected a section, received {_shown(value)}", where)
        return build(hint, value, where + ".")  # type: ignore[arg-type]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        if value in args:
            return value
        raise _SettingError(
            f"setting {where!r}: expected {', '.join(args[:-1])} or {args[-1]}, received {_shown(value)}", where
        )
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple and isinstance(value, list | tuple):
        hints = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(value) != len(hints):
            raise _SettingError(f"setting {where!r}: expected {len(hints)} values, received {_shown(value)}", where)
        return tuple(_convert(item_hint, item, where) for item_hint, item in zip(hints, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {str(key): _convert(args[1], item, where) for key, item in value.items()}
    if hint is float:
        # 1e-3 is a number, but YAML asks for 1.0e-3.
        with suppress(ValueError, OverflowError):
            if isinstance(value, int | float | str) and not isinstance(value, bool) and math.isfinite(number := float(value)):
                return number
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise _SettingError(f"setting {where!r}: expected {_kind(hint)}, received {_shown(value)}", where)


def _kind(hint: Any) -> str:
    """Return a type's name in the words of a settings file."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", tuple: "a list, such as [a, b]"}
    return words.get(typing.get_origin(hint) or hint, "a mapping, such as {a: b}")


def _shown(value: object) -> str:
    """A value for an error: Python writes no numbers of more than 4300 digits."""
    try:
        return repr(value)[:100]
    except ValueError:
        return "a number of thousands of digits"


def _read_yaml(file: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the settings in a file, and the line of each, by its full name."""
    try:
        with file.open("rb") as content:
            data = content.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ConfigError(f"{file}: larger than {_MOST_BYTES} bytes, so it is not a settings file")
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error})") from None
    settings = parse_yaml(text, str(file))
    if not isinstance(settings, dict):
        found = "is empty" if settings is None else f"contains {_shown(settings)}"
        raise ConfigError(f"{file}: {found}; expected settings, one a line, such as `max_windows: 10`")
    try:
        return settings, _lines(yaml.compose(text, yaml.SafeLoader), file)
    except yaml.YAMLError:  # JSON that is not YAML, with tabs
        return settings, {}
    except RecursionError:
        raise ConfigError(f"{file}: invalid YAML (a value contains itself)") from None


def _lines(node: Any, file: Path, prefix: str = "") -> dict[str, int]:
    """Return the line of each setting; raise ConfigError if one is there twice, of which YAML would take the second."""
    lines = dict[str, int]()
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name, line = f"{prefix}{key.value}", key.start_mark.line + 1
        if name in lines:
            raise ConfigError(f"{file}, line {line}: {name!r} is also in line {lines[name]}; remove one of them")
        lines |= {name: line, **_lines(value, file, f"{name}.")}
    return lines


def parse_yaml(text: str, where: str) -> Any:
    """Return the value of YAML or JSON text; its keys are text. Raises ConfigError, with `where` in front, on anything else."""
    if text.lstrip()[:1] in ('"', "[", "{"):
        with suppress(ValueError, RecursionError):  # of JSON's surrogate pairs, YAML reads each half as a character
            return json.loads(text)
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark and not where.startswith("--set") else ""
        raise ConfigError(f"{where}{line}: invalid YAML ({(error.problem or str(error))[:200]})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: invalid YAML ({(str(error).splitlines() or [''])[0][:200]})") from None
