"""int8 files whose convolution kernels of few levels are stored in 4 bits, two to a byte.

LiteRT and TensorFlow Lite Micro unpack them as they run: the kernel takes half the flash, no code and no table, and the
arena one kernel more. Dense kernels stay int8: TFLM refuses 4 bits with a scale per channel in FULLY_CONNECTED
(https://github.com/tensorflow/tflite-micro, kernels/fully_connected_common.cc).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.exporters.artifact import Artifact
from orbit_kd.exporters.metadata import add_metadata
from orbit_kd.exporters.same_outputs import check_same_outputs, random_inputs
from orbit_kd.exporters.source import tflite_of
from orbit_kd.exporters.targets import target
from orbit_kd.support.files import write_file
from orbit_kd.tflite.reader import parse
from orbit_kd.tflite.subgraph import Subgraph
from orbit_kd.tflite.writer import add_constant, to_bytes

NAME = "tflite_int4"
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
_CHECKS = 8


@target(NAME, made_of="tflite_int8")
def export_int4(
    model: Any,
    *,
    path: str | os.PathLike[str],
    calibration: Any = None,
    metadata: dict[str, Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> Artifact:
    """The int8 file with every convolution kernel that lies within -7..7 in 4 bits; it computes the same.

    Args:
        model: an int8 .tflite file (path or Artifact), or a tf_keras model, which is converted to "tflite_int8" first:
            one of `quantize_aware(bits=4)` or fewer.
        path: the .tflite file to write.
        calibration: for the conversion of a Keras model.
        metadata: stored in the file.
        seed: of the inputs on which both files are compared.
        **options: of "tflite_int8", for the conversion of a Keras model.

    Returns:
        Artifact; `details["int4_kernels"]` says how many kernels, `details["uncoded_bytes"]` what the int8 file takes.

    Raises:
        InputError: no convolution kernel within -7..7; outputs other than the int8 file's on LiteRT's reference
            kernels; or what "tflite_int8" raises.
    """
    original, details = tflite_of(model, calibration=calibration, seed=seed, **options)
    data, kernels = pack_kernels(original)
    before, after = (runtimes.load(file, runtime="litert_reference") for file in (original, data))
    inputs = random_inputs(before, _CHECKS, seed=seed)
    check_same_outputs(
        before, after, inputs, file="LiteRT, with kernels of 4 bits,", fix="export tflite_int8, and report the file"
    )
    if metadata is not None:
        data = add_metadata(data, metadata)
    details |= {"int4_kernels": kernels, "uncoded_bytes": len(original)}
    return Artifact.of(data, target=NAME, files=(write_file(path, data),), details=details)


def pack_kernels(data: bytes) -> tuple[bytes, int]:
    """The file with its convolution kernels of few levels in 4 bits, and how many these are.

    Raises:
        InputError: there is none.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = parse(data)
    graph, done, others = Subgraph(model), set[int](), set[int]()
    for op in graph.operators:
        kernel = graph.kernel(op)
        if kernel is None or graph.dtype(kernel) != "int8":
            continue
        fits = graph.name(op) in _CONVOLUTIONS and np.abs(graph.dense(kernel).astype(int)).max() <= 7
        (done if fits else others).add(kernel)
    for kernel in done - others:
        values = graph.dense(kernel).reshape(-1)
        halves = np.append(values, np.zeros(values.size % 2, np.int8)).view(np.uint8) & 15
        graph.tensors[kernel].buffer = add_constant(model, halves[::2] | halves[1::2] << 4)
        graph.tensors[kernel].type = schema.TensorType.INT4
    if not done - others:
        raise InputError(
            "No convolution kernel of the file lies within -7..7.",
            expected="kernels of few levels",
            fix="train them first: okd.quantize_aware(model, bits=4), fit, and export that model",
        )
    return to_bytes(model), len(done - others)
