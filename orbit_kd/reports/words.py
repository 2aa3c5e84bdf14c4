"""Measurements as people write them.

Every function takes values as they stand in `report.json` and tolerates what is missing. Gains are rounded down, so
that a printed claim never exceeds its measurement.
"""

from __future__ import annotations

import math
from typing import Any

from orbit_kd.support.progress import duration

NONE = "–"


def number(value: Any) -> float | None:
    """The value as a finite float; None for anything else (absent, NaN, infinite, text, a bool)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def count(value: Any) -> str:
    """43210 -> "43,210"; 14981066 -> "14.98 M"."""
    v = number(value)
    if v is None:
        return NONE
    for unit, factor in (("G", 1e9), ("M", 1e6)):
        if abs(v) >= factor:
            return f"{_digits(v / factor, 4)} {unit}"
    return f"{v:,.0f}"


def size(value: Any) -> str:
    """Bytes with KB = 1000 bytes: 148012 -> "148 KB"."""
    v = number(value)
    if v is None:
        return NONE
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if v >= factor:
            return f"{_digits(v / factor, 3)} {unit}"
    return f"{v:.0f} B"


def exact(value: Any, unit: str = "") -> str:
    """148012 -> "148,012 bytes"."""
    v = number(value)
    return NONE if v is None else f"{v:,.0f} {unit}".rstrip()


def percent(value: Any, *, down: bool = False) -> str:
    """0.97691 -> "97.69%"; `down` rounds a gain down."""
    v = number(value)
    if v is None:
        return NONE
    return f"{_floor(100 * v, 2) if down else 100 * v:.2f}%"


def times(value: Any) -> str:
    """A ratio with three significant digits, rounded down: 345.9 -> "345x", 16.58 -> "16.5x"."""
    v = number(value)
    if v is None:
        return NONE
    places = 0 if v >= 100 else 1 if v >= 10 else 2
    return f"{_floor(v, places):,.{places}f}x"


def points(before: Any, after: Any) -> str:
    """The difference of two accuracies in 0..1 as percentage points: "-0.29 points"."""
    a, b = number(before), number(after)
    if a is None or b is None:
        return NONE
    return "no change" if a == b else f"{100 * (b - a):+.2f} points"


def seconds(value: Any) -> str:
    """3.21 -> "3.2s"; 185 -> "3m05s"."""
    v = number(value)
    if v is None:
        return NONE
    return f"{v:.1f}s" if v < 10 else duration(v)


def fewer(before: Any, after: Any, less: str = "fewer", more: str = "more") -> str:
    """How much smaller `after` is: "345x fewer"; "1.05x more" where it grew."""
    ratio = quotient(before, after)
    if ratio is None:
        return NONE
    if ratio < 1:  # a loss is rounded up, as a gain is rounded down
        return f"{math.ceil(100 / ratio - 1e-9) / 100:,.2f}x {more}"
    return "same" if ratio == 1 else f"{times(ratio)} {less}"


def quotient(before: Any, after: Any) -> float | None:
    """before / after, where both are measured and above zero."""
    a, b = number(before), number(after)
    return a / b if a and b and a > 0 and b > 0 else None


def not_run(why: Any) -> str:
    """What stands in place of a measurement that is missing."""
    return f"not run: {str(why or 'no reason recorded').removeprefix('not run: ')}"


def latency(artifact: dict[str, Any]) -> str:
    """The speed of an exported file against the teacher's file of the same type, or why it was not measured."""
    measured = artifact.get("latency") or {}
    if number(measured.get("ratio")) is None:
        return not_run(artifact.get("latency_why"))
    runs, spread = number(measured.get("runs")), latency_spread(artifact)
    details = [d for d in (spread, f"{runs:.0f} runs" if runs else "") if d]
    return f"{times(measured['ratio'])} the speed" + (f" ({', '.join(details)})" if details else "")


def latency_spread(artifact: dict[str, Any]) -> str:
    """As "17.7x to 19.0x", empty where it was not measured."""
    measured = artifact.get("latency") or {}
    low, high = measured.get("low"), measured.get("high")
    return f"{times(low)} to {times(high)}" if number(low) is not None and number(high) is not None else ""


def arena(artifact: dict[str, Any]) -> str:
    """The TFLite Micro arena of an exported file, or why it was not measured."""
    tflm = artifact.get("tflm") or {}
    if not tflm.get("ran"):
        return not_run(tflm.get("why"))
    return size(tflm["arena_bytes"])


def parity(artifact: dict[str, Any]) -> str:
    """The largest difference between TFLite Micro and LiteRT's reference kernels."""
    tflm = artifact.get("tflm") or {}
    if not tflm.get("ran"):
        return not_run(tflm.get("why"))
    if number(tflm.get("max_lsb")) is None:
        return NONE
    compared = number(tflm.get("compared"))
    return f"at most {tflm['max_lsb']:g} LSB" + (f" over {compared:,.0f} inputs" if compared else "")


def p_value(value: Any) -> str:
    v = number(value)
    return NONE if v is None else "p < 0.001" if v < 0.001 else f"p = {v:.2g}"


def _digits(value: float, digits: int) -> str:
    """Fixed-point text with that many significant digits (at least all of the integer part)."""
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}"


def _floor(value: float, places: int) -> float:
    # The nudge keeps 0.29 * 100 = 28.999999999999996 from becoming 28.
    return math.floor(value * 10**places + 1e-9) / 10**places
