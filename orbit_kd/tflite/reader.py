"""What is in a .tflite file: weights, zeros and multiply-accumulates, read from the flatbuffer, with no interpreter.

Which constants are parameters. A constant (a tensor with data in the file) that a *compute operator* reads is one if

- its type is float16, float32, float64, int4, int8, uint8 or int16: kernels, float biases, PReLU slopes, the constants
  of Mul, Add and the like, also where a Dequantize or Densify operator stands between; or
- it is the int32 or int64 bias of a convolution, dense or recurrent layer (a quantized bias).

All other integer constants are shapes, axes, paddings and indices: they steer an operator and do not count. A constant
that several operators share is stored once and counts once in the totals, and in each of its operators in the table.
The bodies of loops (GRU, SimpleRNN, ConvLSTM), branches and calls count with the operator that runs them.
What the file holds counts: BatchNormalization is folded, and the converter adds a bias of zeros to convolutions without
one, drops such a bias from dense layers, and moves a bias through linear layers.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.tflite.subgraphs import CALLS, walk

# Where the kernel and the bias stand in the inputs of the operators that multiply and accumulate.
_KERNEL_AND_BIAS = {
    "CONV_2D": (1, 2),
    "DEPTHWISE_CONV_2D": (1, 2),
    "CONV_3D": (1, 2),
    "FULLY_CONNECTED": (1, 2),
    "TRANSPOSE_CONV": (1, 3),
    "BATCH_MATMUL": (1, None),
}
# The same of recurrent operators, which have several of each, and multiply them at every time step.
_LSTM = ((*range(1, 9), 16), (*range(12, 16), 17))
_RECURRENT: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _LSTM,
    "LSTM": _LSTM,
    "BASIC_LSTM": ((2,), (3,)),
    "BIDIRECTIONAL_SEQUENCE_LSTM": (
        (*range(1, 9), 16, *range(18, 26), 33, *range(40, 48)),
        (*range(12, 16), 17, *range(29, 33), 34),
    ),
    "UNIDIRECTIONAL_SEQUENCE_RNN": ((1, 2), (3,)),
    "BIDIRECTIONAL_SEQUENCE_RNN": ((1, 2, 5, 6, 10, 11), (3, 7)),
    "RNN": ((1, 2), (3,)),
    "SVDF": ((1, 2), (3,)),
}
_PASS_ON = {"DEQUANTIZE", "DENSIFY"}
_FILE_IDENTIFIER = b"TFL3"


@dataclasses.dataclass(frozen=True)
class Op:
    """One operator of the graph, in execution order.

    Attributes:
        op: builtin name as in the schema, e.g. "CONV_2D".
        name: name of its first output tensor; of its first input where it has no output (ASSIGN_VARIABLE).
        weight_shape: shape of the kernel as stored, (out, ky, kx, in) for convolutions, (out, in) for dense layers; of
            the first kernel of recurrent layers; empty for operators without one.
        dtype: of the kernel, or of the first parameter where there is no kernel; "" without parameters.
        params: elements of its parameters (see the module's rule).
        nonzero: those != 0 (float) or != zero point (quantized).
        macs: multiply-accumulates at batch 1, zeros counted; 0 for all but convolutions, dense and recurrent layers
            and products of activations (attention); NaN in a loop or branch of which the file does not tell how often
            it runs.
        macs_nonzero: the same with the kernel's zeros left out.
        output_shape: of the first output.
        output_dtype: of the first output.
        scales: the kernel's quantization scales, one per channel or one; empty for float.
        zero_points: likewise.
        quantized_dimension: axis of the per-channel scales; None where there is at most one scale.
        graph: 0 in the main graph; else the number of the subgraph, whose rows follow the operator that runs it.
    """

    op: str
    name: str
    weight_shape: tuple[int, ...]
    dtype: str
    params: int
    nonzero: int
    macs: float
    macs_nonzero: float
    output_shape: tuple[int, ...]
    output_dtype: str
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    quantized_dimension: int | None
    graph: int = 0

    @property
    def density(self) -> float | None:
        """nonzero / params; None without parameters."""
        return self.nonzero / self.params if self.params else None


@dataclasses.dataclass(frozen=True)
class TfliteSummary:
    """The measured content of one .tflite file.

    Attributes:
        bytes: file size, not compressed.
        params: elements of all parameters, each constant once.
        nonzero_params: those != 0.
        macs: multiply-accumulates of convolutions, dense and recurrent layers and attention, batch 1; NaN where a loop
            or branch runs nobody knows how often.
        macs_nonzero: the same with zeros of the kernels left out.
        sparse: some constant is stored in TFLite's sparse encoding, which TFLM and Vela cannot read.
        ops: one row an operator.
    """

    bytes: int
    params: int
    nonzero_params: int
    macs: float
    macs_nonzero: float
    sparse: bool
    ops: tuple[Op, ...]

    @property
    def density(self) -> float:
        """nonzero_params / params."""
        return self.nonzero_params / self.params if self.params else 1.0

    def __str__(self) -> str:
        rows = [f"{'operator':<20}{'kernel':<20}{'dtype':<9}{'params':>12}{'density':>9}{'MACs':>14}"]
        for op in self.ops:
            shape = "x".join(map(str, op.weight_shape))
            density = "" if op.density is None else f"{op.density:.3f}"
            name = f"{'  ' if op.graph else ''}{op.op}"
            name = f"{name:<20}" if len(name) < 20 else f"{name} "
            rows.append(f"{name}{shape:<20}{op.dtype:<9}{op.params:>12,}{density:>9}{count_text(op.macs):>14}")
        total = f"{self.params:>12,}{self.density:>9.3f}{count_text(self.macs):>14}"
        rows.append(f"{'total':<49}{total}  {self.bytes:,} bytes")
        return "\n".join(rows)


def read(path_or_bytes: str | os.PathLike[str] | bytes) -> TfliteSummary:
    """Reads a .tflite file.

    Raises:
        InputError: it does not exist or is no .tflite file.
    """
    data = read_bytes(path_or_bytes)
    main = Graph(parse(data))
    ops: list[Op] = []
    stored: dict[int, tuple[int, int]] = {}
    sparse = any(tensor.sparsity is not None for tensor in main.tensors)
    for graph, op, times in walk(main):
        ops.append(graph.row(op, times))
        stored |= {graph.tensors[i].buffer: graph.count(i) for i in graph.parameters(op)}
        sparse |= graph is not main and any(tensor.sparsity is not None for tensor in graph.tensors)
    counts = stored.values()
    return TfliteSummary(
        bytes=len(data),
        params=sum(n for n, _ in counts),
        nonzero_params=sum(n for _, n in counts),
        macs=sum(op.macs for op in ops),
        macs_nonzero=sum(op.macs_nonzero for op in ops),
        sparse=sparse,
        ops=tuple(ops),
    )


def count_text(n: float) -> str:
    """A count with commas; "?" where it is not known."""
    return "?" if math.isnan(n) else f"{n:,.0f}"


class State(enum.Enum):
    """What a file keeps from one inference to the next.

    TENSORS: variable tensors (LSTM, SVDF), which begin as zeros and which runtimes can reset. RESOURCES: variables that
    operators read and assign (streaming networks), whose first values `CALL_ONCE` sets.
    """

    NONE = "none"
    TENSORS = "tensors"
    RESOURCES = "resources"


def state_of(model: Any) -> State:
    """What a parsed file keeps from one inference to the next."""
    graphs = [Graph(model, index) for index in range(len(model.subgraphs))]
    if any(graph.name(op) == "VAR_HANDLE" for graph in graphs for op in graph.operators):
        return State.RESOURCES
    return State.TENSORS if any(tensor.isVariable for graph in graphs for tensor in graph.tensors) else State.NONE


def read_bytes(path_or_bytes: str | os.PathLike[str] | bytes) -> bytes:
    """The content of a file, or the bytes themselves.

    Raises:
        InputError: the file does not exist or cannot be read.
    """
    if isinstance(path_or_bytes, (bytes, bytearray)):
        return bytes(path_or_bytes)
    try:
        return Path(path_or_bytes).read_bytes()
    except TypeError as error:
        raise InputError(
            f"This is a {type(path_or_bytes).__name__}, not a file.",
            expected="the path or the bytes of an exported file",
            fix="export the model first: okd.export(model, 'tflite_float32', path='model.tflite')",
        ) from error
    except OSError as error:
        raise InputError(
            f"Cannot read {path_or_bytes}: {error.strerror or error}.",
            expected="a .tflite file",
            fix="check the path",
        ) from error


def parse(data: bytes) -> Any:
    """The flatbuffer as the schema's `ModelT` object.

    Raises:
        InputError: not a .tflite file, or a damaged one.
    """
    from ai_edge_litert import schema_py_generated as schema

    problem = f"its bytes 4 to 7 are {data[4:8]!r}"
    if data[4:8] == _FILE_IDENTIFIER:
        try:
            model = schema.ModelT.InitFromPackedBuf(data, 0)
            if model.subgraphs and all(buffer.offset <= 1 for buffer in model.buffers):
                return model
            problem = "it has no graph, or keeps its weights outside the flatbuffer"
        except Exception as error:  # a damaged flatbuffer sends the reader anywhere
            problem = f"reading it fails with {type(error).__name__}: {error}"
    raise InputError(
        f"Not a .tflite file: {problem}.",
        expected='a whole flatbuffer with the identifier b"TFL3"',
        fix="export the model again, for example okd.export(model, 'tflite_int8', path=..., calibration=...)",
    )


class Graph:
    """A subgraph (the main one, unless told otherwise), with the questions the counts ask."""

    def __init__(self, model: Any, index: int = 0) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
        self._types = {v: k.lower() for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
        self._codes = model.operatorCodes
        self._buffers = model.buffers
        self._model, self.index = model, index
        graph = model.subgraphs[index]
        self.tensors = list(graph.tensors)
        self.operators = [op for op in graph.operators if self.name(op) not in _PASS_ON]
        self.inputs_of_graph, self.outputs_of_graph = list(map(int, graph.inputs)), list(map(int, graph.outputs))
        self._source = {int(op.outputs[0]): int(op.inputs[0]) for op in graph.operators if self.name(op) in _PASS_ON}

    def other(self, index: int) -> Graph:
        """Another subgraph of the same file."""
        return Graph(self._model, index)

    def name(self, op: Any) -> str:
        code = self._codes[op.opcodeIndex]
        return self._names[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def output_name(self, op: Any) -> str:
        """Name of the first output, or of the first input of an operator that has none; "" without either."""
        ends = [*self.outputs(op), *(int(i) for i in (() if op.inputs is None else op.inputs))]
        return self.tensors[ends[0]].name.decode() if ends else ""

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
        place = _KERNEL_AND_BIAS.get(self.name(op), (None, None))[0]
        return next((index for position, index in self.inputs(op) if position == place), None)

    def kernels(self, op: Any) -> list[int]:
        """Tensors of all constant kernels."""
        places = self._places(op)[0]
        return [index for position, index in self.inputs(op) if position in places]

    def _places(self, op: Any) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
        """Where kernels and biases stand among the inputs."""
        name = self.name(op)
        name = "BASIC_LSTM" if name == "LSTM" and len(op.inputs) == 5 else name
        kernel, bias = _KERNEL_AND_BIAS.get(name, (None, None))
        return _RECURRENT.get(name, ((kernel,), (bias,)))

    def dtype(self, index: int) -> str:
        return self._types[self.tensors[index].type]

    def shape(self, index: int) -> tuple[int, ...]:
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
                f"Constant {self.tensors[index].name.decode()!r} is stored in TFLite's sparse encoding.",
                expected="a dense file: groups of zeros are checked where they stand",
                fix="convert without Optimize.EXPERIMENTAL_SPARSITY",
            )
        return self._values(index)[: math.prod(self.shape(index))].reshape(self.shape(index))

    def row(self, op: Any, times: float = 1) -> Op:
        """What is told of an operator that runs so many times for one image."""
        parameters = self.parameters(op)
        counts = [self.count(i) for i in parameters]
        kernels, outputs = self.kernels(op), self.outputs(op)
        kernel = kernels[0] if kernels else None
        output = self.shape(outputs[0]) if outputs else ()
        macs, macs_nonzero = (_times(n, times) for n in self._macs(op, output))
        typed = kernel if kernel is not None else parameters[0] if parameters else None
        quantization = None if kernel is None else self.tensors[kernel].quantization
        scales = () if quantization is None or quantization.scale is None else tuple(map(float, quantization.scale))
        points = () if quantization is None or quantization.zeroPoint is None else quantization.zeroPoint
        return Op(
            op=self.name(op),
            name=self.output_name(op),
            weight_shape=() if kernel is None else self.shape(kernel),
            dtype="" if typed is None else self.dtype(typed),
            params=sum(n for n, _ in counts),
            nonzero=sum(n for _, n in counts),
            macs=macs,
            macs_nonzero=macs_nonzero,
            output_shape=output,
            output_dtype=self.dtype(outputs[0]) if outputs else "",
            scales=scales,
            zero_points=tuple(int(z) for z in points),
            quantized_dimension=quantization.quantizedDimension
            if quantization is not None and len(scales) > 1
            else None,
            graph=self.index,
        )

    def _macs(self, op: Any, output: tuple[int, ...]) -> tuple[int, int]:
        """Multiply-accumulates of one run, with and without the zeros of constant kernels."""
        name = self.name(op)
        if name in _RECURRENT:  # at every time step
            sizes = [self.count(i) for i in self.kernels(op)]
            steps = math.prod(self.shape(int(op.inputs[0]))[:-1])
            return steps * sum(n for n, _ in sizes), steps * sum(n for _, n in sizes)
        if name not in _KERNEL_AND_BIAS:
            return 0, 0
        kernel = self.kernel(op)
        if kernel is not None:
            elements, nonzero = self.count(kernel)
        else:  # a product of two activations, as in attention
            kernel = int(op.inputs[_KERNEL_AND_BIAS[name][0]])
            elements = nonzero = math.prod(self.shape(kernel))
        # at every output position; of a transposed convolution, at every input position
        positions = math.prod((self.shape(int(op.inputs[2])) if name == "TRANSPOSE_CONV" else output)[:-1])
        if name == "BATCH_MATMUL":  # its kernel may have batch axes of its own
            positions //= math.prod(self.shape(kernel)[:-2])
        return positions * elements, positions * nonzero

    def data(self, index: int) -> np.ndarray | None:
        data = self._buffers[self.tensors[index].buffer].data
        return None if data is None or len(data) == 0 else data

    def _values(self, index: int) -> np.ndarray:
        data = np.asarray(self.data(index), np.uint8)
        if self.dtype(index) == "int4":  # two to a byte, the low half first
            halves = np.stack([data & 15, data >> 4], axis=-1).reshape(-1).astype(np.int8)
            return np.where(halves > 7, halves - 16, halves).astype(np.int8)
        return data.view(self.dtype(index))


def _times(count: int, times: float) -> float:
    """An int wherever it is known."""
    if math.isnan(times):
        return math.nan if count else 0
    return count * int(times)
