"""Kernels of few levels: a step a channel, learned together with the weights.

Learned step size quantization (LSQ, Esser et al., ICLR 2020, https://arxiv.org/abs/1902.08153). The logarithm of the
step is what is trained, as for the thresholds of Jain et al. 2020 (https://arxiv.org/abs/1903.08066): Adam moves every
variable by about its learning rate, which for a step of 0.01 would be a tenth of it at once, and LSQ's scaling of the
gradient, made for SGD, would not help.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

FEWEST_BITS, MOST_BITS = 2, 8
_PARTS = np.linspace(0.15, 1.0, 35)  # of the largest weight, that the last level is tried at


def levels_of(bits: int) -> int:
    """The largest whole number of a symmetric grid: 127 of 8 bits, 7 of 4, 1 of 2."""
    return 2 ** (bits - 1) - 1


def round_to_steps(kernel: tf.Tensor, log_step: tf.Tensor, *, bits: int) -> tf.Tensor:
    """A kernel on its grid; gradients go straight through the rounding, and to the step as LSQ has them.

    Args:
        kernel: float32.
        log_step: natural logarithm of the step of each channel, shaped to multiply with the kernel.
        bits: of the grid.
    """
    step, most = tf.exp(log_step), float(levels_of(bits))
    place = tf.clip_by_value(kernel / step, -most, most)
    return (place + tf.stop_gradient(tf.round(place) - place)) * step


def best_steps(kernel: np.ndarray, *, bits: int, inner: Sequence[int]) -> np.ndarray:
    """The steps that change a kernel least in the mean square, one a channel.

    Args:
        kernel: float32.
        bits: of the grid.
        inner: the axes within a channel.

    Returns:
        float32, of length 1 along `inner`; above 0 also for a channel of zeros.
    """
    axes, most = tuple(inner), levels_of(bits)
    largest = np.maximum(np.abs(kernel).max(axis=axes, keepdims=True), 1e-6)
    best, least = largest / most, np.full_like(largest, np.inf)
    for part in _PARTS:
        step = largest * part / most
        error = np.square(np.clip(np.round(kernel / step), -most, most) * step - kernel).sum(axis=axes, keepdims=True)
        best, least = np.where(error < least, step, best), np.minimum(error, least)
    return best.astype(np.float32)
