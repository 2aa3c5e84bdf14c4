"""Labels of batches, of any task, held against what the task takes; and how many there are of each class."""

from __future__ import annotations

from typing import Any

import numpy as np

from orbit_kd.datasets.kinds import IGNORE, TASKS
from orbit_kd.datasets.labels import are_rows, class_numbers
from orbit_kd.errors import InputError

_ROUNDING = 1e-3
"""How far a box may lie beyond its image, as a fraction of it."""


def counts(y: Any, task: str, *, what: str, start: int = 0) -> dict[int, int] | None:
    """How many examples (pixels of masks, boxes) of each class there are.

    Args:
        y: labels of a batch, see `kinds.TASKS`.
        task: a key of it, or "": classes, where they are any.
        what: the data's name in messages.
        start: the number of the first example in it.

    Returns:
        Class -> number; of rows the class of the largest value counts. None for regression.

    Raises:
        InputError: labels that the task does not take.
    """
    y = np.asarray(y)
    if task == "regression":
        _refuse(~np.isfinite(y), "is NaN or infinite", task, what, start)
        return None
    if task in ("binary", "multi_label"):
        _refuse(~np.isin(y, (0, 1)), "is neither 0 nor 1", task, what, start)
        rows = y.reshape(len(y), -1)
        if task == "binary":
            return _nonzero(np.bincount(rows[:, 0].astype(int), minlength=2))
        return _nonzero((rows > 0).sum(0))
    if task == "segmentation":
        _refuse((y < 0) | (y > IGNORE), f"is beyond 0 to {IGNORE}", task, what, start)
        return _nonzero(np.bincount(y.reshape(-1), minlength=IGNORE + 1)[:IGNORE])
    if task == "detection":
        return _boxes(y, what, start)
    if are_rows(y.shape):
        return _nonzero(np.bincount(y.argmax(-1)))
    return _nonzero(np.bincount(numbers)) if (numbers := class_numbers(y)).min(initial=0) >= 0 else _signed(numbers)


def _boxes(y: np.ndarray, what: str, start: int) -> dict[int, int]:
    _refuse(~np.isfinite(y), "is NaN or infinite", "detection", what, start)
    real = y[..., 0] >= 0
    edges = y[..., 1:]
    for bad, how in (
        ((y[..., 0] != np.round(y[..., 0])) | (y[..., 0] < -1), "has a class that is no whole number from 0 (or -1)"),
        (real & (edges[..., 2:] <= edges[..., :2]).any(-1), "has no area"),
        (real & ((edges < -_ROUNDING) | (edges > 1 + _ROUNDING)).any(-1), "lies outside its image"),
    ):
        if bad.any():
            example, box = np.argwhere(bad)[0]
            raise InputError(
                f"Box {box + 1} of example {start + example + 1} of the {what} {how}: {y[example, box].tolist()}.",
                expected=TASKS["detection"],
                fix="divide pixels by the height and width; the order is class, top, left, bottom, right",
            )
    return _nonzero(np.bincount(y[..., 0][real].astype(int)))


def _refuse(bad: np.ndarray, how: str, task: str, what: str, start: int) -> None:
    if bad.any():
        raise InputError(
            f"A label of example {start + int(np.argwhere(bad)[0][0]) + 1} of the {what} {how}.",
            expected=TASKS[task],
            fix="mend the labels, or choose another task",
        )


def _nonzero(found: np.ndarray) -> dict[int, int]:
    return {int(c): int(found[c]) for c in np.flatnonzero(found)}


def _signed(numbers: np.ndarray) -> dict[int, int]:
    classes, found = np.unique(numbers, return_counts=True)
    return dict(zip(classes.tolist(), found.tolist(), strict=True))
