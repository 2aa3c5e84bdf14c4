"""A .tflite file as two that run one after the other: between them lies what the arena holds at that moment."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.tflite.reader import parse
from orbit_kd.tflite.state import State, state_of
from orbit_kd.tflite.subgraph import Subgraph
from orbit_kd.tflite.writer import to_bytes


@dataclasses.dataclass(frozen=True)
class Halves:
    """The two files.

    Attributes:
        head: from the network's inputs to the tensors that are alive at the cut.
        tail: from these to the network's outputs.
        layer: name of what the last operator of the head makes.
    """

    head: bytes
    tail: bytes
    layer: str


def cuts(data: bytes) -> int:
    """Number of places between operators where `halve` cuts a file.

    Raises:
        InputError: no .tflite file, or one that keeps values from image to image, or branches.
    """
    model = parse(data)
    if state_of(model) is not State.NONE or len(model.subgraphs) > 1:
        raise InputError(
            "The file keeps values from image to image, or has several graphs.",
            expected="one graph of operators without variables: it is cut into two to reach what lies between",
            fix="leave the region 'activations' out",
        )
    return len(model.subgraphs[0].operators) - 1


def halve(data: bytes, at: int) -> Halves:
    """Cuts a file after its first `at` operators.

    Args:
        data: a .tflite file.
        at: from 1 to `cuts(data)`.

    Raises:
        InputError: as `cuts`; a place that is not there.
    """
    if not 1 <= at <= cuts(data):
        raise InputError(f"at={at}.", expected=f"1 to {cuts(data)}", fix="see halves.cuts")
    model = parse(data)
    graph = model.subgraphs[0]
    first, second = list(graph.operators[:at]), list(graph.operators[at:])
    made = {int(i) for op in first for i in op.outputs} | set(map(int, graph.inputs))
    used = {int(i) for op in second for i in op.inputs} | set(map(int, graph.outputs))
    alive = np.array(sorted(made & used), np.int32)
    parts = []
    for operators, inputs, outputs in ((first, graph.inputs, alive), (second, alive, graph.outputs)):
        part = copy.copy(model)
        part.subgraphs = [copy.copy(graph)]
        part.subgraphs[0].operators, part.signatureDefs = operators, []
        part.subgraphs[0].inputs, part.subgraphs[0].outputs = inputs, outputs
        parts.append(to_bytes(part))
    whole = Subgraph(model)
    return Halves(parts[0], parts[1], whole.tensor_name(int(first[-1].outputs[0])))
