"""The unstructured pattern: the smallest magnitudes are zero, wherever they are."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.sparsity.value import Value


@keras.utils.register_keras_serializable(package="orbit_kd")
@dataclasses.dataclass(frozen=True)
class Magnitude(Value):
    """The smallest magnitudes of a kernel are zero, anywhere (unstructured; Han et al. 2015).

    Attributes:
        sparsity: fraction of zeros, in [0, 1). Exactly round((1 - sparsity) * size) weights are kept, at least one.
    """

    sparsity: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise InputError(
                f"sparsity={self.sparsity!r}.",
                expected="the fraction of weights that become zero, in [0, 1)",
                fix="use for example sparsity=0.5",
            )

    @property
    def label(self) -> str:
        return f"magnitude {self.sparsity:.3g}"

    @property
    def steps(self) -> int:
        return 50

    def reason_dense(self, input_channels: int) -> str | None:
        return None if self.sparsity > 0 else "sparsity 0"

    def mask(self, magnitudes: tf.Tensor, *, axis: int, progress: tf.Tensor) -> tf.Tensor:
        size = magnitudes.shape.num_elements()
        kept = tf.maximum(tf.cast(tf.round(size * (1 - progress * self.sparsity)), tf.int32), 1)
        return tf.cast(_largest(magnitudes, kept), magnitudes.dtype)

    def violation(self, kernel: np.ndarray, *, axis: int) -> str | None:
        allowed = max(round(kernel.size * (1 - self.sparsity)), 1)
        found = int(np.count_nonzero(kernel))
        # float32 rounding of size * (1 - sparsity) can differ by a few weights in a very large kernel.
        if found <= allowed + 1 + kernel.size * 1e-6:
            return None
        return f"the kernel holds {found} non-zeros, {self.label} allows {allowed}"


def _largest(magnitudes: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """bool, True for exactly `count` of the largest magnitudes (>= 0); of equal ones, the first.

    The bits of non-negative floats are ordered as the floats are, so that at most 31 halvings find a magnitude that so
    many reach: several times faster than a sort, and quick under XLA too.
    """
    bits = tf.bitcast(tf.cast(tf.reshape(magnitudes, [-1]), tf.float32), tf.int32)

    def reach(least: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(bits >= least, tf.int32))

    def halve(low: tf.Tensor, high: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        middle = low + (high - low) // 2
        n = reach(middle)
        enough = n >= count
        return tf.where(enough, middle, low), tf.where(enough, high, middle), tf.where(enough, n, found)

    low, _, found = tf.while_loop(
        lambda low, high, found: tf.logical_and(found > count, high - low > 1),
        halve,
        (tf.reduce_min(bits), tf.reduce_max(bits) + 1, tf.size(bits)),
    )
    # where more reach it than wanted, the last of those that equal it go: the density is exact even among equals
    equal = tf.cast(tf.equal(bits, low), tf.int32)
    spare = tf.cumsum(equal) <= tf.reduce_sum(equal) - (found - count)
    return tf.reshape(tf.logical_or(bits > low, tf.logical_and(equal > 0, spare)), magnitudes.shape)
