"""Takes out of a parsed .tflite file what TensorFlow Lite Micro does not read.

What it reads was looked up in its allocator and kernels
(https://github.com/tensorflow/tflite-micro/blob/main/tensorflow/lite/micro/micro_allocator.cc): no names, signatures,
descriptions, versions of operators or ranges of calibration; one zero point where all channels have the same; of biases
no quantization, as the kernels take it from input and kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from orbit_kd.tflite.operators import KERNEL_AND_BIAS
from orbit_kd.tflite.reader import code_number
from orbit_kd.tflite.subgraph import Subgraph
from orbit_kd.tflite.writer import renumber_codes

# Layers whose kernels and biases are read when they run, and not when they are prepared.
LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
_LARGEST_UNCHECKED = 0.02


def trim(model: Any, *, keep: tuple[bytes, ...] = ()) -> None:
    """Changes `model`, as `reader.parse` gave it, so that only TensorFlow Lite Micro runs it, with the same results.

    Args:
        model: a parsed file.
        keep: entries of the metadata that stay.
    """
    model.description = model.signatureDefs = model.metadataBuffer = None
    model.metadata = [entry for entry in model.metadata or [] if entry.name in keep] or None
    for index in range(len(model.subgraphs)):
        graph = Subgraph(model, index)
        for op in graph.operators:
            if graph.name(op) in LAYERS:
                _trim_layer(graph, op)
        model.subgraphs[index].name = None
        for tensor in graph.tensors:
            _trim_tensor(tensor)
        for op in model.subgraphs[index].operators:
            op.inputs, op.outputs = (_vector(side) for side in (op.inputs, op.outputs))
            op.mutatingVariableInputs = None
            if op.intermediates is not None and not len(op.intermediates):
                op.intermediates = None
        model.subgraphs[index].inputs = _vector(model.subgraphs[index].inputs)
        model.subgraphs[index].outputs = _vector(model.subgraphs[index].outputs)
    renumber_codes(model)
    for code in model.operatorCodes:
        code.builtinCode = code_number(code)
        code.deprecatedBuiltinCode, code.version = 0, 1
    _renumber_buffers(model)


def _trim_layer(graph: Subgraph, op: Any) -> None:
    """The quantization of a layer's kernel and bias."""
    kernel, bias = (int(op.inputs[i]) if i and i < len(op.inputs) else -1 for i in KERNEL_AND_BIAS[graph.name(op)])
    quantization = None if kernel < 0 else graph.tensors[kernel].quantization
    if quantization is None or quantization.scale is None:
        return
    scales = np.unique(np.asarray(quantization.scale, np.float32))
    # A dense layer with one scale compares its bias's scale with those of input and kernel, where that could matter:
    # GetQuantizedConvolutionMultipler in lite/kernels/kernel_util.cc
    free = True
    if graph.name(op) == "FULLY_CONNECTED" and len(scales) == 1:
        ends = [graph.tensors[int(i)].quantization for i in (op.inputs[0], op.outputs[0])]
        known = all(end is not None and end.scale is not None and len(end.scale) for end in ends)
        free = known and float(ends[0].scale[0]) * float(scales[0]) <= _LARGEST_UNCHECKED * float(ends[1].scale[0])
    if len(scales) == 1 and free and graph.name(op) != "TRANSPOSE_CONV":
        quantization.scale, quantization.quantizedDimension = scales, 0
    if bias >= 0 and free and graph.dtype(bias) == "int32":
        graph.tensors[bias].quantization = None


def _trim_tensor(tensor: Any) -> None:
    tensor.name = tensor.shapeSignature = None
    tensor.hasRank = False
    tensor.shape = _vector(tensor.shape)
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None or not len(quantization.scale):
        tensor.quantization = None
        return
    quantization.min = quantization.max = None
    quantization.scale = np.asarray(quantization.scale, np.float32)
    points = np.asarray(quantization.zeroPoint, np.int64)
    quantization.zeroPoint = points[:1] if len(np.unique(points)) == 1 else points
    if len(quantization.scale) == 1:
        quantization.quantizedDimension = 0


def _renumber_buffers(model: Any) -> None:
    """Buffers that are used; all empty ones are the first."""
    from ai_edge_litert import schema_py_generated as schema

    holders = [tensor for graph in model.subgraphs for tensor in graph.tensors] + list(model.metadata or [])
    full = {i for i, buffer in enumerate(model.buffers) if buffer.data is not None and len(buffer.data)}
    order = [0, *sorted({holder.buffer for holder in holders} & full)]
    for holder in holders:
        holder.buffer = order.index(holder.buffer) if holder.buffer in full else 0
    model.buffers = [schema.BufferT(), *(model.buffers[i] for i in order[1:])]


def _vector(values: Any) -> np.ndarray | None:
    """Numbers as the array that the builder shares."""
    return None if values is None else np.asarray(values, np.int32)
