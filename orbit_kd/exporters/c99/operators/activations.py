"""Functions of one value, from tables of 256 values that LiteRT's reference kernels themselves fill; and softmax."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np

from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.exporters.c99.network import Call, Tensor
from orbit_kd.exporters.c99.steps import Choice, Fields, Step, operator
from orbit_kd.tflite.writer import add_constant, to_bytes

_UNARY = ("ABS", "ELU", "EXP", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOG", "LOGISTIC", "NEG", "RELU", "RELU6",
          "RELU_0_TO_1", "RELU_N1_TO_1", "RSQRT", "SQRT", "TANH")  # fmt: skip
_INTEGER_BITS = 5  # of the argument of exp(): Q5.26, kScaledDiffIntegerBits in reference/softmax.h
_MOST = 511  # values of a softmax, each up to 2**19 in a sum that has 28 bits


@operator(*_UNARY)
def by_table(call: Call, choice: Choice) -> list[Step]:
    """Any operator of one activation whose elements do not see each other."""
    source = next(t for t in call.inputs if t is not None and t.data is None)
    fields: Fields = {"size": call.output.size, "table": _table(call, source)}
    return [Step.of(call, "orbit_lookup_s8", "lookup.c", "orbit_lookup", fields, source, in_place=True)]


@operator("SOFTMAX")
def softmax(call: Call, choice: Choice) -> list[Step]:
    """Over the last axis."""
    source, out = call.input(0), call.output
    if (out.scale, out.zero) != (1 / 256, -128):
        raise call.refusal(
            f"has an output of scale {out.scale} and zero point {out.zero}",
            expected="1/256 and -128, as the converter writes them",
            fix="export the model again",
        )
    if source.shape[-1] > _MOST:
        raise call.refusal(
            f"is over {source.shape[-1]} values",
            expected=f"at most {_MOST}: with more, equal ones leave the numbers that TFLite's int8 arithmetic has for "
            "their sum, and LiteRT's reference kernel ends its process",
            fix="export the network without its softmax: the largest score stays the largest",
        )
    # PreprocessSoftmaxScaling and CalculateInputRadius in lite/kernels/internal/quantization_util.cc
    real = min(call.options.beta * source.scale * 2 ** (31 - _INTEGER_BITS), 2.0**31 - 1)
    if real <= 1:
        raise call.refusal(
            f"has an input of scale {source.scale}, so small that all outputs are alike",
            expected="inputs that vary", fix="calibrate with real, varied images",
        )  # fmt: skip
    fraction, shift = math.frexp(real)
    multiplier = math.floor(fraction * 2**31 + 0.5)
    if multiplier == 2**31:
        multiplier, shift = multiplier // 2, shift + 1
    radius = math.floor((2**_INTEGER_BITS - 1) * 2.0 ** (31 - _INTEGER_BITS) / 2.0**shift)
    depth = out.shape[-1]
    fields = {"rows": out.size // depth, "depth": depth, "multiplier": multiplier, "shift": shift, "diff_min": -radius}
    return [Step.of(call, "orbit_softmax_s8", "softmax.c", "orbit_softmax", fields, source, in_place=True)]


def is_unary(call: Call) -> bool:
    """Whether an operator of two operands is a function of one value: the other is a constant of one element."""
    return [t.size for t in call.inputs if t is not None and t.data is not None] == [1]


def _table(call: Call, source: Tensor) -> np.ndarray:
    """int8 (256,): what LiteRT makes of the bytes 0 to 255.

    Raises:
        InputError: its reference kernels do not run the operator.
    """
    given = np.arange(256, dtype=np.uint8).view(source.dtype)[None]
    try:
        return runtimes.load(_alone(call, source), runtime="litert_reference").raw(given)[0].view(np.int8)
    except InputError as error:
        raise call.refusal(
            "is not run by LiteRT's reference kernels, which fill its table",
            expected="an operator that they have in int8",
            fix="replace the activation by ReLU, tanh or sigmoid",
        ) from error


def _alone(call: Call, source: Tensor) -> bytes:
    """A .tflite file of the operator alone, for 256 values at once."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT(version=3, operatorCodes=[copy.copy(call.code)], buffers=[schema.BufferT()])
    tensors: list[Any] = []
    for tensor in (*call.inputs, call.output):
        if tensor is None:
            raise call.refusal("leaves out an input", expected="all of them", fix="export the model again")
        constant = tensor.data is not None
        tensors.append(
            schema.TensorT(
                name=str(len(tensors)).encode(),
                type=getattr(schema.TensorType, tensor.dtype.upper()),
                shape=np.array(tensor.shape if constant else (1, 256), np.int32),
                buffer=add_constant(model, tensor.data) if constant and tensor.data is not None else 0,
                quantization=schema.QuantizationParametersT(
                    scale=tensor.scales, zeroPoint=tensor.zeros, quantizedDimension=0
                ),
            )
        )
    op = copy.copy(call.op)
    op.opcodeIndex, count = 0, len(tensors) - 1
    op.inputs, op.outputs, op.intermediates = np.arange(count, dtype=np.int32), np.array([count], np.int32), None
    inputs = np.array([call.inputs.index(source)], np.int32)
    model.subgraphs = [schema.SubGraphT(tensors=tensors, inputs=inputs, outputs=op.outputs, operators=[op])]
    return to_bytes(model)
