"""The task that fits a network and its labels, where nobody names it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orbit_kd.errors import InputError
from orbit_kd.tasks.fitting import fitting
from orbit_kd.tasks.several import Several
from orbit_kd.tasks.task import Task, tasks

if TYPE_CHECKING:
    import tf_keras as keras

    from orbit_kd.datasets import Data

log = logging.getLogger("orbit_kd")


def choose(
    model: keras.Model, data: Data | None = None, *, task: str | Task = "auto", labels: Any = None,
    outputs: Mapping[str, str] | None = None, weights: Mapping[str, float] | None = None,
) -> Task:  # fmt: skip
    """The task of a network.

    Args:
        model: a trained network.
        data: its data; None where there is none to check.
        task: a name in `tasks`; a task, which comes back as it is; or "auto", which reads the name from the shape and
            the last activation of the output, and from the labels.
        labels: some of them, arrays (n, ...) as the data yields them, where there is no `data`.
        outputs: of several outputs: name -> task, for those that do not tell by themselves.
        weights: of several outputs, in metric and loss; 1 for those that are not named.

    Raises:
        InputError: no such task, or a network and labels that it does not fit.
    """
    if isinstance(task, Task):
        return task
    if data is not None:
        labels = data.val.element_spec[1]
    known = getattr(data, "task", "") if task == "auto" else task
    # class folders hold classes, and one output is a yes or no of two
    name = known if known not in ("", "classification") or task != "auto" else fitting(model, labels)
    if name == "several":
        return Several.for_outputs(model, data, names=outputs or {}, weights=weights)
    if outputs or weights:
        raise InputError(
            f"Tasks or weights are given for the outputs {', '.join({**(outputs or {}), **(weights or {})})}, and the "
            f"task is {name!r}.",
            expected="a network with several outputs",
            fix="leave them out, and name its one task (--task)",
        )
    found = tasks.get(name).of(model, data)
    if task == "auto":
        log.debug("task: %s, by the network's outputs and the labels", name)
    return found
