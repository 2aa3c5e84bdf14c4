"""The figure of a detector: precision against recall, teacher and student."""

from __future__ import annotations

from typing import Any

from orbit_kd.reports.axes import Axes, polyline, svg
from orbit_kd.reports.figures import figure, key
from orbit_kd.reports.summary import main_artifact
from orbit_kd.reports.words import number, percent


def precision_recall(data: dict[str, Any]) -> str:
    """Precision at 101 steps of recall, at an IoU of 0.5, mean over classes; empty where none was measured."""
    file = main_artifact(data)
    found = [
        ("level", "teacher", _curve(data.get("teacher") or {})),
        ("val", f"student, {file.get('target')}", _curve(file)),
    ]
    found = [(kind, name, curve) for kind, name, curve in found if curve]
    if not found:
        return ""
    axes = Axes(x=(0, 100), y=(0, 1))
    lines = "".join(polyline(axes, -1, curve, kind) for kind, _, curve in found)
    body = svg(axes.draw(lambda v: f"{v:.0f}%", lambda v: f"{100 * v:.0f}%") + lines)
    keys = "".join(key(kind, name) for kind, name, _ in found)
    alt = "; ".join(f"{name}: mean precision {percent(sum(curve) / len(curve))}" for _, name, curve in found) + "."
    return figure("Precision against recall", f'<p class="keys">{keys}</p>{body}', alt=alt,
                  caption="Boxes count as right from an IoU of 0.5 on; right is recall, up is precision.")  # fmt: skip


def _curve(row: dict[str, Any]) -> list[float]:
    values = [number(v) for v in (row.get("curve") or {}).get("precision") or []]
    known = [v for v in values if v is not None]
    return known if len(known) == len(values) == 101 else []
