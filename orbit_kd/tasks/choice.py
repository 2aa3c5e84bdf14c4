"""The task that fits a network and its labels, where nobody names it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from orbit_kd.datasets.labels import are_rows
from orbit_kd.errors import InputError
from orbit_kd.models.heads import heads
from orbit_kd.models.outputs import kinds_of
from orbit_kd.tasks.task import Task, tasks

if TYPE_CHECKING:
    import tf_keras as keras

    from orbit_kd.datasets import Data

log = logging.getLogger("orbit_kd")


def choose(model: keras.Model, data: Data | None = None, *, task: str | Task = "auto") -> Task:
    """The task of a network.

    Args:
        model: a trained network.
        data: its data; None leaves the labels out of the choice.
        task: a name in `tasks`; a task, which comes back as it is; or "auto", which reads the name from the shape and
            the last activation of the output, and from the labels.

    Raises:
        InputError: no such task, or a network and labels that it does not fit.
    """
    if isinstance(task, Task):
        return task
    name = (getattr(data, "task", "") or fitting(model, _spec(data))) if task == "auto" else task
    if task == "auto" and name == "classification":  # what class folders hold: one output is a yes or no
        name = fitting(model, _spec(data))
    return tasks.get(name).of(model, data)


def _spec(data: Data | None) -> Any:
    return None if data is None else data.val.element_spec[1]


def fitting(model: keras.Model, labels: Any = None) -> str:
    """The name of the task that a network's outputs and labels speak for.

    Args:
        model: with known outputs.
        labels: their `tf.TensorSpec`s, batch first; None where they are not known.

    Raises:
        InputError: outputs that fit no task.
    """
    if len(model.outputs) > 1:
        return "several" if labels is None or isinstance(labels, (Mapping, tuple, list)) else "detection"
    shape, head = model.outputs[0].shape, heads(model)[0]
    rank = None if labels is None or isinstance(labels, (Mapping, tuple, list)) else labels.shape.rank
    if len(shape) == 4:
        return "detection" if rank == 3 and labels.shape[-1] == 5 and labels.dtype.is_floating else "segmentation"
    if len(shape) == 2:
        kind = kinds_of([model])[0]
        if kind == "values":
            return "regression"
        if shape[-1] == 1:
            whole = labels is None or labels.dtype.is_integer
            return "binary" if kind == "labels" or head == "sigmoid" or whole else "regression"
        if kind == "labels" and rank is not None and are_rows(labels.shape):
            return "multi_label"
        return "classification"
    raise InputError(
        f"Model {model.name!r} gives {tuple(shape)} and ends in {head}: no task fits that by itself.",
        expected=f"scores of classes or labels (n, k), or a map (n, height, width, k); or one of {', '.join(tasks)}",
        fix="name the task (--task), or use the functions that `compress` is made of (see README)",
    )
