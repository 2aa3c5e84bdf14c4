"""What exported files are for: as the teacher says, or the note in a file, or their shapes and the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from orbit_kd import runtimes
from orbit_kd.datasets.labels import class_numbers
from orbit_kd.errors import InputError
from orbit_kd.exporters.metadata import read_metadata
from orbit_kd.tasks import Task, choose, from_config, tasks
from orbit_kd.tasks.classification import Classification
from orbit_kd.tflite.reader import parse
from orbit_kd.tflite.subgraph import Subgraph


class File(Protocol):
    """A file of a student: the flatbuffer, and what runs it."""

    @property
    def model(self) -> bytes: ...

    @property
    def runtime(self) -> str: ...


def task_of(files: Sequence[File], teacher: Any, test: Any, *, task: str | Task) -> Task:
    """The task of some files of one network.

    Args:
        files: .tflite files; the first one speaks for all.
        teacher: a Keras model, or anything else.
        test: batches (x, y).
        task: its name, or the task; "auto" to find out.

    Raises:
        InputError: nothing says what the files are for.
    """
    if isinstance(task, Task):
        return task
    _, labels, *_ = next(iter(test))
    if hasattr(teacher, "get_weights"):
        from orbit_kd.models.conversion import as_tf_keras  # loads TensorFlow

        return choose(as_tf_keras(teacher, refuse=()), task=task, labels=labels)
    note = read_metadata(files[0].model).get("task")
    if note and task in ("auto", note["name"]):
        return from_config(note)
    return _by_shape(files[0], labels, task)


def _by_shape(file: File, labels: Any, task: str) -> Task:
    runner = runtimes.load(file.model, runtime=file.runtime)
    if len(runner.outputs) > 1:
        raise InputError(
            f"The file has {len(runner.outputs)} outputs, and does not say what they are for.",
            expected="a file that this version exported by `compress`, or the Keras teacher beside it",
            fix="give the teacher: evaluate(file, test, teacher=model) (--teacher)",
        )
    shape, width = runner.output.shape, int(np.prod(runner.output.shape))
    if task == "auto" and width > 1 and len(shape) <= 3 and shape[-1] == width:
        try:
            class_numbers(labels)
        except InputError:
            pass
        else:
            return Classification(width)
    if task not in ("auto", *tasks):
        tasks.get(task)  # says which there are
    threshold = 0.5 if _ends_in_sigmoid(file.model) else 0.0  # of a probability, of a logit
    found: dict[str, dict[str, Any]] = {
        "classification": {"classes": width},
        "binary": {"threshold": threshold},
        "multi_label": {"labels": width, "threshold": threshold},
        "regression": {"numbers": width},
        "segmentation": {"classes": max(2, shape[-1]), "size": shape[:2],
                         "threshold": threshold if shape[-1] == 1 else None},
    }  # fmt: skip
    if task in found and (task != "segmentation" or len(shape) == 3):
        return from_config({"name": task, **found[task]})
    raise InputError(
        f"The file gives {shape} for each image, and neither it nor the labels say what it is for.",
        expected="a file that this version exported by `compress`, the Keras teacher beside it, or the task's name",
        fix=f"name the task (--task): {', '.join(tasks)}",
    )


def _ends_in_sigmoid(model: bytes) -> bool:
    """Whether the last operator that changes values is a sigmoid."""
    graph = Subgraph(parse(model))
    makers = {tensor: op for op in graph.operators for tensor in graph.outputs(op)}
    op = makers.get(graph.outputs_of_graph[0])
    while op is not None and graph.name(op) in ("QUANTIZE", "RESHAPE", "CAST"):
        op = makers.get(int(op.inputs[0]))
    return op is not None and graph.name(op) == "LOGISTIC"
