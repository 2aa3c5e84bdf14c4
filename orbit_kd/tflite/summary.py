"""What is in a .tflite file: weights, zeros and multiply-accumulates, read from the flatbuffer, with no interpreter.

What counts as a parameter says `subgraph.py`. A constant that several operators share is stored once and counts once in
the totals, and in each of its operators in the table.
The bodies of loops (GRU, SimpleRNN, ConvLSTM), branches and calls count with the operator that runs them.
What the file holds counts: BatchNormalization is folded, and the converter adds a bias of zeros to convolutions without
one, drops such a bias from dense layers, and moves a bias through linear layers.
"""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

from orbit_kd.support.text_table import aligned
from orbit_kd.tflite.calls import walk
from orbit_kd.tflite.operators import KERNEL_AND_BIAS, RECURRENT
from orbit_kd.tflite.reader import parse, read_bytes, told_if_damaged
from orbit_kd.tflite.subgraph import Subgraph


@dataclasses.dataclass(frozen=True)
class Op:
    """One operator of the graph, in execution order.

    Attributes:
        op: builtin name as in the schema, e.g. "CONV_2D".
        name: name of its first output tensor; of its first input where it has no output (ASSIGN_VARIABLE).
        weight_shape: shape of the kernel as stored, (out, ky, kx, in) for convolutions, (out, in) for dense layers; of
            the first kernel of recurrent layers; empty for operators without one.
        dtype: of the kernel, or of the first parameter where there is no kernel; "" without parameters.
        params: elements of its parameters (see `subgraph.py`).
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
        rows = [("operator", "kernel", "dtype", "params", "density", "MACs")]
        for op in self.ops:
            shape = "x".join(map(str, op.weight_shape))
            density = "" if op.density is None else f"{op.density:.3f}"
            name = f"{'  ' if op.graph else ''}{op.op}"
            rows.append((name, shape, op.dtype, f"{op.params:,}", density, count_text(op.macs)))
        rows.append(("total", "", "", f"{self.params:,}", f"{self.density:.3f}", count_text(self.macs)))
        return "\n".join(aligned(rows, "<<<>>>")) + f"  {self.bytes:,} bytes"


@told_if_damaged()
def read(path_or_bytes: str | os.PathLike[str] | bytes) -> TfliteSummary:
    """Reads a .tflite file.

    Raises:
        InputError: it does not exist, is no .tflite file or a damaged one.
    """
    data = read_bytes(path_or_bytes)
    main = Subgraph(parse(data))
    ops: list[Op] = []
    stored: dict[tuple[int, int], tuple[int, int]] = {}
    sparse = any(tensor.sparsity is not None for tensor in main.tensors)
    for graph, op, times in walk(main):
        ops.append(_row(graph, op, times))
        stored |= {graph.stored(i): graph.count(i) for i in graph.parameters(op)}
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


def _row(graph: Subgraph, op: Any, times: float) -> Op:
    """What is told of an operator that runs so many times for one image."""
    parameters = graph.parameters(op)
    counts = [graph.count(i) for i in parameters]
    kernels, outputs = graph.kernels(op), graph.outputs(op)
    kernel = kernels[0] if kernels else None
    output = graph.shape(outputs[0]) if outputs else ()
    macs, macs_nonzero = (_times(n, times) for n in _macs(graph, op, output))
    typed = kernel if kernel is not None else parameters[0] if parameters else None
    quantization = None if kernel is None else graph.tensors[kernel].quantization
    scales = () if quantization is None or quantization.scale is None else tuple(map(float, quantization.scale))
    points = () if quantization is None or quantization.zeroPoint is None else quantization.zeroPoint
    return Op(
        op=graph.name(op),
        name=graph.output_name(op),
        weight_shape=() if kernel is None else graph.shape(kernel),
        dtype="" if typed is None else graph.dtype(typed),
        params=sum(n for n, _ in counts),
        nonzero=sum(n for _, n in counts),
        macs=macs,
        macs_nonzero=macs_nonzero,
        output_shape=output,
        output_dtype=graph.dtype(outputs[0]) if outputs else "",
        scales=scales,
        zero_points=tuple(int(z) for z in points),
        quantized_dimension=quantization.quantizedDimension if quantization is not None and len(scales) > 1 else None,
        graph=graph.index,
    )


def _macs(graph: Subgraph, op: Any, output: tuple[int, ...]) -> tuple[int, int]:
    """Multiply-accumulates of one run, with and without the zeros of constant kernels."""
    name = graph.name(op)
    if name in RECURRENT:  # at every time step
        sizes = [graph.count(i) for i in graph.kernels(op)]
        steps = math.prod(graph.shape(int(op.inputs[0]))[:-1])
        return steps * sum(n for n, _ in sizes), steps * sum(n for _, n in sizes)
    if name not in KERNEL_AND_BIAS:
        return 0, 0
    kernel = graph.kernel(op)
    if kernel is not None:
        elements, nonzero = graph.count(kernel)
    else:  # a product of two activations, as in attention
        kernel = int(op.inputs[KERNEL_AND_BIAS[name][0]])
        elements = nonzero = math.prod(graph.shape(kernel))
    # at every output position; of a transposed convolution, at every input position
    positions = math.prod((graph.shape(int(op.inputs[2])) if name == "TRANSPOSE_CONV" else output)[:-1])
    if name == "BATCH_MATMUL":  # its kernel may have batch axes of its own
        positions //= math.prod(graph.shape(kernel)[:-2])
    return positions * elements, positions * nonzero


def _times(count: int, times: float) -> float:
    """An int wherever it is known."""
    if math.isnan(times):
        return math.nan if count else 0
    return count * int(times)
