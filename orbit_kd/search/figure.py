"""The picture of a sensitivity scan, after Fig. 6 of the source paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orbit_kd.support.files import replace_file

if TYPE_CHECKING:
    from orbit_kd.search.scan import Scan

_LINES = 16  # more cannot be told apart


def draw(scan: Scan, path: Path) -> Path:
    """Writes the picture; its format is that of the path's ending.

    Lines of accuracy against the removed part for up to 16 curves. For more, a map: one line of cells a curve, one
    column a ratio, the colour is the accuracy.
    """
    from matplotlib.figure import Figure

    curves = [c for c in scan.curves if c.ratios]
    what = "eight bits of a weight" if scan.of == "bits" else scan.of
    if len(curves) <= _LINES:
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for i, c in enumerate(curves):
            style = ("-", "--", ":", "-.")[(i + i // 8) % 4]  # shifted where the colours begin again
            x, y = (0.0, *c.ratios), (scan.accuracy, *c.accuracy)
            axes.plot(x, 100 * np.array(y), style, color=f"C{i % 8}", marker=".", label=c.name)
        axes.axhline(100 * scan.accuracy, color="0.6", linewidth=0.8)
        axes.set(xlabel=f"part of the {what} that is gone", ylabel=f"{scan.metric}, %", ylim=(0, 101), xlim=(0, 1))
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper", fontsize=8)
    else:
        figure = Figure(figsize=(8, 1.2 + 0.19 * len(curves)), layout="constrained")
        axes = figure.subplots()
        values = 100 * np.array([
            np.interp(scan.ratios, (0.0, *c.ratios), (scan.accuracy, *c.accuracy)) for c in curves
        ])  # fmt: skip
        image = axes.imshow(values, aspect="auto", vmin=0, vmax=100 * scan.accuracy, cmap="viridis")
        axes.set_xticks(range(len(scan.ratios)), [f"{r:.0%}" for r in scan.ratios])
        axes.set_yticks(range(len(curves)), [c.name for c in curves], fontsize=7)
        axes.set_xlabel(f"part of the {what} that is gone")
        figure.colorbar(image, label=f"{scan.metric}, %", shrink=0.6)
    axes.set_title(f"{scan.accuracy:.1%} with everything, {scan.images} images", fontsize=10)
    return replace_file(path, lambda file: figure.savefig(file, dpi=120))
