"""What a report says in short: the headline and the before/after rows, teacher against student.

Every function takes the report's data as they stand in `report.json` and tolerates what is missing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from orbit_kd.reports.merit import Merit, merit
from orbit_kd.reports.words import (
    NONE,
    arena,
    count,
    exact,
    fewer,
    latency,
    latency_spread,
    number,
    p_value,
    percent,
    quotient,
    size,
    times,
)
from orbit_kd.support.text_table import aligned

TEACHER_TARGET = "tflite_float32"


PAIRED = {"McNemar": "mcnemar_p", "paired bootstrap": "paired_p"}  # tests of teacher against student -> where p is
SAME_TYPE = "the teacher in a file of the same type"


def main_artifact(data: dict[str, Any]) -> dict[str, Any]:
    """The artifact the headline is about: a file for the device if there is one, else the smallest TFLite file or any.

    That is the first `tflite_micro_coded`, else the first `tflite_int8`.
    """
    artifacts = [a for a in data.get("artifacts") or [] if number(a.get("bytes")) is not None]
    for target in ("tflite_micro_coded", "tflite_int8"):
        if found := next((a for a in artifacts if a.get("target") == target), None):
            return found
    tflite = [a for a in artifacts if str(a.get("target", "")).startswith("tflite")]
    return min(tflite or artifacts, key=lambda a: a["bytes"], default={})


def accuracies(data: dict[str, Any]) -> tuple[float | None, float | None]:
    """The metric of (teacher, student): the student's is the shipped file's where that was measured."""
    of = merit(data).of
    after = of(main_artifact(data))
    if after is None:
        after = of(section(data, "student"))
    return of(section(data, "teacher")), after


def headline(data: dict[str, Any]) -> tuple[str, str]:
    """(the claim, the sentence below it), both made of measured figures only."""
    claims = []
    smaller = fewer(section(data, "teacher").get("tflite_bytes"), main_artifact(data).get("bytes"))
    if smaller == NONE and number(section(data, "ratios").get("bytes")) is not None:
        smaller = fewer(data["ratios"]["bytes"], 1)
    if smaller != NONE:
        claims.append("the same bytes" if smaller == "same" else f"{smaller} bytes")
    before, after, told = *accuracies(data), merit(data)
    if before is not None and after is not None:
        claims.append(f"{told.name} {told.text(before)} → {told.text(after)}")
    elif after is not None:
        claims.append(f"{told.name} {told.text(after)}")
    return ", ".join(claims) or "Nothing was measured", _verdict(data, before, after)


def _verdict(data: dict[str, Any], before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return f"{merit(data).title} was not measured for both the teacher and the student."
    file, images, told = main_artifact(data), number(section(data, "data").get("test")), merit(data)
    name = f"the {file['target']} file" if told.of(file) is not None else "the student"
    where = f" on {images:,.0f} test images" if images else ""
    if after == before:
        text = f"{name} is exactly as {'accurate' if told.key == 'accuracy' else 'good'} as its teacher{where}"
    else:
        change = f"{abs(100 * (after - before)):.2f} points of {told.name}" if told.unit == "%" else (
            f"{abs(after - before):.4f}{told.unit} of {told.name}")  # fmt: skip
        text = f"{name} {'gains' if after > before else 'loses'} {change}{where}"
    paired = [(test, number(file.get(key))) for test, key in PAIRED.items() if number(file.get(key)) is not None]
    if not paired:
        return text[0].upper() + text[1:] + "."
    test, p = paired[0]
    verdict = "more than chance explains" if (p or 0.0) < 0.05 else "small enough to be chance"
    return f"{text[0].upper()}{text[1:]} ({test} {p_value(p)}: {verdict})."


class Row(NamedTuple):
    """One line of the before/after table; `exact` holds the unrounded figures."""

    label: str
    before: str
    after: str
    change: str
    exact: str = ""


def before_after(data: dict[str, Any]) -> list[Row]:
    """The rows of the before/after table, teacher against student; a row without any figure is left out."""
    teacher, student, file = section(data, "teacher"), section(data, "student"), main_artifact(data)
    target, source = str(file.get("target", "file")), _source(student)
    files = measured_in(target)
    counted = "" if source == TEACHER_TARGET else f" ({measured_in(source)})"

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
    told = merit(data)
    if told.of(file) is None:
        rows.append(_merit(told, "", teacher, student))
    else:
        if source != target:
            rows.append(_merit(told, f" ({measured_in(source)})", teacher, student))
        rows.append(_merit(told, f" ({files})", teacher, file))
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


def measured_in(target: str) -> str:
    """What the two columns were measured on: the teacher's figures are always those of its float32 file."""
    return TEACHER_TARGET if target == TEACHER_TARGET else f"{TEACHER_TARGET} → {target}"


def parameters_gone(data: dict[str, Any]) -> float | None:
    """1 - student non-zero parameters / teacher parameters; None if these were not counted in a float32 file.

    An int8 file has zeros that only rounding made, and those are never claimed.
    """
    student = section(data, "student")
    if _source(student) != TEACHER_TARGET:
        return None
    params, left = section(data, "teacher").get("params"), number(student.get("nonzero_params"))
    total = number(params)
    return 1 - left / total if total and left is not None else number(section(data, "ratios").get("parameters_gone"))


def table(rows: list[Row]) -> str:
    """The rows as aligned text for a terminal."""
    # A reason such as "not run: ..." is long: as the last cell of a shorter row it may overhang.
    cells = [row[:3] if row.after.startswith("not run") else row[:4] for row in rows]
    head, *lines = aligned([("", "teacher", "student", "change"), *cells], "<>>>")
    return "\n".join([head, "-" * len(head), *lines])


def _merit(told: Merit, where: str, first: dict[str, Any], second: dict[str, Any]) -> Row:
    before, after = told.of(first), told.of(second)
    change = told.change(before, after)
    return Row(f"{told.title}{where}", told.text(before), told.text(after), change, f"{before} → {after}")


def _source(student: dict[str, Any]) -> str:
    """The target of the file the student's section was counted in."""
    return str(student.get("measured_from") or TEACHER_TARGET)


def section(data: dict[str, Any], name: str) -> dict[str, Any]:
    """A section of a report; empty where there is none."""
    return data.get(name) or {}
