"""Runs an exported file on arrays, on the runtime that is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.runtimes.ports import in_order, one_or_all
from orbit_kd.runtimes.runner import Model, Runner, runtimes
from orbit_kd.runtimes.trusted import trust
from orbit_kd.tflite.reader import read_bytes

_PROBE_SECONDS = 600  # of one inference, and of loading the libraries on a busy machine


def load(model: Model, *, runtime: str = "litert", threads: int = 1) -> Runner:
    """Loads what an export target wrote: a .tflite file for most runtimes, given by its path or its bytes.

    Args:
        model: the file; an .onnx file for "onnx", a folder for "hls4ml" and "c99".
        runtime: "litert" (the kernels a phone or Linux board runs), "litert_reference" (plain kernels, the yardstick
            for bit-exactness), "tflm" (TensorFlow Lite Micro; extra `mcu`), "onnx" (onnxruntime; extra `fpga`),
            "hls4ml" (the C++ that g++ built) or "c99" (the C that this machine's compiler builds).
        threads: for LiteRT and onnxruntime, processes for hls4ml and c99; TFLM always has one.

    Raises:
        InputError: no .tflite file, an unknown runtime or one that is not installed, or a
            file that this runtime cannot run.
    """
    if threads < 1:
        raise InputError(f"threads={threads}.", expected="at least 1", fix="1 is a single core")
    return runtimes.get(runtime)(model, threads)


def predict(model: Model, x: Any, *, runtime: str = "litert", threads: int = 1, raw: bool = False) -> Any:
    """Runs a file on images.

    Args:
        model: see `load`.
        x: (n, ...) real numbers as the network saw them in training; they are quantized as the file says. For several
            inputs a tuple of such arrays, in the order of the Keras model's inputs, or a dict by their names.
        runtime: see `load`.
        threads: see `load`.
        raw: return what the file puts out, e.g. int8, instead of real numbers.

    Returns:
        (n, ...) outputs, float32 unless `raw`; of several outputs a tuple, in the order of the Keras model's.

    Raises:
        InputError: as `load`; or images of another shape, another number of inputs, or other names.
    """
    return run(load(model, runtime=runtime, threads=threads), x, raw=raw)


def run(runner: Runner, x: Any, *, raw: bool = False) -> Any:
    """`predict` for a file that is loaded already."""
    out = runner.raw(quantized(runner, x))
    if raw:
        return out
    arrays = out if len(runner.outputs) > 1 else [out]
    return one_or_all([port.dequantize(array) for port, array in zip(runner.outputs, arrays, strict=True)])


def quantized(runner: Runner, x: Any) -> Any:
    """The same inputs as the file takes them, for `Runner.raw`.

    Raises:
        InputError: images of another shape, another number of inputs, or other names.
    """
    parts = in_order(x, runner.inputs)
    return one_or_all([port.quantize(part) for port, part in zip(runner.inputs, parts, strict=True)])


def probe(model: Model, *, runtime: str = "litert") -> None:
    """Runs a file once on zeros in a process of its own: native code that aborts must not take the caller with it.

    Nor must it go on for ever. LiteRT 2.3 aborts, for example, on int8 files of normalization layers that were
    calibrated on constant images.

    Raises:
        InputError: the file does not run there.
    """
    code = (
        "import sys; from orbit_kd.runtimes import execution; "
        "execution.run_on_zeros(sys.argv[2] or sys.stdin.buffer.read(), sys.argv[1])"
    )
    path = os.path.abspath(model) if isinstance(model, (str, os.PathLike)) and os.path.exists(model) else ""
    try:
        child = subprocess.run(
            [sys.executable, "-c", code, runtime, path],
            input=None if path else read_bytes(model),
            capture_output=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
            timeout=_PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"The runtime {runtime!r} does not finish one inference of this file in {_PROBE_SECONDS} seconds.",
            expected="a file that runs",
            fix="look for a loop in it; recurrent layers built with unroll=True have none",
        ) from error
    if child.returncode:
        last = child.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        ending = f"signal {-child.returncode}" if child.returncode < 0 else f"exit code {child.returncode}"
        raise InputError(
            f"The runtime {runtime!r} ends its process on this file ({ending}: {last[0][:200]}).",
            expected="a file that runs",
            fix="calibrate with real, varied images; or replace layers that have no direct int8 form",
        )


def run_on_zeros(model: Model, runtime: str) -> None:
    """One inference in this process, for `probe`."""
    trust(read_bytes(model))  # this is the process that may end
    try:
        runner = load(model, runtime=runtime)
        run(runner, one_or_all([np.zeros((1, *port.shape), np.float32) for port in runner.inputs]))
    except InputError:
        pass  # told properly, the caller will see it when it runs the file itself


def yardstick(model: Model) -> str:
    """The runtime that TensorFlow Lite Micro is compared with on a file: "litert_reference", or else "litert".

    LiteRT's reference kernels (2.3) lack ELU, CEIL, ROUND and the newer versions of some operators, which TFLM has.
    """
    try:
        load(model, runtime="litert_reference")
    except InputError:
        load(model)
        return "litert"
    return "litert_reference"
