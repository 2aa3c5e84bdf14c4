"""An int8 .tflite file as a list of calls: an operator, the tensors it reads and writes, its options."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.tflite.reader import parse, told_if_damaged
from orbit_kd.tflite.state import State, state_of
from orbit_kd.tflite.subgraph import Subgraph


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of the file.

    Attributes:
        index: its place in the file.
        name: as the file has it.
        shape: with the batch of 1.
        dtype: as NumPy calls it.
        scales: float32, one or one a channel; empty where it is not quantized.
        zeros: likewise.
        data: of a constant; None for an activation.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    scales: np.ndarray
    zeros: np.ndarray
    data: np.ndarray | None

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of memory."""
        return self.size * np.dtype(self.dtype).itemsize

    @property
    def scale(self) -> float:
        """The one scale, as a number of double precision; 0 for tensors without one."""
        return float(self.scales[0]) if len(self.scales) else 0.0

    @property
    def zero(self) -> int:
        """The one zero point."""
        return int(self.zeros[0]) if len(self.zeros) else 0


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """An operator where it stands in the file.

    Attributes:
        operator: TFLite's name, "CONV_2D".
        layer: its first output's name, for people.
        inputs: tensors, None where an optional one is left out.
        outputs: tensors.
        options: as the schema has them; None for operators without.
        op, code: the schema's objects.
    """

    operator: str
    layer: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    options: Any
    op: Any
    code: Any

    def input(self, place: int) -> Tensor:
        """An input that must be there.

        Raises:
            InputError: it is not.
        """
        if place < len(self.inputs) and (found := self.inputs[place]) is not None:
            return found
        raise self.refusal(f"has no input {place}", expected="a whole file", fix="export the model again")

    def constant(self, place: int) -> np.ndarray:
        """The values of an input that must be a constant.

        Raises:
            InputError: it is computed when the file runs.
        """
        data = self.input(place).data
        if data is None:
            raise self.refusal(
                f"computes its input {place} while it runs",
                expected="a constant there: shapes, axes, kernels",
                fix="build the model with a fixed input size, and export again",
            )
        return data

    @property
    def output(self) -> Tensor:
        """The first output."""
        return self.outputs[0]

    def refusal(self, what: str, *, expected: str, fix: str) -> InputError:
        """The error that says what this operator does that C99 cannot."""
        return InputError(f"{self.operator} {self.layer!r} {what}.", expected=expected, fix=fix)


@dataclasses.dataclass(frozen=True)
class Network:
    """A file's main graph.

    Attributes:
        calls: in execution order.
        inputs: tensors, in the file's order, which is Keras's.
        outputs: likewise.
    """

    calls: tuple[Call, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@told_if_damaged()
def read_network(data: bytes) -> Network:
    """The calls of a .tflite file.

    Raises:
        InputError: a damaged file, one that keeps something between inferences, one with another batch than 1.
    """
    model = parse(data)
    if state_of(model) is not State.NONE:
        raise InputError(
            "The file keeps variables from one inference to the next (LSTM, streaming).",
            expected="a network without memory: the C99 kernels have no state",
            fix="use the target tflm for it",
        )
    graph, codes = Subgraph(model), model.operatorCodes
    known: dict[int, Tensor] = {}

    def tensor(index: int) -> Tensor:
        if index not in known:
            known[index] = _tensor(graph, index)
        return known[index]

    calls = []
    for op in model.subgraphs[0].operators:
        inputs = tuple(tensor(int(i)) if int(i) >= 0 else None for i in (() if op.inputs is None else op.inputs))
        outputs = tuple(tensor(i) for i in graph.outputs(op))
        layer = _short(graph.output_name(op))
        calls.append(Call(graph.name(op), layer, inputs, outputs, op.builtinOptions, op, codes[op.opcodeIndex]))
    ports = [tuple(map(tensor, side)) for side in (graph.inputs_of_graph, graph.outputs_of_graph)]
    for port in (*ports[0], *ports[1]):
        if port.shape[:1] != (1,):
            raise InputError(
                f"The input or output {port.name!r} has the shape {port.shape}.",
                expected="a batch of 1, as a device has one image at a time",
                fix="export the model again: the targets here write a batch of 1",
            )
    return Network(tuple(calls), ports[0], ports[1])


def _tensor(graph: Subgraph, index: int) -> Tensor:
    quantization = graph.tensors[index].quantization
    known = quantization is not None and quantization.scale is not None
    scales = np.asarray(quantization.scale if known else [], np.float32)
    zeros = np.asarray(quantization.zeroPoint if known and quantization.zeroPoint is not None else [], np.int64)
    data = None if graph.data(index) is None else graph.dense(index)
    return Tensor(index, graph.tensor_name(index), graph.shape(index), graph.dtype(index), scales, zeros, data)


def _short(name: str) -> str:
    """A tensor's name, without the further names that fused operators leave behind a semicolon."""
    return name.split(";")[0][:80]
