"""Metric and loss of a network whose weights change behind some position; what lies before is computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.datasets.batches import as_batches, in_order, inputs_of
from orbit_kd.datasets.contents import hashes, total
from orbit_kd.datasets.labels import class_numbers
from orbit_kd.errors import InputError
from orbit_kd.models.outputs import compiled_loss
from orbit_kd.models.segments import Segments
from orbit_kd.models.tracing import traced
from orbit_kd.search.points import Point, Question
from orbit_kd.tasks import Records, Task, choose

_MIXED = 32  # images a batch where few may do

Examples = Sequence[tuple[Any, Any]]
"""Batches (inputs, truth): an array (n, ...) or a tuple of them, one an input; labels as `Task.truth` gives them."""


class Evaluator:
    """Metric and loss of a network from the furthest position whose activations are kept.

    The network is traced in pieces between the positions that it may be measured from (`cut`), each piece once: a graph
    from every position to the end would trace a deep network as often as it has positions.
    """

    def __init__(
        self, model: keras.Model, batches: Examples, memory: int, *, task: Task | None = None, loss: Any = None
    ) -> None:
        self.task = task or choose(model, labels=batches[0][1])
        self._dtypes = [tensor.dtype for tensor in model.inputs]
        self.segments, self.batches, self.memory = Segments(model), batches, memory
        self._loss = self.task.sample_loss(model, loss=loss)
        self._position = 0
        self._kept: list[list[Any]] = self._inputs()
        self.cut([])

    def cut(self, positions: Iterable[int]) -> None:
        """Says which positions `move` may go to."""
        cuts = sorted({0, *positions})
        self._pieces = {start: (stop, self._piece(start, stop)) for start, stop in pairwise(cuts)}
        self._score = self._scored(lambda values: self.segments.outputs(cuts[-1], values))
        self._last = cuts[-1]

    def move(self, position: int) -> None:
        """Keeps the activations at a position from here on, where they fit; positions never fall."""
        if position <= self._position:
            return
        first = self._run(position, self._kept[0])
        size = sum(int(np.prod(t.shape)) * t.dtype.size for t in first)
        if size * sum(size_of(x) for x, _ in self.batches) / size_of(self.batches[0][0]) > self.memory:
            return
        self._kept = [first, *(self._run(position, values) for values in self._kept[1:])]
        self._position = position

    def measure(self, question: Question | None = None) -> Point:
        """Of the network as its weights are now; all images where there is no question that fewer can answer."""
        return self._count(
            lambda y, *values: self._score(y, *self._run(self._last, list(values))), self._kept, question
        )

    def _run(self, stop: int, values: list[Any]) -> list[Any]:
        """From the kept activations of a batch to those at a position."""
        position = self._position
        while position < stop:
            position, piece = self._pieces[position]
            values = piece(*values)
        return values

    def of_model(self, model: keras.Model, question: Question | None = None) -> Point:
        """The same of another model, from its inputs."""
        run = self._scored(lambda values: tf.nest.flatten(model(_one_or_all(values), training=False)))
        return self._count(run, self._inputs(), question)

    def _inputs(self) -> list[list[tf.Tensor]]:
        return [
            [tf.cast(tf.constant(part), kind) for part, kind in zip(parts_of(x), self._dtypes, strict=True)]
            for x, _ in self.batches
        ]

    def _piece(self, start: int, stop: int) -> Callable[..., Any]:
        return traced(lambda *values: self.segments.run(start, stop, values))

    def _scored(self, outputs: Callable[[Sequence[tf.Tensor]], Sequence[tf.Tensor]]) -> Any:
        def score(y: Any, *values: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
            found = [tf.cast(out, tf.float32) for out in outputs(values)]
            return found, self._loss(y, found)

        return traced(score)

    def _count(self, score: Any, kept: Sequence[Sequence[Any]], question: Question | None) -> Point:
        records, losses = list[Records](), list[np.ndarray]()
        for values, (_, y) in zip(kept, self.batches, strict=True):
            outputs, loss = score(tf.nest.map_structure(tf.constant, y), *values)
            records.append(self.task.records(y, tuple(out.numpy() for out in outputs)))
            losses.append(loss.numpy())
            if question is not None and question.answered(np.concatenate(records), np.concatenate(losses)):
                break
        found = np.concatenate(records), np.concatenate(losses)
        return Point.of(self.task, *found) if question is None else question.point(*found)


def value_of(model: keras.Model, batches: Examples, *, task: Task | None = None) -> float:
    """The task's metric of a Keras network; of a classifier the share of right answers, in [0, 1].

    Args:
        model: Functional or Sequential.
        batches: of `batches_of`.
        task: what it is for; None reads it from outputs and labels.

    Raises:
        InputError: a network or labels that the task does not fit.
    """
    return Evaluator(model, batches, memory=0, task=task).measure().accuracy


def compiled_with(model: keras.Model, loss: Any) -> keras.Model:
    """The network with the loss that it was trained with, which tells what its outputs hold; itself where it knows."""
    if loss is None or compiled_loss(model):
        return model
    same = keras.Model(model.inputs, model.outputs, name=model.name)
    same.compile(loss=loss)
    return same


def parts_of(x: Any) -> tuple[Any, ...]:
    """The arrays of inputs or labels: one, or a tuple of them."""
    return x if isinstance(x, tuple) else (x,)


def size_of(x: Any) -> int:
    """How many examples a batch has."""
    return len(parts_of(x)[0])


def _one_or_all(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else list(values)


def joined(parts: Sequence[Any]) -> Any:
    """Inputs or labels of several batches as one."""
    if isinstance(parts[0], tuple):
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))
    return np.concatenate(parts)


def chosen(x: Any, places: Any) -> Any:
    """The examples at some places."""
    return tuple(part[places] for part in x) if isinstance(x, tuple) else x[places]


def mixed(batches: Examples) -> list[tuple[Any, Any]]:
    """The same images in small batches and in no order of their own, so that the first ones stand for all."""
    x, y = (joined(parts) for parts in zip(*batches, strict=True))
    order = np.random.default_rng(0).permutation(size_of(x))
    places = [order[i : i + _MIXED] for i in range(0, len(order), _MIXED)]
    return [(chosen(x, place), chosen(y, place)) for place in places]


def digest_of(batches: Iterable[Any]) -> str:
    """What the examples of batches (x, y, ...) are known by in the key of a result, whatever their order."""
    return f"{total(d for x, y, *_ in batches for d in hashes(*tf.nest.flatten(x), *tf.nest.flatten(y))):032x}"


def batches_of(
    data: Any, images: int | None, *, model: keras.Model | None = None, what: str = "validation data"
) -> list[tuple[Any, Any]]:
    """The first `images` of batches (x, y) as arrays, y as the task of the model takes them (class numbers without)."""
    return examples_of(data, images, model=model, what=what)[1]


def examples_of(
    data: Any, images: int | None, *, model: keras.Model | None = None, task: str | Task = "auto",
    what: str = "validation data",
) -> tuple[Task | None, list[tuple[Any, Any]]]:  # fmt: skip
    """The task of a network and its data, and the first `images` of batches (x, y) as arrays; all for None.

    Args:
        data: whatever `datasets.batches.as_batches` takes, with labels.
        images: how many.
        model: what x are held against; None takes the labels for class numbers.
        task: what the model is for, see `choose`.
        what: the data's name in messages.

    Raises:
        InputError: other labels, or no image at all; what `datasets.batches.as_batches` refuses.
    """
    found, left, inputs = list[tuple[Any, Any]](), math.inf if images is None else images, inputs_of(model)
    of: Task | None = task if isinstance(task, Task) else None
    for given, labels, _ in as_batches(data, what=what, labels=True, inputs=inputs):
        x = tuple(np.asarray(part) for part in in_order(given, inputs))
        if of is None and model is not None:
            of = choose(model, task=task, labels=labels)
        y = class_numbers(labels) if of is None else of.truth(labels)
        take = int(min(len(x[0]), left))
        if take:
            found.append((chosen(x[0] if len(x) == 1 else x, slice(take)), chosen(y, slice(take))))
        left -= take
        if left <= 0:
            break
    if not found:
        raise InputError(
            f"images={images}: no images to measure on.", expected="at least 1, or None", fix="leave it out"
        )
    if of is not None:
        of.check_labels(joined([y for _, y in found]), what=what)
    return of, found
