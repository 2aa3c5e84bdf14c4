"""Accuracy of a network whose weights change behind some position, without computing again what lies before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.segments import Segments


class Evaluator:
    """Accuracy and loss of a network from the furthest position whose activations are kept."""

    def __init__(self, model: keras.Model, batches: Sequence[tuple[np.ndarray, np.ndarray]], memory: int) -> None:
        self.segments, self.batches, self.memory = Segments(model), batches, memory
        softmax = model.layers[-1].get_config().get("activation") == "softmax" or isinstance(
            model.layers[-1], keras.layers.Softmax
        )
        self._loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax, reduction="none")
        self._position = 0
        self._kept: list[list[Any]] = [[tf.constant(x)] for x, _ in batches]
        self._functions: dict[int, Any] = {}

    def move(self, position: int) -> None:
        """Keeps the activations at a position from here on, where they fit; positions never fall."""
        if position <= self._position:
            return
        start = self._position

        @tf.function(reduce_retracing=True)
        def forward(*values: tf.Tensor) -> list[tf.Tensor]:
            return self.segments.run(start, position, values)

        first = forward(*self._kept[0])
        size = sum(int(np.prod(t.shape)) * t.dtype.size for t in first)
        if size * sum(len(y) for _, y in self.batches) / len(self.batches[0][1]) > self.memory:
            return
        self._kept = [first, *(forward(*values) for values in self._kept[1:])]
        self._position = position

    def measure(self, floor: float | None) -> tuple[float, float, int]:
        """(accuracy, mean loss, images seen) of the network as its weights are now."""
        if self._position not in self._functions:
            start = self._position
            self._functions = {start: self._scored(lambda values: self.segments.outputs(start, values)[0])}
        return self._count(self._functions[self._position], self._kept, floor)

    def of_model(self, model: keras.Model, floor: float | None) -> tuple[float, float, int]:
        """The same of another model, from its input."""
        inputs = [[tf.constant(x)] for x, _ in self.batches]
        return self._count(self._scored(lambda values: model(values[0], training=False)), inputs, floor)

    def _scored(self, outputs: Callable[[Sequence[tf.Tensor]], tf.Tensor]) -> Any:
        @tf.function(reduce_retracing=True)
        def score(y: tf.Tensor, *values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            logits = tf.cast(outputs(values), tf.float32)
            right = tf.equal(tf.argmax(logits, -1), tf.cast(y, tf.int64))
            return tf.reduce_sum(tf.cast(right, tf.int32)), tf.reduce_sum(self._loss(y, logits))

        return score

    def _count(self, score: Any, kept: Sequence[Sequence[Any]], floor: float | None) -> tuple[float, float, int]:
        right, loss, seen = 0, 0.0, 0
        for values, (_, y) in zip(kept, self.batches, strict=True):
            r, s = score(tf.constant(y), *values)
            right, loss, seen = right + int(r), loss + float(s), seen + len(y)
            if floor is not None and _surely_below(right, seen, floor):
                break
        return right / seen, loss / seen, seen


def _surely_below(right: int, seen: int, floor: float, doubt: float = 1e-3) -> bool:
    """Whether so few right answers would come with probability below `doubt` from an accuracy of `floor` or more."""
    if right / seen >= floor or floor >= 1:
        return right / seen < floor
    logs = (
        math.lgamma(seen + 1) - math.lgamma(k + 1) - math.lgamma(seen - k + 1)
        + k * math.log(floor) + (seen - k) * math.log1p(-floor)
        for k in range(right + 1)
    )  # fmt: skip
    return sum(map(math.exp, logs)) < doubt


def batches_of(data: Any, images: int | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """The first `images` of batches (x, y) as arrays; all for None.

    Raises:
        InputError: labels that are no integers, or no image at all.
    """
    found, left = [], math.inf if images is None else images
    for batch in data:
        x, y = np.asarray(batch[0]), np.asarray(batch[1])
        if y.ndim > 1 and y.shape[-1] == 1:
            y = y[..., 0]
        if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
            raise InputError(
                f"The labels have shape {y.shape} and dtype {y.dtype}.", expected="one integer an image",
                fix="turn one-hot labels into integers with data.map(lambda x, y: (x, tf.argmax(y, -1)))",
            )  # fmt: skip
        take = int(min(len(y), left))
        if take:
            found.append((x[:take], y[:take].astype(np.int64)))
        left -= take
        if left <= 0:
            break
    if not found:
        raise InputError("There are no images to measure on.", expected="batches (x, y)", fix="pass data=data.val")
    return found
