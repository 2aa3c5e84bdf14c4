"""What a report says in words: numbers as people write them, the headline, the before/after rows.

Every function takes values as they stand in `report.json` and tolerates what is missing. Gains are rounded down, so
that a printed claim never exceeds its measurement.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from orbit_kd.support.progress import duration
from orbit_kd.support.text_table import aligned

NONE = "–"
TEACHER_TARGET = "tflite_float32"
SAME_TYPE = "the teacher in a file of the same type"


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


def shipped(data: dict[str, Any]) -> dict[str, Any]:
    """The artifact the headline is about: the first `tflite_int8`, else the smallest TFLite file, else the smallest."""
    artifacts = [a for a in data.get("artifacts") or [] if number(a.get("bytes")) is not None]
    for a in artifacts:
        if a.get("target") == "tflite_int8":
            return a
    tflite = [a for a in artifacts if str(a.get("target", "")).startswith("tflite")]
    return min(tflite or artifacts, key=lambda a: a["bytes"], default={})


def accuracies(data: dict[str, Any]) -> tuple[float | None, float | None]:
    """(teacher, student): the student's is the shipped file's where that was measured."""
    after = number(shipped(data).get("accuracy"))
    if after is None:
        after = number(part(data, "student").get("accuracy"))
    return number(part(data, "teacher").get("accuracy")), after


def headline(data: dict[str, Any]) -> tuple[str, str]:
    """(the claim, the sentence below it), both made of measured figures only."""
    claims = []
    smaller = fewer(part(data, "teacher").get("tflite_bytes"), shipped(data).get("bytes"))
    if smaller == NONE and number(part(data, "ratios").get("bytes")) is not None:
        smaller = fewer(data["ratios"]["bytes"], 1)
    if smaller != NONE:
        claims.append("the same bytes" if smaller == "same" else f"{smaller} bytes")
    before, after = accuracies(data)
    if before is not None and after is not None:
        claims.append(f"accuracy {percent(before)} → {percent(after)}")
    elif after is not None:
        claims.append(f"accuracy {percent(after)}")
    return ", ".join(claims) or "Nothing was measured", _verdict(data, before, after)


def _verdict(data: dict[str, Any], before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "Accuracy was not measured for both the teacher and the student."
    file, images = shipped(data), number(part(data, "data").get("test"))
    name = f"the {file['target']} file" if number(file.get("accuracy")) is not None else "the student"
    where = f" on {images:,.0f} test images" if images else ""
    if after == before:
        text = f"{name} is exactly as accurate as its teacher{where}"
    else:
        change = f"{abs(100 * (after - before)):.2f} points of accuracy"
        text = f"{name} {'gains' if after > before else 'loses'} {change}{where}"
    p = number(file.get("mcnemar_p"))
    if p is None:
        return text[0].upper() + text[1:] + "."
    verdict = "more than chance explains" if p < 0.05 else "small enough to be chance"
    return f"{text[0].upper()}{text[1:]} (McNemar {p_value(p)}: {verdict})."


class Row(NamedTuple):
    """One line of the before/after table; `exact` holds the unrounded figures."""

    label: str
    before: str
    after: str
    change: str
    exact: str = ""


def before_after(data: dict[str, Any]) -> list[Row]:
    """The rows of the before/after table, teacher against student; a row without any figure is left out."""
    teacher, student, file = part(data, "teacher"), part(data, "student"), shipped(data)
    target, source = str(file.get("target", "file")), _source(student)
    files = both(target)
    counted = "" if source == TEACHER_TARGET else f" ({both(source)})"

    def compare(label: str, before: Any, after: Any, show: Any) -> Row:
        unit, words = ("bytes", ("smaller", "larger")) if show is size else ("", ("fewer", "more"))
        figures = f"{exact(before, unit)} → {exact(after, unit)}"
        return Row(label, show(before), show(after), fewer(before, after, *words), figures)

    rows = [
        compare("Parameters", teacher.get("params"), student.get("params"), count),
        compare(f"Non-zero parameters{counted}", teacher.get("nonzero_params"), student.get("nonzero_params"), count),
        compare("MACs", teacher.get("macs"), student.get("macs"), count),
        compare(f"MACs without zeros{counted}", teacher.get("macs_nonzero"), student.get("macs_nonzero"), count),
        compare(f"File ({files})", teacher.get("tflite_bytes"), file.get("bytes"), size),
        compare(f"File, gzip ({files})", teacher.get("gzip_bytes"), file.get("gzip_bytes"), size),
    ]
    gone = parameters_gone(data)
    if gone is not None:
        rows[1] = rows[1]._replace(change=f"{percent(gone, down=True)} gone")
    if rows[3].before == NONE and not counted:
        ratio = quotient(teacher.get("macs"), student.get("macs_nonzero"))
        rows[3] = rows[3]._replace(change=NONE if ratio is None else fewer(ratio, 1))
    if number(file.get("accuracy")) is None:
        rows.append(_accuracy("Accuracy", teacher.get("accuracy"), student.get("accuracy")))
    else:
        if source != target:
            rows.append(_accuracy(f"Accuracy ({both(source)})", teacher.get("accuracy"), student.get("accuracy")))
        rows.append(_accuracy(f"Accuracy ({files})", teacher.get("accuracy"), file.get("accuracy")))
    rows = [r for r in rows if (r.before, r.after) != (NONE, NONE)]
    if file:
        measured = file.get("latency") or {}
        ran = number(measured.get("ratio")) is not None
        speed = times(measured["ratio"]) if ran else latency(file)
        against = f"against {measured.get('against') or SAME_TYPE}"
        rows.append(
            Row(
                "Speed (latency)",
                "1x" if ran else NONE,
                speed,
                f"({latency_spread(file)})" if latency_spread(file) else NONE,
                against,
            )
        )
        bytes_of_ram = (file.get("tflm") or {}).get("arena_bytes")
        rows.append(Row("TFLite Micro arena", NONE, arena(file), NONE, exact(bytes_of_ram, "bytes")))
    return rows


def both(target: str) -> str:
    """What the two columns were measured on: the teacher's figures are always those of its float32 file."""
    return TEACHER_TARGET if target == TEACHER_TARGET else f"{TEACHER_TARGET} → {target}"


def parameters_gone(data: dict[str, Any]) -> float | None:
    """1 - student non-zero parameters / teacher parameters; None if these were not counted in a float32 file.

    An int8 file has zeros that only rounding made, and those are never claimed.
    """
    student = part(data, "student")
    if _source(student) != TEACHER_TARGET:
        return None
    params, left = part(data, "teacher").get("params"), number(student.get("nonzero_params"))
    total = number(params)
    return 1 - left / total if total and left is not None else number(part(data, "ratios").get("parameters_gone"))


def table(rows: list[Row]) -> str:
    """The rows as aligned text for a terminal."""
    # A reason such as "not run: ..." is long: as the last cell of a shorter row it may overhang.
    cells = [row[:3] if row.after.startswith("not run") else row[:4] for row in rows]
    head, *lines = aligned([("", "teacher", "student", "change"), *cells], "<>>>")
    return "\n".join([head, "-" * len(head), *lines])


def _accuracy(label: str, before: Any, after: Any) -> Row:
    return Row(label, percent(before), percent(after), points(before, after), f"{before} → {after}")


def _source(student: dict[str, Any]) -> str:
    """The target of the file the student's section was counted in."""
    return str(student.get("measured_from") or TEACHER_TARGET)


def part(data: dict[str, Any], name: str) -> dict[str, Any]:
    """A section of a report; empty where there is none."""
    return data.get(name) or {}


def _digits(value: float, digits: int) -> str:
    """Fixed-point text with that many significant digits (at least all of the integer part)."""
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}"


def _floor(value: float, places: int) -> float:
    # The nudge keeps 0.29 * 100 = 28.999999999999996 from becoming 28.
    return math.floor(value * 10**places + 1e-9) / 10**places
