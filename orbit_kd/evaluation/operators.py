"""Time of each operator of a .tflite file, from files that hold it alone.

LiteRT's Python package has no profiler: its interpreter takes none, and `benchmark_model` is not in it. So every
operator is cut out with its constants into a file of its own, and these are timed in turn, with the whole file. What
an operator alone costs more, or less, than within its graph (a call of its own; a warm cache) shows in
`OpTimes.covered`, the sum of the parts over the whole. A loop is one operator, with all that it runs. Operators that
read and assign variables are left out: they copy a few numbers, and have nothing to copy from in a file of their own.
The fastest of the rounds counts: other programs can only add time, and to a few microseconds they add much.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.evaluation.latency import prepare_call, time_in_turn
from orbit_kd.tflite.operators import CALLS
from orbit_kd.tflite.reader import operator_name, parse, read_bytes
from orbit_kd.tflite.summary import read
from orbit_kd.tflite.writer import to_bytes

_VARIABLES = {"CALL_ONCE", "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"}


@dataclasses.dataclass(frozen=True)
class OpTime:
    """One operator.

    Attributes:
        op: builtin name, e.g. "CONV_2D".
        name: of its first output tensor.
        macs: multiply-accumulates; NaN as in `summary.Op`.
        milliseconds: fastest round of the operator alone.
    """

    op: str
    name: str
    macs: float
    milliseconds: float


@dataclasses.dataclass(frozen=True)
class OpTimes:
    """One file.

    Attributes:
        ops: in execution order, without those that only prepare constants, and those of variables.
        milliseconds: fastest round of the whole file.
    """

    ops: tuple[OpTime, ...]
    milliseconds: float

    @property
    def covered(self) -> float:
        """Sum over the operators / the whole file."""
        return sum(op.milliseconds for op in self.ops) / self.milliseconds


def op_latency(
    models: Sequence[runtimes.Model], *, runs: int = 50, threads: int = 1, delegate: str = "xnnpack"
) -> tuple[OpTimes, ...]:
    """Times every operator of every file, all interleaved in one process.

    Args:
        models: paths or bytes of .tflite files.
        runs: rounds.
        threads: LiteRT threads.
        delegate: see `timing.latency`.

    Raises:
        InputError: as `timing.latency`.
    """
    if not models or runs < 1:
        raise InputError(f"{len(models)} files and runs={runs}.", expected="at least one of each", fix="try 20 runs")
    files = [read_bytes(model) for model in models]
    cuts = [cut_operators(data) for data in files]
    parts = [part for data, cut in zip(files, cuts, strict=True) for part in (data, *(p for _, p in cut))]
    calls = [prepare_call(part, threads=threads, delegate=delegate) for part in parts]
    best = iter(time_in_turn(calls, runs=runs).min(axis=0) * 1e3)
    done = []
    for data, cut in zip(files, cuts, strict=True):
        whole = float(next(best))
        kinds, macs = _rows(data)
        times = [OpTime(kinds[n], n, macs[n], float(next(best))) for n, _ in cut]
        done.append(OpTimes(tuple(times), whole))
    return tuple(done)


def _rows(data: bytes) -> tuple[dict[str, str], dict[str, float]]:
    """Kind and multiply-accumulates of each operator of the main graph, by its name; a loop's with its body's."""
    kinds: dict[str, str] = {}
    macs: dict[str, float] = {}
    name = ""
    for op in read(data).ops:
        if not op.graph:
            name = op.name
            kinds[name], macs[name] = op.op, 0
        macs[name] += op.macs
    return kinds, macs


def cut_operators(data: bytes) -> list[tuple[str, bytes]]:
    """Name of each operator's output, and a .tflite file of it alone, whose inputs are its activations.

    Operators of constants alone (DEQUANTIZE of float16 weights) come along with the operator that uses them.

    Raises:
        InputError: not a .tflite file, or a coded one.
    """
    runtimes.refuse_coded(data, "LiteRT")
    model = parse(data)
    graph = model.subgraphs[0]
    fed = _constant_fed(parse(data))
    files = []
    for index, op in enumerate(graph.operators):
        if index not in fed and operator_name(model, op) not in _VARIABLES:
            files.append((graph.tensors[op.outputs[0]].name.decode(), _alone(parse(data), index, fed)))
    return files


def _ends(tensors: Any) -> Any:
    """The inputs or outputs of an operator, which the schema leaves None where there are none."""
    return () if tensors is None else tensors


def _constants(model: Any) -> set[int]:
    tensors = model.subgraphs[0].tensors
    return {i for i, t in enumerate(tensors) if (content := model.buffers[t.buffer].data) is not None and len(content)}


def _constant_fed(model: Any) -> set[int]:
    """Operators that see no activation."""
    known, fed = _constants(model), set()
    for index, op in enumerate(model.subgraphs[0].operators):
        if all(int(i) in known for i in _ends(op.inputs) if i >= 0):
            fed.add(index)
            known |= {int(i) for i in _ends(op.outputs)}
    return fed


def _alone(model: Any, index: int, fed: set[int]) -> bytes:
    """Cuts everything from the model but one operator and the constant-fed ones it needs."""
    graph, constants = model.subgraphs[0], _constants(model)
    producer = {int(o): i for i in fed for o in _ends(graph.operators[i].outputs)}
    members, waiting = [index], [index]
    while waiting:
        for tensor in map(int, graph.operators[waiting.pop()].inputs):
            if tensor in producer and producer[tensor] not in members:
                members.append(producer[tensor])
                waiting.append(producer[tensor])
    op = graph.operators[index]
    inputs = [int(i) for i in op.inputs if i >= 0 and int(i) not in constants and int(i) not in producer]
    outputs = [int(i) for i in op.outputs]
    used = sorted(
        {int(i) for m in members for i in (*graph.operators[m].inputs, *graph.operators[m].outputs) if i >= 0}
    )
    place = {tensor: i for i, tensor in enumerate(used)} | {-1: -1}
    graph.operators = [graph.operators[m] for m in sorted(members)]
    for member in graph.operators:
        member.inputs = np.array([place[int(i)] for i in member.inputs], np.int32)
        member.outputs = np.array([place[int(i)] for i in member.outputs], np.int32)
        member.intermediates = None
    graph.tensors = [graph.tensors[tensor] for tensor in used]
    graph.inputs = np.array([place[i] for i in dict.fromkeys(inputs)], np.int32)
    graph.outputs = np.array([place[i] for i in outputs], np.int32)
    loop = operator_name(model, op) in CALLS
    model.subgraphs = model.subgraphs if loop else [graph]
    empty, buffers = model.buffers[0], model.buffers
    model.buffers = [empty]
    for tensor in (tensor for kept in model.subgraphs for tensor in kept.tensors):
        model.buffers.append(buffers[tensor.buffer])
        tensor.buffer = len(model.buffers) - 1
    model.metadata, model.metadataBuffer, model.signatureDefs = None, None, None
    return to_bytes(model)
