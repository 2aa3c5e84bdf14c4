"""Kernels of few levels in an int8 file: whole numbers of their own grid, with a wider scale.

The converter scales the largest weight of each channel to 127, so that a kernel of 4 bits, -7..7, is written as
-127, -109, -91, ...: few distinct values, but not on a grid, and another set in each channel. Here they become -7, -6,
-5, ... again, with a scale 127/7 times as wide. No weight moves by more than the half step by which the converter had
rounded it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from orbit_kd.exporters.tflite.biases import bias_of
from orbit_kd.tflite.subgraph import Subgraph
from orbit_kd.tflite.writer import add_constant

_ROUNDED = 0.5 + 1e-3  # by so much the converter may have moved a weight; a half may go either way


def widen_scales(model: Any, most: int) -> None:
    """Puts kernels of few levels on their own grid, in a parsed file, and their biases on the new scale.

    Args:
        model: as `reader.parse` returns it; changed in place.
        most: the largest whole number of such a grid: 7 of 4 bits.
    """
    for index in range(len(model.subgraphs)):
        graph, factors = Subgraph(model, index), {}
        for op in graph.operators:
            kernel = graph.kernel(op)
            if kernel is not None and graph.dtype(kernel) == "int8" and kernel not in factors:
                factors[kernel] = _widen_kernel(model, graph, kernel, most)
        done: set[int] = set()
        for op in graph.operators:
            kernel, bias = graph.kernel(op), bias_of(graph, op)
            if kernel in factors and bias is not None and bias not in done:
                done.add(bias)
                _widen(model, graph.tensors[bias], graph.dense(bias), factors[kernel])


def _widen_kernel(model: Any, graph: Subgraph, kernel: int, most: int) -> np.ndarray:
    """Makes the scales of a kernel wider; returns by how much, a number a scale."""
    tensor, values = graph.tensors[kernel], graph.dense(kernel)
    scales = len(tensor.quantization.scale)
    rows = np.moveaxis(values, tensor.quantization.quantizedDimension, 0) if scales > 1 else values[None]
    factors = np.array([_factor(row, most) for row in rows.reshape(scales, -1)])
    shape = [1] * values.ndim
    if scales > 1:
        shape[tensor.quantization.quantizedDimension] = scales
    _widen(model, tensor, values, factors.reshape(shape))
    return factors


def _factor(row: np.ndarray, most: int) -> float:
    """127 / m for the smallest grid -m..m whose points, scaled to 127, are a channel's values; 1 without one."""
    found = np.unique(np.abs(row.astype(np.int64)))
    if found[-1] != 127:  # only zeros, or no kernel that the converter has scaled
        return 1.0
    for m in range(1, most + 1):
        if np.abs(np.round(found * m / 127) * 127 / m - found).max() <= _ROUNDED:
            return 127 / m
    return 1.0


def _widen(model: Any, tensor: Any, values: np.ndarray, factors: np.ndarray) -> None:
    """Divides the values of a constant by factors, and multiplies its scales with them."""
    quantization, flat = tensor.quantization, np.asarray(factors).reshape(-1)
    tensor.buffer = add_constant(model, np.round(values / factors).astype(values.dtype))
    quantization.scale = (np.asarray(quantization.scale) * flat).astype(np.float32)
