"""The name of the task that a network's outputs and labels speak for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from orbit_kd.datasets.labels import are_rows
from orbit_kd.errors import InputError
from orbit_kd.tasks.network import heads, kinds_of
from orbit_kd.tasks.task import tasks

if TYPE_CHECKING:
    import tf_keras as keras


def fitting(model: keras.Model, labels: Any = None) -> str:
    """The name of the task that a network's outputs and labels speak for.

    Args:
        model: with known outputs.
        labels: arrays or `tf.TensorSpec`s, batch first; None where they are not known.

    Raises:
        InputError: outputs that fit no task.
    """
    several = isinstance(labels, (Mapping, tuple, list))
    if len(model.outputs) > 1:
        return "several" if labels is None or several else "detection"
    shape, head = model.outputs[0].shape, heads(model)[0]
    rank, last, whole = (None, None, True) if labels is None or several else _about(labels)
    if len(shape) == 4:
        return "detection" if rank == 3 and last == 5 and not whole else "segmentation"
    if len(shape) == 2:
        kind = kinds_of([model])[0]
        if kind == "values":
            return "regression"
        if shape[-1] == 1:
            return "binary" if kind == "labels" or whole else "regression"
        if kind == "labels" and rank is not None and are_rows(labels.shape):
            return "multi_label"
        return "classification"
    raise InputError(
        f"Model {model.name!r} gives {tuple(shape)} and ends in {head}: no task fits that by itself.",
        expected="scores of classes or labels (n, k), or a map (n, height, width, k)",
        fix=f"name the task (--task): {', '.join(tasks)}; or use the functions that `compress` is made of (see README)",
    )


def _about(labels: Any) -> tuple[int, int | None, bool]:
    """(rank, last size, whole numbers) of labels."""
    sizes = tuple(labels.shape)
    kind = np.dtype(getattr(labels.dtype, "as_numpy_dtype", labels.dtype)).kind
    return len(sizes), sizes[-1] if len(sizes) > 1 else None, kind in "iub"
