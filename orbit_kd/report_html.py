"""The report as one self-contained HTML page: no script, no request, figures inline; light, dark, phone and print."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from orbit_kd import report_figures as figures
from orbit_kd import report_tables as tables
from orbit_kd import report_text as text
from orbit_kd.report_text import NONE, number, part

STYLE = """
:root{--bg:#f6f7f9;--card:#fff;--ink:#1b2430;--soft:#5a6675;--line:#e3e7ec;--pale:#c9d8e6;--blue:#0072b2;
--orange:#d55e00;--plate:#f1f3f6;--onblue:#fff;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--bg:#12161c;--card:#1b212a;--ink:#e7ebf0;--soft:#9ba7b5;--line:#2e3743;
--pale:#3a4c5f;--blue:#56b4e9;--orange:#f0903c;--plate:#232a34;--onblue:#0b1118}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:1160px;margin:0 auto;padding:48px 24px 64px}
h1{font-size:clamp(1.7rem,4.6vw,2.6rem);line-height:1.15;letter-spacing:-.02em;margin:.15em 0 .35em;font-weight:700}
h1 span{display:inline-block}
h2{font-size:1.3rem;letter-spacing:-.01em;margin:48px 0 14px}
h3{font-size:1rem;margin:0 0 8px}
.eyebrow,.lede,.caption,.soft{color:var(--soft)}
.eyebrow{margin:0;font-weight:600}.lede{font-size:1.1rem;margin:0 0 26px;max-width:46em}
.caption{font-size:.84rem;margin:12px 0 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:20px 22px;margin:0;min-width:0}
.grid{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:18px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:18px;margin:18px 0}
.tiles b{display:block;font-size:1.75rem;line-height:1.2;letter-spacing:-.02em}
figcaption{font-weight:650;margin-bottom:12px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:9px 12px;border-bottom:1px solid var(--line);vertical-align:top}
th:first-child,td:first-child{text-align:left;padding-left:0}th:last-child,td:last-child{padding-right:0}
thead th{color:var(--soft);font-weight:600;font-size:.86rem}tbody th{font-weight:500}
tbody tr:last-child>*{border-bottom:0}
table.big{font-size:1.06rem}table.big td:nth-child(3){font-weight:650}
table.big td:nth-child(4){color:var(--blue);font-weight:600}table.big td.loss{color:var(--orange)}
table.big td.none{color:var(--soft);font-weight:400}
table.big td:not(:last-child){white-space:nowrap}
table.big td[colspan]{color:var(--soft)!important;font-weight:400!important}
table.small{font-size:.86rem}table.small :is(th,td){padding-block:6px;min-width:4.5em}
.bars{display:grid;grid-template-columns:fit-content(11em) minmax(0,1fr) auto;gap:0 10px;align-items:center;
font-size:.86rem;line-height:1.75;font-variant-numeric:tabular-nums}
.bar{display:contents}
.bar span:first-child{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.bar span:last-child{text-align:right;white-space:nowrap;color:var(--soft)}
.bar b{position:relative;height:.85em;display:block}
.bar i{position:absolute;inset:0 auto 0 0;background:var(--blue);border-radius:2px;min-width:2px}
.bar i.ghost{background:var(--pale)}
.dense{font-size:.74rem;line-height:1.45;grid-template-columns:fit-content(13em) minmax(0,1fr) auto}
.hero .bars{font-size:.95rem;line-height:2}.hero .bar i{min-width:3px}.hero .bar:first-child i{background:var(--pale)}
svg{display:block;width:100%;height:auto}svg.key{display:inline-block;width:22px;height:10px}
svg text{fill:var(--soft)}svg text:not(.fixed){font-size:13px}
svg .end{text-anchor:end}svg .mid{text-anchor:middle}svg .start{text-anchor:start}
svg .strong{fill:var(--ink);font-weight:600}svg .dark{fill:var(--ink)}
svg .light{fill:var(--onblue)}svg .grid{stroke:var(--line)}
svg .band{fill:transparent}svg .odd{fill:var(--plate)}svg .plate{fill:var(--plate)}
svg .train,svg .val,svg .level{fill:none;stroke-linejoin:round;stroke-width:1.6;stroke:var(--blue);opacity:.75}
svg .val{stroke:var(--orange);stroke-width:2.6;opacity:1}svg .level{stroke:var(--soft);stroke-dasharray:5 4}
svg .dot.train{fill:var(--blue);stroke:none}svg .dot.val{fill:var(--orange);stroke:none}
svg .right,svg circle.student{fill:var(--blue)}svg .wrong{fill:var(--orange)}svg circle.teacher{fill:var(--soft)}
.keys{display:flex;flex-wrap:wrap;gap:4px 18px;margin:0 0 6px;font-size:.86rem;color:var(--soft)}
ul{margin:0;padding-left:1.2em}li+li{margin-top:6px}
dl{margin:0;display:grid;grid-template-columns:minmax(7em,auto) minmax(0,1fr);gap:7px 18px;font-size:.92rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.86rem}
pre,code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
details>summary{cursor:pointer;font-weight:650}details[open]>summary{margin-bottom:12px}
.stack>*+*{margin-top:18px}
@media(max-width:720px){main{padding:28px 14px 40px}.grid{grid-template-columns:minmax(0,1fr)}.card{padding:16px 14px}
table.big{font-size:.88rem}th,td{padding:7px 5px}svg text:not(.fixed){font-size:17px}svg.matrix{width:620px}
.tiles{grid-template-columns:1fr 1fr;gap:12px}.tiles b{font-size:1.35rem}
.bars{grid-template-columns:fit-content(10em) minmax(0,1fr) auto}.hero .bars{font-size:.86rem}
dl{grid-template-columns:minmax(5em,7em) minmax(0,1fr);gap:6px 12px}}
@media print{:root{--bg:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#ccc;--pale:#c9d8e6;--blue:#0072b2;
--orange:#d55e00;--plate:#f1f3f6;--onblue:#fff}main{padding:0;max-width:none}body{font-size:12px}.card{break-inside:avoid}
h2{break-after:avoid}*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""

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


def page(data: dict[str, Any]) -> str:
    """The whole page; a section without data is left out."""
    claim, verdict = text.headline(data)
    title = str(data.get("title") or "Compression report")
    # A line break may fall between two claims, not within one.
    claims = ", ".join(f"<span>{escape(c)}</span>" for c in claim.split(", "))
    file = text.shipped(data)
    sizes = figures.sizes(part(data, "teacher").get("tflite_bytes"), file.get("bytes"), str(file.get("target", "")))
    parts = [
        f'<header><p class="eyebrow">{escape(title)}</p><h1>{claims}</h1><p class="lede">{escape(verdict)}</p>',
        f'<div class="card hero">{sizes}</div>' if sizes else "",
        _tiles(data),
        "</header>",
        _section("Before and after", _before_after(data)),
        _section("Findings", _notes(data)),
        _section("Layers", _grid(_layer_figures(data))),
        _section("The search", tables.search(data)),
        _section("Training", _grid(_training(data))),
        _section("Right and wrong", _grid(_confusions(data))),
        _section("Size and time", _grid([_accuracy_bytes(data), figures.stage_times(rows(data, "stages"))])),
        _section("Exported files", tables.artifacts(data)),
        _section("On the devices", tables.devices(data)),
        _section("All layers in numbers", tables.layers(rows(data, "layers"))),
        _section("How it was made", _made(data)),
        _section("What these figures mean", f'<div class="card">{_pairs(DEFINITIONS)}</div>'),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(p for p in parts if p)
        + "\n</main></body></html>\n"
    )


def rows(data: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return data.get(name) or []


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _grid(cards: Iterable[str]) -> str:
    shown = [c for c in cards if c]
    return f'<div class="grid">{"".join(shown)}</div>' if shown else ""


def _tiles(data: dict[str, Any]) -> str:
    file = text.shipped(data)
    gone = text.parameters_gone(data)
    macs = text.fewer(part(data, "teacher").get("macs"), part(data, "student").get("macs"))
    tflm, latency = part(file, "tflm"), part(file, "latency")
    tiles = [
        (text.percent(gone, down=True), "of the parameters gone"),
        (macs, "multiply-accumulates"),
        (text.times(latency.get("ratio")), f"the speed, against {latency.get('against') or text.SAME_TYPE}"),
        (text.size(tflm.get("arena_bytes") if tflm.get("ran") else None), "of RAM on TFLite Micro (arena)"),
    ]
    cards = "".join(
        f'<div class="card"><b>{escape(value)}</b><span class="soft">{escape(label)}</span></div>'
        for value, label in tiles
        if value != NONE
    )
    return f'<div class="tiles">{cards}</div>' if cards else ""


def _before_after(data: dict[str, Any]) -> str:
    lines = []
    for r in text.before_after(data):
        if r.after.startswith("not run"):
            cells = f'<td>{escape(r.before)}</td><td colspan="2">{escape(r.after)}</td>'
        else:
            loss = r.change.startswith("-") or r.change.endswith(("more", "larger"))
            kind = "loss" if loss else "none" if r.change == NONE or r.change.startswith("(") else "gain"
            cells = f'<td>{escape(r.before)}</td><td>{escape(r.after)}</td><td class="{kind}">{escape(r.change)}</td>'
        lines.append(f'<tr title="{escape(r.exact)}"><th scope="row">{escape(r.label)}</th>{cells}</tr>')
    if not lines:
        return ""
    head = tables.head(["", "Teacher", "Student", "Change"])
    return f'<div class="card scroll"><table class="big">{head}<tbody>{"".join(lines)}</tbody></table></div>'


def _notes(data: dict[str, Any]) -> str:
    notes = "".join(f"<li>{escape(str(n))}</li>" for n in data.get("notes") or [])
    return f'<div class="card"><ul>{notes}</ul></div>' if notes else ""


def _layer_figures(data: dict[str, Any]) -> list[str]:
    layers = rows(data, "layers")
    return [figures.widths(layers), figures.densities(layers)]


def _training(data: dict[str, Any]) -> list[str]:
    history = rows(data, "history")
    level = number(part(data, "teacher").get("accuracy"))
    return [
        figures.curves(history, metric="accuracy", reference=level),
        figures.curves(history, metric="loss"),
        _history_table(history),
    ]


def _history_table(history: Sequence[dict[str, Any]]) -> str:
    """The last value of every metric that was logged, a stage a row."""
    names = list(dict.fromkeys(k for h in history for k, v in h.items() if isinstance(v, list) and k != "epochs"))
    if not names:
        return ""
    body = []
    for h in history:
        last = [(h[k][-1] if isinstance(h.get(k), list) and h[k] else None) for k in names]
        epochs = max((len(v) for v in h.values() if isinstance(v, list)), default=0)
        body.append([str(h.get("stage", "")), str(epochs), *(NONE if number(v) is None else f"{v:.4g}" for v in last)])
    table = tables.table(["stage", "epochs", *names], body)
    return (
        f'<details class="card" style="grid-column:1/-1"><summary>Last value of every metric</summary>{table}</details>'
    )


def _confusions(data: dict[str, Any]) -> list[str]:
    names = [str(n) for n in data.get("class_names") or []]
    file = text.shipped(data)
    before = _counts(part(data, "teacher").get("confusion"))
    after, who = _counts(file.get("confusion")), f"student, {file.get('target')}"
    if not after:
        after, who = _counts(part(data, "student").get("confusion")), "student"
    cards = [
        figures.confusion(m, names, title=t)
        for m, t in ((before, "Confusion: teacher"), (after, f"Confusion: {who}"))
        if m
    ]
    if after:
        cards.append(_mistakes(before, after, names))
    return cards


def _counts(matrix: Any) -> list[list[float]]:
    """The matrix if it is square, else empty; a missing count is 0."""
    if not isinstance(matrix, list) or any(not isinstance(r, list) or len(r) != len(matrix) for r in matrix):
        return []
    return [[number(v) or 0 for v in r] for r in matrix]


def _mistakes(before: list[list[float]], after: list[list[float]], names: Sequence[str]) -> str:
    """The student's most frequent confusions beside the teacher's count of the same."""
    pairs = [(n, i, j) for i, row in enumerate(after) for j, n in enumerate(row) if i != j and n]
    if not pairs:
        return ""
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
    table = tables.table(["", "teacher", "student", "images"], body)
    return f'<div class="card" style="grid-column:1/-1"><h3>The student\'s most frequent mistakes</h3>{table}</div>'


def _accuracy_bytes(data: dict[str, Any]) -> str:
    teacher = part(data, "teacher")
    found: list[tuple[str, Any, Any]] = [("teacher float32", teacher.get("tflite_bytes"), teacher.get("accuracy"))]
    for a in rows(data, "artifacts"):
        if str(a.get("target", "")).startswith("tflite"):
            kind = str(a["target"]).removeprefix("tflite_")
            found.append((f"student {kind}", a.get("bytes"), a.get("accuracy")))
    return figures.accuracy_bytes([p for p in found if number(p[1]) and number(p[2]) is not None])


def _made(data: dict[str, Any]) -> str:
    about = dict(part(data, "data"))
    for key in ("seed", "schema"):
        if data.get(key) is not None:
            about[key] = data[key]
    if data.get("class_names"):
        about["classes"] = ", ".join(str(n) for n in data["class_names"])
    cards = [
        f'<div class="card"><h3>{title}</h3>{_pairs(values)}</div>'
        for title, values in (
            ("Recipe", part(data, "recipe")),
            ("Preprocess", part(data, "preprocess")),
            ("Data", about),
            ("Versions", part(data, "versions")),
        )
        if values
    ]
    command = data.get("command")
    block = f'<div class="card"><h3>Command</h3><pre>{escape(str(command))}</pre></div>' if command else ""
    body = block + _grid(cards)
    return f'<div class="stack">{body}</div>' if body else ""


def _pairs(values: dict[str, Any]) -> str:
    items = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(_value(v))}</dd>" for k, v in values.items())
    return f"<dl>{items}</dl>"


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False) if value else "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000 else str(value)
