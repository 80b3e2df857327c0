"""Settings: frozen dataclasses beside the code they configure, put together here; the only reader of YAML and `--set`.

Order: defaults < `--config FILE` < `--set section.name=value` and flags. An unknown key names the nearest known one.
A command whose defaults depend on a file (a network's own settings) passes them as `base`, which comes right after the defaults.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import yaml
from evburst.data.errors import ConfigError

T = TypeVar("T")


def load_config(kind: type[T], file: Path | None, assignments: list[str], base: dict[str, Any] | None = None) -> T:
    """Build `kind` from a YAML file and `name.name=value` assignments (values are YAML).

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value has the wrong type.
    """
    settings = deepcopy(base or {})
    if file is not None:
        settings = _merged(settings, _read_yaml(file))
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment!r}: write it as name=value, e.g. voxel.bins=5")
        *parents, leaf = key.strip().split(".")
        target = settings
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {assignment!r}: {parent!r} is not a section")
        target[leaf] = _parse_yaml(value, f"--set {assignment!r}")
    return build(kind, settings)


def build(kind: type[T], settings: dict[str, Any], where: str = "") -> T:
    """Make a dataclass from a mapping, section by section, checking names and types."""
    known = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise ConfigError(f"unknown setting {where + name!r}{hint}")
        values[name] = _convert(hints[name], value, where + name)
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigError(f"{where or 'settings'}: {error}") from None


def to_dict(config: object) -> dict[str, Any]:
    """A configuration as plain types, for saving beside results."""
    return dataclasses.asdict(config)  # type: ignore[call-overload, no-any-return]


def _merged(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """Section by section, what `high` says over what `low` says."""
    out = dict(low)
    for name, value in high.items():
        both = isinstance(value, dict) and isinstance(out.get(name), dict)
        out[name] = _merged(out[name], value) if both else value
    return out


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"setting {where!r}: expected a section, received {value!r}")
        return build(hint, value, where + ".")  # type: ignore[arg-type]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple and isinstance(value, list | tuple):
        hints = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(value) != len(hints):
            raise ConfigError(f"setting {where!r}: expected {len(hints)} values, received {value!r}")
        return tuple(_convert(item_hint, item, where) for item_hint, item in zip(hints, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {str(key): _convert(args[1], item, where) for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"setting {where!r}: expected {getattr(hint, '__name__', hint)}, received {value!r}")


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = _parse_yaml(file.read_text(), str(file))
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: expected a mapping of settings")
    return content


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML ({str(error).splitlines()[0]})") from None
