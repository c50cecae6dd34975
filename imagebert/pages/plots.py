"""Plots as inline SVG whose colours are the page's (page.html.j2): no font, no script, milliseconds, light and dark.

A curve of many points is cut into at most `_PARTS` equal stretches of steps: the line is each stretch's mean, the band
around it the least and the largest, so that a spike of one step stays in sight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

COLORS, DASHES = 6, 3  # of page.html.j2
_PARTS = 60
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 360, 46, 354, 8, 158  # of the picture, and of the curves' frame in it
_ROW, _BAR = 32, 11  # heights of a bar's row, and of the bar

Point = tuple[float, float]
Stretch = tuple[float, float, float, float]  # step, mean, least, largest


class Curve(NamedTuple):
    """A line of a plot.

    Attributes:
        points: steps, which rise, and values; what is not finite is left out
        color: from 0 on, they come round again
        dash: 0 is solid
    """

    name: str
    points: Sequence[Point]
    color: int = 0
    dash: int = 0


def plot(
    title: str,
    curves: Iterable[Curve],
    *,
    form: Callable[[float], str] = "{:.4g}".format,
    zero: bool = False,
    span: tuple[float, float] | None = None,
    marks: Sequence[float] = (),
) -> Markup:
    """Curves by step, with their last values below; empty where none has a point.

    Args:
        form: how a last value is written
        zero: the axis of values begins at 0
        span: the first and the last step of the axis; None: those of the curves
        marks: steps with a vertical line, such as where a run went on
    """
    good = [c._replace(points=[p for p in c.points if math.isfinite(p[1])]) for c in curves]
    stretches = [(c, _thin(c.points)) for c in good if c.points]
    if not stretches:
        return Markup()
    every = [s for _, those in stretches for s in those]
    first, last = span or (min(s[0] for s in every), max(s[0] for s in every))
    low, high = min(s[2] for s in every), max(s[3] for s in every)
    at_y = _ticks(min(0.0, low) if zero else low, high)
    low, high = min(at_y[0], low), max(at_y[-1], high)

    def x(step: float) -> str:
        return f"{_LEFT + (_RIGHT - _LEFT) * (step - first) / (last - first or 1):.1f}"

    def y(value: float) -> str:
        return f"{_BOTTOM - (_BOTTOM - _TOP) * (value - low) / (high - low):.1f}"

    parts = []
    for value in at_y:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y(value)}" y2="{y(value)}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{float(y(value)) + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for step in _ticks(first, last):
        if first <= step <= last:
            place = "end" if step > first + 0.95 * (last - first) else "middle"
            parts.append(f'<text x="{x(step)}" y="{_BOTTOM + 16}" text-anchor="{place}">{_short(step)}</text>')
    for step in marks:
        if first < step <= last:
            parts.append(f'<line class="mark" x1="{x(step)}" x2="{x(step)}" y1="{_TOP}" y2="{_BOTTOM}"/>')
    for curve, those in stretches:
        if any(s[2] < s[3] for s in those):
            around = [(s[0], s[3]) for s in those] + [(s[0], s[2]) for s in reversed(those)]
            corners = " ".join(f"{x(step)},{y(value)}" for step, value in around)
            parts.append(f'<polygon class="band f{curve.color % COLORS}" points="{corners}"/>')
    for curve, those in stretches:
        where = " ".join(f"{x(s[0])},{y(s[1])}" for s in those)
        kind = f"c{curve.color % COLORS} d{curve.dash % DASHES}"
        if len(those) == 1:
            parts.append(f'<circle class="f{curve.color % COLORS}" cx="{x(those[0][0])}" cy="{y(those[0][1])}" r="3"/>')
        parts.append(f'<polyline class="{kind}" points="{where}"/>')
    keys = [
        Markup('<li><i class="key c{} d{}"></i>{} <b>{}</b></li>').format(
            curve.color % COLORS, curve.dash % DASHES, curve.name, form(curve.points[-1][1])
        )
        for curve, _ in stretches
    ]
    return _figure(title, _BOTTOM + 22, parts, keys)


def bars(title: str, rows: Sequence[tuple[str, float]], mark: float, most: float) -> Markup:
    """A bar a row with its name above it, the last in another colour.

    Args:
        mark: a value with a vertical line, such as chance
        most: the value that is as wide as the picture, at least
    """
    most = max([most, *(1.15 * value for _, value in rows)])
    width = _WIDTH - 40
    parts = []
    for number, (name, value) in enumerate(rows):
        top, long = _ROW * number, max(0.0, width * value / most)
        color = 0 if number == len(rows) - 1 else 5
        parts.append(f'<text class="name" x="0" y="{top + 12}">{escape(name)}</text>')
        parts.append(f'<rect class="f{color}" x="0" y="{top + 17}" width="{long:.1f}" height="{_BAR}" rx="2"/>')
        parts.append(f'<text x="{long + 5:.1f}" y="{top + 26}">{value:.1f}</text>')
        at = f"{width * mark / most:.1f}"
        parts.append(f'<line class="chance" x1="{at}" x2="{at}" y1="{top + 15}" y2="{top + 30}"/>')
    return _figure(title, _ROW * len(rows) + 2, parts, [])


def _figure(title: str, height: int, parts: Iterable[str], keys: Sequence[Markup]) -> Markup:
    return Markup(
        '<figure class="plot"><figcaption>{0}</figcaption>'
        '<svg viewBox="0 0 {1} {2}" role="img" aria-label="{0}">{3}</svg>{4}</figure>'
    ).format(title, _WIDTH, height, Markup("".join(parts)), Markup("<ul>{}</ul>").format(Markup().join(keys)))


def _thin(points: Sequence[Point]) -> list[Stretch]:
    """The points, or the stretches that they are cut into where they are many."""
    if len(points) <= _PARTS:
        return [(step, value, value, value) for step, value in points]
    first, last = points[0][0], points[-1][0]
    parts = min(_PARTS, len(points) // 3)
    stretches: dict[int, list[Point]] = {}
    for step, value in points:
        part = min(parts - 1, int(parts * (step - first) / (last - first or 1)))
        stretches.setdefault(part, []).append((step, value))
    found = []
    for those in stretches.values():
        values = [value for _, value in those]
        mean = math.fsum(value / len(values) for value in values)
        found.append((sum(step for step, _ in those) / len(those), mean, min(values), max(values)))
    return found


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that span from low to high."""
    if not high > low:
        low, high = low - (abs(low) / 2 or 1) * (low != 0), low + (abs(low) / 2 or 1)
    wanted = high / 5 - low / 5  # the difference of two floats may be more than a float
    power = 10.0 ** math.floor(math.log10(max(wanted, 1e-300)))
    by = next((power * m for m in (1, 2, 5, 10) if power * m >= wanted), wanted)
    first = math.floor(low / by + 1e-9)
    return [by * n for n in range(first, math.ceil(high / by - 1e-9) + 1)][:12]


def _short(value: float) -> str:
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if scale <= abs(value) < 1e13 and abs(value) >= 1e4:
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.2g}"
