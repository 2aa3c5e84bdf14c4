"""The report as one self-contained HTML page: no script, no request, figures inline; light, dark, phone and print.

What is shown is gathered here as plain values; `page.html` (Jinja2, everything escaped) lays it out, `page.css` colours
it. The charts stay functions that write SVG: they follow the page's light and dark colours and need no script.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from orbit_kd.reports import figures, summary, tables
from orbit_kd.reports import words as text
from orbit_kd.reports.merit import merit
from orbit_kd.reports.precision_recall import precision_recall
from orbit_kd.reports.summary import section
from orbit_kd.reports.tables import Table
from orbit_kd.reports.words import NONE, number

DEFINITIONS = {
    "Parameters": "Elements of the weight and bias constants in the float32 TFLite file, BatchNorm folded in; the same "
    "count for teacher and student.",
    "Non-zero parameters": "Those that are not 0. Zeros that int8 rounding adds are listed beside, never claimed.",
    "Parameters gone": "1 - the student's non-zero parameters / the teacher's parameters.",
    "Bytes": "The size of the file, not compressed; 1 KB = 1000 bytes. The ratio is the teacher's float32 TFLite file "
    "against the student's file. Gzip sizes stand beside it.",
    "MACs": "Multiply-accumulates of convolutions and dense layers for one image, from the shapes, zeros counted. "
    '"Without zeros" leaves out the weights that are 0.',
    "Accuracy": "The share of right answers on the test split, from running the exported file. All choices are made on "
    "the validation split; the test split is used once.",
    "McNemar p": "How often chance alone gives a difference this large, judged by the images that only one of the two "
    "gets right. One run cannot show zero loss: that takes three seeds of the whole compression.",
    "Density": "The share of weights in the exported file that are not 0.",
    "Latency": "Time of the teacher's file of the same type / time of this file, run in turns on the same machine; "
    "2x is twice as fast. The middle half of the runs lies in the range given.",
    "TFLite Micro": "Arena: working memory the microcontroller runtime needs besides the file. LSB: the largest "
    "difference of an int8 output from LiteRT's reference kernels.",
    "Channels": "Filters of a layer. A layer that lost filters also makes the next layer's kernels smaller.",
}

MERITS = {
    "mean_iou": "Intersection over union of each class, counted over all pixels of all test images, and the mean over "
    "classes (as PASCAL VOC and Cityscapes count it). Pixels labelled 255 do not count.",
    "ap50": "Average precision of boxes that overlap the true one by an IoU of 0.5 or more, by COCO's rules "
    "(pycocotools), mean over classes.",
    "mean_average_precision": "Average precision of each label over all test images, and the mean over labels.",
    "r2": "1 - squared errors / squared deviations from the mean label; the mean over the numbers.",
    "mean_metric": "The mean of the metrics of all outputs, by their weights; each stands in report.json.",
}
PAIRED = (
    "How often chance alone gives a difference this large: the test images are drawn 2,000 times with replacement, the "
    "same ones for both networks. One run cannot show zero loss: that takes three seeds of the whole compression."
)


def page(data: dict[str, Any]) -> str:
    """The whole page; a section without data is left out."""
    claim, verdict = summary.headline(data)
    file, layers, history = summary.main_artifact(data), rows(data, "layers"), rows(data, "history")
    sizes = figures.sizes(section(data, "teacher").get("tflite_bytes"), file.get("bytes"), str(file.get("target", "")))
    return _template().render(
        style=Markup(files("orbit_kd.reports").joinpath("page.css").read_text(encoding="utf-8")),
        title=str(data.get("title") or "Compression report"),
        claims=claim.split(", "),
        verdict=verdict,
        sizes=Markup(sizes),
        tiles=_tiles(data),
        before_after=summary.before_after(data),
        notes=[str(n) for n in data.get("notes") or []],
        layer_figures=_drawn([figures.widths(layers), figures.densities(layers)]),
        search=tables.search(data),
        training=_drawn(_curves(data, history)),
        last_values=_last_values(history),
        confusions=_drawn([*_confusions(data), precision_recall(data)]),
        mistakes=_mistakes(data) if merit(data).key == "accuracy" else None,
        per_class=tables.per_class(data),
        pictures=_pictures(data),
        size_and_time=_drawn([_accuracy_bytes(data), figures.stage_times(rows(data, "stages"))]),
        artifacts=tables.artifacts(data),
        devices=tables.devices(data),
        layers=tables.layers(layers),
        command=str(data.get("command") or ""),
        made=_made(data),
        definitions=_definitions(data),
    )


@functools.cache
def _template() -> Template:
    loader = PackageLoader("orbit_kd", "reports")
    known = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    known.filters["value"] = _value
    return known.get_template("page.html")


def _drawn(svgs: Sequence[str]) -> list[Markup]:
    """Charts that have something to show, as markup: they have escaped their labels themselves."""
    return [Markup(svg) for svg in svgs if svg]


def rows(data: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The records of a section of the report; none where it is missing."""
    return data.get(name) or []


def _definitions(data: dict[str, Any]) -> dict[str, str]:
    """What the figures mean, of the task's metric in place of accuracy."""
    told = merit(data)
    if told.key not in MERITS:
        return DEFINITIONS
    own = {"Accuracy": (told.title, MERITS[told.key]), "McNemar p": ("Paired bootstrap p", PAIRED)}
    return dict(own.get(name, (name, text)) for name, text in DEFINITIONS.items())


def _pictures(data: dict[str, Any]) -> list[tuple[str, str]]:
    """(PNG as a data URI, caption) of the samples that the student does worst on."""
    told, teacher = merit(data), bool(section(data, "teacher"))
    found = []
    for row in rows(data, "pictures"):
        if str(row.get("image", "")).startswith("data:image/png;base64,"):
            beside = f", teacher {told.text(row.get('teacher'))}" if teacher else ""
            found.append((str(row["image"]), f"student {told.text(row.get('metric'))}{beside}"))
    return found


def _tiles(data: dict[str, Any]) -> list[tuple[str, str]]:
    file = summary.main_artifact(data)
    gone = summary.parameters_gone(data)
    macs = text.fewer(section(data, "teacher").get("macs"), section(data, "student").get("macs"))
    tflm, latency = section(file, "tflm"), section(file, "latency")
    tiles = [
        (text.percent(gone, down=True), "of the parameters gone"),
        (macs, "multiply-accumulates"),
        (text.times(latency.get("ratio")), f"the speed, against {latency.get('against') or summary.SAME_TYPE}"),
        (text.size(tflm.get("arena_bytes") if tflm.get("ran") else None), "of RAM on TFLite Micro (arena)"),
    ]
    return [(value, label) for value, label in tiles if value != NONE]


def _curves(data: dict[str, Any], history: list[dict[str, Any]]) -> list[str]:
    told = merit(data)
    level = told.of(section(data, "teacher"))
    return [
        figures.curves(history, metric=told.key, told=told, reference=level),
        figures.curves(history, metric="loss"),
    ]


def _last_values(history: Sequence[dict[str, Any]]) -> Table | None:
    """The last value of every metric that was logged, a stage a row."""
    names = list(dict.fromkeys(k for h in history for k, v in h.items() if isinstance(v, list) and k != "epochs"))
    if not names:
        return None
    body = []
    for h in history:
        last = [(h[k][-1] if isinstance(h.get(k), list) and h[k] else None) for k in names]
        epochs = max((len(v) for v in h.values() if isinstance(v, list)), default=0)
        body.append([str(h.get("stage", "")), str(epochs), *(NONE if number(v) is None else f"{v:.4g}" for v in last)])
    return Table(["stage", "epochs", *names], body)


def _matrices(data: dict[str, Any]) -> tuple[list[list[float]], list[list[float]], str]:
    """Confusions of the teacher and of the student, and which file the student's is of."""
    file = summary.main_artifact(data)
    after, who = _counts(file.get("confusion")), f"student, {file.get('target')}"
    if not after:
        after, who = _counts(section(data, "student").get("confusion")), "student"
    return _counts(section(data, "teacher").get("confusion")), after, who


def _confusions(data: dict[str, Any]) -> list[str]:
    before, after, who = _matrices(data)
    titled = ((before, "Confusion: teacher"), (after, f"Confusion: {who}"))
    return [figures.confusion(m, _class_names(data), title=t) for m, t in titled if m]


def _class_names(data: dict[str, Any]) -> list[str]:
    return [str(n) for n in data.get("class_names") or []]


def _counts(matrix: Any) -> list[list[float]]:
    """The matrix if it is square, else empty; a missing count is 0."""
    if not isinstance(matrix, list) or any(not isinstance(r, list) or len(r) != len(matrix) for r in matrix):
        return []
    return [[number(v) or 0 for v in r] for r in matrix]


def _mistakes(data: dict[str, Any]) -> Table | None:
    """The student's most frequent confusions beside the teacher's count of the same."""
    before, after, _ = _matrices(data)
    names = _class_names(data)
    pairs = [(n, i, j) for i, row in enumerate(after) for j, n in enumerate(row) if i != j and n]
    if not pairs:
        return None
    label = lambda i: names[i] if i < len(names) else str(i)  # noqa: E731
    top = sorted(pairs, key=lambda p: -p[0])[:6]
    same = len(before) == len(after)
    body = [
        [
            f"{label(i)} taken for {label(j)}",
            text.exact(before[i][j]) if same else NONE,
            text.exact(n),
            text.exact(sum(after[i])),
        ]
        for n, i, j in top
    ]
    return Table(["", "teacher", "student", "images"], body)


def _accuracy_bytes(data: dict[str, Any]) -> str:
    teacher = section(data, "teacher")
    told = merit(data)
    found: list[tuple[str, Any, Any]] = [("teacher float32", teacher.get("tflite_bytes"), told.of(teacher))]
    for a in rows(data, "artifacts"):
        if str(a.get("target", "")).startswith("tflite"):
            kind = str(a["target"]).removeprefix("tflite_")
            found.append((f"student {kind}", a.get("bytes"), told.of(a)))
    return figures.merit_bytes(told, [p for p in found if number(p[1]) and number(p[2]) is not None])


def _made(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Heading -> what is told below it."""
    about = dict(section(data, "data"))
    for key in ("seed", "schema"):
        if data.get(key) is not None:
            about[key] = data[key]
    if data.get("class_names"):
        about["classes"] = ", ".join(_class_names(data))
    found = {"Recipe": section(data, "recipe"), "Preprocess": section(data, "preprocess"), "Data": about,
             "Versions": section(data, "versions")}  # fmt: skip
    return {title: values for title, values in found.items() if values}


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False) if value else "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000 else str(value)
