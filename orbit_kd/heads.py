"""What a classifier puts out, logits or probabilities; the logits behind that, and the loss that fits it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras


def heads(model: keras.Model) -> tuple[str, ...]:
    """The last activation of each output: "softmax", "sigmoid" or "linear".

    A model whose graph is not known (subclassed) counts as one linear output, unless its output carries its logits.
    """
    if not getattr(model, "outputs", None):
        return ("linear",)
    return tuple(_head(tensor) for tensor in model.outputs)


def _head(tensor: Any) -> str:
    layer = tensor._keras_history.layer
    if isinstance(layer, keras.Model):
        return _head(layer.outputs[tensor._keras_history.tensor_index]) if layer.outputs else "linear"
    while isinstance(getattr(layer, "layer", None), keras.layers.Layer):  # wrappers: TimeDistributed, sparsity
        layer = layer.layer
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    if isinstance(layer, (keras.layers.Dropout, keras.layers.Flatten, keras.layers.Reshape)) or (
        isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.linear
    ):  # what does not change the values; a cast to float32 at the end of a mixed precision model is the common case
        return _head(layer.input)
    function = getattr(layer, "function", getattr(layer, "activation", None))
    name = getattr(function, "__name__", str(function))
    return next((kind for kind in ("softmax", "sigmoid") if name.startswith(kind)), "linear")


def logits_of(outputs: Any, kinds: Sequence[str]) -> tuple[tf.Tensor, ...]:
    """The logits behind a model's outputs, float32, as a flat tuple.

    Keras activations leave their exact argument on their result, and that is taken. Elsewhere softmax is undone by the
    logarithm, which differs from the logits by a constant that a softmax at any temperature does not see, and sigmoid
    by its inverse; both clipped where float32 ends.
    """
    flat = tf.nest.flatten(outputs)
    kinds = kinds if len(kinds) == len(flat) else ["linear"] * len(flat)
    return tuple(_logits(output, kind) for output, kind in zip(flat, kinds, strict=True))


def _logits(output: tf.Tensor, kind: str) -> tf.Tensor:
    exact = getattr(output, "_keras_logits", None)
    if exact is not None:
        return tf.cast(exact, tf.float32)
    smallest = {tf.float16: 6e-8}.get(output.dtype, 1.2e-38)
    output = tf.cast(output, tf.float32)
    if kind == "softmax":
        return tf.math.log(tf.maximum(output, smallest))
    if kind == "sigmoid":
        output = tf.clip_by_value(output, smallest, 1 - 6e-8)
        return tf.math.log(output) - tf.math.log1p(-output)
    return output


def cross_entropy(model: keras.Model, *, one_hot: bool = False, reduction: str = "auto") -> keras.losses.Loss:
    """The cross-entropy that fits the model's output (logits or softmax) and the labels (integers or one-hot rows)."""
    kind = keras.losses.CategoricalCrossentropy if one_hot else keras.losses.SparseCategoricalCrossentropy
    return kind(from_logits=heads(model)[0] != "softmax", reduction=reduction)
