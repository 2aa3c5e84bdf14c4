"""Twins of an int8 .tflite file that keep or break the 2:4 rule: from them come the cycles of both forms.

Vela has no option that forces a form. The rule is its own: groups of 4 consecutive input channels, aligned at 0, for
each (out, ky, kx), with at least 2 zeros each and no weight of -128; one bad group loses it for the whole operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from orbit_kd.support.n_of_m import grouped, nonzeros, ungrouped
from orbit_kd.tflite.reader import parse
from orbit_kd.tflite.subgraph import Subgraph
from orbit_kd.tflite.writer import set_constant, to_bytes

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
    bad = np.argwhere(nonzeros(kernel, 4) > 2)
    return None if not len(bad) else (*map(int, bad[0][:-1]), 4 * int(bad[0][-1]))


def kernels(data: bytes) -> dict[int, np.ndarray]:
    """Place of the operator -> its int8 kernel, (out, ..., in), of all that have one over input channels."""
    model = parse(data)
    graph = Subgraph(model)
    return {place: graph.dense(tensor) for place, tensor in _kernel_tensors(model, graph)}


def _break(kernel: np.ndarray) -> np.ndarray:
    changed = kernel.copy()
    group = changed.reshape(-1, kernel.shape[-1])[0, :3]
    group[group == 0] = 1
    return changed


def _keep(kernel: np.ndarray) -> np.ndarray:
    groups = np.maximum(grouped(kernel, 4), -127)
    smallest = np.argsort(np.abs(groups), axis=-1, kind="stable")[..., :2]
    np.put_along_axis(groups, smallest, 0, axis=-1)
    return ungrouped(groups, kernel.shape[-1])


def _change(data: bytes, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
    model = parse(data)
    graph = Subgraph(model)
    # kernels that share their constant are changed once
    for tensor in {graph.tensors[tensor].buffer: tensor for _, tensor in _kernel_tensors(model, graph)}.values():
        changed = change(graph.dense(tensor)).astype(np.int8)
        set_constant(model, graph.tensors[tensor], values=changed)
    return to_bytes(model)


def _kernel_tensors(model: Any, graph: Subgraph) -> Iterator[tuple[int, int]]:
    """(place of the operator as Vela counts them, kernel) of all operators with an int8 kernel over input channels."""
    for place, op in enumerate(model.subgraphs[0].operators):
        kernel = graph.kernel(op) if graph.name(op) in _CONVOLVE else None
        if kernel is not None and graph.dtype(kernel) == "int8":
            yield place, kernel
