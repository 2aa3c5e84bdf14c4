"""What targets ask of a Keras model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orbit_kd.errors import InputError

Shape = tuple[int, ...]
Shapes = Shape | Sequence[Shape] | Mapping[str, Shape]


def fixed_shapes(model: Any, given: Shapes | None = None) -> tuple[Shape, ...]:
    """The shapes of a tf_keras model's inputs, without the batch, in its order.

    Args:
        model: to be exported.
        given: the sizes to fix, where the model leaves them open: a shape; for several inputs a shape each, in their
            order or by their names.

    Raises:
        InputError: no tf_keras model; no inputs, an open size, or other shapes than the model's.
    """
    if not hasattr(model, "inputs") or not hasattr(model, "get_weights"):
        raise InputError(
            f"A {type(model).__name__} cannot be exported here.",
            expected="a tf_keras model; this target is not made of a .tflite file",
            fix="load it with okd.load_model(path)",
        )
    if not model.inputs:
        raise InputError(
            f"Model {model.name!r} has 0 inputs.", expected="a network with inputs of known shapes",
            fix="a subclassed model: okd.as_graph(model)",
        )  # fmt: skip
    own = [tuple(tensor.shape)[1:] for tensor in model.inputs]
    if len(own) == 1:
        return (_fixed(model, own[0], given, ""),)
    names = list(model.input_names)
    if isinstance(given, Mapping):
        given = [given[name] for name in names] if set(given) == set(names) else list(given.values())[:0]
    asked = [None] * len(own) if given is None else list(given)
    if len(asked) != len(own) or not all(shape is None or isinstance(shape, (tuple, list)) for shape in asked):
        raise InputError(
            f"input_shape is given for a model of {len(own)} inputs, and does not name a shape for each.",
            expected=f"a shape for each of {', '.join(map(repr, names))}, in this order or by name",
            fix="pass input_shape={" + ", ".join(f"{n!r}: {s}" for n, s in zip(names, own, strict=True)) + "}",
        )
    return tuple(_fixed(model, s, g, f" {n!r}") for s, g, n in zip(own, asked, names, strict=True))


def _fixed(model: Any, own: tuple[int | None, ...], given: Any, which: str) -> Shape:
    shape = own if given is None else tuple(given)
    if None in shape or len(shape) != len(own) or any(a not in (None, b) for a, b in zip(own, shape, strict=True)):
        asked = "" if given is None else f"; the shape asked for is {given}"
        raise InputError(
            f"The input{which} of model {model.name!r} is {own} without the batch{asked}.",
            expected="one fixed size for every axis, as devices plan memory before they run",
            fix="build the network for the size it will see, with the same weights; or, for a TFLite target, pass "
            "input_shape=(height, width, channels) that fits the model",
        )
    return tuple(int(n) for n in shape if n is not None)


def input_shape(model: Any) -> tuple[int, ...]:
    """The shape of a model with one input, one output and finite weights, for targets that take no others.

    Raises:
        InputError: as `fixed_shapes`; several inputs or outputs, or weights that are not finite.
    """
    shape, *others = fixed_shapes(model)
    if others or len(model.outputs) != 1:
        raise InputError(
            f"Model {model.name!r} has {len(model.inputs)} inputs and {len(model.outputs)} outputs.",
            expected="one of each: an image batch in, logits out",
            fix="export a TFLite target or onnx, which take several; or wrap it in a model with a single input and "
            "output",
        )
    check_finite(model)
    return shape


def output_names(model: Any, count: int) -> list[str]:
    """The Keras names of a model's outputs, numbered where two are alike."""
    given = list(getattr(model, "output_names", None) or [])
    if len(given) != count:
        return [f"output_{place}" for place in range(count)]
    return [f"{name}_{place}" if given.count(name) > 1 else name for place, name in enumerate(given)]


def check_finite(model: Any) -> None:
    """Raises InputError where a weight of a tf_keras model is NaN or infinite."""
    bad = next((v.name for v in model.weights if not np.isfinite(v.numpy()).all()), None)
    if bad is not None:
        raise InputError(
            f"Weight {bad!r} of model {model.name!r} holds NaN or Inf.",
            expected="finite weights",
            fix="training diverged: go back to an earlier checkpoint, or lower the learning rate",
        )
