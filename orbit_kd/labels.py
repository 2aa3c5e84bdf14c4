"""Labels as a classifier takes them: class numbers, with or without a last axis of 1, or one-hot rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from orbit_kd.errors import InputError


def are_rows(shape: Any) -> bool:
    """Whether labels of this shape (batch first) have a value for each class, as one-hot rows do."""
    return len(shape) == 2 and shape[-1] != 1


def class_numbers(labels: Any) -> np.ndarray:
    """The class of each image.

    Args:
        labels: (n,) or (n, 1) whole numbers of any dtype, or (n, classes) one-hot rows.

    Returns:
        (n,) int64.

    Raises:
        InputError: labels of another shape, fractions, or rows with more or less than one class.
    """
    y = np.asarray(labels)
    if are_rows(y.shape):
        found = y.argmax(-1) if np.array_equal(y, y.astype(bool)) and (y.sum(-1) == 1).all() else y
    else:
        found = y[..., 0] if y.ndim == 2 else y
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.number) or not np.array_equal(found, np.round(found)):
        raise InputError(
            f"The labels have shape {y.shape} and dtype {y.dtype}, and are not one class an image.",
            expected="whole numbers, or one-hot rows",
            fix="map the data to (image, number of its class)",
        )
    return found.astype(np.int64)
