"""What a file takes on a microcontroller: flash, the tensor arena with its margin, and which layer is to blame."""

from __future__ import annotations

import math
from typing import Any

from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.tflite.arena import Lifetimes
from orbit_kd.tflite.reader import parse
from orbit_kd.tflite.subgraph import Subgraph
from orbit_kd.tflite.summary import read

# Tables of another version of TFLite Micro, and its alignment.
SPARE = 1024


def arena_bytes(runner: Any) -> int:
    """What a file that is loaded into TensorFlow Lite Micro takes of its arena.

    Raises:
        InputError: it did not say.
    """
    if runner.arena_bytes is None:
        raise InputError(
            "TensorFlow Lite Micro did not say how much of its arena it took.",
            expected="'Arena allocation total N bytes' from print_allocations()",
            fix=f"install the version this package knows: {runtimes.MCU_HINT}",
        )
    return runner.arena_bytes


def check_flash(data: bytes, limit: int | None, *, original: bytes | None = None) -> None:
    """Refuses a file that does not fit into the flash.

    Args:
        data: what is stored.
        limit: bytes; None for no limit.
        original: the file before its weights were compressed, which tells the layers.

    Raises:
        InputError: it is larger; the message names the layer with the most weight bytes.
    """
    if limit is None or len(data) <= limit:
        return
    graph = Subgraph(parse(original or data))
    sizes = [(sum(_stored(graph, i) for i in graph.parameters(op)), op) for op in graph.operators]
    size, op = max(sizes, key=lambda pair: pair[0])
    kernel = graph.kernel(op)
    shape = "" if kernel is None else " " + "x".join(map(str, graph.shape(kernel)))
    raise InputError(
        f"The model takes {len(data):,} bytes of flash. The largest layer is "
        f"{layer_name(graph, op)} ({graph.name(op)}{shape}): {size:,} bytes of weights, "
        f"{size / max(1, sum(s for s, _ in sizes)):.0%} of all.",
        expected=f"at most {limit:,} bytes (max_flash)",
        fix="remove filters of that layer or of the one before it, code the constants (target tflite_micro_coded), "
        "cluster the weights (compress=True), or raise max_flash",
    )


def check_arena(data: bytes, arena: int, *, margin: int, limit: int | None) -> None:
    """Refuses a file whose tensors do not fit into the RAM.

    Args:
        data: the .tflite file as the device runs it.
        arena: bytes, as measured.
        margin: bytes on top of it.
        limit: bytes; None for no limit.

    Raises:
        InputError: they need more; the message names the layer at the peak and the tensors alive there.
    """
    size = arena_size(arena, margin)
    if limit is None or size <= limit:
        return
    layer, tensors = peak(data)
    alive = ", ".join(f"{_short(name)} {size:,}" for name, size in tensors)
    raise InputError(
        f"The tensor arena takes {size:,} bytes: {arena:,} measured and a margin of {margin:,}. "
        f"The peak is at {layer}, where these tensors are alive (bytes): {alive}.",
        expected=f"at most {limit:,} bytes (max_arena)",
        fix="make the input smaller, pool or stride earlier, remove filters of that layer, or raise max_arena",
    )


def peak(data: bytes) -> tuple[str, list[tuple[str, int]]]:
    """The operator during which most bytes of activations are alive, and those tensors, largest first.

    Returns:
        The operator and (tensor, bytes).
    """
    model = parse(data)
    graph, steps, lifetimes = Subgraph(model), model.subgraphs[0].operators, Lifetimes(model)
    top = max(range(len(steps)), key=lambda step: sum(map(lifetimes.bytes_of, lifetimes.alive(step))))
    tensors = [(graph.tensor_name(i), lifetimes.bytes_of(i)) for i in lifetimes.alive(top)]
    return f"{graph.name(steps[top])} {layer_name(graph, steps[top])}", sorted(tensors, key=lambda pair: -pair[1])


def arena_margin(data: bytes) -> int:
    """Bytes to add to an arena that was measured with TFLM's reference kernels, which need no scratch memory.

    Arm's CMSIS-NN kernels do: im2col columns for convolutions, int16 or re-ordered kernels for depthwise ones, and
    sums of the kernel for dense layers. The largest of these is taken, for whichever Cortex-M needs most of it
    (https://github.com/ARM-software/CMSIS-NN, `*_get_buffer_size*`), and 1 KiB. The tables that were measured have
    pointers of 8 bytes, so that on a 32-bit device they are smaller.

    Args:
        data: a .tflite file whose kernels are not compressed.
    """
    needs = [0]
    for op in read(data).ops:
        width = 2 if op.output_dtype == "int16" else 1
        if op.op in ("CONV_2D", "TRANSPOSE_CONV"):
            needs.append(4 * _up(math.prod(op.weight_shape[1:]), 16) * width)
        elif op.op == "DEPTHWISE_CONV_2D":
            channels = op.weight_shape[-1]
            needs.append(math.prod(op.weight_shape[1:-1]) * max(4 * 124, 2 * channels) * width)
        elif op.op == "FULLY_CONNECTED" and op.weight_shape:
            needs.append(4 * op.weight_shape[0])
    return max(needs) + SPARE


def arena_size(arena: int, margin: int) -> int:
    """Bytes of the tensor arena: a multiple of 16, its alignment."""
    return _up(arena + margin, 16)


def layer_name(graph: Subgraph, op: Any) -> str:
    """The kernel's name, which has the Keras layer's name in it, where there is a kernel; else the output's."""
    kernel = graph.kernel(op)
    return _short(graph.output_name(op) if kernel is None else graph.tensor_name(kernel))


def _stored(graph: Subgraph, index: int) -> int:
    data = graph.data(index)
    return 0 if data is None else len(data)


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


def _short(name: str) -> str:
    """A tensor's name, without the further names that fused operators leave behind a semicolon."""
    return repr(name.split(";")[0][:80])


def require_dense(data: bytes) -> Any:
    """The parsed file.

    Raises:
        InputError: constants in TFLite's sparse encoding.
    """
    model = parse(data)
    if bad := next((t for graph in model.subgraphs for t in graph.tensors if t.sparsity is not None), None):
        raise InputError(
            f"Constant {bad.name.decode()!r} is stored in TFLite's sparse encoding, "
            "and TensorFlow Lite Micro has no DENSIFY operator.",
            expected="a dense file; zeros in it stay zeros",
            fix="export dense: the targets of this package are, and the converter is without "
            "Optimize.EXPERIMENTAL_SPARSITY",
        )
    return model
