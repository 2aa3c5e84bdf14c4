"""How many bytes of tensors are alive at each step of a parsed .tflite file: what the tensor arena has to hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from orbit_kd.tflite.subgraph import Subgraph

_ALIGNMENT = 16


class Lifetimes:
    """From which operator to which each tensor of the main graph is needed.

    A tensor is alive from the operator that writes it to the last that reads it; the file's input from the start, its
    output to the end. Constants are not in the arena, unless something decodes them: see `begin`.
    """

    def __init__(self, model: Any) -> None:
        self._graph, subgraph = Subgraph(model), model.subgraphs[0]
        self.steps = len(subgraph.operators)
        self._born = {int(i): 0 for i in subgraph.inputs}
        self._last = dict(self._born)
        for step, op in enumerate(subgraph.operators):
            for i in self._graph.outputs(op):
                self._born[i] = step
                self._last[i] = step
            for i in map(int, () if op.inputs is None else op.inputs):
                self._last[i] = step
        self._last |= {int(i): self.steps - 1 for i in subgraph.outputs if int(i) in self._born}

    def begin(self, index: int, step: int) -> None:
        """Says that a constant is decoded just before an operator."""
        self._born[index] = step

    def alive(self, step: int) -> list[int]:
        """The tensors that an operator finds or writes."""
        return [i for i, born in self._born.items() if born <= step <= self._last[i]]

    def bytes_of(self, index: int) -> int:
        """The bytes of a tensor."""
        kind = self._graph.dtype(index)  # a handle of a variable is no array
        return 0 if kind == "resource" else math.prod(self._graph.shape(index)) * np.dtype(kind).itemsize

    def peak(self, first: int = 0, last: int | None = None) -> int:
        """The most bytes that the tensors of a step take in the arena, from one operator to another."""
        steps = range(first, self.steps if last is None else last + 1)
        return max(sum(-(-self.bytes_of(i) // _ALIGNMENT) * _ALIGNMENT for i in self.alive(step)) for step in steps)
