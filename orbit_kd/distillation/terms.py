"""What one distillation loss comes to on a batch: the mean over pairs of layers, or the sum over outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from orbit_kd.distillation.losses import Context, DistillationLoss
from orbit_kd.distillation.teachers import Taught


def feature_term(
    loss: DistillationLoss, features: Mapping[str, tf.Tensor], taught: Taught, *, step: Any, sample_weight: Any
) -> tf.Tensor:
    """A loss on inner layers: the mean over its pairs of layers, a scalar.

    Args:
        loss: with `on_features`.
        features: outputs of the student's layers by name.
        taught: what the teachers say about the batch.
        step: the optimizer's iteration count.
        sample_weight: (batch,) or None; weights that differ between outputs are not used.
    """
    loss.context = Context(step)
    weight = None if tf.nest.is_nested(sample_weight) else sample_weight
    values = [
        _mean(
            loss.compute_loss(taught.features[theirs], loss.project(ours, tf.cast(features[ours], tf.float32))), weight
        )
        for ours, theirs in loss.pairs
    ]
    return tf.add_n(values) / len(values)


def logits_term(
    loss: DistillationLoss, logits: Sequence[tf.Tensor], taught: Taught, *, contexts: Sequence[Context],
    sample_weights: Sequence[Any], outputs: Sequence[int],
) -> tf.Tensor:  # fmt: skip
    """A loss on logits: the sum over the outputs that it compares, a scalar.

    Args:
        loss: without `on_features`.
        logits: the student's, one tensor (batch, ..., classes) for each output.
        taught: what the teachers say about the batch.
        contexts: what the loss may know of each output.
        sample_weights: of each output, or None.
        outputs: which ones.
    """
    values = []
    for i in outputs:
        loss.context = contexts[i]
        values.append(_mean(loss.compute_loss(tf.cast(taught.logits[i], tf.float32), logits[i]), sample_weights[i]))
    return tf.add_n(values)


def masked(weight: tf.Tensor | None, output: tf.Tensor) -> tf.Tensor | None:
    """Sample weights of an output with the mask of its padded steps, scaled as Keras does for the task's loss."""
    mask = getattr(output, "_keras_mask", None)
    if mask is None:
        return weight
    mask = tf.cast(mask, tf.float32)
    mask *= tf.math.divide_no_nan(tf.cast(tf.size(mask), tf.float32), tf.reduce_sum(mask))
    if weight is None:
        return mask
    weight = tf.cast(weight, tf.float32)
    while weight.shape.rank < mask.shape.rank:
        weight = weight[..., None]
    return weight * mask


def _mean(values: tf.Tensor, weight: tf.Tensor | None) -> tf.Tensor:
    """Mean of (batch, ...) values times weights (batch,), (batch, 1) or (batch, ...), over their number as in Keras."""
    values = tf.cast(values, tf.float32)
    if weight is not None and values.shape.rank:
        weight = tf.cast(weight, tf.float32)
        while weight.shape.rank > values.shape.rank:
            weight = tf.squeeze(weight, -1) if weight.shape[-1] == 1 else tf.reduce_mean(weight, -1)
        while weight.shape.rank < values.shape.rank:
            weight = weight[..., None]
        values = values * weight
    return tf.reduce_mean(values)
