"""The N:M pattern: few non-zeros in each group of consecutive input channels."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.sparsity.value import Value


@keras.utils.register_keras_serializable(package="orbit_kd")
@dataclasses.dataclass(frozen=True)
class NofM(Value):
    """At most `n` non-zeros in each aligned group of `m` consecutive input channels (Mishra et al. 2021).

    A group is taken for each output channel and kernel position, aligned at input channel 0, as hardware wants it. Note
    that tfmot's `sparsity_m_by_n` counts zeros instead (tensorflow/model-optimization pulls 743, 880). Where the input
    channels are no multiple of m, the last group of k < m channels keeps ceil(k * n / m): the density stays that of the
    pattern, and padding the group with zeros up to m never breaks it. A kernel with fewer than m input channels has no
    whole group and stays dense.

    Attributes:
        n: non-zeros kept in a group.
        m: channels of a group.
        name: label in tables; empty for "n:m".
    """

    n: int
    m: int
    name: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise InputError(
                f"{self.n}:{self.m} is no N:M pattern.",
                expected="N non-zeros in each group of M, with 1 <= N < M",
                fix="use for example 2:4, 1:4 (75% sparse) or 4:8",
            )

    @property
    def label(self) -> str:
        return self.name or f"{self.n}:{self.m}"

    @property
    def steps(self) -> int:
        return self.m - self.n

    def reason_dense(self, input_channels: int) -> str | None:
        if input_channels >= self.m:
            return None
        plural = "s" if input_channels > 1 else ""
        return f"{input_channels} input channel{plural}, fewer than a group of {self.m}"

    def mask(self, magnitudes: tf.Tensor, *, axis: int, progress: tf.Tensor) -> tf.Tensor:
        shape, at = magnitudes.shape.as_list(), magnitudes.shape.rank + axis
        tail = -shape[at] % self.m
        # The ragged tail is filled up with -1, below every magnitude.
        padding = [[0, tail if i == at else 0] for i in range(len(shape))]
        padded = tf.pad(magnitudes, padding, constant_values=-1) if tail else magnitudes
        behind = [1] * len(shape[at + 1 :])
        groups = tf.reshape(padded, [*shape[:at], -1, self.m, *shape[at + 1 :]])
        # Rank in the group by comparing all pairs, the lower channel winning a tie: several times faster than a sort.
        mine, other = tf.expand_dims(groups, at + 1), tf.expand_dims(groups, at + 2)
        earlier = tf.reshape(tf.constant(np.triu(np.ones((self.m, self.m), bool), 1)), [self.m, self.m, *behind])
        beats = tf.logical_or(other > mine, tf.logical_and(tf.equal(other, mine), earlier))
        rank = tf.reduce_sum(tf.cast(beats, tf.int32), axis=at + 1)
        # 1e-4: at a progress of i / steps, float rounding must not cost the i-th step.
        removed = tf.cast(tf.floor(progress * (self.m - self.n) + 1e-4), tf.int32)
        kept = tf.reshape(self._kept(shape[at], self.m - removed), [-1, 1, *behind])
        mask = tf.reshape(tf.cast(rank < kept, magnitudes.dtype), padded.shape)
        return tf.slice(mask, [0] * len(shape), shape)

    def violation(self, kernel: np.ndarray, *, axis: int) -> str | None:
        channels = kernel.shape[axis]
        rows = np.moveaxis(kernel, axis, -1)
        rows = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, -channels % self.m)])
        count = np.count_nonzero(rows.reshape(*rows.shape[:-1], -1, self.m), axis=-1)
        allowed = np.asarray(self._kept(channels, self.n))
        bad = np.argwhere(count > allowed)
        if not len(bad):
            return None
        *position, group = (int(i) for i in bad[0])
        first, last = group * self.m, min((group + 1) * self.m, channels) - 1
        return (
            f"input channels {first}..{last} at kernel position {tuple(position)} hold {count[tuple(bad[0])]} "
            f"non-zeros, "
            f"{self.label} allows {allowed[group]} ({len(bad)} of {count.size} groups are wrong)"
        )

    def _kept(self, channels: int, n: Any) -> Any:
        """Non-zeros of each group when a whole group keeps n: an array with one entry a group."""
        sizes = np.full(-(-channels // self.m), self.m, np.int32)
        sizes[-1] -= -channels % self.m
        return (sizes * n + self.m - 1) // self.m
