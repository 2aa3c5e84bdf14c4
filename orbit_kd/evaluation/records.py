"""What exported files say about a data set, as the records that a task's figures are made of."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.support.progress import track
from orbit_kd.tasks import Outputs, Records, Task
from orbit_kd.tflite.reader import read_bytes


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
        InputError: an empty data set, labels of another task, outputs that are not finite, or what `runtimes.load` and
            `runtimes.run` raise.
    """
    from orbit_kd.datasets.batches import as_batches, in_order  # loads TensorFlow

    runners = {name: _loaded(model, threads) for name, model in models.items()}
    shapes = {runner.input.shape for runner in runners.values()}
    inputs = {"image": shapes.pop()} if len(shapes) == 1 and not _several(runners) else None
    found: dict[str, list[Records]] = {name: [] for name in runners}
    count = 0
    for given, y, _ in track(as_batches(test, what="test data", labels=True, inputs=inputs), "test set"):
        x = tuple(np.asarray(part) for part in in_order(given, None))
        truth = task.truth(y)
        count += len(x[0])
        said: dict[str, Outputs] = {}
        for name, runner in runners.items():
            out = runtimes.run(runner, x[0] if len(x) == 1 else x)
            outputs = out if isinstance(out, tuple) else (out,)
            if not all(np.isfinite(values).all() for values in outputs):
                raise InputError(f"Model {name} puts out NaN or Inf.", expected="finite outputs",
                                 fix="the training diverged: train again")  # fmt: skip
            said[name] = outputs
            found[name].append(task.records(truth, outputs))
        if watch is not None:
            watch(x, truth, said, {name: parts[-1] for name, parts in found.items()})
    if not count:
        raise InputError("The test data is empty.", expected="at least one batch (x, y)", fix="check the test split")
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _loaded(model: runtimes.Model | runtimes.Runner, threads: int) -> runtimes.Runner:
    if isinstance(model, (str, os.PathLike, bytes)):
        return runtimes.load(model, runtime=runtimes.made_for(read_bytes(model)), threads=threads)
    return model


def _several(runners: Mapping[str, runtimes.Runner]) -> bool:
    return any(len(getattr(runner, "inputs", ())) > 1 for runner in runners.values())
