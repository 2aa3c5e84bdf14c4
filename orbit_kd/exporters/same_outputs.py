"""Whether a file whose constants are stored otherwise still computes what it did."""

from __future__ import annotations

from typing import Any

import numpy as np

from orbit_kd.datasets.samples import calibration_sample
from orbit_kd.errors import InputError
from orbit_kd.runtimes.execution import quantized
from orbit_kd.runtimes.ports import Port, named_shapes, one_or_all
from orbit_kd.runtimes.runner import Runner


def random_inputs(runner: Runner, count: int, *, seed: int) -> Any:
    """Inputs as a runner takes them raw: every whole number alike, or the standard normal distribution.

    Returns:
        (count, ...) in the type of the runner's input; of several inputs a tuple of such arrays.
    """
    rng = np.random.default_rng(seed)
    return one_or_all([_random(port, count, rng) for port in runner.inputs])


def sample_for(runner: Runner, calibration: Any, *, samples: int, seed: int) -> Any:
    """A sample of data as a runner takes it raw: (n, ...), of several inputs a tuple.

    Raises:
        InputError: as `calibration_sample`; or data of another shape.
    """
    inputs = named_shapes(runner.inputs) if len(runner.inputs) > 1 else None
    return quantized(runner, calibration_sample(calibration, samples=samples, seed=seed, inputs=inputs))


def _random(port: Port, count: int, rng: np.random.Generator) -> np.ndarray:
    kind, shape = port.dtype, (count, *port.shape)
    if np.issubdtype(kind, np.floating):
        return rng.standard_normal(shape).astype(kind)
    limits = np.iinfo(kind)
    return rng.integers(limits.min, limits.max + 1, shape, kind)


def check_same_outputs(before: Runner, after: Runner, inputs: Any, *, file: str, fix: str) -> None:
    """Compares the raw outputs of two files.

    Args:
        before: runs the file as it was.
        after: runs the new one.
        inputs: raw, for both; as `random_inputs` gives them.
        file: the new one, in words.
        fix: what to do where they differ.

    Raises:
        InputError: an output differs.
    """
    expected, found = (
        runner.raw(inputs) if len(runner.outputs) > 1 else (runner.raw(inputs),) for runner in (before, after)
    )
    count = len(expected[0])
    differ = np.zeros(count, bool)
    for a, b in zip(expected, found, strict=True):
        differ |= (a != b).reshape(count, -1).any(axis=1)
    if differ.any():
        raise InputError(
            f"{file} computes other outputs than the file it was made of, on {int(differ.sum())} of {count} inputs.",
            expected="the same, bit for bit",
            fix=fix,
        )
