"""What the student learns from the teacher's inner layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras as keras

from orbit_kd.distillation.features import feature_shapes
from orbit_kd.distillation.losses import DistillationLoss, distillation_losses
from orbit_kd.errors import InputError

_TINY = 1e-12


@distillation_losses.register("hints")
@keras.saving.register_keras_serializable("orbit_kd")
class FeatureHints(DistillationLoss):
    """Mean squared difference of paired features (FitNets, Romero et al. 2015, arXiv:1412.6550).

    Where widths differ, as in a filter-pruned student, a learned 1x1 projection brings the student's features
    (batch, ..., Cs) to the teacher's (batch, ..., Ct). It is trained with the student and is no part of it.
    """

    on_features = True

    def __init__(self, *, widths: Mapping[str, int] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._projectors = {key: _projector(key, width) for key, width in (widths or {}).items()}

    @property
    def projectors(self) -> list[keras.layers.Layer]:
        return list(self._projectors.values())

    def build_pairs(self, student: Mapping[str, tuple], teacher: Mapping[str, tuple]) -> None:
        for name, (ours, theirs) in _shapes(self, student, teacher).items():
            if ours[-1] != theirs[-1]:
                projector = self._projectors.setdefault(name, _projector(name, theirs[-1]))
                if not projector.built:
                    projector.build(ours)

    def rebuild(self, student: keras.Model) -> None:
        shapes = feature_shapes(student) if self._projectors else {}
        for name, projector in self._projectors.items():
            projector.build(shapes[name])

    def compute_loss(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        return _per_sample(tf.math.squared_difference(teacher, student))

    def project(self, layer: str, student: tf.Tensor) -> tf.Tensor:
        return self._projectors[layer](student) if layer in self._projectors else student

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "widths": {name: p.units for name, p in self._projectors.items()}}


@distillation_losses.register("attention")
@keras.saving.register_keras_serializable("orbit_kd")
class AttentionTransfer(DistillationLoss):
    """Squared distance of normalized attention maps (Zagoruyko and Komodakis 2017, arXiv:1612.03928).

    A map is the sum over channels of the squared features, (batch, positions), scaled to length 1: widths may differ.
    """

    on_features = True

    def build_pairs(self, student: Mapping[str, tuple], teacher: Mapping[str, tuple]) -> None:
        _shapes(self, student, teacher)

    def compute_loss(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.math.squared_difference(_attention(teacher), _attention(student)), -1)


@distillation_losses.register("relational")
@keras.saving.register_keras_serializable("orbit_kd")
class RelationalDistillation(DistillationLoss):
    """Distances and angles between the samples of a batch (Park et al. 2019, arXiv:1904.05068).

    Features are flattened to (batch, D); D may differ. Distances are divided by their mean; both parts are Huber losses
    with the paper's weights. Memory of the angles grows with batch^3. In a distribution strategy the batch is the
    replica's own.

    Args:
        distance_weight, angle_weight: of the two parts.
        weight, name, match: see DistillationLoss; match="auto" takes the deepest pair.
    """

    on_features = True
    as_vectors = True

    def __init__(self, *, distance_weight: float = 25.0, angle_weight: float = 50.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.distance_weight, self.angle_weight = float(distance_weight), float(angle_weight)

    def compute_loss(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        teacher, student = _flat(teacher), _flat(student)
        loss = tf.constant(0.0)
        if self.distance_weight:
            loss += self.distance_weight * _huber(_distances(teacher), _distances(student))
        if self.angle_weight:
            loss += self.angle_weight * _huber(_angles(teacher), _angles(student))
        return loss

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "distance_weight": self.distance_weight,
            "angle_weight": self.angle_weight,
        }


@distillation_losses.register("similarity")
@keras.saving.register_keras_serializable("orbit_kd")
class SimilarityPreserving(DistillationLoss):
    """Mean squared difference of the samples' similarity matrices (Tung and Mori 2019, arXiv:1907.09682).

    Features flattened to (batch, D) give G = F F^T with rows scaled to length 1; D may differ. In a distribution
    strategy the batch is the replica's own. match="auto" takes the deepest pair.
    """

    on_features = True
    as_vectors = True

    def compute_loss(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(tf.math.squared_difference(_similarity(teacher), _similarity(student)))


def _projector(layer: str, width: int) -> keras.layers.Layer:
    # Dense acts on the last axis of any rank: a 1x1 convolution
    return keras.layers.Dense(width, use_bias=False, name=f"hint_{layer}", dtype="float32")


def _shapes(
    loss: DistillationLoss, student: Mapping[str, tuple], teacher: Mapping[str, tuple]
) -> dict[str, tuple[tuple, tuple]]:
    """Shapes of each pair by the student's layer name; everything but the width must agree."""
    found = {}
    for s, t in loss.pairs:
        ours, theirs = student[s], teacher[t]
        if ours[1:-1] != theirs[1:-1]:
            raise InputError(
                f"{type(loss).__name__}: student layer {s!r} gives {ours}, teacher layer {t!r} gives {theirs}.",
                expected="equal height and width (the widths, last, may differ)",
                fix="pair layers at the same resolution in match={student_layer: teacher_layer}",
            )
        found[s] = (ours, theirs)
    return found


def _flat(x: tf.Tensor) -> tf.Tensor:
    return tf.reshape(x, [tf.shape(x)[0], -1])


def _per_sample(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(_flat(x), -1)


def _attention(x: tf.Tensor) -> tf.Tensor:
    return tf.math.l2_normalize(_flat(tf.reduce_sum(tf.square(x), -1)), -1, epsilon=_TINY)


def _similarity(x: tf.Tensor) -> tf.Tensor:
    flat = _flat(x)
    return tf.math.l2_normalize(tf.matmul(flat, flat, transpose_b=True), -1, epsilon=_TINY)


def _distances(x: tf.Tensor) -> tf.Tensor:
    square = tf.reduce_sum(tf.square(x), -1)
    square = square[:, None] + square[None, :] - 2.0 * tf.matmul(x, x, transpose_b=True)
    distance = tf.sqrt(tf.maximum(square, _TINY)) * (1.0 - tf.eye(tf.shape(x)[0]))
    pairs = tf.cast(tf.shape(x)[0] * (tf.shape(x)[0] - 1), tf.float32)
    return tf.math.divide_no_nan(distance, tf.math.divide_no_nan(tf.reduce_sum(distance), pairs))


def _angles(x: tf.Tensor) -> tf.Tensor:
    """Cosines of the angle at sample j between samples i and k, (batch, batch, batch)."""
    edges = tf.math.l2_normalize(x[:, None, :] - x[None, :, :], -1, epsilon=_TINY)
    return tf.einsum("ijd,kjd->jik", edges, edges)


def _huber(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    error = tf.abs(a - b)
    return tf.reduce_mean(tf.where(error < 1.0, 0.5 * tf.square(error), error - 0.5))
