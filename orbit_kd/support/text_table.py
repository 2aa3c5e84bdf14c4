"""Tables for the screen."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Lines whose columns stand below each other, two spaces apart.

    Args:
        rows: cells, the head first; as many in each row as there are `sides`.
        sides: one character a column, "<" or ">".
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    ]
