"""Weight sharing: a copy of a model whose kernels hold few distinct values each, and keep their zeros.

    clustered = cluster(student, clusters=16)      # a copy; student is left alone
    clustered.compile(...); clustered.fit(...)     # or inside a Distiller; no callback needed
    plain = strip_clusters(clustered)              # no wrappers, distinct values counted

Scheme: trained quantization of Han et al. 2016 (Deep Compression, https://arxiv.org/abs/1510.00149): k-means once, then
the values are trained and who shares which stays, see `layer.ClusteredLayer`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import tf_keras as keras

from orbit_kd.clustering.layer import ClusteredLayer, output_axis
from orbit_kd.errors import InputError
from orbit_kd.models.conversion import as_tf_keras
from orbit_kd.models.copies import clone_with, copy_layer, named_layers, resolve
from orbit_kd.models.unwrapping import CLUSTERED, QUANTIZED, SPARSE, unwrapped_copy, wrappers_in
from orbit_kd.models.wrappers import (
    KernelRule,
    inner_layer,
    kernel_rule,
    trainable_rule,
)
from orbit_kd.sparsity.sparsify import keep_zeros

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


def _reason(layer: keras.layers.Layer, clusters: int, per_channel: bool) -> str | None:
    """Why a layer is left alone; None where it is clustered."""
    rule = trainable_rule(layer)
    if isinstance(rule, str):
        return rule
    shape = getattr(layer, rule.kernel).shape
    weights = math.prod(shape) // (shape[output_axis(rule)] if per_channel else 1)
    return None if weights > clusters else f"{weights} weights{' a channel' if per_channel else ''}"
