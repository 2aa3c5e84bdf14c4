"""What exported files give for the images of the test set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from orbit_kd import runtimes
from orbit_kd.datasets.labels import class_numbers
from orbit_kd.errors import InputError
from orbit_kd.evaluation.running import loaded, outputs_of
from orbit_kd.exporters import Artifact
from orbit_kd.exporters.c_array import read_c_array
from orbit_kd.tflite.reader import read_bytes


def model_bytes(artifact: Artifact) -> bytes:
    """The flatbuffer that an artifact holds: the .tflite file, or the bytes in its C array.

    Raises:
        InputError: the file is gone or damaged.
    """
    return read_c_array(artifact.path) if artifact.path.suffix == ".cc" else read_bytes(artifact.path)


def logits(
    models: Mapping[str, runtimes.Model | runtimes.Runner], test: Any, *, threads: int = 1
) -> tuple[np.ndarray, dict[str, Any]]:
    """Runs several files on the test set in one pass, so that their outputs belong to the same images in any order.

    Args:
        models: name -> path or bytes of a .tflite file, or what `runtimes.load` gave for a file of any kind.
        test: batches (x, y): x real numbers (batch, ...) after Preprocess; y integers (batch,) or one-hot
            (batch, classes).
        threads: LiteRT threads.

    Returns:
        labels (n,) int64, and name -> float32 outputs (n, classes).

    Raises:
        InputError: an empty test set, several outputs, labels the outputs cannot hold, outputs that are not finite, or
            what `runtimes.load` and `runtimes.run` raise.
    """
    runners = loaded(models, threads=threads)
    for name, runner in runners.items():
        if len(runner.outputs) > 1:
            raise InputError(
                f"Model {name} has {len(runner.outputs)} outputs.",
                expected="one, the logits of the classes",
                fix="take what they are with orbit_kd.evaluation.running.outputs_of, or export a network with the one "
                "output that classifies",
            )
    outputs: dict[str, list[np.ndarray]] = {name: [] for name in runners}
    labels: list[np.ndarray] = []
    for _, y, found in outputs_of(runners, test):
        labels.append(class_numbers(y))
        for name, (values,) in found.items():
            outputs[name].append(values.reshape(len(values), -1))
    truth = np.concatenate(labels)
    joined = {name: np.concatenate(parts) for name, parts in outputs.items()}
    for name, values in joined.items():
        _check_outputs(name, values, truth)
    return truth, joined


def _check_outputs(name: str, values: np.ndarray, labels: np.ndarray) -> None:
    if labels.min() < 0 or labels.max() >= values.shape[1] or values.shape[1] < 2:
        raise InputError(
            f"Labels run from {labels.min()} to {labels.max()}, and model {name} has {values.shape[1]} outputs.",
            expected="labels from 0 to one less than the number of outputs, and at least two outputs",
            fix="use the data set the network was trained on, with its classes in the same order",
        )
