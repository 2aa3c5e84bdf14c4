"""The int32 biases of all layers as one int16 constant, which two operators widen and part: half the bytes.

CAST and SPLIT_V stand at the beginning; a bias is in the tensor arena until its layer has read it. TFLM's SPLIT_V takes
the sizes from its outputs and only asks that there be a second input
(https://github.com/tensorflow/tflite-micro/blob/main/tensorflow/lite/micro/kernels/split_v.cc).
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any

import numpy as np

from orbit_kd.tflite.subgraph import Subgraph
from orbit_kd.tflite.writer import add_constant

# What a bias of its own takes besides its values (a buffer and two references to it), less its place among the outputs
# of SPLIT_V; and what both operators, their codes, three tensors and two buffers take.
_EACH, _ONCE = 16, 216


def join_biases(model: Any, tensors: Iterable[int]) -> list[int]:
    """Changes a parsed file so that its biases are stored as one constant, if that is smaller.

    Args:
        model: is changed.
        tensors: biases of the main graph that are read only when their layers run.

    Returns:
        Those that were joined.
    """
    from ai_edge_litert import schema_py_generated as schema

    graph, main, limits = Subgraph(model), model.subgraphs[0], np.iinfo(np.int16)
    users = collections.Counter(tensor.buffer for part in model.subgraphs for tensor in part.tensors)
    values = {i: graph.dense(i) for i in tensors if users[graph.tensors[i].buffer] == 1 and graph.dtype(i) == "int32"}
    fit = {i: v for i, v in values.items() if v.ndim == 1 and limits.min <= v.min() and v.max() <= limits.max}
    if sum(2 * v.size + _EACH for v in fit.values()) <= _ONCE:
        return []
    joined = np.concatenate(list(fit.values())).astype(np.int16)
    shape, first = np.array([joined.size], np.int32), len(main.tensors)
    main.tensors += [
        schema.TensorT(shape=shape, type=schema.TensorType.INT16, buffer=add_constant(model, joined)),
        schema.TensorT(shape=shape, type=schema.TensorType.INT32),
        schema.TensorT(type=schema.TensorType.INT32, buffer=add_constant(model, np.zeros(1, np.int32))),
    ]
    short, wide, axis = range(first, first + 3)
    for i in fit:
        main.tensors[i].buffer = 0
    main.operators = [
        _operator(model, "CAST", [short], [wide]),
        _operator(model, "SPLIT_V", [wide, axis, axis], list(fit)),
        *main.operators,
    ]
    return list(fit)


def _operator(model: Any, name: str, inputs: list[int], outputs: list[int]) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    model.operatorCodes.append(schema.OperatorCodeT(builtinCode=getattr(schema.BuiltinOperator, name)))
    ends = {side: np.array(end, np.int32) for side, end in (("inputs", inputs), ("outputs", outputs))}
    return schema.OperatorT(opcodeIndex=len(model.operatorCodes) - 1, **ends)
