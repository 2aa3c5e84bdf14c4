"""Kernels rounded to few levels without training: what a scan over bits tries, and what a coder would have to store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tf_keras as keras

from orbit_kd.quantization.layers import KERNELS

_layers = keras.layers
_CLIPS = np.array([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])  # parts of the largest weight that the last level may be at
_SEEN = 512  # weights a channel that choose among them


def channel_axes(layer: keras.layers.Layer) -> tuple[int, ...]:
    """The axes of a layer's kernel, counted from the end, along which each position has a scale of its own."""
    if type(layer) in KERNELS:
        return KERNELS[type(layer)][1]
    transposed = (_layers.Conv1DTranspose, _layers.Conv2DTranspose, _layers.Conv3DTranspose)
    return (-2,) if isinstance(layer, transposed) else (-1,)


def rounded(kernel: np.ndarray, bits: int, *, axes: Sequence[int] = (-1,)) -> np.ndarray:
    """A kernel with at most 2^bits - 1 values a channel, zero among them."""
    codes, scale = levels(kernel, bits, axes=axes)
    return (codes * scale).astype(kernel.dtype)


def levels(kernel: np.ndarray, bits: int, *, axes: Sequence[int] = (-1,)) -> tuple[np.ndarray, np.ndarray]:
    """The whole numbers (int8) and the scale of each channel that come nearest to a kernel.

    With 8 bits the largest weight of a channel is at the last level, as in a TFLite file. With fewer the step is the
    one of some that leaves the least squared error: most weights are far smaller than the largest.

    Args:
        kernel: of any shape.
        bits: 2 to 8: numbers from -(2^(bits-1) - 1) to 2^(bits-1) - 1.
        axes: with a scale for each position along them, counted from the end.

    Returns:
        (numbers of the kernel's shape, scales of a shape that multiplies them).
    """
    most = 2 ** (bits - 1) - 1
    channels = [axis % kernel.ndim for axis in axes]
    others = tuple(axis for axis in range(kernel.ndim) if axis not in channels)
    largest = np.maximum(np.abs(kernel).max(axis=others, keepdims=True), 1e-12)
    scale = largest / most
    if bits < 8:
        columns = np.moveaxis(kernel, channels, range(len(channels))).reshape(largest.size, -1)
        columns = columns[:, :: -(-columns.shape[1] // _SEEN)]
        steps = _CLIPS[:, None, None] * scale.reshape(1, -1, 1)
        errors = np.square(np.clip(np.rint(columns / steps), -most, most) * steps - columns).sum(-1)
        scale = scale * _CLIPS[errors.argmin(0)].reshape(scale.shape)
    return np.clip(np.rint(kernel / scale), -most, most).astype(np.int8), scale
