"""The figures of a report: each function takes plain values and returns one piece of HTML with inline SVG or CSS bars.

Colours are the classes of `reports/page.css` (blue and orange, safe for colour-blind readers, one set for light and
one for dark). Bars are HTML, so that their text keeps its size on a phone; what has axes is SVG.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from orbit_kd.reports.axes import HEIGHT, WIDTH, Axes, polyline, svg
from orbit_kd.reports.merit import Merit
from orbit_kd.reports.words import number, percent, seconds, size

_ACCURACY = Merit()


def shorten(text: str, limit: int) -> str:
    """Keeps both ends of a long name: "block_13_project" -> "block_1…project"."""
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return f"{text[: limit - 1 - tail]}…{text[len(text) - tail :]}"


def figure(title: str, body: str, *, alt: str, caption: str = "") -> str:
    """A titled card; the alternative text speaks for the drawing."""
    note = f'<p class="caption">{escape(caption)}</p>' if caption else ""
    return (
        f'<figure class="card"><figcaption>{escape(title)}</figcaption>'
        f'<div role="img" aria-label="{escape(alt)}">{body}</div>{note}</figure>'
    )


class Bar(NamedTuple):
    """One horizontal bar: shares in 0..1 of the full length; `ghost` is drawn pale behind `share`."""

    label: str
    share: float
    value: str
    ghost: float = 0.0
    hint: str = ""


def bars(items: Sequence[Bar]) -> str:
    """Horizontal bars, one line each; lines get lower where there are many."""
    dense = " dense" if len(items) > 24 else ""
    lines = []
    for b in items:
        ghost = f'<i class="ghost" style="width:{_css(b.ghost)}"></i>' if b.ghost else ""
        lines.append(
            f'<div class="bar" title="{escape(b.hint or f"{b.label}: {b.value}")}"><span>{escape(b.label)}</span>'
            f'<b>{ghost}<i style="width:{_css(b.share)}"></i></b><span>{escape(b.value)}</span></div>'
        )
    return f'<div class="bars{dense}">{"".join(lines)}</div>'


def widths(layers: Sequence[dict[str, Any]]) -> str:
    """Channels before and after removal, layer by layer."""
    known = [x for x in layers if number(x.get("width_before")) and number(x.get("width_after")) is not None]
    if not known:
        return ""
    most = max(x["width_before"] for x in known)
    items = [
        Bar(
            _name(x),
            x["width_after"] / most,
            f"{x['width_before']:,} → {x['width_after']:,}",
            x["width_before"] / most,
            f"{_name(x)}: {x['width_before']:,} channels before, {x['width_after']:,} after",
        )
        for x in known
    ]
    total = sum(x["width_before"] for x in known), sum(x["width_after"] for x in known)
    alt = f"Bars of the channels of {len(known)} layers: {total[0]:,} in all before, {total[1]:,} after."
    return figure("Channels per layer", bars(items), alt=alt, caption="Pale: teacher. Blue: student.")


def densities(layers: Sequence[dict[str, Any]]) -> str:
    """The share of non-zero weights, layer by layer."""
    known = [x for x in layers if number(x.get("density")) is not None]
    if not known:
        return ""
    items = []
    for x in known:
        label, value = _name(x), f"{100 * x['density']:.0f}%"
        pattern = f", pattern {x['pattern']}" if x.get("pattern") else ", no pattern"
        hint = f"{label}: {percent(x['density'])} of the weights are not zero{pattern}"
        items.append(Bar(label, x["density"], f"{value} {x.get('pattern') or ''}".strip(), 1.0, hint))
    low, high = min(x["density"] for x in known), max(x["density"] for x in known)
    alt = f"Bars of the density of {len(known)} layers, from {percent(low)} to {percent(high)}."
    return figure(
        "Density per layer", bars(items), alt=alt, caption="Share of the student's weights that are not zero."
    )


def sizes(before: Any, after: Any, target: str) -> str:
    """Both files on one linear scale, drawn without a card."""
    a, b = number(before), number(after)
    if not a or not b:
        return ""
    most = max(a, b)
    return bars([Bar("teacher, float32", a / most, size(a)), Bar(f"student, {target}", b / most, size(b))])


def stage_times(stages: Sequence[dict[str, Any]]) -> str:
    """How long each stage took."""
    known = [s for s in stages if number(s.get("seconds")) is not None]
    total = sum(s["seconds"] for s in known)
    if not known:
        return ""
    most = max(s["seconds"] for s in known) or 1
    items = [Bar(_name(s), s["seconds"] / most, seconds(s["seconds"])) for s in known]
    return figure("Time per stage", bars(items), alt=f"{len(known)} stages, {seconds(total)} in all.",
                  caption=f"{seconds(total)} in all.")  # fmt: skip


def curves(
    history: Sequence[dict[str, Any]], *, metric: str, told: Merit = _ACCURACY, reference: float | None = None
) -> str:
    """One metric over all epochs of all stages: training thin, validation bold, each stage a band.

    Args:
        history: the `history` section of the report.
        metric: key of the metric, or "loss" (logarithmic where it spans more than a factor of 20).
        told: how the metric is told: a share is drawn in percent.
        reference: a level drawn as a dashed line, such as the teacher's accuracy.
    """
    stages = [(str(h.get("stage", "")), series(h, metric), series(h, f"val_{metric}")) for h in history]
    stages = [s for s in stages if any(v is not None for v in s[1] + s[2])]
    values = [v for _, train, val in stages for v in train + val if v is not None]
    if not values:
        return ""
    is_metric = metric != "loss"
    is_share = is_metric and told.unit == "%"
    levels = [*values, reference] if is_metric and reference is not None else values
    low, high = min(levels), max(levels)
    log = not is_metric and low > 0 and high / low > 20
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    if log:
        y = (low / 1.2, high * 1.2)
    else:
        y = (
            max(0.0, low - pad) if low >= 0 else low - pad,
            min(1.0, high + pad) if is_share and high <= 1 else high + pad,
        )
    lengths = [max(len(train), len(val)) for _, train, val in stages]
    axes = Axes(x=(0.5, sum(lengths) + 0.5), y=y, log_y=log)
    y_text = _percent_tick if is_share else lambda v: f"{v:g}" if 1e-3 <= abs(v) < 1e4 or v == 0 else f"{v:.0e}"
    names = _band_names([name for name, _, _ in stages], [axes.px(n) - axes.px(0) for n in lengths])
    bands, lines, start = [], [], 0
    for i, (_, train, val) in enumerate(stages):
        x0, x1 = axes.px(start + 0.5), axes.px(start + lengths[i] + 0.5)
        shade = "band odd" if i % 2 else "band"
        bands.append(
            f'<rect class="{shade}" x="{x0:.1f}" y="8" width="{x1 - x0:.1f}" height="{HEIGHT - 8 - axes.bottom}"/>'
        )
        bands.append(f'<text class="mid stage" x="{(x0 + x1) / 2:.1f}" y="22">{escape(names[i])}</text>')
        lines.append(polyline(axes, start, train, "train") + polyline(axes, start, val, "val"))
        start += lengths[i]
    if is_metric and reference is not None:
        at = axes.py(reference)
        lines.append(f'<line class="level" x1="{axes.left}" x2="{WIDTH - axes.right}" y1="{at:.1f}" y2="{at:.1f}"/>')
    body = svg("".join(bands) + axes.draw(lambda v: f"{v:.0f}", y_text, whole_x=True) + "".join(lines))
    keys = key("train", "training") + key("val", "validation")
    if is_metric and reference is not None:
        keys += key("level", f"teacher, test {told.text(reference)}")
    numbered = names != [name for name, _, _ in stages]
    legend = "; ".join(f"{i}: {name}" for i, (name, _, _) in enumerate(stages, 1)) + ". " if numbered else ""
    last = [v for v in (stages[-1][2] or stages[-1][1]) if v is not None]
    ending = (told.text(last[-1]) if is_metric else f"{last[-1]:.4g}") if last else "unknown"
    name = told.name if is_metric else metric
    alt = f"{name} over {sum(lengths)} epochs in {len(stages)} stages; it ends at {ending}."
    scale = " Logarithmic scale." if log else ""
    title = f"Training: {name}"
    return figure(
        title, f'<p class="keys">{keys}</p>{body}', alt=alt, caption=f"{legend}Epochs, all stages in a row.{scale}"
    )


def series(stage: dict[str, Any], metric: str) -> list[float | None]:
    """The values of "accuracy", "val_accuracy", "loss" or "val_loss"; Keras' longer accuracy names are found too."""
    val = metric.startswith("val_")
    keys = [metric] if metric in stage else []
    if not keys and metric.endswith("accuracy"):
        keys = [k for k in stage if k.endswith(("accuracy", "acc")) and k.startswith("val_") == val]
    return [number(v) for v in stage[keys[0]]] if keys and isinstance(stage[keys[0]], list) else []


def confusion(matrix: Sequence[Sequence[float]], names: Sequence[str], *, title: str) -> str:
    """A square confusion matrix: rows are true classes, columns predicted ones; blue is right, orange is wrong."""
    n = len(matrix)
    labels = [str(names[i]) if i < len(names) else str(i) for i in range(n)]
    font = max(6.0, min(13.0, 480 / n * 0.92))
    chars = 14 if n > 15 else 11
    margin = max(len(shorten(x, chars)) for x in labels) * font * 0.58 + 8
    side = WIDTH - margin - 4
    cell = side / n
    named = cell >= 6.5
    if not named:
        margin, side, cell = 4.0, WIDTH - 8.0, (WIDTH - 8.0) / n
    out = [f'<rect class="plate" x="{margin:.1f}" y="0" width="{side:.1f}" height="{side:.1f}"/>']
    for i, row in enumerate(matrix):
        total = sum(row) or 1
        y = i * cell
        for j, cell_count in enumerate(row):
            if cell_count:
                out.append(_cell(margin + j * cell, y, cell, cell_count, total, labels, (i, j), n))
        if named:
            text = escape(shorten(labels[i], chars))
            label = f'<text class="end fixed" font-size="{font:.1f}"'
            out.append(f'{label} x="{margin - 5:.1f}" y="{y + cell / 2 + font * 0.35:.1f}">{text}</text>')
            turn = f"translate({margin + (i + 0.5) * cell + font * 0.35:.1f} {side + 6:.1f}) rotate(-90)"
            out.append(f'{label} transform="{turn}">{text}</text>')
    right = sum(matrix[i][i] for i in range(n)) / (sum(map(sum, matrix)) or 1)
    alt = f"Confusion matrix of {n} classes, {percent(right)} on the diagonal."
    height = side + (margin if named else 4)
    body = svg("".join(out), height=height, css=' class="matrix"' if n > 20 else "")
    caption = f"{percent(right)} right. Row: true class, column: prediction. Blue: right, orange: wrong."
    return figure(title, f'<div class="scroll">{body}</div>', alt=alt, caption=caption)


def merit_bytes(told: Merit, points: Sequence[tuple[str, float, float]]) -> str:
    """The metric against file size on a logarithmic scale.

    Args:
        told: the metric.
        points: (label, bytes, value); the first is the teacher.
    """
    if len(points) < 2:
        return ""
    low, high = min(p[2] for p in points), max(p[2] for p in points)
    pad = max((high - low) * 0.35, 0.004)
    span = [p[1] for p in points]
    axes = Axes(x=(min(span) / 2, max(span) * 2), y=_span(low, high, pad, share=told.unit == "%"), log_x=True)
    out = [axes.draw(_size_tick, _percent_tick if told.unit == "%" else lambda v: f"{v:g}")]
    for i, (label, n_bytes, value) in enumerate(sorted(points, key=lambda p: p[1])):
        x, y = axes.px(n_bytes), axes.py(value)
        kind = "teacher" if label == points[0][0] else "student"
        hint = escape(f"{label}: {n_bytes:,.0f} bytes, {told.text(value)}")
        out.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="7"><title>{hint}</title></circle>')
        anchor = "end" if x > WIDTH * 0.6 else "start" if x < WIDTH * 0.35 else "mid"
        at = y + 24 if i % 2 and y < HEIGHT - axes.bottom - 30 else y - 14
        shift = {"end": 8, "start": -8, "mid": 0}[anchor]
        out.append(f'<text class="{anchor} strong" x="{x + shift:.1f}" y="{at:.1f}">{escape(label)}</text>')
    alt = "; ".join(f"{label}: {size(b)}, {told.text(v)}" for label, b, v in points) + "."
    return figure(f"{told.title} against bytes", svg("".join(out)), alt=alt, caption="File size, logarithmic scale.")


def _span(low: float, high: float, pad: float, *, share: bool) -> tuple[float, float]:
    return (max(0.0, low - pad), min(1.0, high + pad)) if share else (low - pad, high + pad)


def _cell(x: float, y: float, cell: float, value: float, total: float, labels: Sequence[str], at: tuple[int, int],
          n: int) -> str:  # fmt: skip
    i, j = at
    share = value / total
    # The square root lets a few wrong images be seen beside hundreds of right ones.
    opacity = 0.12 + 0.88 * share if i == j else min(1.0, 0.35 + 0.65 * math.sqrt(share))
    kind = "right" if i == j else "wrong"
    box = f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{cell - 0.5:.1f}" height="{cell - 0.5:.1f}"'
    hint = (
        f"<title>{escape(f'true {labels[i]}, predicted {labels[j]}: {value:,.0f} of {total:,.0f}')}</title>"
        if n <= 60
        else ""
    )
    text = ""
    if n <= 15:
        shade = "light" if opacity > 0.6 else "dark"
        at_middle = f'x="{x + cell / 2:.1f}" y="{y + cell / 2 + 4.5:.1f}"'
        text = f'<text class="mid fixed {shade}" font-size="13" {at_middle}>{value:,.0f}</text>'
    return f'{box} fill-opacity="{opacity:.2f}">{hint}</rect>{text}'


def _band_names(names: Sequence[str], room: Sequence[float]) -> list[str]:
    """The stage names if each fits into its band, else numbers for all."""
    fits = all(len(name) * 8 <= space for name, space in zip(names, room, strict=True))
    return list(names) if fits else [str(i + 1) for i in range(len(names))]


def key(kind: str, text: str) -> str:
    """A short line and what it stands for, in a legend."""
    line = f'<line class="{kind}" x1="1" x2="21" y1="5" y2="5"/>'
    return f'<span><svg class="key" viewBox="0 0 22 10" aria-hidden="true">{line}</svg> {escape(text)}</span>'


def _percent_tick(value: float) -> str:
    return f"{100 * value:.4g}%"


def _size_tick(value: float) -> str:
    n_bytes, unit = size(value).split()
    return f"{float(n_bytes):g} {unit}"


def _name(record: dict[str, Any]) -> str:
    return str(record.get("name", "unnamed"))


def _css(share: float) -> str:
    return f"{100 * min(1.0, max(0.0, share)):.2f}%"
