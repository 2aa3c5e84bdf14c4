"""Kernels rounded to few levels without training: what a scan over bits tries, and what a coder would have to store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tf_keras as keras

from orbit_kd.quantization.layers import KERNELS
from orbit_kd.quantization.levels import MOST_BITS, best_steps, levels_of

_layers = keras.layers
_SEEN = 512  # weights a channel that choose its step


def channel_axes(layer: keras.layers.Layer) -> tuple[int, ...]:
    """The axes of a layer's kernel, counted from the end, along which each position has a step of its own."""
    if type(layer) in KERNELS:
        return KERNELS[type(layer)][1]
    transposed = (_layers.Conv1DTranspose, _layers.Conv2DTranspose, _layers.Conv3DTranspose)
    return (-2,) if isinstance(layer, transposed) else (-1,)


def rounded(kernel: np.ndarray, bits: int, *, axes: Sequence[int] = (-1,)) -> np.ndarray:
    """A kernel with at most 2^bits - 1 values a channel, zero among them."""
    codes, step = to_levels(kernel, bits, axes=axes)
    return (codes * step).astype(kernel.dtype)


def to_levels(kernel: np.ndarray, bits: int, *, axes: Sequence[int] = (-1,)) -> tuple[np.ndarray, np.ndarray]:
    """The whole numbers (int8) and the step of each channel that come nearest to a kernel.

    With 8 bits the largest weight of a channel is at the last level, as in a TFLite file. With fewer the step is what
    training would begin with.

    Args:
        kernel: of any shape.
        bits: 2 to 8: numbers from -(2^(bits-1) - 1) to 2^(bits-1) - 1.
        axes: with a step for each position along them, counted from the end.

    Returns:
        (numbers of the kernel's shape, steps of a shape that multiplies them).
    """
    most = levels_of(bits)
    channels = [axis % kernel.ndim for axis in axes]
    others = tuple(axis for axis in range(kernel.ndim) if axis not in channels)
    largest = np.maximum(np.abs(kernel).max(axis=others, keepdims=True), 1e-12)
    step = largest / most
    if bits < MOST_BITS:
        columns = np.moveaxis(kernel, channels, range(len(channels))).reshape(largest.size, -1)
        columns = columns[:, :: -(-columns.shape[1] // _SEEN)]
        step = best_steps(columns, bits=bits, inner=(1,)).reshape(largest.shape)
    return np.clip(np.rint(kernel / step), -most, most).astype(np.int8), step
