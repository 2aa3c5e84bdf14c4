"""Separable convolutions, which the int8 file computes as two operators with a tensor between them."""

from __future__ import annotations

import tf_keras as keras

from orbit_kd.models.copies import clone_with, copy_layer, named_layers


def split_separable(model: keras.Model) -> keras.Model:
    """A copy with each SeparableConv2D as its two convolutions: there is an int8 tensor between them."""
    if not any(type(layer) is keras.layers.SeparableConv2D for _, layer in named_layers(model)):
        return model

    def split(layer: keras.layers.Layer) -> keras.layers.Layer:
        if type(layer) is not keras.layers.SeparableConv2D:
            return copy_layer(layer)
        c = layer.get_config()
        common = {key: c[key] for key in ("data_format", "dtype", "trainable")}
        depthwise = keras.layers.DepthwiseConv2D(
            c["kernel_size"],
            strides=c["strides"],
            padding=c["padding"],
            depth_multiplier=c["depth_multiplier"],
            dilation_rate=c["dilation_rate"],
            use_bias=False,
            depthwise_regularizer=c["depthwise_regularizer"],
            depthwise_constraint=c["depthwise_constraint"],
            name=f"{layer.name}_depthwise",
            **common,
        )
        pointwise = keras.layers.Conv2D(
            c["filters"],
            1,
            activation=c["activation"],
            use_bias=c["use_bias"],
            kernel_regularizer=c["pointwise_regularizer"],
            bias_regularizer=c["bias_regularizer"],
            activity_regularizer=c["activity_regularizer"],
            kernel_constraint=c["pointwise_constraint"],
            bias_constraint=c["bias_constraint"],
            name=f"{layer.name}_pointwise",
            **common,
        )
        return keras.Sequential([depthwise, pointwise], name=layer.name)

    plain, pairs = clone_with(model, split)
    for layer, new in pairs:
        new.set_weights(layer.get_weights())
    return plain
