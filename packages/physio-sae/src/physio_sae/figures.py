"""Figures as SVG text, which a page can hold without a file beside it: lines with bands, bars with intervals, points, a histogram. No plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

COLOURS = ("#1b6ca8", "#c8553d", "#5b8c5a", "#8d6a9f", "#b08900", "#4f5d75", "#d17ba5", "#2a9d8f")
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 26, 44
LEGEND = 104  # what a legend takes to the right of the axes


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points joined in order, with an optional band (2, P). `marked` draws the points too; `joined=False` the points alone."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    band: np.ndarray | None = None
    marked: bool = False
    joined: bool = True
    dashed: bool = False
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Scale:
    """Data to pixels on one axis; `log` takes decimal logarithms."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the range, about five."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            fine = (1, 2, 5) if len(decades) < 4 else (1,)
            found = [m * 10.0**d for d in decades for m in fine if self.low * 0.999 <= m * 10.0**d <= self.high * 1.001]
            return found or [round(math.sqrt(self.low * self.high), 1)]
        span = self.high - self.low
        step = 10.0 ** math.floor(math.log10(span / 4))
        step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 6)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def lines(series: Sequence[Line], *, title: str, x: str, y: str, width: int = 460, height: int = 290, log_x: bool = False) -> str:
    """Lines, points and bands on common axes. A series without finite points is named in the legend as empty."""
    drawn = [s for s in series if len(finite(s))]
    xs = [v for s in drawn for v in finite(s)[:, 0]]
    ys = [v for s in drawn for v in finite(s)[:, 1]] + [v for s in drawn if s.band is not None for v in np.asarray(s.band).reshape(-1) if np.isfinite(v)]
    if not xs:
        return empty(title, width, height)
    inner = width - (LEGEND if len(series) > 1 else 0)
    across, up = scales(xs, ys, inner, height, log_x)
    body = [axes(across, up, x, y, inner, height)]
    for n, one in enumerate(series):
        colour = COLOURS[n % len(COLOURS)]
        if one.band is not None and len(finite(one)):
            body.append(band(one, across, up, colour))
        body.append(drawing(one, across, up, colour))
    return frame(title, [*body, legend(series, inner)], width, height)


def bars(names: Sequence[str], values: Sequence[float | None], intervals: Sequence[tuple[float, float] | None], *, title: str, x: str, width: int = 460) -> str:
    """Horizontal bars from zero with their intervals; a value of None leaves its line empty and says so."""
    height = TOP + BOTTOM + 24 * max(len(names), 1)
    known = [v for v in values if v is not None] + [e for ends in intervals if ends for e in ends]
    if not known:
        return empty(title, width, height)
    left = 150
    across = Scale(*padded(min(0.0, *known), max(0.0, *known)), left, width - RIGHT)
    body = []
    for tick in across.ticks():
        body.append(f'<line class="grid" x1="{across(tick):.1f}" x2="{across(tick):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        body.append(text(across(tick), height - BOTTOM + 16, number(tick), "middle"))
    for n, (name, value, ends) in enumerate(zip(names, values, intervals, strict=True)):
        mid = TOP + 24 * n + 12
        body.append(text(left - 6, mid + 4, name[:24], "end"))
        if value is None:
            body.append(text(across(0) + 4, mid + 4, "not defined", "start"))
            continue
        a, b = sorted((across(0), across(value)))
        body.append(f'<rect x="{a:.1f}" y="{mid - 7}" width="{b - a:.1f}" height="14" fill="{COLOURS[0]}" opacity="0.8"><title>{value:.4g}</title></rect>')
        if ends:
            body.append(f'<line class="whisker" x1="{across(ends[0]):.1f}" x2="{across(ends[1]):.1f}" y1="{mid}" y2="{mid}"/>')
    body.append(text((left + width - RIGHT) / 2, height - 10, x, "middle"))
    return frame(title, body, width, height)


def histogram(values: Sequence[float], *, title: str, x: str, n_bins: int = 30, width: int = 460, height: int = 240) -> str:
    """Counts in equal bins of the finite values."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return empty(title, width, height)
    count, edge = np.histogram(values, bins=n_bins, range=padded(values.min(), values.max()))
    across, up = Scale(edge[0], edge[-1], LEFT, width - RIGHT), Scale(0, max(count.max(), 1) * 1.05, height - BOTTOM, TOP)
    body = [axes(across, up, x, "count", width, height)]
    for n, low, high in zip(count, edge[:-1], edge[1:], strict=True):
        if n:
            box = f'x="{across(low):.1f}" y="{up(n):.1f}" width="{max(across(high) - across(low) - 1, 0.5):.1f}" height="{up(0) - up(n):.1f}"'
            body.append(f'<rect {box} fill="{COLOURS[0]}"/>')
    return frame(title, body, width, height)


def finite(line: Line) -> np.ndarray:
    """The points (P, 2) that can be drawn."""
    pairs = [(a, b) for a, b in zip(line.x, line.y, strict=True) if a is not None and b is not None]
    points = np.array(pairs, np.float64).reshape(-1, 2)
    return points[np.isfinite(points).all(1)]


def scales(xs: Sequence[float], ys: Sequence[float], width: int, height: int, log_x: bool) -> tuple[Scale, Scale]:
    log_x = log_x and min(xs) > 0
    ends = (min(xs) / 1.15, max(xs) * 1.15) if log_x else padded(min(xs), max(xs))
    return Scale(*ends, LEFT, width - RIGHT, log_x), Scale(*padded(min(ys), max(ys)), height - BOTTOM, TOP)


def padded(low: float, high: float) -> tuple[float, float]:
    gap = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - gap, high + gap


def axes(across: Scale, up: Scale, x: str, y: str, width: int, height: int) -> str:
    parts = []
    for tick in across.ticks():
        parts.append(f'<line class="grid" x1="{across(tick):.1f}" x2="{across(tick):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        parts.append(text(across(tick), height - BOTTOM + 16, number(tick), "middle"))
    for tick in up.ticks():
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>')
        parts.append(text(LEFT - 6, up(tick) + 4, number(tick), "end"))
    parts.append(text((LEFT + width - RIGHT) / 2, height - 10, x, "middle"))
    middle = (TOP + height - BOTTOM) / 2
    parts.append(f'<text class="label" text-anchor="middle" transform="translate(14 {middle:.0f}) rotate(-90)">{escape(y)}</text>')
    return "".join(parts)


def band(line: Line, across: Scale, up: Scale, colour: str) -> str:
    low_P, high_P = np.asarray(line.band, np.float64)
    forth = [f"{across(a):.1f},{up(b):.1f}" for a, b in zip(line.x, low_P, strict=True)]
    back = [f"{across(a):.1f},{up(b):.1f}" for a, b in zip(reversed(list(line.x)), reversed(high_P.tolist()), strict=True)]
    return f'<polygon points="{" ".join(forth + back)}" fill="{colour}" opacity="0.18"/>'


def drawing(line: Line, across: Scale, up: Scale, colour: str) -> str:
    points = [(across(a), up(b)) for a, b in finite(line)]
    parts = []
    if line.joined and len(points) > 1:
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(f'<polyline points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>')
    if line.marked or not line.joined:
        labels = list(line.labels) + [""] * (len(points) - len(line.labels))
        for (a, b), label in zip(points, labels, strict=False):
            parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}" opacity="0.75"><title>{escape(label)}</title></circle>')
    return "".join(parts)


def legend(series: Sequence[Line], start: int) -> str:
    if len(series) < 2:
        return ""
    parts = []
    for n, one in enumerate(series):
        at = TOP + 10 + 16 * n
        parts.append(f'<rect x="{start - RIGHT + 8}" y="{at - 8}" width="8" height="8" fill="{COLOURS[n % len(COLOURS)]}"/>')
        parts.append(text(start - RIGHT + 20, at, one.name if len(finite(one)) else f"{one.name} (none)", "start"))
    return "".join(parts)


def frame(title: str, body: Sequence[str], width: int, height: int) -> str:
    name = escape(title)
    heading = f'<text class="title" x="{LEFT}" y="16">{name}</text>'
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" class="figure" {size} role="img" aria-label="{name}">'
    return f"{opening}{STYLE}{heading}{''.join(body)}</svg>"


STYLE = (
    "<style>.figure text{font:11px system-ui,sans-serif;fill:#333}.figure .title{font-weight:600;font-size:12px}"
    ".figure .grid{stroke:#e3e3e3;stroke-width:1}.figure .whisker{stroke:#222;stroke-width:1.6}</style>"
)


def empty(title: str, width: int, height: int) -> str:
    return frame(title, [text(width / 2, height / 2, "nothing to draw", "middle")], width, height)


def text(x: float, y: float, what: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(what)}</text>'


def number(value: float) -> str:
    return f"{value:.3g}" if value else "0"
