"""A folder of C++ for TensorFlow Lite Micro: model, operators, arena size, a golden pair, and a main that checks it."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.exporters.artifact import Artifact
from orbit_kd.exporters.c_array import export_c_array
from orbit_kd.exporters.metadata import add_metadata
from orbit_kd.exporters.same_outputs import random_inputs, sample_for
from orbit_kd.exporters.source import tflite_of
from orbit_kd.exporters.targets import target
from orbit_kd.exporters.tflm.compression import compress_weights
from orbit_kd.exporters.tflm.memory import (
    arena_bytes,
    arena_margin,
    arena_size,
    check_arena,
    check_flash,
    require_dense,
)
from orbit_kd.exporters.tflm.operators import add_methods
from orbit_kd.exporters.tflm.sources import Golden, sources
from orbit_kd.support.extras import require
from orbit_kd.support.files import write_file
from orbit_kd.tflite.coded_model import plain_file
from orbit_kd.tflite.reader import only_tflm, parse
from orbit_kd.tflite.state import State, state_of


@target("tflm", suffix="", made_of="tflite_int8", runtime="litert")
def export_tflm(
    model: Any,
    *,
    path: str | os.PathLike[str],
    calibration: Any = None,
    metadata: dict[str, Any] | None = None,
    samples: int = 256,
    seed: int = 0,
    max_flash: int | None = None,
    max_arena: int | None = None,
    compress: bool = False,
    tolerance: int = 1,
    **options: Any,
) -> Artifact:
    """model_data.cc/.h, model_operators.h, model_settings.h, golden.cc/.h and main.cc, checked before they are written.

    Of several inputs or outputs the names in the sources are numbered in the Keras model's order: kInput0Size, Output1.

    The arena is measured by TFLM's interpreter, and a margin added (see `tflm_memory.arena_margin`). The golden output
    is TFLM's own, and LiteRT's reference kernels must agree within one step (where those lack an operator that TFLM
    has, LiteRT's optimized ones).

    Args:
        model: an int8 or int16x8 .tflite file (path or Artifact), which may be coded ("tflite_micro_coded"), or a
            tf_keras model, which is converted to "tflite_int8" first.
        path: the folder; files of an earlier export are replaced.
        calibration: inputs as the network sees them: for the conversion of a Keras model, and one of them, drawn with
            `seed`, becomes the golden input. Without it that is random.
        metadata: stored in the flatbuffer.
        samples: calibration images for the conversion of a Keras model.
        seed: of these, and of the golden input.
        max_flash: bytes the model's array may take.
        max_arena: bytes the tensor arena may take, its margin included.
        compress: store clustered kernels as indices (see `tflm_compression.py`).
        tolerance: quantization steps by which TFLM's golden output may differ from LiteRT's.
        **options: of "tflite_int8", for the conversion of a Keras model.

    Returns:
        Artifact of model_data.cc; `bytes` is the length of the array. `details`: "arena_bytes" as measured,
        "arena_margin", "tensor_arena_bytes" (their sum), "operators", "golden" (its origin),
        "compared_with" (the runtime), "golden_difference" and "tolerance" (steps), and what the compression knows.

    Raises:
        InputError: TFLM is not installed; no .tflite file, a sparse-encoded one, one with float input or output; an
            operator TFLM lacks; too large for `max_flash` or `max_arena`; or what "tflite_int8" raises.
    """
    require("tflite_micro", extra="mcu")
    if tolerance < 0:
        raise InputError(f"tolerance={tolerance}.", expected="0 or more steps", fix="leave it out: 1")
    original, details = tflite_of(model, calibration=calibration, coded=True, samples=samples, seed=seed, **options)
    add_methods(require_dense(original))
    _refuse_resources(original)
    if metadata is not None:
        original = add_metadata(original, metadata)
    plain = plain_file(original)  # what LiteRT runs of a coded file
    against = runtimes.yardstick(plain)
    runtimes.probe(plain, runtime=against)
    runtimes.probe(original, runtime="tflm")
    golden, steps = _golden(original, plain, calibration, seed, against=against, tolerance=tolerance)
    data = original
    if compress:
        if only_tflm(parse(original)):
            raise InputError(
                "The constants of the file are coded already.", expected="compress=False for it", fix="leave it out"
            )
        data, saved = compress_weights(original, seed=seed)
        details |= saved
    check_flash(data, max_flash, original=original)
    runner = runtimes.load(data, runtime="tflm")
    arena, margin = arena_bytes(runner), arena_margin(original)
    check_arena(data, arena, margin=margin, limit=max_arena)
    methods = add_methods(parse(data))
    texts = sources(
        inputs=[_counted(port) for port in runner.inputs],
        outputs=[_counted(port) for port in runner.outputs],
        golden=golden,
        methods=methods,
        arena=arena,
        margin=margin,
        variables=state_of(parse(data)) is State.TENSORS,
    )
    with tempfile.TemporaryDirectory() as temporary:
        array = export_c_array(write_file(Path(temporary, "model.tflite"), data), path=Path(path, "model_data"))
    written = [write_file(Path(path, name), text) for name, text in texts.items()]
    details |= {
        "symbol": array.details["symbol"],
        "arena_bytes": arena,
        "arena_margin": margin,
        "tensor_arena_bytes": arena_size(arena, margin),
        "operators": methods,
        "golden": golden.origin,
        "compared_with": against,
        "golden_difference": steps,
        "tolerance": tolerance,
    }
    return Artifact.of(data, target="tflm", files=(*array.files, *written), details=details)


def _refuse_resources(data: bytes) -> None:
    if state_of(parse(data)) is State.RESOURCES:
        raise InputError(
            "The file reads and assigns variables (VAR_HANDLE): a streaming network.",
            expected="a network without them: TFLite Micro's Reset() sets them to 0, not to their first values",
            fix="export the file as a C array, 'c_array', and write the main of your stream, with "
            "tflite::MicroResourceVariables",
        )


def _golden(
    data: bytes, plain: bytes, calibration: Any, seed: int, *, against: str, tolerance: int
) -> tuple[Golden, int]:
    """An input and TFLM's output, which LiteRT confirms; and how many steps that is off at most.

    Raises:
        InputError: float input or output, an image of another shape, or another output by LiteRT.
    """
    micro, reference = runtimes.load(data, runtime="tflm"), runtimes.load(plain, runtime=against)
    for side, port in (*(("input", p) for p in micro.inputs), *(("output", p) for p in micro.outputs)):
        if port.dtype.kind not in "iu":
            raise InputError(
                f"The file's {side}{_which(port, micro)} is {port.dtype.name}.",
                expected="int8 or int16, as sensors and firmware hand it over",
                fix="export tflite_int8 without float_io",
            )
    indices = next((port for port in micro.inputs if not port.scale), None)
    if calibration is None and indices is not None:
        raise InputError(
            f"The file's input is {indices.dtype.name} without a scale: indices, not amounts.",
            expected="an example of it, as a random number names no row of the Embedding",
            fix="pass calibration=train",
        )
    if calibration is None:
        origin = f"A random input, seed {seed}, as no calibration data was given"
        given = random_inputs(micro, 1, seed=seed)
    else:
        origin = f"An image of the calibration data, drawn with seed {seed}"
        given = sample_for(micro, calibration, samples=1, seed=seed)
    took = given if len(micro.inputs) > 1 else (given,)
    found, expected = (
        runner.raw(given) if len(micro.outputs) > 1 else (runner.raw(given),) for runner in (micro, reference)
    )
    steps = max(int(np.abs(a.astype(np.int64) - b).max()) for a, b in zip(found, expected, strict=True))
    if steps > tolerance:
        raise InputError(
            f"TensorFlow Lite Micro and LiteRT ({against}) differ by {steps} steps on the golden input.",
            expected=f"at most tolerance={tolerance}",
            fix=f"see with okd.evaluate what both reach on the test set; if TFLM is as good, pass tolerance={steps}, "
            "which the artifact's details then tell",
        )
    return Golden(tuple(x[0] for x in took), tuple(x[0] for x in found), origin), steps


def _which(port: runtimes.Port, runner: runtimes.Runner) -> str:
    return f" {port.name!r}" if port.name and len(runner.inputs) + len(runner.outputs) > 2 else ""


def _counted(port: runtimes.Port) -> runtimes.Port:
    """Whole numbers without a scale have steps of 1."""
    return port if port.scale else dataclasses.replace(port, scale=1.0)
