"""Times exported files against each other, interleaved in one process."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.registry import Registry
from orbit_kd.support.native_log import native_stderr
from orbit_kd.tflite.reader import read_bytes

Inference = Callable[[], Any]
# name -> the name of LiteRT's operator resolver
delegates: Registry[str] = Registry("delegate")
delegates.register("xnnpack")("AUTO")  # LiteRT's default: XNNPACK wherever it has a kernel
delegates.register("none")("BUILTIN_WITHOUT_DEFAULT_DELEGATES")  # LiteRT's own kernels


@dataclasses.dataclass(frozen=True)
class Latency:
    """Time of one inference, and how it compares to the first file of the same measurement.

    Attributes:
        milliseconds: median; of this machine only.
        ratio: first file's time / this file's time, median over rounds: 2 means twice as fast.
        low: lower quartile of the rounds' ratios.
        high: upper quartile.
        runs: number of rounds.
        threads: LiteRT threads.
    """

    milliseconds: float
    ratio: float
    low: float
    high: float
    runs: int
    threads: int


def latency(
    models: Sequence[runtimes.Model], *, runs: int = 50, threads: int = 1, delegate: str = "xnnpack"
) -> tuple[Latency, ...]:
    """Times files under LiteRT at batch 1, interleaved in one process, so that a busy machine slows all alike.

    Each round times every file once, in an order that rotates; a ratio is taken within a round. A timing repeats short
    inferences until about a millisecond has passed. Inputs are random, and variables (of an LSTM) are not reset
    between inferences: time does not depend on either.

    Args:
        models: paths or bytes of .tflite files; the first is what the others are compared to.
        runs: rounds.
        threads: LiteRT threads.
        delegate: "xnnpack", or "none" for LiteRT's own kernels.

    Raises:
        InputError: no files, runs < 1, threads < 1, an unknown delegate, or a file that LiteRT does not run.
    """
    if not models or runs < 1:
        raise InputError(
            f"{len(models)} files and runs={runs}.", expected="at least one of each", fix="50 runs are usual"
        )
    times = time_in_turn([prepare_call(model, threads=threads, delegate=delegate) for model in models], runs=runs)
    ratios = times[:, :1] / times
    low, middle, high = np.percentile(ratios, (25, 50, 75), axis=0)
    milliseconds = np.median(times, axis=0) * 1e3
    return tuple(
        Latency(float(milliseconds[i]), float(middle[i]), float(low[i]), float(high[i]), runs, threads)
        for i in range(len(models))
    )


def time_in_turn(calls: Sequence[Inference], *, runs: int) -> np.ndarray:
    """Seconds of each call, (runs, calls): every round times each call once, in an order that rotates."""
    repeats = [_repeats(call) for call in calls]
    times = np.zeros((runs, len(calls)))
    for r in range(runs):
        for k in range(len(calls)):
            i = (r + k) % len(calls)
            times[r, i] = _seconds(calls[i], repeats[i])
    return times


def prepare_call(model: runtimes.Model, *, threads: int = 1, delegate: str = "xnnpack") -> Inference:
    """The bare inference of a file on random inputs, which are copied in here.

    Raises:
        InputError: threads < 1, an unknown delegate, no .tflite file, or one that LiteRT does not run.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    if threads < 1:
        raise InputError(f"threads={threads}.", expected="at least 1", fix="1 is a single core")
    kind = OpResolverType[delegates.get(delegate)]
    data = read_bytes(model)
    runtimes.refuse_coded(data, "LiteRT")  # which reads it: LiteRT ends the process on some damaged files
    rng = np.random.default_rng(0)
    with native_stderr() as log:
        try:
            interpreter = Interpreter(model_content=data, num_threads=threads, experimental_op_resolver_type=kind)
            interpreter.allocate_tensors()
            for port in interpreter.get_input_details():
                kind_of = np.dtype(port["dtype"])
                x = rng.standard_normal(port["shape"]) if kind_of.kind == "f" else rng.integers(0, 100, port["shape"])
                interpreter.set_tensor(port["index"], x.astype(kind_of))
            interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"LiteRT does not run the file: {str(error).strip()[:300]}",
                expected="a .tflite file of builtin operators",
                fix="export the model again; a file compiled by Vela runs on its NPU alone",
            ) from RuntimeError(f"{error}\n{log.text}")
    return interpreter.invoke


def _repeats(call: Inference) -> int:
    """How many calls take about a millisecond; warms up, too."""
    _seconds(call, 3)
    return max(1, round(1e-3 / _seconds(call, 3)))


def _seconds(call: Inference, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
