"""Validation of JSON values.

A check is a function of a value and of its location (for error messages). It returns the value or raises CheckpointError:

    STRIDE = pair(whole(1, 64))
    check = table({"stride": STRIDE}, optional={"groups": whole(1, 4096)})
    check({"stride": [2, 2]}, "conv 'stem'")
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from evburst.data.errors import CheckpointError

Check = Callable[[Any, str], Any]

_LONGEST_REPR = 40


def shown(value: object) -> str:
    """Format a value for an error message, truncated to a few dozen characters."""
    text = f"a number of {value.bit_length()} bits" if isinstance(value, int) and value.bit_length() > 64 else repr(value)
    return text if len(text) <= _LONGEST_REPR else f"{text[:_LONGEST_REPR]}..."


def expect(holds: bool, where: str, expected: str, value: object) -> None:
    """Raise CheckpointError, naming what was expected and what was received, unless `holds`."""
    if not holds:
        raise CheckpointError(f"{where}: expected {expected}, not {shown(value)}")


def whole(low: int, high: int) -> Check:
    """Accept an integer in [low, high]."""

    def check(value: Any, where: str) -> int:
        inside = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        expect(inside, where, f"an integer from {low} to {high}", value)
        return int(value)

    return check


def number(low: float, high: float) -> Check:
    """Accept a finite number in [low, high]."""

    def check(value: Any, where: str) -> float:
        inside = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        expect(inside, where, f"a number from {low:g} to {high:g}", value)
        return float(value)

    return check


def text(longest: int) -> Check:
    """Accept a non-empty string of at most `longest` characters."""

    def check(value: Any, where: str) -> str:
        expect(isinstance(value, str) and 0 < len(value) <= longest, where, f"1 to {longest} characters of text", value)
        return str(value)

    return check


def one_of(*choices: str) -> Check:
    """Accept one of the given strings."""

    def check(value: Any, where: str) -> str:
        expect(isinstance(value, str) and value in choices, where, f"one of {', '.join(choices)}", value)
        return str(value)

    return check


def nothing_or(check: Check) -> Check:
    """Accept null, or whatever `check` accepts."""
    return lambda value, where: None if value is None else check(value, where)


def items(check: Check, shortest: int, longest: int) -> Check:
    """Accept a list of `shortest` to `longest` items that all pass `check`."""

    def check_items(value: Any, where: str) -> list[Any]:
        fits = isinstance(value, list) and shortest <= len(value) <= longest
        expected = f"a list of {shortest}" if shortest == longest else f"a list of {shortest} to {longest}"
        expect(fits, where, f"{expected} values", value)
        return [check(item, f"{where}[{i}]") for i, item in enumerate(value)]

    return check_items


def pair(check: Check) -> Check:
    """Accept a list of two items (rows, columns) that both pass `check`."""
    return items(check, 2, 2)


def by_name(check: Check) -> Check:
    """Accept an object with arbitrary names whose values all pass `check`."""

    def check_values(value: Any, where: str) -> dict[str, Any]:
        expect(isinstance(value, dict), where, "an object", value)
        return {name: check(item, f"{where}[{shown(name)}]") for name, item in value.items()}

    return check_values


def table(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """Accept an object that has all `required` names, possibly `optional` ones, and no others."""
    known = {**required, **(optional or {})}

    def check(value: Any, where: str) -> dict[str, Any]:
        expect(isinstance(value, dict), where, "an object", value)
        for name in required:
            if name not in value:
                raise CheckpointError(f"{where}: {name!r} is missing")
        for name in value:
            if name not in known:
                raise CheckpointError(f"{where}: {shown(name)} is unknown (known: {', '.join(known) or 'none'})")
        return {name: known[name](item, f"{where}: {name}") for name, item in value.items()}

    return check


def anything(value: Any, where: str) -> Any:
    """Accept any JSON value."""
    return value


def parse(content: Any, where: str) -> Any:
    """Parse JSON text; raises CheckpointError if it is not valid JSON or is nested too deeply."""
    try:
        return json.loads(content)
    except RecursionError:
        raise CheckpointError(f"{where}: nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: not JSON ({error})") from None


def printable(name: str) -> str:
    """Escape control characters and everything else in a text that cannot be printed."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
