"""A parsed .tflite file with constants that TensorFlow Lite Micro decodes when it runs.

An operator TFLM_DECODE takes pairs (encoded, ancillary) and gives the constants, in the tensor arena, until the layer
that reads them has run. Codes of two int8 values each are decoded to int16; SQUEEZE, which copies bytes whatever their
type, makes the kernel of them
(https://github.com/tensorflow/tflite-micro/blob/main/tensorflow/lite/micro/kernels/squeeze.cc).

What is coded: the kernels, and biases with enough zeros, of layers that read them only then.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.tflite import coding
from orbit_kd.tflite.arena import Lifetimes
from orbit_kd.tflite.coding import Coded
from orbit_kd.tflite.prepared import PreparedConstants
from orbit_kd.tflite.reader import DECODE, only_tflm, parse, repeated_zero_point, told_if_damaged
from orbit_kd.tflite.sharing import choose
from orbit_kd.tflite.subgraph import Subgraph
from orbit_kd.tflite.trim import LAYERS
from orbit_kd.tflite.writer import add_constant, renumber_codes, to_bytes

_FREE = ("auto", "none")  # codings that leave a constant as it is where that is better


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


def encode_constants(
    model: Any, asked: Mapping[int, str], *, strict: bool = False, pairs: bool = True
) -> dict[int, Coded]:
    """The coded form of each constant that is to be coded.

    Args:
        model: a parsed file.
        asked: tensor of the main graph -> "auto" or one of `coding.CODINGS`.
        strict: refuse a coding that makes a constant larger, where it is asked for by name; else such a constant stays
            as it is.
        pairs: whether "auto" may be "pairs", which take more of the arena.

    Raises:
        InputError: an unknown coding; or one that is asked for by name has no decoder for the constant's type, or makes
            it larger.
    """
    graph = Subgraph(model)
    for name in asked.values():
        coding.check_name(name)
    if unknown := next((i for i, name in asked.items() if graph.dtype(i) == "int4" and name not in _FREE), None):
        raise InputError(
            f"Constant {graph.tensor_name(unknown)[:80]!r} is int4, for which there is no decoder.",
            expected="int8 for Huffman codes and masks, which also take other types of whole bytes",
            fix="give it the coding 'auto' or 'none'",
        )
    values = {i: graph.dense(i) for i in asked if graph.dtype(i) != "int4"}
    int8 = [index for index, of in values.items() if of.dtype == np.int8]
    choices = choose([values[i] for i in int8], [asked[i] for i in int8], pairs=pairs)
    chosen = dict(zip(int8, choices, strict=True))
    coded = {}
    for index, name in ((i, asked[i]) for i in values):
        kind, code = chosen.get(index, (name, None))
        one = coding.encode(values[index], coding=kind, code=code)
        if one is None:
            continue
        shared = code is not None and sum(code is other for _, other in choices) > 1
        size = one.size if not shared else -(-len(one.encoded) // 4) * 4
        size += coding.PAIR_STRUCTURE if kind == "pairs" else 0
        if name != "auto" and size + coding.STRUCTURE >= values[index].nbytes:
            if not strict:
                continue
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
    decode, squeeze = len(model.operatorCodes), len(model.operatorCodes) + 1
    model.operatorCodes += [
        schema.OperatorCodeT(builtinCode=schema.BuiltinOperator.CUSTOM, customCode=DECODE),
        schema.OperatorCodeT(builtinCode=schema.BuiltinOperator.SQUEEZE),
    ]
    ancillaries, streams = dict[bytes, int](), dict[tuple[int, int], int]()

    def tensor_of(content: bytes) -> int:
        main.tensors.append(schema.TensorT(buffer=add_constant(model, np.frombuffer(content, np.uint8))))
        return len(main.tensors) - 1

    def pairs_of(index: int) -> int:
        """A tensor of int16 for the pairs of a kernel, which an operator makes the kernel of just before its layer.

        SQUEEZE takes off the first axis, and asks that no other one is longer than the kernel's.
        """
        shape = [1, *map(int, main.tensors[index].shape)]
        even = next(axis for axis in range(len(shape) - 1, 0, -1) if shape[axis] % 2 == 0)
        shape[even] //= 2
        main.tensors.append(schema.TensorT(shape=_ints(shape), type=schema.TensorType.INT16))
        before[steps[index]].append(
            schema.OperatorT(
                opcodeIndex=squeeze, inputs=_ints([len(main.tensors) - 1]), outputs=_ints([index]),
                builtinOptionsType=schema.BuiltinOptions.SqueezeOptions,
                builtinOptions=schema.SqueezeOptionsT(squeezeDims=_ints([0])),
            )
        )  # fmt: skip
        return len(main.tensors) - 1

    before: dict[int, list[Any]] = collections.defaultdict(list)
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
        outputs = [pairs_of(index) if coded[index].coding == "pairs" else index for index in tensors]
        before[step].insert(0, schema.OperatorT(opcodeIndex=decode, inputs=_ints(inputs), outputs=_ints(outputs)))
    for index in coded:
        main.tensors[index].buffer = 0
    main.operators = [op for step, old in enumerate(main.operators) for op in (*before[step], old)]


def _ints(values: list[int]) -> np.ndarray:
    return np.array(values, np.int32)


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
    renumber_codes(model)


@told_if_damaged()
def plain_file(data: bytes) -> bytes:
    """The .tflite file with its constants stored plainly, which any runtime takes; one that it takes stays as it is.

    Raises:
        InputError: no .tflite file; or as `decode_constants`.
    """
    model = parse(data)
    if not only_tflm(model):
        return data
    decode_constants(model)
    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
        if repeated_zero_point(tensor.quantization):
            tensor.quantization.zeroPoint = np.repeat(tensor.quantization.zeroPoint, len(tensor.quantization.scale))
    return to_bytes(model)
