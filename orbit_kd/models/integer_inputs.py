"""Networks whose input is whole numbers, made ready for integer files.

Traced as it stands, a network with a uint8 input begins with DEQUANTIZE, CAST, CAST, QUANTIZE in its int8 file. A copy
with a float input computes the same from whole numbers, and its file takes int8 with one step a grey level. Indices of
an Embedding are no amounts: rounded to 256 steps they name other rows, so there the file's input is int32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.models.copies import clone_with, copy_layer
from orbit_kd.models.walk import Node, carry, is_graph


def replace_integer_input(model: keras.Model) -> keras.Model:
    """The model, or a copy that computes the same with an input that integer files can have: float32, or int32 indices.

    A model with several inputs stays as it is.

    Raises:
        InputError: indices that come as floats and cannot be made integers.
    """
    if not is_graph(model):
        return model
    if len(model.inputs) > 1:
        for place, tensor in enumerate(model.inputs):
            if tensor.dtype.is_floating and _reads_indices(model, place):
                raise _float_indices(model, f" {model.input_names[place]!r}", tensor.dtype)
        return model
    indices = _reads_indices(model)
    given, wanted = model.inputs[0].dtype, tf.int32 if indices else tf.float32
    if given == wanted or (given.is_floating and not indices):
        return model
    copy = _copy(model, wanted)
    if copy is not None:
        return copy
    if given.is_floating:
        raise _float_indices(model, "", given)
    return model


def _float_indices(model: keras.Model, which: str, dtype: tf.DType) -> InputError:
    return InputError(
        f"The input{which} of model {model.name!r} holds indices of an Embedding as {dtype.name}.",
        expected="integers, as 256 steps of a float range name other rows",
        fix="build the network with keras.Input(shape, dtype='int32') and give it the same weights (set_weights)",
    )


def check_whole_numbers(images: Sequence[np.ndarray], model: Any) -> None:
    """Raises InputError where calibration images are no whole numbers of a model's integer input.

    Args:
        images: (n, ...) float32, one array an input.
        model: as the user gave it.
    """
    for place, (array, tensor) in enumerate(zip(images, model.inputs, strict=True)):
        dtype = tensor.dtype
        if not dtype.is_integer:
            continue
        low, high = float(array.min()), float(array.max())
        if low < dtype.min or high > dtype.max or (high <= 1 and (array % 1).any()):
            which = "" if len(model.inputs) == 1 else f" {model.input_names[place]!r}"
            raise InputError(
                f"The calibration images go from {low:.4g} to {high:.4g}, and the input{which} of model "
                f"{model.name!r} is {dtype.name}.",
                expected="whole numbers, as the network was trained on: it cuts off what comes after the point",
                fix="leave the pixels unscaled (Preprocess without scale and mean), or give the network a float input",
            )


def _reads_indices(model: keras.Model, place: int = 0) -> bool:
    """Whether an Embedding takes an input of the model."""
    readers: list[keras.layers.Layer] = []

    def call(node: Node, path: str, is_input: list[bool]) -> list[bool]:
        readers.extend([node.layer] if any(is_input) else [])
        return [False] * len(tf.nest.flatten(node.outputs))

    carry(model, [i == place for i in range(len(model.inputs))], call, opaque=True)
    return any(isinstance(layer, keras.layers.Embedding) for layer in readers)


def _copy(model: keras.Model, dtype: tf.DType) -> keras.Model | None:
    """The model with another type of input; None where that computes something else, or nothing."""
    try:
        copy, pairs = clone_with(model, copy_layer, input_dtypes={model.inputs[0].dtype: dtype})
        for layer, new in pairs:
            new.set_weights(layer.get_weights())
        shape = [n or 32 for n in model.inputs[0].shape[1:]]
        most = min((layer.input_dim for layer in model.submodules if hasattr(layer, "input_dim")), default=256)
        x = tf.constant(np.random.default_rng(0).integers(0, most, (2, *shape)), tf.int32)
        expected, found = (tf.nest.flatten(m(tf.cast(x, m.inputs[0].dtype))) for m in (model, copy))
        close = (np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(expected, found, strict=True))
        return copy if all(close) else None
    except (InputError, TypeError, ValueError, tf.errors.InvalidArgumentError):
        return None  # arithmetic that floats do not have: the file keeps the model's own input
