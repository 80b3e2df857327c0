"""Charts as inline SVG: lines, bars and points, drawn so that a page needs nothing from anywhere else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 20, 12, 38
_INK, _GRID = "#57606a", "#e3e7eb"


@dataclass(frozen=True)
class Series:
    """A line, points or bars: `xs` and `ys` of equal length; `labels` are shown on hover."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Axis:
    """A linear axis from `low` to `high`."""

    title: str
    low: float
    high: float
    percent: bool = False

    def ticks(self, about: int = 5) -> list[float]:
        """Round numbers within the axis."""
        span = self.high - self.low
        step = 10.0 ** math.floor(math.log10(span / about))
        step = next(step * k for k in (1, 2, 2.5, 5, 10) if span / (step * k) <= about + 0.5)
        first = math.ceil(self.low / step - 1e-9)
        return [round(k * step, 10) for k in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def show(self, value: float) -> str:
        """A tick's text."""
        return f"{value * 100:g}%" if self.percent else f"{value:,g}"


class Chart:
    """One chart of a given size in CSS pixels; elements are added, `svg` is the result."""

    def __init__(self, x: Axis, y: Axis, width: int = 360, height: int = 250, ticks: int = 5) -> None:
        self.x, self.y, self.width, self.height = x, y, width, height
        self._parts: list[str] = []
        self._frame(ticks)

    def px(self, x: float) -> float:
        """Pixel column of a value."""
        share = (x - self.x.low) / (self.x.high - self.x.low)
        return _LEFT + share * (self.width - _LEFT - _RIGHT)

    def py(self, y: float) -> float:
        """Pixel row of a value."""
        share = (y - self.y.low) / (self.y.high - self.y.low)
        return self.height - _BOTTOM - share * (self.height - _TOP - _BOTTOM)

    def line(self, series: Series, dash: str = "") -> None:
        """A line through all points."""
        points = " ".join(f"{self.px(x):.1f},{self.py(y):.1f}" for x, y in zip(series.xs, series.ys, strict=True))
        style = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(
            f'<polyline points="{points}" fill="none" stroke="{series.colour}" stroke-width="1.8"{style}>'
            f"<title>{escape(series.name)}</title></polyline>"
        )

    def points(self, series: Series) -> None:
        """A dot for each point."""
        for x, y in zip(series.xs, series.ys, strict=True):
            self._parts.append(
                f'<circle cx="{self.px(x):.1f}" cy="{self.py(y):.1f}" r="5.5" fill="{series.colour}" fill-opacity="0.9">'
                f"<title>{escape(series.name)}: {x:,.1f}, {y:,.1f}</title></circle>"
            )

    def bars(self, series: Series, width: float) -> None:
        """A bar at each x, from the axis up; `labels` are shown on hover."""
        for k, (x, y) in enumerate(zip(series.xs, series.ys, strict=True)):
            left, right, top = self.px(x - width / 2), self.px(x + width / 2), self.py(y)
            hover = f"<title>{escape(series.labels[k])}</title>" if k < len(series.labels) else ""
            self._parts.append(
                f'<rect x="{left:.2f}" y="{top:.2f}" width="{max(right - left, 0.5):.2f}" '
                f'height="{max(self.py(self.y.low) - top, 0):.2f}" fill="{series.colour}">{hover}</rect>'
            )

    def svg(self) -> str:
        """The chart."""
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}" role="img" '
            f'font-size="11" fill="{_INK}">{"".join(self._parts)}</svg>'
        )

    def _frame(self, ticks: int) -> None:
        bottom, right = self.height - _BOTTOM, self.width - _RIGHT
        for value in self.y.ticks(ticks):
            y = self.py(value)
            self._parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{_GRID}"/>')
            self._text(_LEFT - 6, y + 4, self.y.show(value), "end")
        for value in self.x.ticks(max(2, round((self.width - 60) / 70))) if self.x.title else []:
            x = self.px(value)
            self._parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="{_GRID}"/>')
            self._text(x, bottom + 15, self.x.show(value), "middle")
        self._parts.append(f'<line x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}" stroke="{_INK}"/>')
        self._text((_LEFT + right) / 2, self.height - 6, self.x.title, "middle")
        middle = (_TOP + bottom) / 2
        self._parts.append(
            f'<text x="11" y="{middle}" text-anchor="middle" transform="rotate(-90 11 {middle})">{escape(self.y.title)}</text>'
        )

    def _text(self, x: float, y: float, text: str, anchor: str) -> None:
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')


def nice_top(values: Sequence[float]) -> float:
    """A round number that is not below any of the values, for an axis from 0."""
    most = max(values, default=0.0)
    if most <= 0:
        return 1.0
    step = 10.0 ** math.floor(math.log10(most))
    return next(step * k for k in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * k >= most)
