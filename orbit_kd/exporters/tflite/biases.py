"""Biases of one value in all channels, which the converter writes on the scale of the first channel alone.

Seen with TensorFlow 2.21, where quantization comes from fake-quantization and a kernel has a scale a channel: a
bias whose values are all equal is quantized once, and the number is repeated on the other channels' scales. A head
that starts with a constant bias, as a detector's does, then says something else in the file, by up to the ratio of the
scales.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from orbit_kd.tflite.operators import KERNEL_AND_BIAS
from orbit_kd.tflite.subgraph import Subgraph
from orbit_kd.tflite.writer import add_constant


def mend_equal_biases(model: Any) -> bool:
    """Puts each value of such a bias on its own channel's scale, in a parsed file.

    A bias whose values differ, but round to one small number, is told from it by nothing; it moves by a few of the
    accumulator's steps.

    Args:
        model: as `reader.parse` returns it; changed in place.

    Returns:
        Whether there was one.
    """
    mended: set[tuple[int, int]] = set()
    for index in range(len(model.subgraphs)):
        graph = Subgraph(model, index)
        for op in graph.operators:
            bias = bias_of(graph, op)
            if bias is None or graph.dtype(bias) != "int32" or (index, bias) in mended:
                continue
            tensor, values = graph.tensors[bias], graph.dense(bias)
            scales = np.asarray([] if tensor.quantization is None else tensor.quantization.scale, np.float64)
            if len(scales) != values.size or not np.ptp(scales) or np.ptp(values) or not values.flat[0]:
                continue
            own = np.round(values.flat[0] * scales[0] / scales).reshape(values.shape)
            limits = np.iinfo(values.dtype)
            tensor.buffer = add_constant(model, np.clip(own, limits.min, limits.max).astype(values.dtype))
            mended.add((index, bias))
    return bool(mended)


def bias_of(graph: Subgraph, op: Any) -> int | None:
    """Tensor of an operator's constant bias; None without one."""
    place = KERNEL_AND_BIAS.get(graph.name(op), (None, None))[1]
    return next((index for position, index in graph.inputs(op) if position == place), None)
