"""Numbers that may change while training: alpha, temperature."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.models.keras3.objects import to_tf_keras

LearningRateSchedule = keras.optimizers.schedules.LearningRateSchedule
Number = float | Callable[[Any], Any]  # a Keras schedule is callable too


@keras.saving.register_keras_serializable("orbit_kd")
@dataclasses.dataclass(frozen=True)
class Piecewise:
    """A function of the epoch: straight lines between (epoch, value) points, constant outside them.

    Example:
        >>> Piecewise(((0, 0.9), (10, 0.5)))(5)
        0.7
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        points = tuple((float(e), float(v)) for e, v in self.points)
        if not points or any(b[0] <= a[0] for a, b in itertools.pairwise(points)):
            raise InputError(
                f"Piecewise points {self.points!r} are not in order.",
                expected="at least one (epoch, value) pair, epochs increasing",
                fix="give for example Piecewise(((0, 0.9), (10, 0.5)))",
            )
        object.__setattr__(self, "points", points)

    def __call__(self, epoch: int) -> float:
        epochs, values = zip(*self.points, strict=True)
        return float(np.interp(epoch, epochs, values))

    def get_config(self) -> dict[str, Any]:
        return {"points": [list(p) for p in self.points]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Piecewise:
        return cls(tuple(tuple(p) for p in config["points"]))


class Scheduled:
    """A number, a function of the epoch, or a Keras schedule (a function of the optimizer's step), read alike.

    A function of the epoch is ordinary Python, called on the host as each epoch begins; its value reaches the compiled
    step through a variable that belongs to no model.
    """

    def __init__(self, value: Any, *, name: str, low: float = -math.inf, high: float = math.inf) -> None:
        # a schedule of Keras 3 would pass for a function of the epoch
        self.value, self.name, self.low, self.high = to_tf_keras(value), name, low, high
        self._variable: tf.Variable | None = None
        if not callable(self.value) and not isinstance(self.value, LearningRateSchedule):
            self._check(self.value)

    @property
    def by_epoch(self) -> bool:
        return callable(self.value) and not isinstance(self.value, LearningRateSchedule)

    def _check(self, value: Any) -> float:
        if not isinstance(value, (int, float, np.number)) or not self.low <= float(value) <= self.high:
            raise InputError(
                f"{self.name}={value!r}.",
                expected=f"a number in [{self.low:g}, {self.high:g}]",
                fix=f"give {self.name} such a number, a function of the epoch, or a Keras schedule of the step",
            )
        return float(value)

    def build(self) -> None:
        """Makes the variable behind a function of the epoch, in the strategy scope of the caller."""
        if self.by_epoch and self._variable is None:
            with tf.init_scope():
                self._variable = tf.Variable(
                    self._check(self.value(0)), trainable=False, dtype=tf.float32, name=self.name
                )

    def begin_epoch(self, epoch: int) -> None:
        """Evaluates a function of the epoch; nothing to do for the others."""
        if self.by_epoch:
            self.build()
            self._variable.assign(self._check(self.value(epoch)))  # type: ignore[union-attr]

    def at(self, step: tf.Tensor | int) -> tf.Tensor:
        """The value now, a float32 scalar; `step` is the optimizer's iteration count."""
        if isinstance(self.value, LearningRateSchedule):
            return tf.cast(self.value(step), tf.float32)
        if self.by_epoch:
            self.build()
            return tf.convert_to_tensor(self._variable)
        return tf.constant(self.value, tf.float32)

    def serialize(self) -> Any:
        """The value as it goes into a config: a number, or a serialized Keras object."""
        return keras.saving.serialize_keras_object(self.value) if callable(self.value) else self.value


class Epochs(keras.callbacks.Callback):
    """Tells functions of the epoch which epoch it is."""

    def __init__(self, schedules: list[Scheduled]) -> None:
        super().__init__()
        self._schedules = schedules

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        for schedule in self._schedules:
            schedule.begin_epoch(epoch)


def read_schedule(text: str) -> float | Piecewise:
    """A number from "0.8", or a Piecewise from epoch:value pairs such as "0:0.9,20:0.5".

    Raises:
        InputError: neither.
    """
    try:
        if ":" not in text:
            return float(text)
        points = tuple(tuple(float(v) for v in pair.split(":")) for pair in text.split(","))
        return Piecewise(tuple((epoch, value) for epoch, value in points))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"{text!r} is no schedule.",
            expected="a number, or epoch:value,epoch:value with lines between them",
            fix="give for example 0.8 or 0:0.9,20:0.5",
        ) from error


def deserialize(value: Any) -> Any:
    """The inverse of `Scheduled.serialize`."""
    return keras.saving.deserialize_keras_object(value) if isinstance(value, dict) else value
