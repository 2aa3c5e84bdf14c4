"""Exported files that are on disk already, as artifacts."""

from __future__ import annotations

import json
import os
from pathlib import Path

from orbit_kd.errors import InputError
from orbit_kd.exporters.artifact import Artifact
from orbit_kd.exporters.c_array import read_c_array
from orbit_kd.exporters.tflm.coded import NAME as CODED
from orbit_kd.runtimes.c99 import is_c99, read_manifest
from orbit_kd.runtimes.compiled import NOTE
from orbit_kd.tflite.reader import only_tflm, parse, read_bytes
from orbit_kd.tflite.summary import read

# (type of the kernels, type of the activations) -> target
_KINDS = {
    ("float32", "float32"): "tflite_float32",
    ("float16", "float32"): "tflite_float16",
    ("int8", "float32"): "tflite_dynamic",
    ("int8", "int8"): "tflite_int8",
    ("int4", "int8"): "tflite_int4",
    ("int8", "int16"): "tflite_int16x8",
}


def open_artifact(path: str | os.PathLike[str]) -> Artifact:
    """The artifact of a .tflite or .onnx file, a .cc file of "c_array" or a folder of "hls4ml" or "c99" on disk.

    Raises:
        InputError: it does not exist, is none of them, or holds no convolution or dense layer to tell its target from.
    """
    path = Path(path)
    if is_c99(path):
        return Artifact.from_dict(read_manifest(path)["artifact"], path)
    if (path / NOTE).is_file():
        if values := json.loads((path / NOTE).read_text()).get("artifact"):
            return Artifact.from_dict(values, path)
        raise InputError(f"{path} holds a project that was not finished.", expected="an exported project",
                         fix="export the model again")  # fmt: skip
    if path.suffix == ".cc":
        data, files = read_c_array(path), (path, path.with_suffix(".h"))
        return Artifact.of(data, target="c_array", files=files, details={})
    data = read_bytes(path)
    if path.suffix == ".onnx":
        return Artifact.of(data, target="onnx", files=(path,), details={})
    if only_tflm(parse(data)):
        return Artifact.of(data, target=CODED, files=(path,), details={})
    kinds = [_KINDS.get((op.dtype, op.output_dtype)) for op in read(data).ops if op.weight_shape]
    if not kinds or kinds[0] is None:
        raise InputError(
            f"{path} is of no kind this package exports.",
            expected=f"one of: {', '.join([*_KINDS.values(), CODED])}",
            fix="export the model with okd.export",
        )
    # dynamic-range quantization leaves small kernels in float, and int4 dense ones in int8
    target = next((kind for kind in ("tflite_dynamic", "tflite_int4") if kind in kinds), kinds[0])
    return Artifact.of(data, target=target, files=(path,), details={})
