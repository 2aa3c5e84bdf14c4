"""When a sparsity pattern is applied, counted in optimizer steps.

A schedule is a value: at which steps the mask is chosen anew, and how far the pattern has progressed by then (0 dense,
1 the full pattern). Steps count from `sparsify`, which is step 0. A new schedule is one frozen dataclass with these
four members, registered with Keras so that it is saved, and filed in `schedules`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import tensorflow as tf
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.registry import Registry
from orbit_kd.sparsity.patterns import Pattern, Value


class Schedule(Protocol):
    """What the wrapper asks of a schedule."""

    @property
    def dense_decay(self) -> float | None:
        """None: pruned weights are set to zero for good. A number: they stay stored and decay by it (SR-STE)."""

    @property
    def last_step(self) -> int:
        """The step from which on the full pattern holds."""

    def updates(self, step: tf.Tensor) -> tf.Tensor:
        """Whether the mask is chosen anew at this step (scalar int64 -> scalar bool)."""

    def progress(self, step: tf.Tensor) -> tf.Tensor:
        """How far the pattern is applied at this step (scalar int64 -> scalar float32 in [0, 1])."""


@keras.utils.register_keras_serializable(package="orbit_kd")
@dataclasses.dataclass(frozen=True)
class Constant(Value):
    """The whole pattern at `begin_step`, the same mask from then on.

    Attributes:
        begin_step: optimizer steps to train dense first; 0 applies the mask within `sparsify` (one-shot).
    """

    begin_step: int = 0

    def __post_init__(self) -> None:
        _check_span(self.begin_step, None)

    @property
    def dense_decay(self) -> None:
        return None

    @property
    def last_step(self) -> int:
        return self.begin_step

    def updates(self, step: tf.Tensor) -> tf.Tensor:
        return tf.equal(step, self.begin_step)

    def progress(self, step: tf.Tensor) -> tf.Tensor:
        return tf.cast(step >= self.begin_step, tf.float32)


@keras.utils.register_keras_serializable(package="orbit_kd")
@dataclasses.dataclass(frozen=True)
class Polynomial(Value):
    """From dense at `begin_step` to the full pattern at `end_step` by 1 - (1 - t)^power (Zhu and Gupta 2017: cubic).

    A weight once pruned stays pruned. The last refresh falls on `end_step` exactly, whatever the span.

    Attributes:
        end_step: optimizer step from which on the full pattern holds.
        begin_step: optimizer step where pruning begins.
        power: 3 prunes most at the beginning, 1 evenly.
        refreshes: how many times the mask is chosen anew, evenly over the span.
    """

    end_step: int
    begin_step: int = 0
    power: float = 3.0
    refreshes: int = 50

    def __post_init__(self) -> None:
        _check_span(self.begin_step, self.end_step)
        if self.power <= 0 or self.refreshes < 1:
            raise InputError(
                f"Polynomial(power={self.power!r}, refreshes={self.refreshes!r}).",
                expected="a positive power and at least one refresh",
                fix="use for example power=3, refreshes=50",
            )

    @property
    def dense_decay(self) -> None:
        return None

    @property
    def last_step(self) -> int:
        return self.end_step

    def updates(self, step: tf.Tensor) -> tf.Tensor:
        span = self.end_step - self.begin_step
        done = step - self.begin_step
        crosses = (done * self.refreshes) // span != ((done - 1) * self.refreshes) // span
        return tf.logical_and(crosses, tf.logical_and(done >= 0, done <= span))

    def progress(self, step: tf.Tensor) -> tf.Tensor:
        done = tf.cast(step - self.begin_step, tf.float32) / (self.end_step - self.begin_step)
        return 1.0 - tf.pow(1.0 - tf.clip_by_value(done, 0.0, 1.0), self.power)


@keras.utils.register_keras_serializable(package="orbit_kd")
@dataclasses.dataclass(frozen=True)
class SRSTE(Value):
    """Sparse-refined straight-through estimator (Zhou et al. 2021): the mask follows the dense weights at every step.

    Dense weights are stored; the forward pass sees them masked; the gradient reaches all of them; those that are pruned
    decay. The decay is the term decay / 2 * |pruned weights|^2 of the layer's `losses`, whose gradient is the paper's:
    so it is right under loss scaling and counts once however many forward passes a step has, but a training loop of
    one's own must add `model.losses`, as `fit` does.

    Attributes:
        decay: the paper's lambda_w.
    """

    decay: float = 2e-4

    def __post_init__(self) -> None:
        if self.decay < 0:
            raise InputError(f"SRSTE(decay={self.decay!r}).", expected="a decay >= 0", fix="the paper uses 2e-4")

    @property
    def dense_decay(self) -> float:
        return self.decay

    @property
    def last_step(self) -> int:
        return 0

    def updates(self, step: tf.Tensor) -> tf.Tensor:
        return tf.constant(True)

    def progress(self, step: tf.Tensor) -> tf.Tensor:
        return tf.constant(1.0)


schedules: Registry[Callable[[Pattern, int, int | None], Schedule]] = Registry("sparsity schedule")


@schedules.register("one_shot")
def _one_shot(pattern: Pattern, begin_step: int, end_step: int | None) -> Schedule:
    _refuse("one_shot", begin_step=begin_step, end_step=end_step)
    return Constant()


@schedules.register("constant")
def _constant(pattern: Pattern, begin_step: int, end_step: int | None) -> Schedule:
    _refuse("constant", end_step=end_step)
    return Constant(begin_step)


@schedules.register("polynomial")
def _polynomial(pattern: Pattern, begin_step: int, end_step: int | None) -> Schedule:
    return Polynomial(_required("polynomial", end_step), begin_step)


@schedules.register("gradual")
def _gradual(pattern: Pattern, begin_step: int, end_step: int | None) -> Schedule:
    # For 2:4 two equal steps: dense until half way, 3:4, and 2:4 from end_step on.
    return Polynomial(_required("gradual", end_step), begin_step, power=1.0, refreshes=pattern.steps)


@schedules.register("sr_ste")
def _sr_ste(pattern: Pattern, begin_step: int, end_step: int | None) -> Schedule:
    _refuse("sr_ste", begin_step=begin_step, end_step=end_step)
    return SRSTE()


def get_schedule(
    schedule: str | Schedule, *, pattern: Pattern, begin_step: int = 0, end_step: int | None = None
) -> Schedule:
    """The schedule of that name for a pattern; an object passes unchanged.

    Raises:
        InputError: an unknown name, a missing or impossible step, or a step that the schedule does not have.
    """
    if isinstance(schedule, str):
        return schedules.get(schedule)(pattern, begin_step, end_step)
    _refuse(type(schedule).__name__, begin_step=begin_step, end_step=end_step)
    return schedule


def _required(name: str, end_step: int | None) -> int:
    if end_step is None:
        raise InputError(
            f"The schedule {name!r} needs end_step.",
            expected="the optimizer step from which on the full pattern holds",
            fix="give about two thirds of epochs * batches per epoch, so that the finished pattern is still trained",
        )
    return end_step


def _refuse(name: str, **options: int | None) -> None:
    for option, value in options.items():
        if value:
            raise InputError(
                f"The schedule {name!r} takes no {option} (got {value}).",
                expected="begin_step with 'constant'; begin_step and end_step with 'polynomial' and 'gradual'",
                fix=f"leave {option}= out, or choose another schedule",
            )


def _check_span(begin_step: int, end_step: int | None) -> None:
    if begin_step < 0 or (end_step is not None and end_step <= begin_step):
        raise InputError(
            f"begin_step={begin_step}, end_step={end_step}.",
            expected="0 <= begin_step < end_step, in optimizer steps",
            fix="count steps as epochs * batches per epoch",
        )
