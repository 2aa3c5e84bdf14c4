"""The tables of the report page: exported files, layers, the search, and what each device's tools said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

from orbit_kd.reports import words as text
from orbit_kd.reports.merit import Merit, merit
from orbit_kd.reports.summary import main_artifact
from orbit_kd.reports.words import NONE, number


@dataclasses.dataclass(frozen=True)
class Table:
    """Column titles (an empty one is a corner) and rows of cells; the first cell of a row is its name."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Search:
    """How the smallest network was found: a sentence or two, and the networks that were tried."""

    story: str
    trials: Table


@dataclasses.dataclass(frozen=True)
class Device:
    """What the tools of one target said about its file: single figures, and tables by their title."""

    target: str
    figures: dict[str, str]
    tables: dict[str, Table]


def artifacts(data: dict[str, Any]) -> Table | None:
    """All measured figures, an exported file a column."""
    files = data.get("artifacts") or []
    if not files:
        return None
    teacher, told = data.get("teacher") or {}, merit(data)
    lines: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("File", lambda a: PurePath(str(a.get("path", ""))).name),
        ("Bytes", lambda a: text.exact(a.get("bytes"))),
        ("Bytes, gzip", lambda a: text.exact(a.get("gzip_bytes"))),
        (
            "Against the teacher's float32 file",
            lambda a: text.fewer(teacher.get("tflite_bytes"), a.get("bytes"), "smaller", "larger"),
        ),
        (told.title, lambda a: told.text(told.of(a))),
        ("Change to the teacher", lambda a: told.change(told.of(teacher), told.of(a))),
        ("McNemar p", lambda a: text.p_value(a.get("mcnemar_p"))),
        ("Paired bootstrap p", lambda a: text.p_value(a.get("paired_p"))),
        ("95% interval of the change", lambda a: _interval(told, a)),
        ("Only the teacher right", lambda a: text.exact(a.get("teacher_only_right"), "images")),
        ("Only the student right", lambda a: text.exact(a.get("student_only_right"), "images")),
        ("Density", lambda a: text.percent(a.get("density"))),
        ("Zeros added by int8 rounding", lambda a: text.exact(a.get("zeros_from_int8"))),
        ("Latency", text.latency),
        ("TFLite Micro arena", text.arena),
        ("TFLite Micro against LiteRT", text.parity),
    ]
    body = [[label, *(tell(a) for a in files)] for label, tell in lines]
    kept = [r for r in body if any(c not in (NONE, "") for c in r[1:])]
    return Table(["", *(str(a.get("target", "")) for a in files)], kept)


def _interval(told: Merit, file: dict[str, Any]) -> str:
    low, high = number(file.get("difference_low")), number(file.get("difference_high"))
    if low is None or high is None:
        return NONE
    return f"{told.change(0.0, low)} to {told.change(0.0, high)}"


def per_class(data: dict[str, Any]) -> Table | None:
    """The figures of each class, of the teacher and of the file that the headline is about."""
    names = [str(n) for n in data.get("class_names") or []]
    before = (data.get("teacher") or {}).get("per_class") or {}
    after = main_artifact(data).get("per_class") or (data.get("student") or {}).get("per_class") or {}
    if not after:
        return None
    count = max(len(values) for values in after.values())
    titles = ["", *(f"{who}, {figure}" for figure in after for who in ("teacher", "student"))]
    body = []
    for i in range(count):
        cells = [values[i] if i < len(values) else None
                 for figure in after for values in (before.get(figure) or [], after[figure])]  # fmt: skip
        body.append([names[i] if i < len(names) else str(i), *map(text.percent, cells)])
    return Table(titles, body)


def layers(found: Sequence[dict[str, Any]]) -> Table | None:
    """Every layer before and after, in numbers."""
    if not found:
        return None
    titles = ["layer", "type", "channels", "parameters", "not zero", "density", "pattern", "MACs"]
    body = []
    for x in found:
        change = lambda key, x=x: f"{text.exact(x.get(f'{key}_before'))} → {text.exact(x.get(f'{key}_after'))}"  # noqa: E731
        cells = [x.get("name"), x.get("type"), change("width"), change("params"), text.exact(x.get("nonzero_after"))]
        cells += [text.percent(x.get("density")), x.get("pattern") or NONE, change("macs")]
        body.append([NONE if c is None else str(c) for c in cells])
    return Table(titles, body)


def search(data: dict[str, Any]) -> Search | None:
    """What was tried on the way to the smallest network that is accurate enough."""
    found = data.get("search") or {}
    trials, own, reached = found.get("trials") or [], found.get("teacher") or {}, number(found.get("reached"))
    if not trials and reached is None:
        return None
    told = merit(data)
    of = "of" if told.key == "accuracy" else f"{told.name} on"
    asked = f"At least {told.text(found.get('target'))} {of} {found.get('images')} validation images"
    if found.get("shrink"):
        asked += f", as few {str(found['shrink']).replace('_', ' ')} as that allows"
    asked += "." if not own else (
        f". The teacher's own int8 file: {text.exact(own.get('bytes'))} bytes, {told.text(own.get('accuracy'))}."
    )  # fmt: skip
    verdict = "" if reached is None else (
        f" The {found.get('target_file')} file reaches {told.text(reached)} there: {found.get('verdict')}."
    )  # fmt: skip
    body = [
        [str(i), text.exact(t.get("params")), text.exact(t.get("macs")), text.exact(t.get("bytes")),
         text.exact(t.get("epochs")), told.text(t.get("accuracy")), _verdict(t), text.seconds(t.get("seconds"))]
        for i, t in enumerate(trials, 1)
    ]  # fmt: skip
    titles = ["trial", "parameters", "MACs", "bytes", "epochs", f"{told.name} after them", "verdict", "time"]
    return Search(f"{asked}{verdict}", Table(titles, body))


def _verdict(trial: dict[str, Any]) -> str:
    """Of a step, or of a longer training of what was tried before (factor 1)."""
    return "taken" if trial.get("accepted") else "no better" if trial.get("factor") == 1 else "too small"


def devices(data: dict[str, Any]) -> list[Device]:
    """What the tools of each target said about its file: figures, and a table for each list of records."""
    found = []
    for artifact in data.get("artifacts") or []:
        details = artifact.get("details") or {}
        plain = {_words(k): _value(v) for k, v in details.items() if not isinstance(v, (list, dict))}
        lists = {k: v for k, v in details.items() if isinstance(v, list) and v and all(isinstance(r, dict) for r in v)}
        if not plain and not lists:
            continue
        tables = {}
        for name, records in lists.items():
            titles = list(dict.fromkeys(k for r in records for k in r))
            lines = [[_value(r.get(k)) for k in titles] for r in records]
            tables[_words(name)] = Table([_words(t) for t in titles], lines)
        found.append(Device(str(artifact.get("target")), plain, tables))
    return found


def _words(key: str) -> str:
    return key.replace("_", " ")


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return NONE if value in (None, "") else "yes" if value is True else "no" if value is False else str(value)
