"""Scales that the converter (TensorFlow 2.21) sets wrong in int8 files, set right in the file.

Without a word, such a file is wrong by a tenth of its largest output and more, and LiteRT and TFLite Micro disagree:

- What an LSTM without projection puts out is its hidden state, yet output, state and the kernel's intermediate result
  get a scale each. Kernels write the bytes by one and read them by another.
- A cell state that stays below a half gets a step below 2**-15, for which LiteRT's kernel has no tanh.
- REVERSE_V2 moves bytes, but its output may get another scale than its input (before the Concatenate of a Bidirectional
  layer, which wants one scale for all).
- ONE_HOT copies its two values as bytes, but the "off" value's byte is 0 where zero is -128.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from orbit_kd.tflite.reader import code_name, operator_name
from orbit_kd.tflite.writer import add_constant

_PROJECTION, _STATE, _CELL, _HIDDEN = 16, 18, 19, 4  # places among an LSTM's inputs; the last among its intermediates
_SMALLEST_CELL_STEP = 2.0**-15


def mend_scales(model: Any) -> None:
    """Makes scales agree where int8 operators need it.

    Args:
        model: as `reader.parse` returns it; changed in place.
    """
    from ai_edge_litert import schema_py_generated as schema

    for graph in model.subgraphs:
        for op in list(graph.operators):
            name, output = operator_name(model, op), graph.tensors[op.outputs[0]]
            if output.type != schema.TensorType.INT8:
                continue
            if name == "UNIDIRECTIONAL_SEQUENCE_LSTM":
                _mend_lstm(graph, op)
            elif name == "REVERSE_V2" and _scale(graph.tensors[op.inputs[0]]) != _scale(output):
                _rescale_after(model, graph, op)
            elif name == "ONE_HOT":
                _mend_one_hot(model, graph, op)


def _mend_lstm(graph: Any, op: Any) -> None:
    if op.inputs[_PROJECTION] < 0:
        for index in (op.inputs[_STATE], op.intermediates[_HIDDEN]):
            graph.tensors[index].quantization = graph.tensors[op.outputs[0]].quantization
    cell = graph.tensors[op.inputs[_CELL]].quantization
    cell.scale = cell.scale.clip(min=_SMALLEST_CELL_STEP)


def _mend_one_hot(model: Any, graph: Any, op: Any) -> None:
    """Gives both values the bytes that stand for them at the output's scale."""
    output = graph.tensors[op.outputs[0]].quantization
    op.inputs = list(op.inputs)
    for place in (2, 3):
        value = copy.copy(graph.tensors[op.inputs[place]])
        (scale,), (zero,) = value.quantization.scale, value.quantization.zeroPoint
        stored = int(np.asarray(model.buffers[value.buffer].data, np.uint8).view(np.int8)[0])
        steps = np.clip(np.rint((stored - zero) * scale / output.scale[0]) + output.zeroPoint[0], -128, 127)
        value.buffer, value.quantization = add_constant(model, np.asarray([steps], np.int8)), output
        graph.tensors.append(value)
        op.inputs[place] = len(graph.tensors) - 1


def _rescale_after(model: Any, graph: Any, op: Any) -> None:
    """Lets the operator keep its input's scale, and a QUANTIZE bring its result to the output's."""
    from ai_edge_litert import schema_py_generated as schema

    source, place = graph.tensors[op.inputs[0]], op.outputs[0]
    moved = copy.copy(graph.tensors[place])
    moved.name, moved.quantization = moved.name + b"_moved", source.quantization
    graph.tensors.append(moved)
    op.outputs = [len(graph.tensors) - 1]
    rescale = schema.OperatorT()
    rescale.opcodeIndex, rescale.inputs, rescale.outputs = _quantize_code(model), list(op.outputs), [place]
    graph.operators.insert(next(i for i, other in enumerate(graph.operators) if other is op) + 1, rescale)


def _quantize_code(model: Any) -> int:
    """Index of QUANTIZE among the file's operators, added where it is missing."""
    from ai_edge_litert import schema_py_generated as schema

    for index, code in enumerate(model.operatorCodes):
        if code_name(code) == "QUANTIZE":
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.QUANTIZE
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _scale(tensor: Any) -> tuple[list[float], list[int]]:
    return list(tensor.quantization.scale), list(tensor.quantization.zeroPoint)
