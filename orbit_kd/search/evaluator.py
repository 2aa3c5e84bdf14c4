"""Accuracy of a network whose weights change behind some position, without computing again what lies before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.datasets.batches import as_batches, inputs_of
from orbit_kd.datasets.contents import hashes, total
from orbit_kd.datasets.labels import check_several, class_numbers
from orbit_kd.errors import InputError
from orbit_kd.models.label_losses import class_loss
from orbit_kd.models.segments import Segments
from orbit_kd.models.tracing import traced
from orbit_kd.search.points import Point, Question

_MIXED = 32  # images a batch where few may do


class Evaluator:
    """Accuracy and loss of a network from the furthest position whose activations are kept.

    The network is traced in pieces between the positions that it may be measured from (`cut`), each piece once: a graph
    from every position to the end would trace a deep network as often as it has positions.

    Raises:
        InputError: a network that has no score for each class, or labels beyond its classes.
    """

    def __init__(
        self, model: keras.Model, batches: Sequence[tuple[np.ndarray, np.ndarray]], memory: int, *, loss: Any = None
    ) -> None:
        _check(model, batches)
        self._dtype = model.inputs[0].dtype
        self.segments, self.batches, self.memory = Segments(model), batches, memory
        self._loss = class_loss(model, loss=loss)
        self._position = 0
        self._kept: list[list[Any]] = self._inputs()
        self.cut([])

    def cut(self, positions: Iterable[int]) -> None:
        """Says which positions `move` may go to."""
        cuts = sorted({0, *positions})
        self._pieces = {start: (stop, self._piece(start, stop)) for start, stop in pairwise(cuts)}
        self._score = self._scored(lambda values: self.segments.outputs(cuts[-1], values)[0])
        self._last = cuts[-1]

    def move(self, position: int) -> None:
        """Keeps the activations at a position from here on, where they fit; positions never fall."""
        if position <= self._position:
            return
        first = self._run(position, self._kept[0])
        size = sum(int(np.prod(t.shape)) * t.dtype.size for t in first)
        if size * sum(len(y) for _, y in self.batches) / len(self.batches[0][1]) > self.memory:
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
        """The same of another model, from its input."""
        return self._count(self._scored(lambda values: model(values[0], training=False)), self._inputs(), question)

    def _inputs(self) -> list[list[tf.Tensor]]:
        return [[tf.cast(tf.constant(x), self._dtype)] for x, _ in self.batches]

    def _piece(self, start: int, stop: int) -> Callable[..., Any]:
        return traced(lambda *values: self.segments.run(start, stop, values))

    def _scored(self, outputs: Callable[[Sequence[tf.Tensor]], tf.Tensor]) -> Any:
        def score(y: tf.Tensor, *values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            logits = tf.cast(outputs(values), tf.float32)
            right = tf.equal(tf.argmax(logits, -1), tf.cast(y, tf.int64))
            return tf.cast(right, tf.float32), self._loss(y, logits)

        return traced(score)

    def _count(self, score: Any, kept: Sequence[Sequence[Any]], question: Question | None) -> Point:
        right, loss = np.zeros(0), np.zeros(0)
        for values, (_, y) in zip(kept, self.batches, strict=True):
            r, s = score(tf.constant(y), *values)
            right, loss = np.append(right, r.numpy()), np.append(loss, s.numpy())
            if question is not None and question.answered(right, loss):
                break
        return Point.of(right, loss) if question is None else question.point(right, loss)


def accuracy_of(model: keras.Model, batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Share of right answers of a Keras classifier, in [0, 1].

    Args:
        model: one image in, one score a class out.
        batches: of `batches_of`.

    Raises:
        InputError: a network that is no classifier, or labels beyond its classes.
    """
    return Evaluator(model, batches, memory=0).measure().accuracy


def _check(model: keras.Model, batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    shape = model.outputs[0].shape
    if len(model.outputs) != 1 or len(model.inputs) != 1 or len(shape) != 2 or shape[-1] < 2:
        raise InputError(
            f"Model {model.name!r} has {len(model.inputs)} inputs and outputs of shape "
            f"{', '.join(str(tuple(t.shape)) for t in model.outputs)}.",
            expected="a classifier: one image in, one score for each of two or more classes out",
            fix="in place of Dense(1, 'sigmoid') with w, b put a Dense(2, 'softmax') with kernel [0, w], bias [0, b]; "
            "of another kind of network remove filters without a scan: okd.plan_removal(model, keep_macs=0.5)",
        )
    most = max(int(y.max()) for _, y in batches)
    if most >= shape[-1] or min(int(y.min()) for _, y in batches) < 0:
        raise InputError(
            f"There is a label {most} and the network has {shape[-1]} outputs.",
            expected=f"labels from 0 to {shape[-1] - 1}",
            fix="give the data this network was trained for; labels that begin at 1: .map(lambda x, y: (x, y - 1))",
        )


def mixed(batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The same images in small batches and in no order of their own, so that the first ones stand for all."""
    x, y = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    order = np.random.default_rng(0).permutation(len(y))
    places = [order[i : i + _MIXED] for i in range(0, len(y), _MIXED)]
    return [(x[place], y[place]) for place in places]


def digest_of(batches: Iterable[Any]) -> str:
    """What the examples of batches (x, y, ...) are known by in the key of a result, whatever their order."""
    return f"{total(d for x, y, *_ in batches for d in hashes(x, y)):032x}"


def batches_of(
    data: Any, images: int | None, *, model: keras.Model | None = None, what: str = "validation data"
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The first `images` of batches (x, y) as arrays; all for None.

    Args:
        data: whatever `datasets.batches.as_batches` takes, with labels.
        images: how many.
        model: what x are held against.
        what: the data's name in messages.

    Raises:
        InputError: other labels, or no image at all; what `datasets.batches.as_batches` refuses.
    """
    found, left = [], math.inf if images is None else images
    for given, labels, _ in as_batches(data, what=what, labels=True, inputs=inputs_of(model)):
        x, y = np.asarray(given), class_numbers(labels)
        take = int(min(len(y), left))
        if take:
            found.append((x[:take], y[:take]))
        left -= take
        if left <= 0:
            break
    if found and model is not None:
        width = model.output_shape[-1] if isinstance(model.output_shape, tuple) else 0
        check_several(np.concatenate([y for _, y in found]), what=what, classes=width or 0)
    if not found:
        raise InputError(
            f"images={images}: no images to measure on.", expected="at least 1, or None", fix="leave it out"
        )
    return found
