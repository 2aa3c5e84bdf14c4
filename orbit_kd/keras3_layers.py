"""Layers of Keras 3 as layers of tf_keras, made anew from their configurations.

Most differ in an option or two. What needs more has a function of its own here: to add one, decorate it with
`@builder("TheirLayer")`. It gets the Keras 3 layer and the `Twin` in the making, and returns what to call in its place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras import layers
from tf_keras.src.applications.convnext import LayerScale, StochasticDepth
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer

from orbit_kd.errors import InputError
from orbit_kd.extra_layers import RMSNormalization
from orbit_kd.keras3_operations import ACTIVATIONS, attended, attention_scores, causal_bias
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
    return _plain(layer, twin)


def _plain(layer: Any, twin: Twin) -> Callable[..., Any]:
    """A layer that both have, with what comes after it."""
    ours, after = _parts(layer, twin)
    return ours if after is None else lambda *args, **kwargs: after(ours(*args, **kwargs))


def _parts(layer: Any, twin: Twin) -> tuple[layers.Layer, Callable[..., Any] | None]:
    """A layer that both have, and its activation as an operation of its own where tf_keras lacks it."""
    name = type(layer).__name__
    cls: Any = _LAYERS.get(name) or getattr(layers, name)
    inside, after = _activations(layer, twin)  # before the configuration: Keras 3 cannot write down some functions
    ours = cls(**(_config(layer, cls) | inside))
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


def _config(layer: Any, cls: type) -> dict[str, Any]:
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


# -- wrappers: what they wrap is made first --------------------------------------------------------------------------


def _common(layer: Any, cls: type, *without: str) -> dict[str, Any]:
    config = _config(layer, cls)
    return {k: v for k, v in config.items() if k not in without}


@builder("Activation")
def activation_layer(layer: Any, twin: Twin) -> Callable[..., Any]:
    """A layer, or the operation alone where tf_keras lacks the activation."""
    ours, after = _parts(layer, twin)
    return after or ours


@builder("Bidirectional")
def bidirectional(layer: Any, twin: Twin) -> Callable[..., Any]:
    """Both directions are told, for the wrapper copies what it is given."""
    before = len(twin.pairs)
    sides = [twin.operation(side) for side in (layer.forward_layer, layer.backward_layer)]
    del twin.pairs[before:]
    config = _common(layer, layers.Bidirectional, "layer", "backward_layer")
    ours = layers.Bidirectional(sides[0], backward_layer=sides[1], **config)
    twin.pairs += [(layer.forward_layer, ours.forward_layer), (layer.backward_layer, ours.backward_layer)]
    return ours


@builder("TimeDistributed")
def time_distributed(layer: Any, twin: Twin) -> Callable[..., Any]:
    """Around a layer or a whole model; an activation that becomes an operation comes after."""
    inner, after = layer.layer, None
    if type(inner).__name__ in BUILDERS or not hasattr(layers, type(inner).__name__):
        ours = twin.operation(inner)
    else:
        ours, after = _parts(inner, twin)
    if not isinstance(ours, layers.Layer):
        raise InputError(
            f"Layer {layer.name!r} (TimeDistributed) holds {inner.name!r}, which is no single layer in tf_keras.",
            expected="a layer that tf_keras has too, or a model",
            fix="put that layer into a keras.Sequential model, and TimeDistributed around that",
        )
    wrapper = layers.TimeDistributed(ours, **_common(layer, layers.TimeDistributed, "layer"))
    return wrapper if after is None else lambda *args, **kwargs: after(wrapper(*args, **kwargs))


@builder("RNN")
def rnn(layer: Any, twin: Twin) -> Callable[..., Any]:
    """Around one cell, or several."""
    return layers.RNN(twin.operation(layer.cell), **_common(layer, layers.RNN, "cell"))


@builder("StackedRNNCells")
def stacked_cells(layer: Any, twin: Twin) -> Callable[..., Any]:
    """Cell upon cell."""
    return layers.StackedRNNCells(
        [twin.operation(cell) for cell in layer.cells], **_common(layer, layers.StackedRNNCells, "cells")
    )


@builder("Lambda")
def lambda_layer(layer: Any, twin: Twin) -> Callable[..., Any]:
    """The author's own function, which runs on TensorFlow tensors here too."""
    return layers.Lambda(layer.function, arguments=layer.arguments or None, mask=layer.mask, name=layer.name)


# -- augmentation that tf_keras lacks: it rests in inference --------------------------------------------------------


def _rest(layer: Any, twin: Twin) -> Callable[..., Any]:
    twin.left_out.append(f"{layer.name!r} ({type(layer).__name__})")
    return lambda x, **_: x


for _name in (
    "AugMix", "CutMix", "Equalization", "MaxNumBoundingBoxes", "MixUp", "RandAugment", "RandomColorDegeneration",
    "RandomColorJitter", "RandomElasticTransform", "RandomErasing", "RandomGaussianBlur", "RandomGrayscale",
    "RandomHue", "RandomInvert", "RandomPerspective", "RandomPosterization", "RandomSaturation", "RandomSharpness",
    "RandomShear", "Solarization",
):  # fmt: skip
    builder(_name)(_rest)


@builder("Pipeline")
def pipeline(layer: Any, twin: Twin) -> Callable[..., Any]:
    """Its layers one after the other."""
    steps = [twin.operation(step) for step in layer.layers]

    def call(x: Any, **_: Any) -> Any:
        for step in steps:
            x = step(x)
        return x

    return call


@builder("RandomCrop")
def random_crop(layer: Any, twin: Twin) -> Callable[..., Any]:
    """Some versions of Keras 3 leave the size as it is in inference, others resize as tf_keras does."""
    size = (layer.height + 1, layer.width + 1)
    found = layer(np.zeros((1, *size, 1), "float32"), training=False)
    return _rest(layer, twin) if tuple(found.shape[1:3]) == size else _plain(layer, twin)


# -- layers that are made of others ---------------------------------------------------------------------------------


@builder("RMSNormalization")
def rms_normalization(layer: Any, twin: Twin) -> Callable[..., Any]:
    """A layer of our own."""
    ours = RMSNormalization(**_config(layer, RMSNormalization))
    twin.pairs.append((layer, ours))
    return ours


@builder("GroupedQueryAttention")
def grouped_query_attention(layer: Any, twin: Twin) -> Callable[..., Any]:
    """Its dense layers, with key and value repeated for the heads that share them."""
    if layer.use_gate or layer.sliding_window is not None:
        raise InputError(
            f"Layer {layer.name!r} ({type(layer).__name__}) has a gate or a sliding window.",
            expected="use_gate=False and sliding_window=None",
            fix="rebuild the layer without them",
        )

    def dense(part: str) -> Callable[..., Any]:
        theirs = getattr(layer, f"_{part}_dense")
        ours = layers.EinsumDense(**{**_config(theirs, layers.EinsumDense), "name": f"{layer.name}_{theirs.name}"})
        twin.pairs.append((theirs, ours))
        return ours

    to_query, to_key, to_value, to_output = (dense(part) for part in ("query", "key", "value", "output"))
    dropout = layers.Dropout(layer.dropout, name=f"{layer.name}_dropout") if layer.dropout else lambda x: x

    def call(
        query: Any,
        value: Any,
        key: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Any:
        if any(getattr(t, "_keras_mask", None) is not None for t in (query, value, key)):
            raise InputError(
                f"Layer {layer.name!r} ({type(layer).__name__}) gets a mask from Embedding or Masking.",
                expected="a mask that is given as attention_mask, or none",
                fix="use MultiHeadAttention, which takes such masks in tf_keras too",
            )
        q, k, v = to_query(query), to_key(value if key is None else key), to_value(value)
        k, v = (tf.repeat(t, layer.num_repeats, 2) for t in (k, v))
        scores = attention_scores(q, k) * (layer.head_dim**-0.5)
        if attention_mask is not None:
            mask = tf.expand_dims(attention_mask, 1) if len(attention_mask.shape) == 3 else attention_mask
            scores = tf.where(tf.cast(mask, tf.bool), scores, -1e9)
        if use_causal_mask:
            scores = scores + causal_bias(layer, q, k)
        scores = tf.nn.softmax(scores)
        output = to_output(attended(dropout(scores), v))
        return (output, scores) if return_attention_scores else output

    return call


@builder("GroupQueryAttention")
def group_query_attention(layer: Any, twin: Twin) -> Callable[..., Any]:
    """The name that `keras.layers` has for it."""
    return grouped_query_attention(layer, twin)


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
