"""Layers that tf_keras lacks and the twins of Keras 3 models need."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras


@keras.saving.register_keras_serializable("orbit_kd")
class Einsum(keras.layers.Layer):
    """tf.einsum of several tensors: as an operation in a tf_keras graph it cannot be saved or copied."""

    def __init__(self, equation: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.equation = equation

    def call(self, inputs: Any) -> Any:
        return tf.einsum(self.equation, *tf.nest.flatten(inputs))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "equation": self.equation}


@keras.saving.register_keras_serializable("orbit_kd")
class RMSNormalization(keras.layers.Layer):
    """Divides by the root of the mean square over the last axis; one learned scale a channel."""

    def __init__(self, epsilon: float = 1e-6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        self.scale = self.add_weight(name="scale", shape=(input_shape[-1],), initializer="ones")
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        mean_square = tf.reduce_mean(tf.square(inputs), axis=-1, keepdims=True)
        return inputs * tf.math.rsqrt(mean_square + self.epsilon) * self.scale

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}
