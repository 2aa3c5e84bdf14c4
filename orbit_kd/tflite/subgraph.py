"""A subgraph of a parsed .tflite file: its operators, their parameters, and constants as arrays.

Which constants are parameters. A constant (a tensor with data in the file) that a *compute operator* reads is one if

- its type is float16, float32, float64, int4, int8, uint8 or int16: kernels, float biases, PReLU slopes, the constants
  of Mul, Add and the like, also where a Dequantize or Densify operator stands between; or
- it is the int32 or int64 bias of a convolution, dense or recurrent layer (a quantized bias).

A constant that operators prepare when the file runs (TFLM_DECODE; see `prepared.py`) counts as what they make.

All other integer constants are shapes, axes, paddings and indices: they steer an operator and do not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.tflite.operators import CALLS, KERNEL_AND_BIAS, dtype_name, places
from orbit_kd.tflite.prepared import PreparedConstants
from orbit_kd.tflite.reader import operator_name

_PASS_ON = {"DEQUANTIZE", "DENSIFY"}


class Subgraph:
    """A subgraph (the main one, unless told otherwise), with the questions that are asked of it.

    Args:
        model: as `reader.parse` returns it.
        index: of the subgraph.

    Attributes:
        tensors: all of them; a tensor is known by its place in this list.
        operators: in execution order, without Dequantize, Densify and those that only prepare constants.
        inputs_of_graph, outputs_of_graph: tensors.
    """

    def __init__(self, model: Any, index: int = 0) -> None:
        self._model, self.index = model, index
        graph = model.subgraphs[index]
        self.tensors = list(graph.tensors)
        self._prepared = PreparedConstants(model, index)
        aside = [id(op) for op in self._prepared.makers]
        self.operators = [op for op in graph.operators if self.name(op) not in _PASS_ON and id(op) not in aside]
        self.inputs_of_graph, self.outputs_of_graph = list(map(int, graph.inputs)), list(map(int, graph.outputs))
        self._source = {int(op.outputs[0]): int(op.inputs[0]) for op in graph.operators if self.name(op) in _PASS_ON}

    def other(self, index: int) -> Subgraph:
        """Another subgraph of the same file."""
        return Subgraph(self._model, index)

    def name(self, op: Any) -> str:
        """Builtin name of an operator, e.g. "CONV_2D"."""
        return operator_name(self._model, op)

    def output_name(self, op: Any) -> str:
        """Name of the first output, or of the first input of an operator that has none; "" without either."""
        ends = [*self.outputs(op), *(int(i) for i in (() if op.inputs is None else op.inputs))]
        return self.tensor_name(ends[0]) if ends else ""

    def tensor_name(self, index: int) -> str:
        """Name of a tensor; its number in a file without names."""
        name = self.tensors[index].name
        return f"tensor {index}" if name is None else name.decode()

    def outputs(self, op: Any) -> list[int]:
        """Tensors that an operator makes; none of those that only assign a variable."""
        return [] if op.outputs is None else list(map(int, op.outputs))

    def inputs(self, op: Any) -> Iterator[tuple[int, int]]:
        """(position, tensor) of each constant input, seen through Dequantize and Densify."""
        for position, index in enumerate(() if op.inputs is None else op.inputs):
            index = int(index)
            while index in self._source:
                index = self._source[index]
            if index >= 0 and self.data(index) is not None:
                yield position, index

    def parameters(self, op: Any) -> list[int]:
        """Tensors of the operator's parameters, by the module's rule; those of custom operators are not known."""
        if self.name(op) == "CUSTOM" or self.name(op) in CALLS:
            return []
        biases = self._places(op)[1]
        return [
            index
            for position, index in self.inputs(op)
            if self.dtype(index) in ("float16", "float32", "float64", "int4", "int8", "uint8", "int16")
            or (position in biases and self.dtype(index) in ("int32", "int64"))
        ]

    def kernel(self, op: Any) -> int | None:
        """Tensor of the constant kernel; None for operators without one, and recurrent ones, which have several."""
        place = KERNEL_AND_BIAS.get(self.name(op), (None, None))[0]
        return next((index for position, index in self.inputs(op) if position == place), None)

    def kernels(self, op: Any) -> list[int]:
        """Tensors of all constant kernels."""
        places = self._places(op)[0]
        return [index for position, index in self.inputs(op) if position in places]

    def _places(self, op: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return places(self.name(op), inputs=0 if op.inputs is None else len(op.inputs))

    def dtype(self, index: int) -> str:
        """Type of a tensor as NumPy calls it, or the schema in small letters."""
        return dtype_name(self.tensors[index].type)

    def shape(self, index: int) -> tuple[int, ...]:
        """Shape of a tensor."""
        shape = self.tensors[index].shape
        return () if shape is None else tuple(int(n) for n in shape)

    def zero_point(self, index: int) -> Any:
        """Zero points, shaped to compare with the tensor; 0 for float."""
        quantization = self.tensors[index].quantization
        points = None if quantization is None else quantization.zeroPoint
        if points is None or len(points) == 0:
            return 0
        if len(points) == 1:
            return int(points[0])
        shape = [1] * len(self.shape(index))
        shape[quantization.quantizedDimension] = len(points)
        return np.asarray(points).reshape(shape)

    def count(self, index: int) -> tuple[int, int]:
        """(elements, non-zero elements) of a constant."""
        if self.tensors[index].sparsity is not None:  # what it stores are the non-zeros, with some padding zeros
            return math.prod(self.shape(index)), int(np.count_nonzero(self._values(index)))
        values = self.dense(index)
        return values.size, int(np.count_nonzero(values != self.zero_point(index)))

    def dense(self, index: int) -> np.ndarray:
        """The constant as an array.

        Raises:
            InputError: it is sparse-encoded.
        """
        if self.tensors[index].sparsity is not None:
            raise InputError(
                f"Constant {self.tensor_name(index)!r} is stored in TFLite's sparse encoding.",
                expected="a dense file: groups of zeros are checked where they stand",
                fix="convert without Optimize.EXPERIMENTAL_SPARSITY",
            )
        return self._values(index)[: math.prod(self.shape(index))].reshape(self.shape(index))

    def data(self, index: int) -> np.ndarray | None:
        """The bytes of a constant, decoded where it is coded; None for an activation.

        Raises:
            InputError: coded in a way that is not known here, or damaged.
        """
        if index in self._prepared.tensors:
            return self._prepared.values(index)
        data = self._model.buffers[self.tensors[index].buffer].data
        return None if data is None or len(data) == 0 else data

    def stored(self, index: int) -> tuple[int, int]:
        """Where the file holds a constant, as it is or coded: a buffer, which tensors may share, and a place in it."""
        if index in self._prepared.tensors:
            return self._prepared.stored(index)
        return self.tensors[index].buffer, 0

    def _values(self, index: int) -> np.ndarray:
        data = np.asarray(self.data(index), np.uint8)
        if self.dtype(index) == "int4":  # two to a byte, the low half first
            halves = np.stack([data & 15, data >> 4], axis=-1).reshape(-1).astype(np.int8)
            return np.where(halves > 7, halves - 16, halves).astype(np.int8)
        return data.view(self.dtype(index))
