"""TensorFlow Lite Micro against LiteRT's reference kernels: the last word on a file for a microcontroller."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.tflite.coded_model import plain_file
from orbit_kd.tflite.reader import read_bytes


@dataclasses.dataclass(frozen=True)
class TflmParity:
    """TensorFlow Lite Micro against LiteRT's reference kernels on the same images.

    Attributes:
        ran: whether it ran.
        why: why not; "" if it did.
        arena_bytes: RAM it took for activations and its own tables.
        max_lsb: largest difference of an output, over all outputs, in quantization steps; the gate is 1.
        compared: number of images.
        against: the runtime it was compared with, see `runtimes.yardstick`; "" if it did not run.
    """

    ran: bool
    why: str
    arena_bytes: int | None
    max_lsb: int | None
    compared: int
    against: str = ""


def tflm_parity(model: runtimes.Model, x: Any) -> TflmParity:
    """Runs an int8 file on TFLM and on LiteRT's reference kernels and compares the raw outputs.

    Of a file whose constants are coded for TFLM, LiteRT runs what they decode to.

    Args:
        model: path or bytes of a .tflite file with integer outputs.
        x: (n, ...) real numbers, at least one image; of several inputs a tuple, or a dict by name.

    Raises:
        InputError: no .tflite file, or images of another shape.
    """
    if not runtimes.has_tflm():
        return TflmParity(False, f"not run: {runtimes.MCU_HINT}", None, None, 0)
    try:
        plain = plain_file(read_bytes(model))
        against = runtimes.yardstick(plain)
        runtimes.probe(plain, runtime=against)
        runtimes.probe(model, runtime="tflm")
    except InputError as error:
        return TflmParity(False, error.what, None, None, 0)
    reference = runtimes.load(plain, runtime=against)
    floats = [place for place, port in enumerate(reference.outputs) if not port.scale]
    if floats:
        some = f" ({len(floats)} of {len(reference.outputs)})" if len(reference.outputs) > 1 else ""
        return TflmParity(False, f"not run: float outputs{some}; parity is counted in int8 steps", None, None, 0)
    expected = _raw(reference, x)
    if not len(expected[0]):
        raise InputError("No images to compare on.", expected="at least one", fix="pass some test images")
    try:
        micro = runtimes.load(model, runtime="tflm")
        actual = _raw(micro, x)
    except InputError as error:
        return TflmParity(False, error.what, None, None, 0)
    steps = max(int(np.abs(a.astype(np.int64) - e).max()) for a, e in zip(actual, expected, strict=True))
    return TflmParity(True, "", getattr(micro, "arena_bytes", None), steps, len(expected[0]), against)


def _raw(runner: runtimes.Runner, x: Any) -> tuple[np.ndarray, ...]:
    found = runtimes.run(runner, x, raw=True)
    return found if len(runner.outputs) > 1 else (found,)
