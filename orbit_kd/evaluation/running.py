"""Runs exported files over a data set, batch by batch: whatever their outputs and the labels are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.support.progress import track
from orbit_kd.tflite.reader import parse, read_bytes
from orbit_kd.tflite.subgraph import Subgraph

Ran = tuple[tuple[np.ndarray, ...], Any, dict[str, tuple[np.ndarray, ...]]]
"""Of a batch the inputs, the labels as they came, and name -> the outputs of a file, float32 (batch, ...)."""


def outputs_of(
    models: Mapping[str, runtimes.Model | runtimes.Runner],
    batches: Any,
    *,
    threads: int = 1,
    labels: bool = True,
    what: str = "test data",
) -> Iterator[Ran]:
    """Runs several files in one pass over the data, so that their outputs belong to the same images in any order.

    Args:
        models: name -> path or bytes of a .tflite file, or what `runtimes.load` gave for a file of any kind.
        batches: whatever `datasets.as_batches` takes: (x, y), x real numbers (batch, ...) after Preprocess; of several
            inputs a tuple in the order of the files' inputs, or a dict by their names; y in any structure.
        threads: LiteRT threads.
        labels: refuse batches without y; else y is None there.
        what: the data's name in messages.

    Yields:
        For each batch x (an array an input), y, and name -> a tuple of float32 arrays (batch, ...), one for each output
        of that file.

    Raises:
        InputError: no data, outputs that are not finite, or what `runtimes.load` and `runtimes.run` raise. A file that
            cannot be loaded is refused at once, the others as the batches come.
    """
    return _running(loaded(models, threads=threads), batches, labels=labels, what=what)


def collected(batches: Iterable[Ran]) -> tuple[list[Any], dict[str, tuple[np.ndarray, ...]]]:
    """All of `outputs_of`: the labels, a batch each, and name -> the outputs of all images, float32 (n, ...)."""
    labels: list[Any] = []
    parts: dict[str, list[tuple[np.ndarray, ...]]] = {}
    for _, y, outputs in batches:
        labels.append(y)
        for name, arrays in outputs.items():
            parts.setdefault(name, []).append(arrays)
    return labels, {
        name: tuple(np.concatenate(arrays) for arrays in zip(*found, strict=True)) for name, found in parts.items()
    }


def loaded(models: Mapping[str, runtimes.Model | runtimes.Runner], *, threads: int = 1) -> dict[str, runtimes.Runner]:
    """The files loaded, .tflite files in the runtime that they are made for."""
    return {
        name: runtimes.load(model, runtime=runtimes.made_for(read_bytes(model)), threads=threads)
        if isinstance(model, (str, os.PathLike, bytes))
        else model
        for name, model in models.items()
    }


def file_inputs(data: bytes) -> dict[str, tuple[int, ...]] | None:
    """Name -> shape of several inputs of a .tflite file; None where it has one, of whatever name."""
    graph, (names, _) = Subgraph(parse(data)), runtimes.port_names(data)
    if len(names) == 1:
        return None
    kind = np.dtype(np.float32)
    shapes = [tuple(graph.shape(tensor)[1:]) for tensor in graph.inputs_of_graph]
    return runtimes.named_shapes(
        [runtimes.Port(shape, kind, 0.0, 0, name) for shape, name in zip(shapes, names, strict=True)]
    )


def _running(runners: Mapping[str, runtimes.Runner], batches: Any, *, labels: bool, what: str) -> Iterator[Ran]:
    from orbit_kd.datasets.batches import as_batches, in_order  # loads TensorFlow

    inputs, count = _inputs(runners), 0
    for given, y, _ in track(as_batches(batches, what=what, labels=labels, inputs=inputs), "test set"):
        x = tuple(np.asarray(part) for part in in_order(given, inputs))
        count += len(x[0])
        yield x, y, {name: _finite(name, runner, runtimes.one_or_all(x)) for name, runner in runners.items()}
    if not count:
        raise InputError(f"The {what} is empty.", expected="at least one batch (x, y)", fix="check the test split")


def _inputs(runners: Mapping[str, runtimes.Runner]) -> dict[str, tuple[int, ...]] | None:
    """Name -> shape of the inputs, where all files agree; the names of several inputs are the first file's."""
    shapes = {tuple(port.shape for port in runner.inputs) for runner in runners.values()}
    if len(shapes) != 1:
        return None
    ports = next(iter(runners.values())).inputs
    return {"image": ports[0].shape} if len(ports) == 1 else runtimes.named_shapes(ports)


def _finite(name: str, runner: runtimes.Runner, x: Any) -> tuple[np.ndarray, ...]:
    found = runtimes.run(runner, x)
    arrays: tuple[np.ndarray, ...] = found if len(runner.outputs) > 1 else (found,)
    if not all(np.isfinite(array).all() for array in arrays):
        raise InputError(
            f"Model {name} puts out NaN or Inf.", expected="finite outputs", fix="the training diverged: train again"
        )
    return arrays
