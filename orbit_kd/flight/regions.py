"""Where the parts of a .tflite file lie: which bytes are weights, biases, scales, and what holds them together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.tflite.operators import places
from orbit_kd.tflite.places import vector
from orbit_kd.tflite.reader import is_decode, parse, told_if_damaged
from orbit_kd.tflite.subgraph import Subgraph

REGIONS = ("weights", "biases", "scales", "structure")
_WIDTHS = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "int16": 2}
_DATA, _SCALE, _ZERO_POINT = 4, 8, 10  # places of fields in the schema's tables Buffer and QuantizationParameters


@dataclasses.dataclass(frozen=True)
class Span:
    """Bytes of a file that belong together.

    Attributes:
        start, stop: in bytes, from the beginning of the file.
        region: "weights" (kernels and other constants that are computed with, coded or not), "biases", "scales" (scales
            and zero points) or "structure" (all else: tables, offsets, names, shapes, notes).
        layer: the output of the operator that reads them; "" for the structure.
        width: bytes of one number.
    """

    start: int
    stop: int
    region: str
    layer: str
    width: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stop - self.start


def spans(data: bytes) -> list[Span]:
    """All bytes of a .tflite file, each in one span, in the order of the file.

    What several layers share (equal zero points, a table of codes) is of the first one.

    Raises:
        InputError: no .tflite file, or a damaged one.
    """
    model = parse(data)
    with told_if_damaged():
        found: dict[int, Span] = {}
        for span in (*_constants(data, model), *_scales(data, model)):
            if span.size and span.start not in found:
                found[span.start] = span
        out, at = [], 0
        for start in sorted(found):
            if start < at:
                raise InputError("Constants of the file overlap.", expected="each in a place of its own",
                                 fix="export the model again")  # fmt: skip
            out += [Span(at, start, "structure", "", 1)] * (start > at) + [found[start]]
            at = found[start].stop
        return out + [Span(at, len(data), "structure", "", 1)] * (at < len(data))


class Field:
    """The bits of a file that a cell may flip."""

    def __init__(self, found: Sequence[Span], bit: int | None) -> None:
        starts = [np.arange(s.start, s.stop, 1 if bit is None else s.width) for s in found]
        self._bytes, self._bit = np.concatenate(starts), bit
        self.size = len(self._bytes) * (8 if bit is None else 1)

    def drawn(self, rate: float, rng: np.random.Generator) -> np.ndarray:
        """Bits of the file, each taken with a probability."""
        count = rng.binomial(self.size, rate)
        chosen = np.sort(rng.choice(self.size, count, replace=False, shuffle=False))
        if self._bit is None:
            return 8 * self._bytes[chosen >> 3] + (chosen & 7)
        return 8 * (self._bytes[chosen] + self._bit // 8) + self._bit % 8  # numbers are stored lowest byte first


def _constants(data: bytes, model: Any) -> Iterator[Span]:
    """Kernels and biases, plain or coded; then what decoders need besides."""
    where = _buffers(data)
    for number in range(len(model.subgraphs)):
        graph = Subgraph(model, number)
        for op in graph.operators:
            parameters, biases = graph.parameters(op), places(graph.name(op), inputs=len(op.inputs))[1]
            for position, index in graph.inputs(op):
                if index in parameters:
                    buffer, region = graph.stored(index)[0], "biases" if position in biases else "weights"
                    width = _WIDTHS.get(graph.dtype(index), 1) if graph.tensors[index].buffer == buffer else 1
                    start, stop = where[buffer]
                    yield Span(start, stop, region, graph.output_name(op), width)
        for op in model.subgraphs[number].operators:
            if is_decode(model, op):
                for i, index in enumerate(op.inputs):
                    layer = graph.tensor_name(int(op.outputs[i // 2]))
                    start, stop = where[graph.tensors[int(index)].buffer]
                    yield Span(start, stop, "weights", layer, 1)


def _scales(data: bytes, model: Any) -> Iterator[Span]:
    from ai_edge_litert import schema_py_generated as schema

    read = schema.Model.GetRootAs(data, 0)
    for number in range(len(model.subgraphs)):
        graph, tables = Subgraph(model, number), read.Subgraphs(number)
        readers = {int(i): graph.output_name(op) for op in reversed(graph.operators) for i in op.inputs}
        for index in range(tables.TensorsLength()):
            about = tables.Tensors(index).Quantization()
            if about is not None:
                layer = readers.get(index, graph.tensor_name(index))
                for field, width in ((_SCALE, 4), (_ZERO_POINT, 8)):
                    start, count = vector(about, field)
                    yield Span(start, start + width * count, "scales", layer, width)


def _buffers(data: bytes) -> list[tuple[int, int]]:
    """(start, stop) of each buffer's bytes."""
    from ai_edge_litert import schema_py_generated as schema

    read = schema.Model.GetRootAs(data, 0)
    found = (vector(read.Buffers(i), _DATA) for i in range(read.BuffersLength()))
    return [(start, start + size) for start, size in found]
