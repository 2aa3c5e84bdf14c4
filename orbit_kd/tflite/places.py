"""Where the bytes of each tensor stand in a .tflite file: constants and quantization scales, for reading in place."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.tflite.operators import KERNEL_AND_BIAS, dtype_name
from orbit_kd.tflite.reader import operator_name, parse, told_if_damaged

# Numbers of fields in the schema's tables, as flatbuffers count them: 4 + 2 * place.
_BUFFER_DATA, _SCALE = 4, 8


@dataclasses.dataclass(frozen=True)
class Place:
    """A vector of numbers that a tensor has in the file.

    Attributes:
        graph: number of the subgraph.
        tensor: its place among the subgraph's tensors.
        name: of the tensor; its number where it has none.
        kind: "constant" for its values, "scale" for the scales of its quantization.
        dtype: of the numbers, as `Subgraph.dtype` says it; "float32" for scales.
        shape: of the values; (n,) for scales.
        axis: of the values along which the scales lie.
        start: offset in the file, in bytes.
        bytes: length.
    """

    graph: int
    tensor: int
    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    axis: int
    start: int
    bytes: int

    @property
    def end(self) -> int:
        """The offset after the last byte."""
        return self.start + self.bytes

    @property
    def numpy_dtype(self) -> np.dtype:
        """How the bytes are numbers: single bytes where NumPy has no such type (packed int4) or they are coded."""
        try:
            dtype = np.dtype(self.dtype).newbyteorder("<")
        except TypeError:
            return np.dtype(np.uint8)
        plain = dtype.kind in "iuf" and self.bytes == math.prod(self.shape) * dtype.itemsize
        return dtype if plain else np.dtype(np.uint8)


@told_if_damaged()
def places(data: bytes) -> list[Place]:
    """Every constant and every vector of scales of a file, in the order of its tensors.

    Tensors that share their bytes have a place each, which are equal in `start` and `bytes`.

    Raises:
        InputError: not a .tflite file, or a damaged one.
    """
    from ai_edge_litert import schema_py_generated as schema

    parse(data)
    model, found = schema.Model.GetRootAs(data, 0), []
    for number in range(model.SubgraphsLength()):
        graph = model.Subgraphs(number)
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            name = _name(tensor.Name(), index)
            shape = tuple(int(tensor.Shape(i)) for i in range(tensor.ShapeLength()))
            quantization = tensor.Quantization()
            axis = 0 if quantization is None else quantization.QuantizedDimension()
            about: dict[str, Any] = {"graph": number, "tensor": index, "name": name, "axis": axis}
            start, length = vector(model.Buffers(tensor.Buffer()), _BUFFER_DATA)
            if length:
                dtype = dtype_name(tensor.Type())
                found.append(Place(**about, kind="constant", dtype=dtype, shape=shape, start=start, bytes=length))
            start, length = (0, 0) if quantization is None else vector(quantization, _SCALE)
            if length:
                shape = (length,)
                found.append(Place(**about, kind="scale", dtype="float32", shape=shape, start=start, bytes=4 * length))
    if any(place.start < 8 or place.end > len(data) for place in found):
        raise InputError(
            "A tensor's bytes lie outside of the .tflite file.", expected="a whole file", fix="export the model again"
        )
    return found


def without(data: bytes, parts: list[Place]) -> bytes:
    """The file with zeros in those places: its structure alone, which still parses."""
    left = bytearray(data)
    for place in parts:
        left[place.start : place.end] = bytes(place.bytes)
    return bytes(left)


@told_if_damaged()
def bias_factors(data: bytes) -> dict[tuple[int, str], tuple[str, str]]:
    """Whose scales, multiplied, make those of a quantized bias: (graph, bias) -> input and kernel, by name.

    Raises:
        InputError: not a .tflite file, or a damaged one.
    """
    model, found = parse(data), {}
    for number, graph in enumerate(model.subgraphs):
        names = [_name(tensor.name, index) for index, tensor in enumerate(graph.tensors)]
        for op in graph.operators or []:
            operator = operator_name(model, op)
            kernel, bias = KERNEL_AND_BIAS.get(operator, (None, None))
            if kernel is not None and bias is not None and bias < len(op.inputs) and op.inputs[bias] >= 0:
                image = 2 if operator == "TRANSPOSE_CONV" else 0
                found[number, names[op.inputs[bias]]] = (names[op.inputs[image]], names[op.inputs[kernel]])
    return found


def _name(name: bytes | None, index: int) -> str:
    return f"tensor {index}" if name is None else name.decode()


def vector(table: Any, field: int) -> tuple[int, int]:
    """Offset in the file and number of elements of a vector in a table of the schema; (0, 0) where it has none.

    Args:
        table: as the schema's generated classes read it.
        field: 4 + 2 * its place among the table's fields.
    """
    offset = table._tab.Offset(field)
    return (table._tab.Vector(offset), table._tab.VectorLen(offset)) if offset else (0, 0)
