"""Layers of Keras 3 as layers of tf_keras, made anew from their configurations.

Most differ in an option or two. What needs more has a function of its own here: to add one, decorate it with
`@builder("TheirLayer")`. It gets the Keras 3 layer and the `Twin` in the making, and returns what to call in its place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import tf_keras
from tf_keras import layers
from tf_keras.src.applications.convnext import LayerScale, StochasticDepth
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer

from orbit_kd.errors import InputError
from orbit_kd.models.keras3.activations import ACTIVATIONS
from orbit_kd.registry import Registry


class Twin(Protocol):
    """The twin that is being made."""

    pairs: list[tuple[Any, layers.Layer]]
    """A Keras 3 layer and the one that gets its weights when all is built."""
    left_out: list[str]
    """Augmentation that the twin lacks."""

    def operation(self, operation: Any) -> Callable[..., Any]:
        """What stands for a Keras 3 layer, model or operation."""


BUILDERS: Registry[Callable[[Any, Twin], Callable[..., Any]]] = Registry("Keras 3 layer")
builder = BUILDERS.register

# layers that are no part of tf_keras.layers
_LAYERS: dict[str, type] = {
    "LayerScale": LayerScale,
    "StochasticDepth": StochasticDepth,
    "CustomScaleLayer": CustomScaleLayer,
}
_RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}}
# what Keras 3 has and tf_keras has not, and that changes nothing in inference
_WITHOUT_EFFECT = ("value_range", "seed", "flash_attention", "use_cudnn", "batch_shape", "score_mode")
# options of Keras 3 whose given value means what tf_keras always does
_IMPLIED: dict[str, tuple[Any, ...]] = {
    "renorm": (False,),
    "renorm_momentum": (0.99,),
    "rms_scaling": (False,),
    "pad_to_aspect_ratio": (False,),
    "antialias": (False,),
    "fill_mode": ("constant",),
    "fill_value": (0.0,),
    "data_format": ("channels_last",),
    "zero_output_for_mask": (False,),
    "use_gate": (False,),
    "factor": (1.0,),
    "axis": (-1, [-1]),
}
_ACTIVATIONS_OF_BOTH = (
    "linear", "relu", "softmax", "sigmoid", "tanh", "elu", "selu", "softplus", "softsign", "exponential", "gelu",
)  # fmt: skip


def build_layer(layer: Any, twin: Twin) -> Callable[..., Any]:
    """What to call in place of a Keras 3 layer: a tf_keras layer, or a function that calls some.

    Raises:
        InputError: a layer or an option that tf_keras has no equal of.
    """
    name = type(layer).__name__
    known = type(layer).__module__.startswith("keras.")
    if known and name in BUILDERS:
        return BUILDERS.get(name)(layer, twin)
    if not known or not (name in _LAYERS or hasattr(layers, name)):
        raise InputError(
            f"The Keras 3 layer {layer.name!r} ({type(layer).__module__}.{name}) has no twin in tf_keras.",
            expected="a layer that both have",
            fix="build the network with tf_keras layers (or a tf_keras layer of your own) and copy the weights",
        )
    return plain(layer, twin)


def plain(layer: Any, twin: Twin) -> Callable[..., Any]:
    """A layer that both have, with what comes after it."""
    ours, after = layer_and_activation(layer, twin)
    return ours if after is None else lambda *args, **kwargs: after(ours(*args, **kwargs))


def layer_and_activation(layer: Any, twin: Twin) -> tuple[layers.Layer, Callable[..., Any] | None]:
    """A layer that both have, and its activation as an operation of its own where tf_keras lacks it."""
    name = type(layer).__name__
    cls: Any = _LAYERS.get(name) or getattr(layers, name)
    inside, after = _activations(layer, twin)  # before the configuration: Keras 3 cannot write down some functions
    ours = cls(**(config_of(layer, cls) | inside))
    twin.pairs.append((layer, ours))
    return ours, after


def _activations(layer: Any, twin: Twin) -> tuple[dict[str, str], Callable[..., Any] | None]:
    """The activations in tf_keras' names, and what to apply after the layer where one cannot stay inside."""
    recurrent = hasattr(layer, "recurrent_initializer")
    inside: dict[str, str] = {}
    for key in ("activation", "recurrent_activation"):
        function = getattr(layer, key, None)
        if function is None:
            continue
        name = getattr(function, "__name__", type(function).__name__)
        known = str(getattr(function, "__module__", "")).startswith("keras.")
        if hasattr(function, "get_config") and hasattr(function, "weights") and not recurrent:
            return {key: "linear"}, twin.operation(function)  # a layer given as an activation
        if known and name in _ACTIVATIONS_OF_BOTH:
            inside[key] = name
        elif known and name == "silu" and type(layer).__name__ != "Activation":
            inside[key] = "swish"
        elif known and name in ACTIVATIONS and not recurrent:
            return {key: "linear"}, ACTIVATIONS[name]
        else:
            raise InputError(
                f"Layer {layer.name!r} ({type(layer).__name__}) has {key}={name}, which tf_keras has no equal of.",
                expected="one of: " + ", ".join([*_ACTIVATIONS_OF_BOTH, *([] if recurrent else sorted(ACTIVATIONS))]),
                fix="give it one of these"
                + ("" if recurrent else ", or make it an operation of its own after the layer"),
            )
    return inside, None


def config_of(layer: Any, cls: type) -> dict[str, Any]:
    """The configuration in tf_keras' words; weights come later, so initializers are left out."""
    config = layer.get_config()
    policy = config.pop("dtype", None)
    dtype = policy["config"]["name"] if isinstance(policy, dict) else policy
    known = {"name", "trainable"} | {
        p
        for c in cls.__mro__
        if c.__module__.startswith(("tf_keras", "orbit_kd")) and "__init__" in vars(c)
        for p in inspect.signature(vars(c)["__init__"]).parameters
    }
    if issubclass(cls, layers.RNN):
        known |= {"zero_output_for_mask"}  # taken from **kwargs
    if config.get("stateful"):
        raise InputError(
            f"Layer {layer.name!r} ({type(layer).__name__}) is stateful: its outputs depend on the calls before.",
            expected="a layer that begins each sequence at zero",
            fix="rebuild the network with stateful=False and copy the weights: set_weights(model.get_weights())",
        )
    found: dict[str, Any] = {"dtype": dtype} if dtype else {}
    for key, value in config.items():
        key = _RENAMED.get(type(layer).__name__, {}).get(key, key)
        if key.endswith("_initializer") or key in ("batch_shape", "batch_input_shape"):
            continue
        if key in known and not (value is None and key == "data_format"):
            found[key] = value
        elif value is not None and key not in _WITHOUT_EFFECT and value not in _IMPLIED.get(key, ()):
            raise InputError(
                f"Layer {layer.name!r} ({type(layer).__name__}) has {key}={value!r}, which tf_keras does not know.",
                expected=f"{key} left out",
                fix="rebuild the layer without it",
            )
    return found


def copy_weights(theirs: Any, ours: tf_keras.layers.Layer) -> None:
    """Puts the weights of a Keras 3 layer into its twin.

    Raises:
        InputError: the two have other weights.
    """
    values = [np.asarray(v) for v in theirs.weights]
    shapes = [tuple(v.shape) for v in ours.weights]
    if [v.shape for v in values] != shapes:
        raise InputError(
            f"Layer {theirs.name!r} has weights of shapes {[v.shape for v in values]}, its twin {shapes}.",
            expected="the same weights in both",
            fix="report this layer; convert the model without it",
        )
    ours.set_weights(values)
