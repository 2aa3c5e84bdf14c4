"""Constants that operators of a .tflite file make of what is stored, before anything else sees them.

TFLM_DECODE decodes them (`coding.py`); SQUEEZE makes int8 of the int16 values that pairs are decoded to; CAST and
SPLIT_V widen many short vectors that are stored as one (`joined_biases.py`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from orbit_kd.tflite import coding
from orbit_kd.tflite.operators import dtype_name
from orbit_kd.tflite.reader import is_decode, operator_name


class PreparedConstants:
    """The constants that operators of one graph prepare.

    Args:
        model: as `reader.parse` returns it.
        index: of the graph.

    Attributes:
        makers: the operators.
        tensors: what they make, as far as others see it.
    """

    def __init__(self, model: Any, index: int) -> None:
        self._model, self._tensors = model, model.subgraphs[index].tensors
        self._coded, self._joined = dict[int, tuple[int, int]](), dict[int, tuple[int, int]]()
        self._pairs = set[int]()
        self._known = dict[int, np.ndarray]()
        self.makers: list[Any] = []
        casts = dict[int, Any]()
        for op in model.subgraphs[index].operators:
            name = operator_name(model, op)
            if is_decode(model, op):
                self.makers.append(op)
                for i, output in enumerate(op.outputs):
                    self._coded[int(output)] = int(op.inputs[2 * i]), int(op.inputs[2 * i + 1])
            elif name == "SQUEEZE" and int(op.inputs[0]) in self._coded:
                self.makers.append(op)
                self._coded[int(op.outputs[0])] = self._coded.pop(int(op.inputs[0]))
                self._pairs.add(int(op.outputs[0]))
            elif name == "CAST" and self._content(int(op.inputs[0])).size:
                casts[int(op.outputs[0])] = op
            elif name == "SPLIT_V" and int(op.inputs[0]) in casts:
                self.makers += [casts[int(op.inputs[0])], op]
                start, source = 0, int(casts[int(op.inputs[0])].inputs[0])
                for output in map(int, op.outputs):
                    self._joined[output] = source, start
                    start += self._size(output)
        self.tensors = [*self._coded, *self._joined]

    def values(self, index: int) -> np.ndarray:
        """The bytes of one of `tensors`.

        Raises:
            InputError: coded in a way that is not known here, or damaged.
        """
        if index not in self._known:
            kind = self._kind(index)
            if index in self._joined:
                source, start = self._joined[index]
                stored = self._content(source).view(self._kind(source))
                made = stored[start : start + self._size(index)].astype(kind)
            else:
                encoded, ancillary = (self._content(i).tobytes() for i in self._coded[index])
                coded = coding.of_parts(encoded, ancillary, pairs=index in self._pairs)
                made = coding.decode(coded, self._size(index), dtype=kind, channel=self._channels(index))
            self._known[index] = made.view(np.uint8)
        return self._known[index]

    def stored(self, index: int) -> tuple[int, int]:
        """Where the file holds what one of `tensors` is made of: a buffer, and a place in it."""
        source, start = self._joined[index] if index in self._joined else (self._coded[index][0], 0)
        return self._tensors[source].buffer, start

    def _content(self, index: int) -> np.ndarray:
        data = self._model.buffers[self._tensors[index].buffer].data
        return np.zeros(0, np.uint8) if data is None else np.asarray(data, np.uint8)

    def _kind(self, index: int) -> str:
        return dtype_name(self._tensors[index].type)

    def _size(self, index: int) -> int:
        shape = self._tensors[index].shape
        return math.prod(int(n) for n in (() if shape is None else shape))

    def _channels(self, index: int) -> np.ndarray:
        """The channel, along the axis of the scales, of each value of a tensor."""
        quantization, shape = self._tensors[index].quantization, tuple(map(int, self._tensors[index].shape))
        if quantization is None or quantization.scale is None or len(quantization.scale) < 2:
            return np.zeros(math.prod(shape), np.int64)
        axis = [1] * len(shape)
        axis[quantization.quantizedDimension] = -1
        return np.broadcast_to(np.arange(len(quantization.scale)).reshape(axis), shape).reshape(-1)
