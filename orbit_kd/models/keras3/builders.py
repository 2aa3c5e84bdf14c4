"""Layers of Keras 3 that need more than their configuration: wrappers, augmentation, layers made of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tf_keras import layers

from orbit_kd.errors import InputError
from orbit_kd.models.keras3.array_operations import attended, attention_scores, causal_bias
from orbit_kd.models.keras3.extra_layers import RMSNormalization
from orbit_kd.models.keras3.layers import BUILDERS, Twin, builder, config_of, layer_and_activation, plain

# -- wrappers: what they wrap is made first --------------------------------------------------------------------------


def _common(layer: Any, cls: type, *without: str) -> dict[str, Any]:
    config = config_of(layer, cls)
    return {k: v for k, v in config.items() if k not in without}


@builder("Activation")
def activation_layer(layer: Any, twin: Twin) -> Callable[..., Any]:
    """A layer, or the operation alone where tf_keras lacks the activation."""
    ours, after = layer_and_activation(layer, twin)
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
        ours, after = layer_and_activation(inner, twin)
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
    return _rest(layer, twin) if tuple(found.shape[1:3]) == size else plain(layer, twin)


# -- layers that are made of others ---------------------------------------------------------------------------------


@builder("RMSNormalization")
def rms_normalization(layer: Any, twin: Twin) -> Callable[..., Any]:
    """A layer of our own."""
    ours = RMSNormalization(**config_of(layer, RMSNormalization))
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
        ours = layers.EinsumDense(**{**config_of(theirs, layers.EinsumDense), "name": f"{layer.name}_{theirs.name}"})
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
