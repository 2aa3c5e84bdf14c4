"""A parsed .tflite file with constants that TensorFlow Lite Micro decodes when it runs.

An operator TFLM_DECODE takes pairs (encoded, ancillary) and gives the constants, in the tensor arena, until the layer
that reads them has run. What is coded: the kernels, and biases with enough zeros, of layers that read them only then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.tflite import coding
from orbit_kd.tflite.arena import Lifetimes
from orbit_kd.tflite.coding import Coded
from orbit_kd.tflite.prepared import PreparedConstants
from orbit_kd.tflite.reader import DECODE, parse, told_if_damaged
from orbit_kd.tflite.sharing import choose
from orbit_kd.tflite.subgraph import Subgraph
from orbit_kd.tflite.trim import LAYERS
from orbit_kd.tflite.writer import add_constant, to_bytes


@dataclasses.dataclass(frozen=True)
class Constant:
    """A constant that can be coded.

    Attributes:
        tensor: its number in the main graph.
        name: of the tensor.
        step: of the first operator that reads it, among all of the graph.
        bias: it is a bias, not a kernel.
    """

    tensor: int
    name: str
    step: int
    bias: bool


def codable(model: Any) -> list[Constant]:
    """The kernels and biases of a parsed file that a decoder may write, in the order in which they are needed."""
    graph, found = Subgraph(model), dict[int, Constant]()
    steps = {id(op): step for step, op in enumerate(model.subgraphs[0].operators)}
    readers = [set(map(int, op.inputs)) for op in model.subgraphs[0].operators if graph.name(op) not in LAYERS]
    for op in graph.operators:
        if graph.name(op) not in LAYERS:
            continue
        for index in graph.parameters(op):
            elsewhere = any(index in inputs for inputs in readers) or index in graph.outputs_of_graph
            if not elsewhere and index not in found:
                bias = index != graph.kernel(op)
                found[index] = Constant(index, graph.tensor_name(index), steps[id(op)], bias)
    return list(found.values())


def encode_constants(model: Any, asked: Mapping[int, str]) -> dict[int, Coded]:
    """The coded form of each constant that is to be coded.

    Args:
        model: a parsed file.
        asked: tensor of the main graph -> "auto", "huffman", "mask" or "none".

    Raises:
        InputError: a coding that is asked for by name has no decoder for the constant's type, or makes it larger.
    """
    graph = Subgraph(model)
    values = {index: graph.dense(index) for index in asked}
    int8 = [index for index, of in values.items() if of.dtype == np.int8]
    choices = choose([coding.histogram(values[i]) for i in int8], [asked[i] for i in int8])
    chosen = dict(zip(int8, choices, strict=True))
    coded = {}
    for index, name in asked.items():
        kind, code = chosen.get(index, (name, None))
        one = coding.encode(values[index], coding=kind, code=code)
        if one is None:
            continue
        shared = code is not None and sum(code is other for _, other in choices) > 1
        size = one.size if not shared else -(-len(one.encoded) // 4) * 4
        if name != "auto" and size + coding.STRUCTURE >= values[index].nbytes:
            raise InputError(
                f"Constant {graph.tensor_name(index)[:80]!r} of {values[index].nbytes:,} bytes would take "
                f"{size + coding.STRUCTURE:,} with coding {name!r}.",
                expected="fewer bytes than before",
                fix="give it the coding 'auto' or 'none'",
            )
        coded[index] = one
    return coded


def insert_decoders(model: Any, coded: Mapping[int, Coded], *, together: float) -> None:
    """Puts coded constants, and the operators that decode them, into a parsed file.

    Args:
        model: is changed.
        coded: as `encode_constants` gives them.
        together: one operator decodes the constants of several layers, as long as the tensors alive are no more than
            this part of what they are at the peak anyway; 0 for an operator for each layer.
    """
    from ai_edge_litert import schema_py_generated as schema

    if not coded:
        return
    main = model.subgraphs[0]
    steps = {constant.tensor: constant.step for constant in codable(model) if constant.tensor in coded}
    groups = _groups(model, steps, together=together)
    model.operatorCodes.append(schema.OperatorCodeT(builtinCode=schema.BuiltinOperator.CUSTOM, customCode=DECODE))
    ancillaries, streams = dict[bytes, int](), dict[tuple[int, int], int]()

    def tensor_of(content: bytes) -> int:
        main.tensors.append(schema.TensorT(buffer=add_constant(model, np.frombuffer(content, np.uint8))))
        return len(main.tensors) - 1

    decoders = {}
    for step, tensors in groups.items():
        inputs = []
        for index in tensors:
            one = coded[index]
            if one.ancillary not in ancillaries:
                ancillaries[one.ancillary] = tensor_of(one.ancillary)
            # tensors that shared a buffer go on sharing it, as the parameters of a file are counted by buffers
            key = (main.tensors[index].buffer, ancillaries[one.ancillary])
            if key not in streams:
                streams[key] = tensor_of(one.encoded)
            inputs += [streams[key], ancillaries[one.ancillary]]
        decoders[step] = schema.OperatorT(
            opcodeIndex=len(model.operatorCodes) - 1, inputs=np.array(inputs, np.int32),
            outputs=np.array(tensors, np.int32),
        )  # fmt: skip
    for index in coded:
        main.tensors[index].buffer = 0
    main.operators = [
        op for step, old in enumerate(main.operators) for op in ([decoders[step]] if step in decoders else []) + [old]
    ]


def _groups(model: Any, steps: Mapping[int, int], *, together: float) -> dict[int, list[int]]:
    """Step before which an operator decodes -> the tensors that it decodes."""
    lifetimes, groups = Lifetimes(model), dict[int, list[int]]()
    for index, step in steps.items():  # each for its own layer
        lifetimes.begin(index, step)
        groups.setdefault(step, []).append(index)
    limit, merged, current = together * lifetimes.peak(), dict[int, list[int]](), -1
    for step, tensors in groups.items():
        if current >= 0:
            for index in tensors:
                lifetimes.begin(index, current)
            if lifetimes.peak(current, step) <= limit:
                merged[current] += tensors
                continue
            for index in tensors:
                lifetimes.begin(index, step)
        current = step
        merged[current] = list(tensors)
    return merged


def decode_constants(model: Any) -> None:
    """The inverse: puts the constants into a parsed file, and takes out the operators that prepare them.

    Raises:
        InputError: a constant is coded in a way that is not known here, or damaged.
    """
    for number, main in enumerate(model.subgraphs):
        graph = Subgraph(model, number)
        prepared, made = PreparedConstants(model, number), dict[tuple[int, int], int]()
        for index in prepared.tensors:  # those that shared what was coded share what is decoded
            place = graph.stored(index)
            if place not in made:
                made[place] = add_constant(model, graph.dense(index))
        for index in prepared.tensors:
            main.tensors[index].buffer = made[graph.stored(index)]
        aside = [id(op) for op in prepared.makers]
        main.operators = [op for op in main.operators if id(op) not in aside]


def plain_file(data: bytes) -> bytes:
    """The .tflite file with its constants stored plainly, which any runtime takes; a plain file stays as it is.

    Raises:
        InputError: no .tflite file; or as `decode_constants`.
    """
    with told_if_damaged():
        return _plain_file(data)


def _plain_file(data: bytes) -> bytes:
    model = parse(data)
    if not any(PreparedConstants(model, i).tensors for i in range(len(model.subgraphs))):
        return data
    decode_constants(model)
    return to_bytes(model)
