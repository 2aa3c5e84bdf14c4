"""The kinds of labels that data can have, by the name of the task, and what each looks like."""

from __future__ import annotations

from typing import Any

from orbit_kd.errors import InputError

IGNORE = 255
"""The class number of pixels in a mask that count for nothing."""

TASKS = {
    "classification": "int (n,), (n, 1) or one-hot rows (n, classes): one class an image",
    "binary": "float (n, 1) or int (n,) of 0 and 1",
    "multi_label": "float (n, classes) of 0 and 1",
    "regression": "float (n, numbers)",
    "segmentation": f"int (n, height, width): the class of each pixel, {IGNORE} for those that count for nothing",
    "detection": "float (n, boxes, 5): class, top, left, bottom, right as fractions of the image; class -1 is padding",
}
"""Task -> its labels y."""

_FIXES = {
    "segmentation": "of (n, height, width, 1) take y[..., 0], of one-hot masks tf.argmax(y, -1), and make them int32: "
    ".map(lambda x, y: (x, tf.cast(y[..., 0], tf.int32)))",
    "detection": "pad the boxes of each image with rows [-1, 0, 0, 0, 0] to one number, float32",
    "regression": "give a column a number: y[:, None] of one number an image",
    "multi_label": "give a column a label: tf.one_hot(labels, classes) summed over the labels of an image",
    "binary": "give 0 or 1 an image: of one-hot rows y[:, 1:]",
}


def check_task(task: str, *, also: tuple[str, ...] = ()) -> None:
    """Refuses a name that is no task's.

    Raises:
        InputError: there is none of that name.
    """
    if task not in (*TASKS, *also):
        known = ", ".join((*TASKS, *(name for name in also if name)))
        raise InputError(f"task={task!r}.", expected=f"one of {known}", fix="name one of these (--task)")


def check_labels(task: str, spec: Any, split: str) -> None:
    """Refuses labels whose shape is not that of the task. "" and "classification" take any; their values tell.

    Args:
        task: a key of `TASKS`, or "".
        spec: tf.TensorSpec of the labels, batch first.
        split: for messages.

    Raises:
        InputError: another number of axes, another type, or no five values a box.
    """
    if task in ("", "classification"):
        return
    rank, last = spec.shape.rank, spec.shape[-1]
    good = {
        "segmentation": rank == 3 and spec.dtype.is_integer,
        "detection": rank == 3 and last == 5 and spec.dtype.is_floating,
        "binary": rank == 1 or (rank == 2 and last in (1, None)),
    }.get(task, rank == 2)
    if not good:
        raise InputError(
            f"The {split} labels have shape {tuple(spec.shape)} and dtype {spec.dtype.name}, and the task is {task}.",
            expected=TASKS[task],
            fix=_FIXES[task],
        )
