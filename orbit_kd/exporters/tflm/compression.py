"""TensorFlow Lite Micro's look-up-table compression: kernels of few distinct values, as indices of 1 to 7 bits.

A DECODE operator before each layer writes its kernel into the tensor arena when the layer is due: fewer bytes of flash
for more bytes of RAM and some time
(https://github.com/tensorflow/tflite-micro/tree/main/tensorflow/lite/micro/compression).
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from typing import Any

import numpy as np

from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.exporters.same_outputs import check_same_outputs, random_inputs
from orbit_kd.support.extras import require
from orbit_kd.support.native_log import native_stderr
from orbit_kd.tflite.reader import parse
from orbit_kd.tflite.subgraph import Subgraph

_BITS = 7  # the widest index of the format
# What a DECODE operator, its tensors and their names add to the file besides indices and tables: about 350 bytes.
_OVERHEAD = 400
_CHECKS = 8


def compress_weights(data: bytes, *, seed: int = 0) -> tuple[bytes, dict[str, Any]]:
    """A file whose clustered kernels are stored as indices, and what was saved.

    Kernels of more than 128 distinct values in a channel, and those that would not shrink, stay as they are. There is
    a table for each output channel: with one for a whole kernel that has a scale a channel, TFLM runs and is wrong.

    Args:
        data: an int8 .tflite file.
        seed: of the inputs on which both files are compared.

    Returns:
        The file, which only TFLM runs, and plain figures: bytes and arena of both, layers and their bits.

    Raises:
        InputError: no kernel would shrink; TFLM or its compression tool is not installed; or the outputs differ.
    """
    require("tflite_micro", extra="mcu")
    from tflite_micro.tensorflow.lite.micro.compression import compress, spec

    kernels = _kernels(data)
    if not kernels:
        raise InputError(
            "No kernel of the file would take fewer bytes as indices into a table.",
            expected=f"kernels of at most {2**_BITS} distinct values in each output channel, and better 16",
            fix="share the weights first (okd.cluster, fit, okd.strip_clusters), or export with compress=False",
        )
    plan = [
        spec.Tensor(0, tensor, [spec.LookUpTableCompression(index_bitwidth=bits, mode=spec.PerChannel(axis=axis))])
        for tensor, axis, bits, _ in kernels
    ]
    with native_stderr(), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        smaller = bytes(compress(data, plan))
    runtimes.trust(smaller)  # it was written here, and is compared right now
    before, after = runtimes.load(data, runtime="tflm"), runtimes.load(smaller, runtime="tflm")
    inputs = random_inputs(before, _CHECKS, seed=seed)
    check_same_outputs(
        before, after, inputs, file="The compressed file", fix="export with compress=False, and report the file"
    )
    return smaller, {
        "uncompressed_bytes": len(data),
        "uncompressed_arena_bytes": getattr(before, "arena_bytes", None),
        "compressed_layers": {name: bits for _, _, bits, name in kernels},
    }


def _kernels(data: bytes) -> list[tuple[int, int, int, str]]:
    """(tensor, channel axis, bits, layer) of the kernels that shrink."""
    graph, found = Subgraph(parse(data)), {}
    for op in graph.operators:
        kernel = graph.kernel(op)
        if kernel is None or graph.dtype(kernel) != "int8":
            continue
        weights = graph.dense(kernel)
        axis = weights.ndim - 1 if graph.name(op) == "DEPTHWISE_CONV_2D" else 0
        tables = [len(np.unique(channel)) for channel in np.moveaxis(weights, axis, 0)]
        bits = max(1, (max(tables) - 1).bit_length())
        if bits > _BITS:
            continue
        size = math.ceil(weights.size * bits / 8) + 16 + len(tables) * max(tables) + _OVERHEAD
        if size < weights.size:
            found[kernel] = (kernel, axis, bits, graph.tensors[kernel].name.decode().split(";")[0])
    return list(found.values())
