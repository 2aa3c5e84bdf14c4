"""Twins of an int8 .tflite file that keep or break the 2:4 rule: from them come the cycles of both forms.

Vela has no option that forces a form. The rule is its own: groups of 4 consecutive input channels, aligned at 0, for
each (out, ky, kx), with at least 2 zeros each and no weight of -128; one bad group loses it for the whole operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from orbit_kd.tflite.reader import parse
from orbit_kd.tflite.writer import pack

_CONVOLVE = ("CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")


def dense_twin(data: bytes) -> bytes:
    """The same file with the first group of every kernel broken: at most 3 weights of it become 1.

    A kernel with fewer than 3 input channels cannot break the rule and stays.
    """
    return _change(data, _break)


def sparse_twin(data: bytes) -> bytes:
    """The same file with only the two largest weights left in every group: for its cycles, not for its accuracy."""
    return _change(data, _keep)


def first_bad_group(kernel: np.ndarray) -> tuple[int, ...] | None:
    """Index (out, ky, kx, first input channel), or (out, first input channel), of the first group that breaks 2:4."""
    groups = _groups(kernel)
    bad = np.argwhere((groups != 0).sum(-1) > 2)
    return None if not len(bad) else (*map(int, bad[0][:-1]), 4 * int(bad[0][-1]))


def kernels(data: bytes) -> dict[int, np.ndarray]:
    """Place of the operator -> its int8 kernel, (out, ..., in), of all that have one over input channels."""
    model = parse(data)
    return {index: _array(model, tensor) for index, tensor in _kernel_tensors(model)}


def _groups(kernel: np.ndarray) -> np.ndarray:
    """(..., in) -> (..., groups, 4), with zeros for channels that are missing."""
    padding = [(0, 0)] * (kernel.ndim - 1) + [(0, -kernel.shape[-1] % 4)]
    return np.pad(kernel, padding).reshape(*kernel.shape[:-1], -1, 4)


def _break(kernel: np.ndarray) -> np.ndarray:
    changed = kernel.copy()
    group = changed.reshape(-1, kernel.shape[-1])[0, :3]
    group[group == 0] = 1
    return changed


def _keep(kernel: np.ndarray) -> np.ndarray:
    groups = np.maximum(_groups(kernel), -127)
    smallest = np.argsort(np.abs(groups), axis=-1, kind="stable")[..., :2]
    np.put_along_axis(groups, smallest, 0, axis=-1)
    return groups.reshape(*kernel.shape[:-1], -1)[..., : kernel.shape[-1]]


def _change(data: bytes, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
    model = parse(data)
    for tensor in {tensor.buffer: tensor for _, tensor in _kernel_tensors(model)}.values():
        changed = np.ascontiguousarray(change(_array(model, tensor)), np.int8)
        model.buffers[tensor.buffer].data = changed.view(np.uint8).reshape(-1)
    return pack(model)


def _kernel_tensors(model: Any) -> Iterator[tuple[int, Any]]:
    from ai_edge_litert import schema_py_generated as schema

    codes = {getattr(schema.BuiltinOperator, name) for name in _CONVOLVE}
    graph = model.subgraphs[0]
    for index, op in enumerate(graph.operators):
        code = model.operatorCodes[op.opcodeIndex]
        if max(code.builtinCode, code.deprecatedBuiltinCode) in codes:
            tensor = graph.tensors[op.inputs[1]]
            if tensor.type == schema.TensorType.INT8 and model.buffers[tensor.buffer].data is not None:
                yield index, tensor


def _array(model: Any, tensor: Any) -> np.ndarray:
    data = np.asarray(model.buffers[tensor.buffer].data, np.uint8)
    return data.view(np.int8).reshape([int(n) for n in tensor.shape])
