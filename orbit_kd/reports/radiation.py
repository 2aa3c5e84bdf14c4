"""The page of a campaign of bit flips: a curve a region, a map of layers and bits, and all figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from orbit_kd.reports.axes import HEIGHT, WIDTH, Axes, polyline, svg
from orbit_kd.reports.figures import figure, key, shorten
from orbit_kd.reports.merit import Merit
from orbit_kd.reports.tables import Table

Rows = Sequence[Mapping[str, Any]]


def radiation_page(campaign: Mapping[str, Any], *, title: str = "", command: str = "") -> str:
    """One self-contained HTML page.

    Args:
        campaign: as `Campaign.to_dict` gives it.
        title: of the page.
        command: that repeats it.
    """
    loader = PackageLoader("orbit_kd", "reports")
    known = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    told, rows = _merit(campaign), campaign["rows"]
    whole = [r for r in rows if not r["layer"] and r["bit"] is None]
    split = [r for r in rows if r["layer"] or r["bit"] is not None]
    return known.get_template("radiation.html").render(
        style=Markup(files("orbit_kd.reports").joinpath("page.css").read_text(encoding="utf-8")),
        title=title or f"Bit flips in {campaign['file']}",
        claim=_claim(whole or split, told, campaign["whole"]),
        about=f"{campaign['file']} on {campaign['runtime']}, {campaign['images']} test images a trial; without flips "
        f"{told.name} {told.text(campaign['whole'])}. Intervals are of 95%.",
        curves=[Markup(_curve(region, part, told, campaign["whole"])) for region, part in _by(whole, "region").items()],
        maps=[
            Markup(_map(f"{region} at {rate:g}", same, told, campaign["whole"]))
            for region, part in _by(split, "region").items()
            for rate, same in _by(part, "rate").items()
        ],
        table=_table(rows, told),
        command=command,
    )


def _merit(campaign: Mapping[str, Any]) -> Merit:
    metric = campaign["metric"]
    return Merit(metric["key"], metric["name"], metric["unit"])


def _by(rows: Rows, field: str) -> dict[Any, list[Mapping[str, Any]]]:
    found: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row[field], []).append(row)
    return found


def _claim(rows: Rows, told: Merit, whole: float) -> str:
    """What hurts most at the lowest rate that hurts."""
    hurt = [r for r in rows if r.get("value") is None or r["high"] < whole or r["failed"][1] > 0.01]
    if not hurt:
        return "No rate that was tried does harm"
    first = min(hurt, key=lambda r: (r["rate"], r.get("value") or -1.0))
    what = "no trial runs" if first.get("value") is None else f"{told.name} falls to {told.text(first['value'])}"
    if first["failed"][0] and first.get("value") is not None:
        what += f", and {first['failed'][0]:.0%} of trials do not run"
    return f"From a rate of {first['rate']:g} on, flips in {first['region']} do harm: {what}"


def _curve(region: str, rows: Rows, told: Merit, whole: float) -> str:
    """The metric against the rate, with its interval, and the share of trials that did not run."""
    rows = sorted(rows, key=lambda r: r["rate"])
    known = [r for r in rows if r.get("value") is not None]
    low = min([whole, *(r["low"] for r in known)])
    bottom = 0.0 if told.unit == "%" and low >= 0 else low - 0.05 * abs(low) - 1e-6
    axes = Axes(x=(0.5, len(rows) + 0.5), y=(bottom, 1.0 if told.unit == "%" else whole + 0.05 * abs(whole)))
    at = {id(r): i + 1 for i, r in enumerate(rows)}
    there = [(axes.px(at[id(r)]), r) for r in known]
    ring = [f"{x:.1f},{axes.py(r['high']):.1f}" for x, r in there]
    ring += [f"{x:.1f},{axes.py(r['low']):.1f}" for x, r in reversed(there)]
    band = f'<polygon class="right" fill-opacity="0.18" points="{" ".join(ring)}"/>' if known else ""
    level, failed = axes.py(whole), any(r["failed"][0] for r in rows)
    lines = (
        f'<line class="level" x1="{axes.left}" x2="{WIDTH - axes.right}" y1="{level:.1f}" y2="{level:.1f}"/>'
        + polyline(axes, 0, [r.get("value") for r in rows], "train")
        + (
            polyline(axes, 0, [axes.y[0] + r["failed"][0] * (axes.y[1] - axes.y[0]) for r in rows], "val")
            if failed
            else ""
        )
    )
    names = "".join(
        f'<text class="mid" x="{axes.px(i):.1f}" y="{HEIGHT - axes.bottom + 20}">{row["rate"]:g}</text>'
        for i, row in enumerate(rows, 1)
    )
    grid = axes.draw(lambda v: "", lambda v: f"{100 * v:.0f}%" if told.unit == "%" else f"{v:g}")
    keys = key("train", told.name) + key("level", "without flips")
    keys += key("val", "share of trials that did not run, 100% at the top") if failed else ""
    alt = f"{region}: " + "; ".join(
        f"at {r['rate']:g} " + ("nothing runs" if r.get("value") is None else told.text(r["value"])) for r in rows
    )
    caption = f"Across: probability of a flip, of each of {rows[0]['bits']:,} bits."
    return figure(region, f'<p class="keys">{keys}</p>{svg(grid + band + lines + names)}', alt=alt, caption=caption)


def _map(title: str, rows: Rows, told: Merit, whole: float) -> str:
    """A square for each layer and bit: the darker, the more is lost."""
    layers = list(dict.fromkeys(r["layer"] for r in rows))
    bits = sorted({r["bit"] for r in rows}, key=lambda b: -1 if b is None else b)
    worst = max([1e-9, *(whole - r["value"] for r in rows if r.get("value") is not None)])
    left, cell, high = 190.0, (WIDTH - 196.0) / len(bits), 22.0
    out = [f'<text class="mid" x="{left + (i + 0.5) * cell:.1f}" y="14">{"all" if bit is None else bit}</text>'
           for i, bit in enumerate(bits) if len(bits) <= 16 or bit is None or bit % 4 == 0]  # fmt: skip
    for row in rows:
        x, y = left + bits.index(row["bit"]) * cell, 22 + layers.index(row["layer"]) * high
        lost = worst if row.get("value") is None else max(0.0, whole - row["value"])
        said = "nothing runs" if row.get("value") is None else told.text(row["value"])
        hint = escape(f"{row['layer'] or 'all layers'}, bit {row['bit']}: {said}")
        out.append(f'<rect class="wrong" x="{x:.1f}" y="{y:.1f}" width="{cell - 1:.1f}" height="{high - 1:.1f}" '
                   f'fill-opacity="{0.04 + 0.96 * lost / worst:.2f}"><title>{hint}</title></rect>')  # fmt: skip
    for i, layer in enumerate(layers):
        name = escape(shorten(layer.split("/")[-1] if layer else "all layers", 26))
        out.append(f'<text class="end" x="{left - 8}" y="{22 + (i + 0.7) * high:.1f}">{name}</text>')
    caption = f"Columns: the bit that flips, 0 the lowest. Orange: {told.name} lost, at most {told.text(worst)}."
    alt = f"Map of {len(layers)} layers and {len(bits)} bits; the most that is lost is {told.text(worst)}."
    return figure(title, svg("".join(out), height=30 + high * len(layers)), alt=alt, caption=caption)


def _table(rows: Rows, told: Merit) -> Table:
    titles = ["region", "layer", "bit", "rate", "flips a trial", told.name, "95% interval", "worst", "did not run",
              "trials"]  # fmt: skip
    return Table(titles, [_cells(row, told) for row in rows])


def _cells(row: Mapping[str, Any], told: Merit) -> list[str]:
    bit, figures = "" if row["bit"] is None else str(row["bit"]), ["–"] * 3
    if row.get("value") is not None:
        figures = [
            told.text(row["value"]),
            f"{told.text(row['low'])} to {told.text(row['high'])}",
            told.text(row["worst"]),
        ]
    named = [row["region"], row["layer"], bit, f"{row['rate']:g}", f"{row['flips']:,.1f}"]
    return [*named, *figures, _failures(row), str(row["trials"])]


def _failures(row: Mapping[str, Any]) -> str:
    ends = ", ".join(f"{n} {end}" for end, n in row["ends"].items() if n and end != "ran")
    return f"{row['failed'][0]:.0%} ({ends})" if ends else "0%"
