"""Tables for the screen."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Lines whose columns stand below each other, two spaces apart.

    Args:
        rows: cells, the head first. The last cell of a row with fewer cells than `sides` is a remark: it begins where
            its column does, and does not widen it.
        sides: one character a column, "<" or ">".
    """
    whole = [row if len(row) == len(sides) else row[:-1] for row in rows]
    widths = [max((len(row[i]) for row in whole if i < len(row)), default=0) for i in range(len(sides))]
    lines = []
    for row, cells in zip(rows, whole, strict=True):
        line = [f"{cell:{side}{width}}" for cell, side, width in zip(cells, sides, widths, strict=False)]
        lines.append("  ".join([*line, *row[len(cells) :]]).rstrip())
    return lines
