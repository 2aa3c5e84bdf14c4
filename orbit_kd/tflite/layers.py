"""The layers with weights of an int8 .tflite file: kernels, biases, scales, and the scales of what goes in and out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.tflite.reader import parse, told_if_damaged
from orbit_kd.tflite.subgraph import Subgraph


@dataclasses.dataclass(frozen=True, eq=False)
class Int8Layer:
    """A layer with weights, as integer arithmetic has it.

    Attributes:
        name: of the operator's output tensor in the .tflite file.
        op: TFLite's name, "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", ...
        kernel: int8, (out, ky, kx, in) for convolutions, (1, ky, kx, channels) for depthwise ones, (out, in) for dense
            layers.
        bias: int32 (out,), in units of input scale * kernel scale; empty where the layer has none.
        scales: float32, of the kernel, one for each output channel or one.
        input, output: {"scale", "zero_point", "shape"} of the activations, real = (integer - zero_point) * scale.
    """

    name: str
    op: str
    kernel: np.ndarray
    bias: np.ndarray
    scales: np.ndarray
    input: dict[str, Any]
    output: dict[str, Any]


@told_if_damaged()
def int8_layers(data: bytes) -> list[Int8Layer]:
    """The layers with weights of an int8 .tflite file, in execution order.

    Raises:
        InputError: a kernel of another type, or with a zero point other than 0.
    """
    graph, layers = Subgraph(parse(data)), []
    for op in graph.operators:
        index = graph.kernel(op)
        if index is None:
            continue
        name, kernel = graph.output_name(op), graph.dense(index)
        if graph.dtype(index) != "int8" or np.any(graph.zero_point(index)):
            raise InputError(
                f"The kernel of {name[:80]!r} is {graph.dtype(index)}, zero points {graph.zero_point(index)}.",
                expected="int8 with zero points of 0",
                fix="export to tflite_int8 first",
            )
        constants = dict(graph.inputs(op))
        bias = next((i for i in constants.values() if graph.dtype(i) == "int32" and i != index), None)
        quantization = graph.tensors[index].quantization
        layers.append(
            Int8Layer(
                name=name,
                op=graph.name(op),
                kernel=kernel,
                bias=np.zeros(0, np.int32) if bias is None else graph.dense(bias),
                scales=np.asarray(quantization.scale, np.float32),
                input=_activation(graph, int(next(i for i in op.inputs if int(i) not in constants.values()))),
                output=_activation(graph, int(op.outputs[0])),
            )
        )
    return layers


def _activation(graph: Subgraph, index: int) -> dict[str, Any]:
    quantization = graph.tensors[index].quantization
    known = quantization is not None and quantization.scale is not None and len(quantization.scale) == 1
    return {
        "shape": list(graph.shape(index)),
        "scale": float(quantization.scale[0]) if known else None,
        "zero_point": int(quantization.zeroPoint[0]) if known else None,
    }
