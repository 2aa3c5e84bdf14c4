"""What targets ask of a Keras model."""

from __future__ import annotations

from typing import Any

import numpy as np

from orbit_kd.errors import InputError


def fixed_shape(model: Any, given: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """The shape of a tf_keras model's one input, without the batch.

    Args:
        model: to be exported.
        given: the sizes to fix, where the model leaves them open.

    Raises:
        InputError: no tf_keras model; several inputs, an open size, or another shape than the model's.
    """
    if not hasattr(model, "inputs") or not hasattr(model, "get_weights"):
        raise InputError(
            f"A {type(model).__name__} cannot be exported here.",
            expected="a tf_keras model; this target is not made of a .tflite file",
            fix="load it with okd.load_model(path)",
        )
    if not model.inputs or len(model.inputs) != 1:
        raise InputError(
            f"Model {model.name!r} has {len(model.inputs or [])} inputs.",
            expected="exactly one: an image batch",
            fix="a subclassed model: okd.as_graph(model); several inputs: wrap them in one that is cut apart inside",
        )
    own = tuple(model.inputs[0].shape)[1:]
    shape = own if given is None else tuple(given)
    if None in shape or len(shape) != len(own) or any(a not in (None, b) for a, b in zip(own, shape, strict=True)):
        asked = "" if given is None else f"; the shape asked for is {given}"
        raise InputError(
            f"The input of model {model.name!r} is {own} without the batch{asked}.",
            expected="one fixed size for every axis, as devices plan memory before they run",
            fix="build the network for the size it will see, with the same weights; or, for a TFLite target, pass "
            "input_shape=(height, width, channels) that fits the model",
        )
    return shape


def input_shape(model: Any) -> tuple[int, ...]:
    """`fixed_shape` of a model with one output and finite weights.

    Raises:
        InputError: as `fixed_shape`; several outputs, or weights that are not finite.
    """
    shape = fixed_shape(model)
    if len(model.outputs) != 1:
        raise InputError(
            f"Model {model.name!r} has {len(model.inputs)} inputs and {len(model.outputs)} outputs.",
            expected="one of each: an image batch in, logits out",
            fix="wrap it in a model with a single output",
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
