"""What targets that start from the Keras model itself ask of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from orbit_kd.errors import InputError


def input_shape(model: Any) -> tuple[int, ...]:
    """The shape of a tf_keras model's one input, without the batch.

    Raises:
        InputError: no tf_keras model; several inputs or outputs, an open size, or weights that are not finite.
    """
    if not hasattr(model, "inputs") or not hasattr(model, "get_weights"):
        raise InputError(
            f"A {type(model).__name__} cannot be exported here.",
            expected="a tf_keras model; this target is not made of a .tflite file",
            fix="load it with okd.load_model(path)",
        )
    ends = (len(model.inputs or []), len(model.outputs or []))
    if ends != (1, 1):
        raise InputError(
            f"Model {model.name!r} has {ends[0]} inputs and {ends[1]} outputs.",
            expected="one of each: an image batch in, logits out",
            fix="build the model (call it once), or wrap it in one with a single input and output",
        )
    shape = tuple(model.inputs[0].shape)[1:]
    if None in shape:
        raise InputError(
            f"The input of model {model.name!r} is {shape} without the batch.",
            expected="one fixed size for every axis",
            fix="build the network for the size it will see, with the same weights",
        )
    check_finite(model)
    return shape


def check_finite(model: Any) -> None:
    """Raises InputError where a weight of a tf_keras model is NaN or infinite."""
    bad = next((v.name for v in model.weights if not np.isfinite(v.numpy()).all()), None)
    if bad is not None:
        raise InputError(
            f"Weight {bad!r} of model {model.name!r} holds NaN or Inf.",
            expected="finite weights",
            fix="training diverged: go back to an earlier checkpoint, or lower the learning rate",
        )
