"""Runs an exported file on an array: the short way from `okd.export` to numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.exporters import Artifact, find, open_artifact
from orbit_kd.exporters.c_array import read_c_array
from orbit_kd.tflite.reader import read_bytes


def predict(
    file: Artifact | str | os.PathLike[str] | bytes,
    x: Any,
    *,
    runtime: str | None = None,
    threads: int = 1,
    raw: bool = False,
) -> Any:
    """Runs an exported file on images.

        file = okd.export(model, "tflite_int8", path="model.tflite", calibration=train)
        logits = okd.predict(file, images)                      # as a phone or a Linux board computes them
        logits = okd.predict(file, images, runtime="tflm")      # as a microcontroller does

    Each image is run by itself: whatever a file keeps (LSTM, streaming) is set back before the next.

    Args:
        file: what `export` returned, or its path: a .tflite or .onnx file, the .cc file of "c_array", the folder of
            "hls4ml" or "c99"; or the bytes of a .tflite file.
        x: (n, ...) real numbers as the network saw them in training, whatever the file's own type is: they are
            quantized as it says. One image (...) without the batch axis gives one row. For several inputs a tuple of
            such arrays in the order of the Keras model's inputs, or a dict by their names.
        runtime: "litert", "litert_reference", "tflm", "onnx", "hls4ml" or "c99", see `runtimes.load`; None for the one
            the file is made for.
        threads: see `runtimes.load`.
        raw: return what the file puts out, e.g. int8, instead of real numbers.

    Returns:
        (n, ...) the outputs, float32 unless `raw`; of several outputs a tuple of such arrays, in the order of the Keras
        model's.

    Raises:
        InputError: a Keras model instead of a file, a file that nothing here runs, images of another shape or
            already quantized, another number of inputs or other names, or an unknown runtime.
    """
    if hasattr(file, "get_weights"):
        raise InputError(
            f"This is a Keras model ({type(file).__name__}), not a file.",
            expected="an exported file",
            fix="export it first: okd.export(model, 'tflite_float32', path='model.tflite'); the model itself runs with "
            "model.predict(x)",
        )
    model, own = content_of(file)
    runner = runtimes.load(model, runtime=runtime or own, threads=threads)
    parts = runtimes.parts_of(x, runner.inputs)
    for port, part in zip(runner.inputs, parts, strict=True):
        _refuse_quantized(port, part)
    single = all(part.shape == port.shape for port, part in zip(runner.inputs, parts, strict=True))
    out = runtimes.run(runner, runtimes.one_or_all([part[None] if single else part for part in parts]), raw=raw)
    if not single:
        return out
    return tuple(part[0] for part in out) if len(runner.outputs) > 1 else out[0]


def content_of(file: Artifact | str | os.PathLike[str] | bytes) -> tuple[runtimes.Model, str]:
    """What a runtime loads, and the runtime that is made for it."""
    if isinstance(file, bytes):
        return file, runtimes.made_for(file)
    if isinstance(file, (str, os.PathLike)) and Path(file).is_dir():
        file = open_artifact(file)
    path = file.path if isinstance(file, Artifact) else file
    suffix = Path(path).suffix if isinstance(path, (str, os.PathLike)) else ""
    if suffix == ".cc":
        return content_of(read_c_array(path))
    if suffix == ".tflite" and not isinstance(file, Artifact):
        return path, runtimes.made_for(read_bytes(path))
    runtime = find(file.target)[0].runtime if isinstance(file, Artifact) else "onnx" if suffix == ".onnx" else "litert"
    if not runtime and isinstance(file, Artifact):
        raise InputError(
            f"No runtime here runs a file of the target {file.target!r}.",
            expected="a .tflite, .onnx or C array file, or a folder of hls4ml or c99",
            fix="run the 'tflite_int8' file, which it is made of or stands beside",
        )
    return path, runtime


def _refuse_quantized(port: runtimes.Port, x: np.ndarray) -> None:
    """Integers of the port's own type may be pixels or steps: whoever means pixels can say so with a float type."""
    if port.scale and x.dtype == port.dtype and (port.scale, port.zero_point) != (1.0, 0):
        raise InputError(
            f"The images are {x.dtype.name}, as the file's quantized input is: are they quantized already?",
            expected="real numbers, as the network saw them in training",
            fix="x.astype('float32') if they are real numbers as they stand; quantized ones: "
            "(x.astype('float32') - zero_point) * scale with those of okd.runtimes.load(file).input",
        )
