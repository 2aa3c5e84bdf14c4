"""Whether a .tflite file of several inputs or outputs has them in the Keras model's order, seen in what it computes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.exporters.tflite.convert import Traced

_EXAMPLES = 4
_NOISE = 1e-3  # of the largest value: below it, outputs are alike whichever way round
_REPORT = "report the model: the converter has mixed them up"


def check_order(data: bytes, traced: Traced, images: Sequence[np.ndarray] | None = None) -> None:
    """Runs a file beside its model, where ports of the same shape could stand in each other's place.

    Args:
        data: the file.
        traced: the model's graph.
        images: (n, ...) float32, one array an input; None for made-up ones.

    Raises:
        InputError: it fits better with two inputs or outputs exchanged, an input's range is not that of its calibration
            data, or LiteRT does not run it.
    """
    if traced.inputs == 1 and traced.outputs == 1:
        return
    if images is not None and traced.inputs > 1:
        _check_ranges(data, images)
    x = _made_up(traced) if images is None else [part[:_EXAMPLES] for part in images]
    x = [part.astype(kind.as_numpy_dtype) for part, kind in zip(x, traced.dtypes, strict=True)]
    kinds = [(part.shape, part.dtype) for part in x]
    expected = _keras(traced.model, x)
    inputs, outputs = _alike(kinds), _alike([part.shape for part in expected])
    if not inputs and not outputs:
        return  # shapes alone tell them apart
    runtimes.probe(data)
    found = runtimes.run(runtimes.load(data), runtimes.one_or_all(x))
    found = found if traced.outputs > 1 else (found,)
    scale = [max(float(np.abs(part[np.isfinite(part)]).max(initial=0)), 1e-30) for part in expected]
    for a, b in outputs:
        same, other = ((_apart(found[a], expected[i]) + _apart(found[b], expected[j])) for i, j in ((a, b), (b, a)))
        _refuse_exchanged(same, other, scale[a] + scale[b], f"outputs {a + 1} and {b + 1}", traced)
    for a, b in inputs:
        swapped = list(x)
        swapped[a], swapped[b] = x[b], x[a]
        same, other = (
            sum(_apart(f, e) / s for f, e, s in zip(found, side, scale, strict=True))
            for side in (expected, _keras(traced.model, swapped))
        )
        _refuse_exchanged(same, other, len(scale), f"inputs {a + 1} and {b + 1}", traced)


def _refuse_exchanged(same: float, other: float, scale: float, which: str, traced: Traced) -> None:
    if same > _NOISE * scale and other < same / 2:
        raise InputError(
            f"The file of model {traced.model.name!r} has {which} in each other's place.",
            expected="the order of the Keras model",
            fix=_REPORT,
        )


def _check_ranges(data: bytes, images: Sequence[np.ndarray]) -> None:
    """Each quantized input must hold the calibration data of its own."""
    runtimes.probe(data)
    runner = runtimes.load(data)
    for place, (port, array) in enumerate(zip(runner.inputs, images, strict=True)):
        if not port.scale:
            continue  # a float input, or indices
        limits = np.iinfo(port.dtype)
        low, high = ((n - port.zero_point) * port.scale for n in (limits.min, limits.max))
        slack = 1.01 * port.scale
        if array.min() < low - slack or array.max() > high + slack:
            raise InputError(
                f"Input {place + 1} of the file holds {low:.4g} to {high:.4g}, and its calibration data go from "
                f"{array.min():.4g} to {array.max():.4g}.",
                expected="the range of its own data",
                fix=_REPORT,
            )


def _keras(model: Any, x: list[np.ndarray]) -> list[np.ndarray]:
    import tensorflow as tf

    given = [tf.constant(part) for part in x]
    return [part.numpy() for part in tf.nest.flatten(model(given[0] if len(given) == 1 else given, training=False))]


def _made_up(traced: Traced) -> list[np.ndarray]:
    """Inputs for a model without data: normal ones, or rows that each Embedding has."""
    rng = np.random.default_rng(0)
    rows = min((m.input_dim for m in traced.model.submodules if hasattr(m, "input_dim")), default=0)
    shapes = [(_EXAMPLES, *tensor.shape[1:]) for tensor in traced.function.inputs[: traced.inputs]]
    whole = [bool(rows) or not kind.is_floating for kind in traced.dtypes]
    return [
        rng.integers(0, rows or 2, shape) if w else rng.standard_normal(shape)
        for shape, w in zip(shapes, whole, strict=True)
    ]


def _alike(kinds: Sequence[Any]) -> list[tuple[int, int]]:
    """Pairs that are the same."""
    return [(a, b) for a, b in itertools.combinations(range(len(kinds)), 2) if kinds[a] == kinds[b]]


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    """Mean distance, where both are finite."""
    distance = np.abs(a.astype(np.float64) - b)
    return float(distance[np.isfinite(distance)].mean()) if np.isfinite(distance).any() else 0.0
