"""What charts are drawn with: axes with round ticks, lines, and the SVG element around them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from html import escape

WIDTH, HEIGHT = 560, 320  # of a chart, in SVG user units


@dataclasses.dataclass(frozen=True)
class Axes:
    """A plot area: value ranges, tick marks, and the way from values to SVG coordinates."""

    x: tuple[float, float]
    y: tuple[float, float]
    log_x: bool = False
    log_y: bool = False
    left: int = 66
    top: int = 28
    right: int = 14
    bottom: int = 34

    def px(self, value: float) -> float:
        return self.left + _share(value, self.x, self.log_x) * (WIDTH - self.left - self.right)

    def py(self, value: float) -> float:
        return HEIGHT - self.bottom - _share(value, self.y, self.log_y) * (HEIGHT - self.top - self.bottom)

    def draw(self, x_text: Callable[[float], str], y_text: Callable[[float], str], *, whole_x: bool = False) -> str:
        """Grid lines and tick labels."""
        out = []
        for v in ticks(*self.y, log=self.log_y):
            y = self.py(v)
            out.append(f'<line class="grid" x1="{self.left}" x2="{WIDTH - self.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            out.append(f'<text class="end" x="{self.left - 8}" y="{y + 4:.1f}">{escape(y_text(v))}</text>')
        for v in ticks(*self.x, log=self.log_x):
            if not whole_x or v == round(v):
                y = HEIGHT - self.bottom + 20
                x, anchor = self.px(v), "mid"
                if x > WIDTH - 30:  # a label in the middle would be cut off
                    x, anchor = min(x + 20, WIDTH), "end"
                out.append(f'<text class="{anchor}" x="{x:.1f}" y="{y}">{escape(x_text(v))}</text>')
        return "".join(out)


def ticks(low: float, high: float, *, log: bool = False, most: int = 6) -> list[float]:
    """Round numbers within [low, high]: 1, 2, 5 times a power of ten; powers of ten (with 2 and 5 if few) if `log`."""
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1,), (1, 3), (1, 2, 5)):
            found = [s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high]
            if len(found) >= 3:
                break
        return found[:: math.ceil(len(found) / most)] if found else [low, high]
    raw = (high - low) / (most - 1) or 1.0
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * s for s in (1, 2, 5, 10) if unit * s >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [step * k for k in range(first, math.floor(high / step + 1e-9) + 1)]


def polyline(axes: Axes, start: int, values: Sequence[float | None], kind: str) -> str:
    """A polyline that breaks where a value is missing; lone values become dots."""
    out, run = [], []
    for i, v in enumerate([*values, None]):
        if v is not None and (v > 0 or not axes.log_y):
            run.append(f"{axes.px(start + i + 1):.1f},{axes.py(v):.1f}")
        elif run:
            if len(run) == 1:
                x, y = run[0].split(",")
                out.append(f'<circle class="dot {kind}" cx="{x}" cy="{y}" r="3.5"/>')
            else:
                out.append(f'<polyline class="{kind}" points="{" ".join(run)}"/>')
            run = []
    return "".join(out)


def svg(inside: str, *, height: float = HEIGHT, css: str = "") -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}"{css} aria-hidden="true">{inside}</svg>'


def _share(value: float, span: tuple[float, float], log: bool) -> float:
    low, high = span
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low or 1.0)
