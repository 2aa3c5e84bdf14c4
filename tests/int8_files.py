"""Int8 .tflite files written straight from the schema, in milliseconds and without TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from orbit_kd.tflite.writer import add_constant, to_bytes

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID
NONE, RELU, RELU6 = (getattr(schema.ActivationFunctionType, name) for name in ("NONE", "RELU", "RELU6"))


# operators that have one version; of the others the second has int8
_FIRST_VERSION = {"RESHAPE", "HARD_SWISH", "DEPTH_TO_SPACE"}


class Int8File:
    """A graph that grows by methods named after operators; each takes tensors (their numbers) and returns one."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self._model = schema.ModelT(version=3, operatorCodes=[], buffers=[schema.BufferT()])
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._inputs: list[int] = []

    def tensor(self, shape, *, scale=0.05, zero=0, dtype="INT8", values=None, scales=None, axis=0) -> int:
        """A tensor; a constant where it has values; `scales` one a channel of `axis`."""
        quantization = None
        if dtype not in ("INT32", "FLOAT32") or scales is not None:
            many = np.asarray([scale] if scales is None else scales, np.float32)
            zeros = np.full(len(many), zero, np.int64)
            quantization = schema.QuantizationParametersT(scale=many, zeroPoint=zeros, quantizedDimension=axis)
        buffer = 0 if values is None else add_constant(self._model, np.asarray(values))
        self._tensors.append(
            schema.TensorT(
                name=f"layer_{len(self._tensors)}".encode(),
                type=getattr(schema.TensorType, dtype),
                shape=np.array(shape, np.int32),
                buffer=buffer,
                quantization=quantization,
            )
        )
        return len(self._tensors) - 1

    def input(self, shape, **kind) -> int:
        self._inputs.append(self.tensor(shape, **kind))
        return self._inputs[-1]

    def numbers(self, *values: int) -> int:
        """An int32 constant: axes, sizes."""
        return self.tensor((len(values),), dtype="INT32", values=np.array(values, np.int32))

    def shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(int(n) for n in self._tensors[tensor].shape)

    def scale(self, tensor: int) -> float:
        return float(self._tensors[tensor].quantization.scale[0])

    def zero(self, tensor: int) -> int:
        return int(self._tensors[tensor].quantization.zeroPoint[0])

    def like(self, tensor: int, shape) -> dict[str, Any]:
        """Arguments of a tensor with another shape and the same scale."""
        return {"shape": shape, "scale": self.scale(tensor), "zero": self.zero(tensor)}

    def add_op(self, name: str, inputs: list[int], outputs: list[int], options: Any = None) -> int:
        code = schema.OperatorCodeT(
            builtinCode=getattr(schema.BuiltinOperator, name),
            deprecatedBuiltinCode=min(getattr(schema.BuiltinOperator, name), 127),
            version={"FULLY_CONNECTED": 4, "CONV_2D": 3}.get(name, 1 if name in _FIRST_VERSION else 2),
        )
        self._model.operatorCodes.append(code)
        kind = type(options).__name__[:-1] if options is not None else "NONE"
        self._operators.append(
            schema.OperatorT(
                opcodeIndex=len(self._model.operatorCodes) - 1,
                inputs=np.array(inputs, np.int32),
                outputs=np.array(outputs, np.int32),
                builtinOptionsType=getattr(schema.BuiltinOptions, kind),
                builtinOptions=options,
            )
        )
        return outputs[0]

    def bytes(self, *outputs: int) -> bytes:
        """The file; its outputs by default the last tensor that was made."""
        graph = schema.SubGraphT(
            tensors=self._tensors,
            operators=self._operators,
            inputs=np.array(self._inputs, np.int32),
            outputs=np.array(outputs or (len(self._tensors) - 1,), np.int32),
        )
        self._model.subgraphs = [graph]
        return to_bytes(self._model)

    # ---- operators ------------------------------------------------------------------------------------------------

    def weights(self, shape, *, axis: int, spread: float = 60.0, values=None) -> tuple[int, np.ndarray]:
        scales = self.rng.uniform(0.002, 0.02, shape[axis]).astype(np.float32)
        if values is None:
            values = np.clip(self.rng.normal(0, spread, shape), -127, 127)
        return self.tensor(shape, values=np.asarray(values, np.int8), scales=scales, axis=axis), scales

    def _bias_and_out(self, x: int, scales, fan_in: int, out_shape, bias: bool) -> tuple[int, int]:
        tensors = -1
        if bias:
            values = self.rng.integers(-3000, 3000, len(scales)).astype(np.int32)
            tensors = self.tensor((len(scales),), dtype="INT32", values=values, scales=self.scale(x) * scales)
        # about as wide as int8
        wide = self.scale(x) * float(scales.mean()) * 60 * 74 * np.sqrt(fan_in) / 50
        return tensors, self.tensor(out_shape, scale=wide, zero=int(self.rng.integers(-30, 30)))

    def conv(self, x, out_c, k=3, *, stride=1, dilation=1, padding=SAME, act=NONE, values=None, kw=None) -> int:
        _, h, w, c = self.shape(x)
        kernel, scales = self.weights((out_c, k, kw or k, c), axis=0, values=values)
        shape = (1, *(_out(n, k, stride, dilation, padding) for n, k in ((h, k), (w, kw or k))), out_c)
        b, out = self._bias_and_out(x, scales, k * (kw or k) * c, shape, True)
        options = schema.Conv2DOptionsT(
            padding=padding, strideH=stride, strideW=stride, fusedActivationFunction=act,
            dilationHFactor=dilation, dilationWFactor=dilation,
        )  # fmt: skip
        return self.add_op("CONV_2D", [x, kernel, b], [out], options)

    def depthwise(self, x, *, k=3, multiplier=1, stride=1, dilation=1, padding=SAME, act=NONE) -> int:
        _, h, w, c = self.shape(x)
        kernel, scales = self.weights((1, k, k, c * multiplier), axis=3)
        shape = (1, *(_out(n, k, stride, dilation, padding) for n in (h, w)), c * multiplier)
        b, out = self._bias_and_out(x, scales, k * k, shape, True)
        options = schema.DepthwiseConv2DOptionsT(
            padding=padding, strideH=stride, strideW=stride, fusedActivationFunction=act, depthMultiplier=multiplier,
            dilationHFactor=dilation, dilationWFactor=dilation,
        )  # fmt: skip
        return self.add_op("DEPTHWISE_CONV_2D", [x, kernel, b], [out], options)

    def transposed(self, x, out_c, *, k=3, stride=2, padding=SAME, bias=True) -> int:
        _, h, w, c = self.shape(x)
        kernel, scales = self.weights((out_c, k, k, c), axis=0)
        shape = (1, *(n * stride if padding == SAME else (n - 1) * stride + k for n in (h, w)), out_c)
        b, out = self._bias_and_out(x, scales, k * k * c / stride**2, shape, bias)
        options = schema.TransposeConvOptionsT(padding=padding, strideH=stride, strideW=stride)
        return self.add_op("TRANSPOSE_CONV", [self.numbers(*shape), kernel, x, *([b] if bias else [])], [out], options)

    def dense(self, x, outs, *, act=NONE, per_tensor=True, bias=True, rows=1) -> int:
        ins = int(np.prod(self.shape(x))) // rows
        kernel, scales = self.weights((outs, ins), axis=0)
        if per_tensor:
            self._tensors[kernel].quantization.scale = scales[:1]
            self._tensors[kernel].quantization.zeroPoint = np.zeros(1, np.int64)
            scales = np.repeat(scales[:1], outs)
        b, out = self._bias_and_out(x, scales, ins, (1, outs) if rows == 1 else (1, rows, outs), bias)
        options = schema.FullyConnectedOptionsT(fusedActivationFunction=act, keepNumDims=rows > 1)
        return self.add_op("FULLY_CONNECTED", [x, kernel, b], [out], options)

    def pool(self, x, kind, *, k=2, stride=2, padding=VALID, act=NONE) -> int:
        _, h, w, c = self.shape(x)
        shape = (1, *(_out(n, k, stride, 1, padding) for n in (h, w)), c)
        options = schema.Pool2DOptionsT(
            padding=padding, strideH=stride, strideW=stride, filterHeight=k, filterWidth=k, fusedActivationFunction=act
        )
        return self.add_op(f"{kind}_POOL_2D", [x], [self.tensor(**self.like(x, shape))], options)

    def reduce(self, x, kind, axes=(1, 2), *, scale=None, keep=False) -> int:
        gone = {axis % len(self.shape(x)) for axis in axes}
        kept = [(axis, n) for axis, n in enumerate(self.shape(x)) if keep or axis not in gone]
        shape = [1 if axis in gone else n for axis, n in kept]
        out = self.tensor(**{**self.like(x, shape), **({"scale": scale, "zero": 7} if scale else {})})
        return self.add_op(kind, [x, self.numbers(*axes)], [out], schema.ReducerOptionsT(keepDims=keep))

    def binary(self, name, a, b, *, act=NONE, scale=None) -> int:
        shape = np.broadcast_shapes(self.shape(a), self.shape(b))
        wide = scale or {
            "MUL": self.scale(a) * self.scale(b) * 90,
        }.get(name, (self.scale(a) + self.scale(b)) * 0.9)
        out = self.tensor(shape, scale=wide, zero=int(self.rng.integers(-20, 20)))
        return self.add_op(
            name, [a, b], [out], getattr(schema, f"{name.capitalize()}OptionsT")(fusedActivationFunction=act)
        )

    def unary(self, name, x, *, scale=None, zero=0, options=None) -> int:
        return self.add_op(name, [x], [self.tensor(self.shape(x), scale=scale or self.scale(x), zero=zero)], options)

    def softmax(self, x, beta=1.0) -> int:
        return self.unary("SOFTMAX", x, scale=1 / 256, zero=-128, options=schema.SoftmaxOptionsT(beta=beta))

    def moved(self, name, x, shape, *, more=(), options=None) -> int:
        return self.add_op(name, [x, *more], [self.tensor(**self.like(x, shape))], options)

    def reshape(self, x, shape) -> int:
        return self.moved(
            "RESHAPE", x, shape, more=[self.numbers(*shape)], options=schema.ReshapeOptionsT(newShape=shape)
        )

    def concat(self, parts, axis=3) -> int:
        shape = list(self.shape(parts[0]))
        shape[axis] = sum(self.shape(p)[axis] for p in parts)
        out = self.tensor(**self.like(parts[0], shape))
        return self.add_op("CONCATENATION", list(parts), [out], schema.ConcatenationOptionsT(axis=axis))

    def pad(self, x, pairs) -> int:
        values = np.array(pairs, np.int32)
        paddings = self.tensor(values.shape, dtype="INT32", values=values)
        shape = [n + a + b for n, (a, b) in zip(self.shape(x), pairs, strict=True)]
        return self.moved("PAD", x, shape, more=[paddings], options=schema.PadOptionsT())

    def resize(self, x, kind, size, *, align=False, half=False) -> int:
        shape = (1, *size, self.shape(x)[3])
        kinds = {"NEAREST": "ResizeNearestNeighborOptionsT", "BILINEAR": "ResizeBilinearOptionsT"}
        options = getattr(schema, kinds[kind])(alignCorners=align, halfPixelCenters=half)
        name = {"NEAREST": "RESIZE_NEAREST_NEIGHBOR", "BILINEAR": "RESIZE_BILINEAR"}[kind]
        return self.moved(name, x, shape, more=[self.numbers(*size)], options=options)

    def requantize(self, x, *, scale, zero, dtype="INT8") -> int:
        out = self.tensor(self.shape(x), scale=scale, zero=zero, dtype=dtype)
        return self.add_op("QUANTIZE", [x], [out], schema.QuantizeOptionsT())

    def dequantize(self, x) -> int:
        return self.add_op(
            "DEQUANTIZE", [x], [self.tensor(self.shape(x), dtype="FLOAT32")], schema.DequantizeOptionsT()
        )


def _out(size: int, kernel: int, stride: int, dilation: int, padding: int) -> int:
    if padding == SAME:
        return -(-size // stride)
    return (size - (kernel - 1) * dilation - 1) // stride + 1


Build = Callable[[Int8File, int], int]
