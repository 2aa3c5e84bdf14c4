"""Whether a file whose constants are stored otherwise still computes what it did."""

from __future__ import annotations

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.runtimes.runner import Runner


def random_inputs(runner: Runner, count: int, *, seed: int) -> np.ndarray:
    """Inputs as a runner takes them raw: every whole number alike, or the standard normal distribution.

    Returns:
        (count, ...) in the type of the runner's input.
    """
    rng, kind, shape = np.random.default_rng(seed), runner.input.dtype, (count, *runner.input.shape)
    if np.issubdtype(kind, np.floating):
        return rng.standard_normal(shape).astype(kind)
    limits = np.iinfo(kind)
    return rng.integers(limits.min, limits.max + 1, shape, kind)


def check_same_outputs(before: Runner, after: Runner, inputs: np.ndarray, *, file: str, fix: str) -> None:
    """Compares the raw outputs of two files.

    Args:
        before: runs the file as it was.
        after: runs the new one.
        inputs: raw, for both.
        file: the new one, in words.
        fix: what to do where they differ.

    Raises:
        InputError: an output differs.
    """
    expected, found = before.raw(inputs), after.raw(inputs)
    if not np.array_equal(expected, found):
        wrong = int((expected != found).reshape(len(inputs), -1).any(axis=1).sum())
        raise InputError(
            f"{file} computes other outputs than the file it was made of, on {wrong} of {len(inputs)} inputs.",
            expected="the same, bit for bit",
            fix=fix,
        )
