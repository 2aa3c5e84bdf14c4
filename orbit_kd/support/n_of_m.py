"""N:M patterns: at most N non-zeros in each aligned group of M consecutive channels. How they are cut and called."""

from __future__ import annotations

import re

import numpy as np

SHARED = "shared"  # the end of a pattern's name whose channels are the same at all taps of a kernel
UHP_GROUP = 8  # channels of a group of uniform half pruning, where none are named


def parse(text: str) -> tuple[int, int] | None:
    """N and M of "2:4", of "uhp" (4:8), or of "uhp:16" (8:16: half of an even M); None for any other text."""
    if found := re.fullmatch(r"(\d+):(\d+)", text):
        return int(found[1]), int(found[2])
    if found := re.fullmatch(r"uhp(?::(\d+))?", text):
        m = int(found[1] or UHP_GROUP)
        return (m // 2, m) if m >= 2 and m % 2 == 0 else None
    return None


def parse_shared(text: str) -> tuple[int, int] | None:
    """N and M of "2:4:shared" or "uhp:16:shared"; None for any other text."""
    name, _, end = text.rpartition(":")
    return parse(name) if end == SHARED else None


def grouped(weights: np.ndarray, m: int, *, axis: int = -1) -> np.ndarray:
    """Cuts an axis of channels into aligned groups, from channel 0: (..., channels, ...) -> (..., groups, m).

    The groups come last, whatever the axis was. Zeros fill up a short last group.
    """
    rows = np.moveaxis(weights, axis, -1)
    channels = rows.shape[-1]
    padded = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, -channels % m)])
    return padded.reshape(*rows.shape[:-1], -(-channels // m), m)


def ungrouped(groups: np.ndarray, channels: int) -> np.ndarray:
    """The inverse of `grouped` over the last axis: (..., groups, m) -> (..., channels)."""
    rows = groups.reshape(*groups.shape[:-2], groups.shape[-2] * groups.shape[-1])
    return np.ascontiguousarray(rows[..., :channels])


def nonzeros(weights: np.ndarray, m: int, *, axis: int = -1) -> np.ndarray:
    """How many non-zeros each group of `grouped` holds, (..., groups)."""
    return np.count_nonzero(grouped(weights, m, axis=axis), axis=-1)
