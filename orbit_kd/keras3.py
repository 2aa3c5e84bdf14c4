"""The tf_keras twin of a Keras 3 model: the same layers and weights, in the Keras that tfmot and TFLite take.

Layers are made anew from their configurations and called along the Keras 3 graph; operations of `keras.ops` become the
TensorFlow operations they stand for. To add one of these, add a line to `_OPERATIONS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras import layers
from tf_keras.src.applications.convnext import LayerScale, StochasticDepth
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer

from orbit_kd.errors import InputError


def is_keras3(model: Any) -> bool:
    """Whether an object is a model of Keras 3, told without importing it."""
    return any(cls.__module__.startswith("keras.src.models") for cls in type(model).__mro__)


def from_keras3(model: Any) -> tf_keras.Model:
    """The tf_keras twin of a Functional or Sequential Keras 3 model, with the same names and weights.

    Raises:
        InputError: a layer, an operation or an option that tf_keras has no equal of; a model without a graph.
    """
    return _Twin().model(model)


def load_keras3(path: str, *, trust_code: bool = False, custom_objects: dict[str, Any] | None = None) -> tf_keras.Model:
    """Reads a file that Keras 3 wrote, and returns its twin."""
    import keras

    return from_keras3(
        keras.models.load_model(path, compile=False, safe_mode=not trust_code, custom_objects=custom_objects)
    )


def _hard_sigmoid(x: Any) -> Any:
    return tf.nn.relu6(x + 3.0) * (1 / 6)  # tf_keras' own is another function


_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "hard_sigmoid": _hard_sigmoid,
    "hard_silu": lambda x: x * _hard_sigmoid(x),
    "silu": tf.nn.silu,
}

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "Add": lambda op, a, b: a + b,
    "Subtract": lambda op, a, b: a - b,
    "Multiply": lambda op, a, b: a * b,
    "Divide": lambda op, a, b: a / b,
    "TrueDivide": lambda op, a, b: a / b,
    "Negative": lambda op, x: -x,
    "Maximum": lambda op, a, b: tf.maximum(a, b),
    "Minimum": lambda op, a, b: tf.minimum(a, b),
    "Relu": lambda op, x: tf.nn.relu(x),
    "Relu6": lambda op, x: tf.nn.relu6(x),
    "Sigmoid": lambda op, x: tf.sigmoid(x),
    "Tanh": lambda op, x: tf.tanh(x),
    "Silu": lambda op, x: tf.nn.silu(x),
    "Gelu": lambda op, x: tf.nn.gelu(x, approximate=op.approximate),
    "HardSigmoid": lambda op, x: _hard_sigmoid(x),
    "HardSilu": lambda op, x: x * _hard_sigmoid(x),
    "Softmax": lambda op, x: tf.nn.softmax(x, axis=op.axis),
    "Exp": lambda op, x: tf.exp(x),
    "Sqrt": lambda op, x: tf.sqrt(x),
    "Square": lambda op, x: tf.square(x),
    "Absolute": lambda op, x: tf.abs(x),
    "Mean": lambda op, x: tf.reduce_mean(x, op.axis, op.keepdims),
    "Max": lambda op, x, **_: tf.reduce_max(x, op.axis, op.keepdims),
    "Sum": lambda op, x: tf.reduce_sum(x, op.axis, op.keepdims),
    "Concatenate": lambda op, xs: tf.concat(xs, op.axis),
    "Reshape": lambda op, x: tf.reshape(x, op.newshape),
    "Transpose": lambda op, x: tf.transpose(x, op.axes),
    "GetItem": lambda op, x, key: x[key],
    "Stack": lambda op, xs: tf.stack(xs, op.axis),
    "ExpandDims": lambda op, x: tf.expand_dims(x, op.axis),
    "Squeeze": lambda op, x: tf.squeeze(x, op.axis),
}

# layers that are no part of tf_keras.layers, or have another name there
_LAYERS: dict[str, type] = {
    "LayerScale": LayerScale,
    "StochasticDepth": StochasticDepth,
    "CustomScaleLayer": CustomScaleLayer,
}
_RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}}
# what Keras 3 asks of layers that tf_keras does not, and that matters in training only
_IN_TRAINING = ("value_range",)
# options of Keras 3 whose given value means what tf_keras always does
_IMPLIED: dict[str, tuple[Any, ...]] = {
    "renorm": (False,),
    "renorm_clipping": (None,),
    "renorm_momentum": (0.99,),
    "rms_scaling": (False,),
    "pad_to_aspect_ratio": (False,),
    "antialias": (False,),
    "fill_mode": ("constant",),
    "fill_value": (0.0,),
    "data_format": ("channels_last", None),
    "seed": (None,),
    "batch_shape": (),
    "quantization_config": (None,),
    "lora_rank": (None,),
}


class _Twin:
    def __init__(self) -> None:
        self.made: dict[int, Any] = {}

    def model(self, model: Any) -> tf_keras.Model:
        graph = getattr(model, "_functional", None) or model  # a Sequential keeps its graph there
        if not getattr(graph, "_nodes_by_depth", None):
            raise InputError(
                f"The Keras 3 model {model.name!r} has no layer graph.",
                expected="a Functional model, or a Sequential one that knows its input shape",
                fix="build it with keras.Input; a subclassed model: keras.Model(inputs, model.call(inputs))",
            )
        tensors: dict[int, Any] = {}
        inputs = []
        for t in graph.inputs:
            inputs.append(tf_keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t._keras_history.operation.name))
            tensors[id(t)] = inputs[-1]
        for depth in sorted(graph._nodes_by_depth, reverse=True):
            for node in graph._nodes_by_depth[depth]:
                if type(node.operation).__name__ == "InputLayer":
                    continue
                args, kwargs = tf.nest.map_structure(
                    lambda v: tensors.get(id(v), v), (node.arguments.args, node.arguments.kwargs)
                )
                outputs = self.operation(node.operation)(*args, **_given(node.operation, kwargs))
                tensors.update(zip(map(id, tf.nest.flatten(node.outputs)), tf.nest.flatten(outputs), strict=True))
        outputs = [tensors[id(t)] for t in graph.outputs]
        twin = tf_keras.Model(_alone(inputs), _alone(outputs), name=model.name)
        for operation, layer in [(o, self.made[id(o)]) for o in graph.operations if id(o) in self.made]:
            _copy_weights(operation, layer)
        return twin

    def operation(self, operation: Any) -> Callable[..., Any]:
        """What stands for a Keras 3 layer or operation; made once, so that shared layers stay shared."""
        if id(operation) not in self.made:
            self.made[id(operation)] = self.make(operation)
        return self.made[id(operation)]

    def make(self, operation: Any) -> Callable[..., Any]:
        name = type(operation).__name__
        if is_keras3(operation):
            return self.model(operation)
        if hasattr(operation, "get_config") and hasattr(operation, "weights"):
            return _layer(operation)
        if name not in _OPERATIONS:
            raise InputError(
                f"The Keras 3 operation {operation.name!r} ({name}) has no twin.",
                expected="an operation of: " + ", ".join(sorted(_OPERATIONS)),
                fix="use a layer in its place, or add a line for it to orbit_kd/keras3.py",
            )
        return lambda *args, **kwargs: _OPERATIONS[name](operation, *args, **kwargs)


def _given(operation: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call that its author gave: Keras 3 writes the defaults down with them.

    Augmentation layers have training=True as theirs; as an argument it would keep them random for ever.
    """
    default = inspect.signature(operation.call).parameters.get("training")
    usual = {"mask": None, "training": True if default is not None and default.default is True else None}
    return {k: v for k, v in kwargs.items() if k not in usual or (v is not None and v is not usual[k])}


def _alone(tensors: list[Any]) -> Any:
    return tensors[0] if len(tensors) == 1 else tensors


def _layer(layer: Any) -> Callable[..., Any]:
    name = type(layer).__name__
    cls: Any = _LAYERS.get(name) or getattr(layers, name, None)
    if cls is None or not type(layer).__module__.startswith("keras."):
        raise InputError(
            f"The Keras 3 layer {layer.name!r} ({type(layer).__module__}.{name}) has no twin in tf_keras.",
            expected="a layer that both have",
            fix="build that layer in tf_keras and load the weights into it",
        )
    config = layer.get_config()
    activation = config.get("activation")
    if name == "Activation" and activation in _ACTIVATIONS:
        return _ACTIVATIONS[activation]
    if activation in ("hard_sigmoid", "hard_silu"):
        raise InputError(
            f"Layer {layer.name!r} has the activation {activation} of Keras 3, which is another function in tf_keras.",
            expected="an activation that both have",
            fix="make it a layer of its own: Activation('hard_silu') after a linear layer",
        )
    return cls.from_config(_config(layer, cls, config))


def _config(layer: Any, cls: type, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration in tf_keras' words; weights come later, so initializers are left out."""
    policy = config.pop("dtype", None)
    dtype = policy["config"]["name"] if isinstance(policy, dict) else policy
    known = {"name", "trainable"} | {
        p
        for c in cls.__mro__
        if c.__module__.startswith("tf_keras") and "__init__" in vars(c)
        for p in inspect.signature(vars(c)["__init__"]).parameters
    }
    found: dict[str, Any] = {"dtype": dtype} if dtype else {}
    for key, value in config.items():
        key = _RENAMED.get(type(layer).__name__, {}).get(key, key)
        if key.endswith("_initializer") or key in ("batch_shape", "batch_input_shape"):
            continue
        if key in known:
            found[key] = value
        elif value is not None and key not in _IN_TRAINING and value not in _IMPLIED.get(key, ()):
            raise InputError(
                f"Layer {layer.name!r} ({type(layer).__name__}) has {key}={value!r}, which tf_keras does not know.",
                expected=f"{key} left out",
                fix="rebuild the layer without it",
            )
    return found


def _copy_weights(operation: Any, layer: Any) -> None:
    if not isinstance(layer, tf_keras.layers.Layer) or isinstance(layer, tf_keras.Model):
        return
    values = [np.asarray(v) for v in operation.weights]
    shapes = [tuple(v.shape) for v in layer.weights]
    if [v.shape for v in values] != shapes:
        raise InputError(
            f"Layer {operation.name!r} has weights of shapes {[v.shape for v in values]}, its twin {shapes}.",
            expected="the same weights in both",
            fix="report this layer; convert the model without it",
        )
    layer.set_weights(values)
