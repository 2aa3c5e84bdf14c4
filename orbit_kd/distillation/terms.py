"""What one distillation loss comes to on a batch: the mean over pairs of layers, or the sum over outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from orbit_kd.distillation.choice import Outputs
from orbit_kd.distillation.losses import Context, DistillationLoss
from orbit_kd.distillation.teachers import TeacherOutputs
from orbit_kd.models.heads import logits_of
from orbit_kd.models.outputs import part_of


@dataclasses.dataclass(frozen=True)
class Batch:
    """What a step knows of a batch.

    Attributes:
        y: labels, structured as the task's loss takes them; None where there are none.
        y_pred: the student's outputs.
        sample_weight: structured as the labels, or one for all, or None.
        features: outputs of the student's layers by name.
        step: the optimizer's iteration count.
    """

    y: Any
    y_pred: Any
    sample_weight: Any
    features: Mapping[str, tf.Tensor]
    step: Any


def distillation_term(
    loss: DistillationLoss,
    batch: Batch,
    *,
    taught: TeacherOutputs,
    heads: Sequence[str],
    names: Sequence[str],
    outputs: Outputs | None,
) -> tf.Tensor:
    """What a distillation loss comes to on a batch, before its weight: a scalar.

    Args:
        loss: on inner layers or on logits.
        batch: of the student.
        taught: what the teachers say about it.
        heads: how the student's outputs end.
        names: of its outputs.
        outputs: what they hold, where that is known.
    """
    if loss.on_features:
        return feature_term(loss, batch.features, taught, step=batch.step, sample_weight=batch.sample_weight)
    logits = logits_of(batch.y_pred, heads)
    places: Sequence[int] = range(len(logits))
    contexts = [Context(batch.step, labels=part_of(batch.y, i, names)) for i in places]
    if outputs is not None and len(outputs.kinds) == len(logits):
        contexts = [
            dataclasses.replace(c, head=head, kind=kind)
            for c, head, kind in zip(contexts, outputs.teacher, outputs.kinds, strict=True)
        ]
        places = outputs.compared_by(loss)
    weights = [
        masked(part_of(batch.sample_weight, i, names), output) for i, output in enumerate(tf.nest.flatten(batch.y_pred))
    ]
    return logits_term(loss, logits, taught, contexts=contexts, sample_weights=weights, outputs=places)


def feature_term(
    loss: DistillationLoss, features: Mapping[str, tf.Tensor], taught: TeacherOutputs, *, step: Any, sample_weight: Any
) -> tf.Tensor:
    """A loss on inner layers: the mean over its pairs of layers, a scalar.

    Args:
        loss: with `on_features`.
        features: outputs of the student's layers by name.
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
    loss: DistillationLoss, logits: Sequence[tf.Tensor], taught: TeacherOutputs, *, contexts: Sequence[Context],
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
