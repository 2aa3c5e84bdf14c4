"""How each output of a network ends: softmax, sigmoid, neither; and the logits behind that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.models.walk import fed, has_graph
from orbit_kd.registry import Registry


def _same(x: tf.Tensor, _: float = 0.0) -> tf.Tensor:
    return x


def _undo_softmax(p: tf.Tensor, smallest: float) -> tf.Tensor:
    """Up to a constant of each row, which a softmax at any temperature does not see."""
    return tf.math.log(tf.maximum(p, smallest))


def _undo_sigmoid(p: tf.Tensor, smallest: float) -> tf.Tensor:
    p = tf.clip_by_value(p, smallest, 1 - 6e-8)
    return tf.math.log(p) - tf.math.log1p(-p)


@dataclasses.dataclass(frozen=True)
class Head:
    """A last activation: what it says about the output, how it is undone and done again.

    Attributes:
        kind: name of the kind of output (see `orbit_kd.models.outputs`) that ends so; "" where it may be any.
        logits: its argument, from the output and the smallest positive number of the output's type.
        outputs: the output, from the logits.
    """

    kind: str = ""
    logits: Callable[[tf.Tensor, float], tf.Tensor] = _same
    outputs: Callable[[tf.Tensor], tf.Tensor] = _same


head_types: Registry[Head] = Registry("head")
_DEFAULT = Head()  # linear, ReLU, tanh, anything: the output stands for itself
head_types.register("linear")(_DEFAULT)
head_types.register("softmax")(Head("classes", _undo_softmax, tf.nn.softmax))
head_types.register("log_softmax")(Head("classes"))  # its values are logits as they are
head_types.register("sigmoid")(Head("labels", _undo_sigmoid, tf.math.sigmoid))
head_types.register("hard_sigmoid")(Head("labels", _undo_sigmoid, tf.math.sigmoid))


def head_type(name: str) -> Head:
    """What is known of a head; one that nobody registered stands for itself."""
    return head_types.get(name) if name in head_types else _DEFAULT


def heads(model: keras.Model) -> tuple[str, ...]:
    """The last activation of each output: a name in `head_types`, the name of another activation, or "linear".

    "mixed" is an output whose parts end in different ways, or whose softmax does not run along its last axis. A model
    whose graph is not known (subclassed) counts as one linear output, unless its output carries its logits.
    """
    if not getattr(model, "outputs", None):
        return ("linear",)
    return tuple(_head(tensor, {}) for tensor in model.outputs)


def output_names(model: keras.Model) -> list[str]:
    """The names that losses and labels are given by, in the order of the outputs: keys where these are a mapping."""
    structure = getattr(model, "_nested_outputs", None)
    if isinstance(structure, dict):
        return sorted(structure)
    return list(getattr(model, "output_names", None) or ["output"])


_L = keras.layers
# What changes no value, or puts in its place a mean of values: probabilities stay probabilities. A cast to float32 at
# the end of a mixed precision model is the common case.
_KEEPING = (
    _L.Dropout, _L.SpatialDropout1D, _L.SpatialDropout2D, _L.Flatten, _L.Reshape, _L.Permute, _L.RepeatVector,
    _L.Cropping1D, _L.Cropping2D, _L.UpSampling1D, _L.UpSampling2D, _L.AveragePooling1D, _L.AveragePooling2D,
    _L.GlobalAveragePooling1D, _L.GlobalAveragePooling2D, _L.Average, _L.Concatenate,
)  # fmt: skip
_KEEPING_OPERATIONS = {"cast", "reshape", "identity", "squeeze", "expand_dims", "stop_gradient", "concat", "transpose"}
_ACTIVATIONS = (_L.ReLU, _L.LeakyReLU, _L.PReLU, _L.ELU, _L.ThresholdedReLU)


def _head(tensor: Any, outside: dict[int, Any]) -> str:
    """The head of a Keras tensor; `outside` has what the inputs of a nested model are fed with."""
    history = tensor._keras_history
    layer = history.layer
    if id(layer) in outside:  # the nested model hands its own input on
        return _head(*outside[id(layer)])
    node = layer._inbound_nodes[history.node_index]
    before = fed(node) if has_graph(layer) else tf.nest.flatten(node.keras_inputs)
    if isinstance(layer, keras.Model):
        if not layer.outputs:
            return "linear"
        inside = {
            id(inner._keras_history.layer): (outer, outside) for inner, outer in zip(layer.inputs, before, strict=False)
        }
        return _head(layer.outputs[history.tensor_index], inside)
    while isinstance(
        getattr(layer, "layer", None), keras.layers.Layer
    ):  # wrappers: TimeDistributed, sparsity, quantization
        layer = layer.layer
        if isinstance(layer, keras.Model):
            return _head(layer.outputs[0], {}) if layer.outputs else "linear"
    if _keeps(layer):
        found = {_head(x, outside) for x in before}
        if len(found) != 1:
            return "mixed"
        name = found.pop()
        # one softmax a row: not two side by side, nor rows run together
        turned = isinstance(layer, _L.Permute) or _name(getattr(layer, "function", None)) == "transpose"
        along = not turned and all(x.shape[-1] == tensor.shape[-1] for x in before)
        return name if along or head_type(name).kind != "classes" else "mixed"
    return _activation(layer, before) or _head(before[0], outside)


def _keeps(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, _L.Activation):
        return _name(layer.activation) == "linear"
    return isinstance(layer, _KEEPING) or _name(getattr(layer, "function", None)) in _KEEPING_OPERATIONS


def _activation(layer: keras.layers.Layer, before: Sequence[Any]) -> str:
    """The name of what a layer does to its values last; "" where it does nothing to them."""
    if isinstance(layer, _L.Softmax):
        return "softmax" if layer.axis in (-1, len(before[0].shape) - 1) else "mixed"
    if isinstance(layer, _ACTIVATIONS):
        return type(layer).__name__.lower()
    function = getattr(layer, "function", None) or getattr(layer, "activation", None)
    function = getattr(function, "activation", function)  # tfmot's QuantizeAwareActivation
    name = _name(function)
    known = next((kind for kind in ("softmax", "sigmoid") if name.startswith(kind)), "")  # tf.nn.softmax is softmax_v2
    if known or (function is not None and name in head_types):
        return known or name
    if type(layer).__module__.startswith("tf_keras") and not isinstance(layer, _L.Lambda):
        return name if function is not None and getattr(layer, "activation", None) is not None else "linear"
    return _tried(layer, before)


def _name(function: Any) -> str:
    return "" if function is None else getattr(function, "__name__", type(function).__name__)


def _tried(layer: keras.layers.Layer, before: Sequence[Any]) -> str:
    """What a layer without weights does to a few numbers, "" for nothing: the name of a lambda tells nothing."""
    if layer.weights or len(before) != 1 or before[0].shape.rank is None:
        return "linear"
    shape = [n or 3 for n in before[0].shape]
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    try:
        y = np.asarray(layer(tf.constant(x)))
    except Exception:  # whatever foreign code raises on strange input
        return "linear"
    if y.shape == x.shape and np.array_equal(y, x):
        return ""
    fits = (
        name for name in head_types
        if head_type(name).outputs is not _same and y.shape == x.shape
        and np.allclose(y, head_type(name).outputs(x), atol=1e-5)
    )  # fmt: skip
    return next(fits, "linear")


def logits_of(outputs: Any, kinds: Sequence[str]) -> tuple[tf.Tensor, ...]:
    """The logits behind a model's outputs, float32, as a flat tuple.

    Keras activations leave their exact argument on their result, and that is taken. Elsewhere softmax is undone by the
    logarithm, which differs from the logits by a constant that a softmax at any temperature does not see, and sigmoid
    by its inverse; both clipped where float32 ends. Other heads have no logits: their outputs are taken as they are.
    """
    flat = tf.nest.flatten(outputs)
    kinds = kinds if len(kinds) == len(flat) else ["linear"] * len(flat)
    return tuple(_logits(output, kind) for output, kind in zip(flat, kinds, strict=True))


def _logits(output: tf.Tensor, kind: str) -> tf.Tensor:
    exact = getattr(output, "_keras_logits", None)
    if exact is not None and kind != "mixed":
        return tf.cast(exact, tf.float32)
    smallest = {tf.float16: 6e-8}.get(output.dtype, 1.2e-38)
    return head_type(kind).logits(tf.cast(output, tf.float32), smallest)
