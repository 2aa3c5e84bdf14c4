"""What exported files say about a data set, as the records that a task's figures are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from orbit_kd import runtimes
from orbit_kd.evaluation.running import outputs_of
from orbit_kd.tasks import Outputs, Records, Task


def records_of(
    models: Mapping[str, runtimes.Model | runtimes.Runner], test: Any, *, task: Task, threads: int = 1,
    watch: Callable[[Any, Any, dict[str, Outputs], dict[str, Records]], None] | None = None,
) -> dict[str, Records]:  # fmt: skip
    """Runs several files on a data set in one pass, so that their records belong to the same samples in any order.

    Outputs are dropped batch by batch: a record is all that stays of a sample.

    Args:
        models: name -> path or bytes of a .tflite file, or what `runtimes.load` gave for a file of any kind.
        test: batches (x, y): x real numbers (batch, ...) after Preprocess, or a tuple of them for several inputs; y as
            the task's `truth` takes it.
        task: what the files are for.
        threads: LiteRT threads.
        watch: is told of each batch: inputs, truth, and by name outputs and records.

    Returns:
        Name -> records (n, ...).

    Raises:
        InputError: labels of another task, or what `outputs_of` raises.
    """
    found: dict[str, list[Records]] = {name: [] for name in models}
    for x, y, said in outputs_of(models, test, threads=threads):
        truth = task.truth(y)
        for name, outputs in said.items():
            found[name].append(task.records(truth, outputs))
        if watch is not None:
            watch(x, truth, said, {name: parts[-1] for name, parts in found.items()})
    return {name: np.concatenate(parts) for name, parts in found.items()}
