"""Class weights and sample weights for labels of any shape: a class an image, a step or a pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras as keras

from orbit_kd.distillation.choice import Outputs
from orbit_kd.errors import InputError
from orbit_kd.models.outputs import output_kinds


def class_weights(
    given: Mapping[int, float] | None, outputs: Outputs | None, model: keras.Model
) -> tuple[float, ...] | None:
    """The weights in the order of the classes; None where there are none.

    Raises:
        InputError: classes that are not 0, 1, 2, ...; a network whose output has no classes.
    """
    if not given:
        return None
    if sorted(given) != list(range(len(given))):
        raise InputError(
            f"class_weight has the classes {sorted(given)}.",
            expected="a weight for each class 0, 1, 2, ... without a gap",
            fix="add the classes that are missing, with weight 1.0",
        )
    several = outputs is not None and outputs.kinds == ("labels",) and model.output_shape[-1] != 1
    if outputs is not None and (len(outputs.names) > 1 or several or outputs.kinds == ("values",)):
        kind = "" if len(outputs.names) > 1 or not outputs.kinds[0] else output_kinds.get(outputs.kinds[0]).holds
        raise InputError(
            f"class_weight is given, and the network has {kind or f'{len(outputs.names)} outputs'}.",
            expected="a single output of classes, of which one is right",
            fix="give a sample_weight in the data set instead",
        )
    return tuple(float(given[c]) for c in range(len(given)))


def sample_weights(table: tuple[float, ...] | None, labels: Any, weight: Any, model: keras.Model) -> Any:
    """The weight of each label, times the sample weight that there may be.

    Keras takes labels of two or more axes for one-hot rows, class maps too. Here the network's output tells.

    Args:
        table: weights in the order of the classes, or None.
        labels: (batch, ...) class numbers, with or without a last axis of 1, or (batch, ..., classes) rows.
        weight: sample weights (batch,), (batch, 1) or of the labels' shape; None where there are none.
        model: the network; the last axis of its output is that of the classes.

    Raises:
        InputError: no labels, or labels of independent classes.
    """
    if table is None:
        return weight
    if labels is None or tf.nest.is_nested(labels):
        raise InputError(
            "class_weight is given, and there is not one tensor of labels.",
            expected="labels of a single output",
            fix="leave class_weight out, or give a sample_weight in the data set",
        )
    shape = (getattr(model, "outputs", None) or [labels])[0].shape
    if labels.shape.rank == shape.rank and shape[-1] not in (None, 1) and labels.shape[-1] == shape[-1]:
        numbers = tf.argmax(labels, -1)
    else:
        squeezed = labels.shape.rank > 1 and labels.shape[-1] == 1
        numbers = tf.cast(tf.round(labels[..., 0] if squeezed else labels), tf.int64)
    weights = tf.gather(tf.constant(table, tf.float32), numbers)
    if weight is None:
        return weights
    weight = tf.cast(weight, tf.float32)
    while weight.shape.rank > weights.shape.rank:
        weight = tf.squeeze(weight, -1)
    return weights * _expanded(weight, weights.shape.rank)


def broadcast_weights(weight: Any, outputs: Any) -> Any:
    """Sample weights (batch,) of one output as they broadcast over its pixels; Keras knows one more axis only."""
    if weight is None or tf.nest.is_nested(weight) or tf.nest.is_nested(outputs) or outputs.shape.rank is None:
        return weight
    return _expanded(weight, outputs.shape.rank - 1)


def _expanded(weight: tf.Tensor, rank: int) -> tf.Tensor:
    while weight.shape.rank is not None and weight.shape.rank < rank:
        weight = weight[..., None]
    return weight
