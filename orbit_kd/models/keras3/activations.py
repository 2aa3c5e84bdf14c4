"""Activations of Keras 3 in TensorFlow functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def hard_sigmoid(x: Any) -> Any:
    """relu6(x + 3) / 6, which is not what tf_keras calls hard_sigmoid."""
    return tf.nn.relu6(x + 3.0) * (1 / 6)


def elu(x: Any, alpha: float) -> Any:
    """x above 0, alpha * (exp(x) - 1) below."""
    return tf.nn.elu(x) if alpha == 1 else tf.where(x > 0, x, alpha * (tf.exp(tf.minimum(x, 0.0)) - 1.0))


def glu(x: Any, axis: int) -> Any:
    """One half of the channels, gated by the other."""
    value, gate = tf.split(x, 2, axis)
    return value * tf.sigmoid(gate)


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "celu": lambda x: elu(x, 1.0),
    "glu": lambda x: glu(x, -1),
    "hard_sigmoid": hard_sigmoid,
    "hard_silu": lambda x: x * hard_sigmoid(x),
    "hard_tanh": lambda x: tf.clip_by_value(x, -1.0, 1.0),
    "leaky_relu": lambda x: tf.nn.leaky_relu(x, alpha=0.2),
    "log_sigmoid": lambda x: -tf.math.softplus(-x),
    "log_softmax": lambda x: tf.nn.log_softmax(x, axis=-1),
    "mish": lambda x: x * tf.tanh(tf.math.softplus(x)),
    "relu6": tf.nn.relu6,
    "silu": tf.nn.silu,
    "squareplus": lambda x: 0.5 * (x + tf.sqrt(tf.square(x) + 4.0)),
    "tanh_shrink": lambda x: x - tf.tanh(x),
}
"""Activations of Keras 3 that tf_keras lacks or has another function for."""
