"""Random small networks for property tests: each block is a function from a tensor to a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

Block = Callable[..., Any]
BLOCKS: dict[str, Block] = {}


def block(function: Block) -> Block:
    """Files a block under its name."""
    BLOCKS[function.__name__] = function
    return function


def random_model(names: list[str], seed: int) -> keras.Model:
    """An image network of the named blocks, one after the other, with a random head."""
    rng = np.random.default_rng(seed)
    image = keras.Input((8, 8, 4))
    x = layers.Conv2D(8, 3, padding="same", name="first")(image)
    for name in names:
        x = BLOCKS[name](x, rng)
    head = rng.integers(3)
    if head == 0:
        x = layers.Flatten()(x)
    elif head == 1:
        x = layers.GlobalAveragePooling2D()(x)
    else:
        x = layers.GlobalMaxPooling2D(keepdims=True)(x)
        x = layers.Flatten()(x)
    x = layers.Dense(6, activation="softsign")(x)  # never dead, so that outputs vary
    return keras.Model(image, layers.Dense(3, name="logits")(x))


def _width(rng: np.random.Generator, multiple: int = 4) -> int:
    return int(rng.integers(1, 4)) * multiple


@block
def conv_bn(x, rng):
    x = layers.Conv2D(_width(rng), 3, padding="same", use_bias=bool(rng.integers(2)))(x)
    return layers.LeakyReLU()(layers.BatchNormalization(scale=bool(rng.integers(2)))(x))


@block
def strided(x, rng):
    return layers.Conv2D(_width(rng), 3, strides=1 + int(x.shape[1] > 4), padding="same", activation="gelu")(x)


@block
def grouped(x, rng):
    if x.shape[-1] % 2:
        return x
    return layers.Conv2D(_width(rng), 3, padding="same", groups=2)(x)


@block
def grouped_depthwise(x, rng):
    return layers.Conv2D(2 * x.shape[-1], 3, padding="same", groups=x.shape[-1])(x)


@block
def depthwise(x, rng):
    return layers.DepthwiseConv2D(3, padding="same", depth_multiplier=int(rng.integers(1, 3)))(x)


@block
def separable(x, rng):
    return layers.SeparableConv2D(_width(rng), 3, padding="same", depth_multiplier=int(rng.integers(1, 3)))(x)


@block
def transposed(x, rng):
    x = layers.Conv2DTranspose(_width(rng), 3, padding="same", strides=1 + int(x.shape[1] < 8))(x)
    return layers.ELU()(x)


@block
def residual(x, rng):
    y = layers.ReLU()(layers.Conv2D(x.shape[-1], 3, padding="same")(x))
    y = layers.BatchNormalization()(layers.Conv2D(x.shape[-1], 1)(y))
    return layers.Add()([x, y])


@block
def projected(x, rng):
    width = _width(rng)
    merge = [
        layers.Add,
        layers.Subtract,
        layers.Average,
        layers.Maximum,
        layers.Minimum,
    ][rng.integers(5)]
    return merge()([layers.Conv2D(width, 1)(x), layers.Conv2D(width, 3, padding="same")(x)])


@block
def dense_block(x, rng):
    y = layers.Conv2D(_width(rng), 3, padding="same")(layers.ReLU(6.0)(layers.BatchNormalization()(x)))
    return layers.Concatenate()([x, y])


@block
def concat_over_space(x, rng):
    if x.shape[1] > 8:
        return x
    return layers.Concatenate(axis=1)([x, layers.Conv2D(x.shape[-1], 3, padding="same")(x)])


@block
def squeeze_excite(x, rng):
    gate = layers.GlobalAveragePooling2D(keepdims=bool(rng.integers(2)))(x)
    if len(gate.shape) == 2:
        gate = layers.Reshape((1, 1, x.shape[-1]))(gate)
    gate = layers.Conv2D(max(1, x.shape[-1] // 2), 1, activation="relu")(gate)
    gate = layers.Conv2D(x.shape[-1], 1, activation="sigmoid")(gate)
    return layers.Multiply()([x, gate])


@block
def spatial_gate(x, rng):
    return layers.Multiply()([x, layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x)])


@block
def shuffle(x, rng):
    h, w, c = x.shape[1:]
    if c % 2:
        return x
    x = layers.Reshape((h, w, 2, c // 2))(x)
    return layers.Reshape((h, w, c))(layers.Permute((1, 2, 4, 3))(x))


@block
def flat_positions(x, rng):
    h, w, c = x.shape[1:]
    y = layers.Dense(c, activation="tanh")(layers.Reshape((h * w, c))(x))
    return layers.Reshape((h, w, c))(y)


@block
def from_dense(x, rng):
    y = layers.Dense(4 * 4 * 4, activation="tanh")(layers.GlobalAveragePooling2D()(x))
    return layers.Reshape((4, 4, 4))(y)


@block
def prelu(x, rng):
    return layers.PReLU(shared_axes=[1, 2] if rng.integers(2) else None)(x)


@block
def layer_norm(x, rng):
    return layers.LayerNormalization(scale=bool(rng.integers(2)))(x)


@block
def group_norm(x, rng):
    x = layers.GroupNormalization(groups=-1 if rng.integers(2) else max(1, x.shape[-1] // 2))(x)
    return layers.Activation("gelu")(x)  # else a mean over space would be a constant


@block
def pool(x, rng):
    kind = [layers.MaxPooling2D, layers.AveragePooling2D][rng.integers(2)]
    return kind(2)(x) if x.shape[1] > 2 else x


@block
def reshaping(x, rng):
    x = layers.Cropping2D(1)(layers.ZeroPadding2D(2)(x)) if x.shape[1] < 8 else x
    return layers.UpSampling2D()(x) if x.shape[1] <= 4 else layers.SpatialDropout2D(0.1)(x)


@block
def nested(x, rng):
    inside = keras.Input(x.shape[1:])
    y = layers.Conv2D(_width(rng), 3, padding="same", activation="swish")(inside)
    y = keras.Sequential([layers.Conv2D(_width(rng), 1), layers.BatchNormalization()])(y)
    return keras.Model(inside, y)(x)


@block
def shared(x, rng):
    conv = layers.Conv2D(x.shape[-1], 3, padding="same", activation="elu")
    return conv(conv(x)) if rng.integers(2) else layers.Concatenate()([conv(x), conv(layers.ELU()(x))])


@block
def softmax_gate(x, rng):
    return layers.Multiply()([x, layers.Softmax()(layers.Conv2D(x.shape[-1], 1)(x))])


@block
def tf_arithmetic(x, rng):
    y = layers.Conv2D(x.shape[-1], 1)(x)
    y = tf.nn.relu(x + y) * 2.0 - 0.1 * tf.sigmoid(y)
    return tf.maximum(y, 0.01) / (tf.abs(y) + 1.0) - np.linspace(0, 1, x.shape[-1], dtype="float32")


@block
def tf_shapes(x, rng):
    h, w, c = x.shape[1:]
    y = tf.reshape(x, (tf.shape(x)[0], h * w, c))
    y = tf.transpose(tf.transpose(y, [0, 2, 1]), [0, 2, 1])
    y = tf.squeeze(tf.expand_dims(tf.reshape(y, [-1, h, w, c]), 1), axis=1)
    return tf.pad(y, [[0, 0], [1, 0], [0, 1], [0, 0]])[:, 1:, :-1]


@block
def tf_gate(x, rng):
    pooled = tf.reduce_mean(x, axis=[1, 2], keepdims=True)
    return x * tf.sigmoid(pooled) + tf.reduce_max(x, [1, 2])[:, None, None]


@block
def tf_concat(x, rng):
    top, bottom = tf.split(x, 2, axis=1) if x.shape[1] % 2 == 0 else (x, x)
    y = tf.concat([top, bottom], -1)
    return tf.concat([y, tf.nn.silu(y)], axis=1)


@block
def tf_channel_slice(x, rng):
    y = layers.Conv2D(8, 3, padding="same")(x)
    return y[..., :4] + y[..., 4:]
