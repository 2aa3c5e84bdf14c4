"""Weight sharing: a copy of a model whose kernels hold few distinct values each, and keep their zeros.

    clustered = cluster(student, clusters=16)      # a copy; student is left alone
    clustered.compile(...); clustered.fit(...)     # or inside a Distiller; no callback needed
    plain = strip_clusters(clustered)              # no wrappers, distinct values counted

Scheme: trained quantization of Han et al. 2016 (Deep Compression, https://arxiv.org/abs/1510.00149): k-means once, then
the values are trained and who shares which stays. `ClusteredLayer` is tfmot's `ClusterWeights` with its state machine
replaced: there the zeros' mask is held by no file, the kernel variable is lost to a tensor at the first call, and a
clustered model trains the variables of the model it was made of. Here the optimizer's step ends in the projection,
through the kernel's constraint, so that the stored kernel is clustered whenever anyone looks at it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.models.conversion import as_tf_keras
from orbit_kd.models.copies import clone_with, copy_layer, named_layers, resolve
from orbit_kd.models.wrapped import CLUSTERED, QUANTIZED, SPARSE, unwrapped_copy, wrappers_in
from orbit_kd.models.wrappers import (
    ClusterWeights,
    KernelRule,
    LayerWrapper,
    inner_layer,
    kernel_rule,
    trainable_rule,
)
from orbit_kd.sparsity.sparsify import keep_zeros

__all__ = ["ClusteredLayer", "cluster", "strip_clusters"]

_MOST = 256  # indices are stored in a byte


def cluster(
    model: keras.Model,
    *,
    clusters: int = 16,
    per_channel: bool = True,
    preserve_sparsity: bool = True,
    exclude: Iterable[str] = (),
) -> keras.Model:
    """A copy of a model whose kernels share few values, under `fit` or inside a Distiller.

    Every layer that `sparsify` could make sparse is wrapped, also within nested models. Excluded layers, and kernels of
    no more weights (a channel) than clusters, keep their values free, and their zeros. An int8 file then holds at most
    `clusters` distinct values a channel too. Layers keep their names. The copy shares nothing with `model` and is not
    compiled.

    Args:
        model: a plain, built Functional or Sequential tf_keras model; strip a sparse one first.
        clusters: most distinct values, zero included: 16 are 4 bits a weight.
        per_channel: in each output channel; otherwise in a whole kernel.
        preserve_sparsity: weights that are zero now stay zero, and zero is one of the values.
        exclude: layers that are left alone, by name or shell pattern; "outer/inner" within a nested model.

    Returns:
        The copy: a `keras.Model` of the same class.

    Raises:
        InputError: an impossible number of clusters, an unknown layer name, a wrapped model, one that cannot be copied,
            or no kernel to cluster.
    """
    model = as_tf_keras(model)
    if not 2 <= clusters <= _MOST or int(clusters) != clusters:
        raise InputError(f"clusters={clusters!r}.", expected=f"a whole number from 2 to {_MOST}", fix="16 is usual")
    layers = dict(named_layers(model))
    excluded = resolve(exclude, layers, "exclude")
    reasons = {
        name: "excluded" if name in excluded else _reason(layer, clusters, per_channel)
        for name, layer in layers.items()
        if layer.weights
    }
    chosen = {id(layers[name]) for name, reason in reasons.items() if reason is None}
    if not chosen:
        raise InputError(
            "No kernel can be clustered:\n    " + "\n    ".join(f"{name}: {why}" for name, why in reasons.items()),
            expected="at least one trainable kernel of more weights than clusters",
            fix="take fewer clusters, per_channel=False, or exclude fewer layers",
        )

    def wrap(layer: keras.layers.Layer) -> keras.layers.Layer:
        copy, rule = copy_layer(layer), kernel_rule(layer)
        if not isinstance(rule, KernelRule):
            return copy
        most = clusters if id(layer) in chosen else None
        zeros = preserve_sparsity and not np.all(getattr(layer, rule.kernel).numpy())
        if most is None and not zeros:
            return copy
        return ClusteredLayer(copy, rule=rule, clusters=most, per_channel=per_channel, keep_zeros=zeros)

    clustered, pairs = clone_with(model, wrap)
    for layer, new in pairs:
        inner_layer(new, ClusteredLayer).set_weights(layer.get_weights())
        if isinstance(new, ClusteredLayer):
            new.start()
    return clustered


def strip_clusters(clustered: keras.Model) -> keras.Model:
    """The plain model behind a clustered one: the original's layer classes, kernels clustered, no wrappers.

    Models of tfmot's `cluster_weights` are taken too. Zeros survive further training, as after `strip`; clusters do
    not. It is not compiled.

    Raises:
        InputError: a model that is not clustered, or a kernel with more values than it may have.
    """
    clustered = as_tf_keras(clustered, name="clustered", refuse=SPARSE + QUANTIZED)
    wrapped = {name: layer for name, layer in named_layers(clustered) if isinstance(layer, ClusteredLayer)}
    if not wrappers_in(clustered, CLUSTERED):
        raise InputError(
            f"The model {clustered.name!r} holds no clustered layer.",
            expected="a model of okd.cluster",
            fix="use it as it is, or okd.strip for one of okd.sparsify",
        )
    for name, layer in wrapped.items():
        if layer.clusters is not None and (found := layer.distinct_values) > layer.clusters:
            raise InputError(
                f"The layer {name!r} holds {found} distinct values{' in a channel' if layer.per_channel else ''}.",
                expected=f"at most {layer.clusters}",
                fix="its kernel was overwritten; cluster the model anew",
            )
    return keep_zeros(unwrapped_copy(clustered, CLUSTERED))


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
        indices = np.stack([nearest(row, self.clusters, self.keep_zeros) for row in self._rows(kernel)])
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
            axis = kernel.shape.rank + _output_axis(self.rule)
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
            kernel.shape[_output_axis(self.rule)], -1
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


def nearest(weights: np.ndarray, clusters: int, keep_zeros: bool) -> np.ndarray:
    """The cluster of each weight: Lloyd's k-means in one dimension, from evenly spaced centroids.

    Args:
        weights: (n,) float.
        clusters: how many at most.
        keep_zeros: zeros are cluster 0, and no other weight is in it.

    Returns:
        (n,) integers in [0, clusters).
    """
    if keep_zeros:
        indices = np.zeros(weights.shape, int)
        indices[weights != 0] = 1 + nearest(weights[weights != 0], clusters - 1, False)
        return indices
    values = np.sort(weights.astype(np.float64))
    if not len(values):
        return np.zeros(0, int)
    distinct = np.unique(values)
    # Evenly spaced, as in Deep Compression: by quantiles the few large weights would get no centroid.
    centroids = distinct if len(distinct) <= clusters else np.linspace(values[0], values[-1], clusters)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    for _ in range(50):
        # Sorted, a cluster is a run: its ends lie half way between the centroids.
        ends = np.searchsorted(values, (centroids[1:] + centroids[:-1]) / 2)
        first, last = np.concatenate([[0], ends]), np.concatenate([ends, [len(values)]])
        count = last - first
        means = np.where(count, (sums[last] - sums[first]) / np.maximum(count, 1), centroids)
        if empty := int((count == 0).sum()):
            # Where nothing is near, a centroid moves to the weights that are farthest from theirs.
            error = np.abs(values - np.repeat(means, count))
            means[count == 0] = values[np.argpartition(error, -empty)[-empty:]]
            means.sort()
        if np.allclose(means, centroids, rtol=0, atol=1e-7 * (values[-1] - values[0])):
            break
        centroids = means
    return np.searchsorted((centroids[1:] + centroids[:-1]) / 2, weights)


def _reason(layer: keras.layers.Layer, clusters: int, per_channel: bool) -> str | None:
    """Why a layer is left alone; None where it is clustered."""
    rule = trainable_rule(layer)
    if isinstance(rule, str):
        return rule
    shape = getattr(layer, rule.kernel).shape
    weights = math.prod(shape) // (shape[_output_axis(rule)] if per_channel else 1)
    return None if weights > clusters else f"{weights} weights{' a channel' if per_channel else ''}"


def _output_axis(rule: KernelRule) -> int:
    return -2 if rule.axis == -1 else -1


def _channels_first(rank: int, rule: KernelRule) -> list[int]:
    axis = rank + _output_axis(rule)
    return [axis, *(a for a in range(rank) if a != axis)]
