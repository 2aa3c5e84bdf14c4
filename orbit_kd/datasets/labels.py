"""Labels as a classifier takes them: class numbers, with or without a last axis of 1, or one-hot rows."""

from __future__ import annotations

from collections.abc import Mapping
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


def check_alike(shapes: Mapping[str, Any]) -> None:
    """Refuses class numbers in one split and rows in another, and rows of different widths.

    Args:
        shapes: split -> shape of its labels (batch first), or a tuple or dict of such shapes where a network has
            several outputs; None where a size is not known.

    Raises:
        InputError: labels of different kinds.
    """
    several = {name: dict(_named(shape)) for name, shape in shapes.items()}
    if len({tuple(parts) for parts in several.values()}) > 1:
        raise InputError(
            "The splits have other labels: "
            + ", ".join(f"{n} {' and '.join(p) or 'one array'}" for n, p in several.items())
            + ".",
            expected="the same labels, by the same names, in all of them",
            fix="map the splits alike",
        )
    for part in next(iter(several.values()), ()):
        _check_one({name: parts[part] for name, parts in several.items()})


def _named(shape: Any) -> list[tuple[str, Any]]:
    """Name -> shape of each of the labels."""
    if isinstance(shape, Mapping):
        return [(str(name), shape[name]) for name in sorted(shape)]
    if isinstance(shape, (tuple, list)) and any(
        isinstance(part, (tuple, list)) or hasattr(part, "rank") for part in shape
    ):
        return [(str(i), part) for i, part in enumerate(shape)]
    return [("", shape)]


def _check_one(shapes: Mapping[str, Any]) -> None:
    rows = {name: int(shape[-1]) if are_rows(shape) and shape[-1] else 0 for name, shape in shapes.items()}
    kinds = {name: "rows" if are_rows(shape) else f"{max(len(shape), 2)}-d" for name, shape in shapes.items()}
    if len(set(kinds.values())) <= 1 and len(set(rows.values()) - {0}) <= 1:
        return
    told = {"2-d": "class numbers"}
    raise InputError(
        "The splits have labels of different kinds: "
        + ", ".join(
            f"{name} {f'rows of {rows[name] or None} values' if kind == 'rows' else told.get(kind, f'{kind} arrays')}"
            for name, kind in kinds.items()
        )
        + ".",
        expected="class numbers in all of them, or rows of equally many values",
        fix="map one-hot rows to numbers: .map(lambda x, y: (x, tf.argmax(y, -1))), or np.argmax(y, -1); in "
        'image_dataset_from_directory give each the same label_mode ("int")',
    )


def check_several(labels: np.ndarray, *, what: str, classes: int) -> None:
    """Refuses labels of one class only: whatever always says that class would be right on all of them.

    Raises:
        InputError: one class, where the network knows several.
    """
    if classes > 1 and len(np.unique(labels)) == 1:
        raise InputError(
            f"The {what} holds one class only ({int(labels[0])}) of {classes}: its accuracy says nothing.",
            expected="examples of all classes",
            fix="split each class alike, as okd.load(folder) does; image_dataset_from_directory(validation_split=...) "
            "with shuffle=False takes the last classes, with shuffle=True and one seed it takes some of each",
        )
