"""The layer whose kernel holds few distinct values: the values are trained, who shares which stays.

It is tfmot's `ClusterWeights` with its state machine replaced: there the zeros' mask is held by no file, the kernel
variable is lost to a tensor at the first call, and a clustered model trains the variables of the model it was made of.
Here the optimizer's step ends in the projection, through the kernel's constraint, so that the stored kernel is
clustered whenever anyone looks at it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.clustering.kmeans import k_means
from orbit_kd.models.wrappers import (
    ClusterWeights,
    KernelRule,
    LayerWrapper,
)


@keras.utils.register_keras_serializable(package="orbit_kd")
class ClusteredLayer(LayerWrapper, ClusterWeights):
    """A layer whose kernel holds few distinct values; it bears the layer's name.

    Its weights are the layer's own, then `indices` (uint8, the kernel's shape): which value each weight has.

    Args:
        layer: an unbuilt layer that `kernel_rule` accepts, or its saved form.
        rule: where the kernel is.
        clusters: most distinct values, in each output channel or in the kernel; None to keep the zeros and no more.
        per_channel: which of both.
        keep_zeros: index 0 is zero and stays so.
    """

    rule: KernelRule

    def __init__(
        self,
        layer: keras.layers.Layer,
        *,
        rule: KernelRule,
        clusters: int | None,
        per_channel: bool,
        keep_zeros: bool,
        **kwargs: Any,
    ) -> None:
        kwargs["name"] = layer.name
        kwargs.setdefault("dtype", layer.dtype_policy)
        # Past tfmot's own, which knows few layers and makes state that is not used here.
        keras.layers.Wrapper.__init__(self, layer, **kwargs)
        self.rule, self.clusters, self.per_channel, self.keep_zeros = rule, clusters, per_channel, keep_zeros
        self.supports_masking = layer.supports_masking

    def build(self, input_shape: Any) -> None:
        """Builds the layer and its indices."""
        super().build(input_shape)
        self.indices = self.add_weight(
            "indices",
            shape=self.kernel.shape,
            initializer="zeros",
            dtype=tf.uint8,
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    @property
    def distinct_values(self) -> int:
        """Most distinct values of an output channel, or those of the kernel, zero included."""
        return max(len(np.unique(row)) for row in self._rows(self.kernel.numpy()))

    def start(self) -> None:
        """Clusters the kernel as it is."""
        kernel = self.kernel.numpy()
        if self.clusters is None:
            self.indices.assign((kernel != 0).astype(np.uint8))
            return
        indices = np.stack([k_means(row, self.clusters, keep_zeros=self.keep_zeros) for row in self._rows(kernel)])
        if self.per_channel:
            order = _channels_first(kernel.ndim, self.rule)
            indices = indices.reshape([kernel.shape[axis] for axis in order]).transpose(np.argsort(order))
        self.indices.assign(indices.reshape(kernel.shape).astype(np.uint8))
        super().start()

    def after_step(self, weights: tf.Tensor) -> tf.Tensor:
        """The kernel to store: every weight is the mean of those it shares its value with. Called by the optimizer."""
        kernel = tf.convert_to_tensor(weights)
        if self.clusters is None:
            return self._with_zeros(kernel)
        at, number = tf.cast(self.indices, tf.int32), self.clusters
        if self.per_channel:
            axis = kernel.shape.rank + output_axis(self.rule)
            channels = kernel.shape[axis]
            at += tf.reshape(tf.range(channels) * number, [channels if a == axis else 1 for a in range(at.shape.rank)])
            number *= channels
        values = tf.math.unsorted_segment_mean(tf.reshape(kernel, [-1]), tf.reshape(at, [-1]), number)
        shared = tf.gather(values, at)
        return self._with_zeros(shared) if self.keep_zeros else shared

    def _with_zeros(self, kernel: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.equal(self.indices, 0), tf.zeros_like(kernel), kernel)

    def _rows(self, kernel: np.ndarray) -> np.ndarray:
        """The kernel as (output channels, weights), or as (1, weights)."""
        if not self.per_channel:
            return kernel.reshape(1, -1)
        return kernel.transpose(_channels_first(kernel.ndim, self.rule)).reshape(
            kernel.shape[output_axis(self.rule)], -1
        )

    def call(self, inputs: Any, **kwargs: Any) -> Any:
        """The layer's own call."""
        kwargs.pop("mask", None)  # the layer takes it from its inputs itself, where its call has one
        return self.layer(inputs, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Layer, rule and options."""
        return {
            **super().get_config(),
            "clusters": self.clusters,
            "per_channel": self.per_channel,
            "keep_zeros": self.keep_zeros,
        }


def output_axis(rule: KernelRule) -> int:
    """The axis of a kernel that holds its output channels, from the end."""
    return -2 if rule.axis == -1 else -1


def _channels_first(rank: int, rule: KernelRule) -> list[int]:
    axis = rank + output_axis(rule)
    return [axis, *(a for a in range(rank) if a != axis)]
