"""Times exported files against each other, interleaved in one process."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from orbit_kd import runtimes
from orbit_kd.errors import InputError


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


def latency(models: Sequence[runtimes.Model], *, runs: int = 50, threads: int = 1) -> tuple[Latency, ...]:
    """Times files under LiteRT at batch 1, interleaved in one process, so that a busy machine slows all alike.

    Each round times every file once, in an order that rotates; a ratio is taken within a round. A timing repeats short
    inferences until about a millisecond has passed.

    Args:
        models: paths or bytes of .tflite files; the first is what the others are compared to.
        runs: rounds.
        threads: LiteRT threads.

    Raises:
        InputError: no files, runs < 1, or what `runtimes.load` raises.
    """
    if not models or runs < 1:
        raise InputError(
            f"{len(models)} files and runs={runs}.", expected="at least one of each", fix="50 runs are usual"
        )
    calls = [_call(model, threads) for model in models]
    repeats = [_repeats(call) for call in calls]
    times = np.zeros((runs, len(calls)))
    for r in range(runs):
        for k in range(len(calls)):
            i = (r + k) % len(calls)
            times[r, i] = _seconds(calls[i], repeats[i])
    ratios = times[:, :1] / times
    low, middle, high = np.percentile(ratios, (25, 50, 75), axis=0)
    milliseconds = np.median(times, axis=0) * 1e3
    return tuple(
        Latency(float(milliseconds[i]), float(middle[i]), float(low[i]), float(high[i]), runs, threads)
        for i in range(len(calls))
    )


def _call(model: runtimes.Model, threads: int) -> Callable[[], None]:
    runner: Any = runtimes.load(model, runtime="litert", threads=threads)
    x = np.random.default_rng(0).standard_normal((1, *runner.input.shape))
    return runner.ready_call(runner.input.quantize(x))


def _repeats(call: Callable[[], None]) -> int:
    """How many calls take about a millisecond; warms up, too."""
    _seconds(call, 3)
    return max(1, round(1e-3 / _seconds(call, 3)))


def _seconds(call: Callable[[], None], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
