"""What a student learns from a teacher that answers for each place in the image: maps of classes, of boxes."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from orbit_kd.distillation.feature_losses import FeatureHints
from orbit_kd.distillation.losses import DistillationLoss, distillation_losses
from orbit_kd.distillation.output_losses import bernoulli_kl
from orbit_kd.distillation.schedules import Number, Scheduled
from orbit_kd.errors import InputError

GEOMETRY = 4  # channels behind the heat maps of a detector: height, width, offset down, offset right


@distillation_losses.register("channel_wise")
@keras.saving.register_keras_serializable("orbit_kd")
class ChannelWiseDistillation(DistillationLoss):
    """Channel-wise distillation of output maps (Shu et al. 2021, arXiv:2011.13256).

    Each channel of the logits (batch, ..., classes) is made a distribution over the places of the image by a softmax at
    temperature T; the loss is T^2 times KL(teacher || student), the mean over the channels. What stands out in a
    channel is learned, not the many places where there is nothing.

    Args:
        temperature: T > 0; a number, a function of the epoch, or a Keras schedule of the step. 4 in the paper.
        weight, name, outputs: see DistillationLoss. The paper weighs it by 3 on logits and 50 on features.
    """

    options = ("temperature",)

    def __init__(self, temperature: Number = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = Scheduled(temperature, name="temperature", low=1e-3, high=1e6)

    def build(self, student: keras.Model, teacher: keras.Model) -> None:
        """Refuses outputs without places.

        Raises:
            InputError: an output (batch, classes).
        """
        super().build(student, teacher)
        if self.outputs is None:
            for tensor in getattr(student, "outputs", None) or ():
                _check_places("The output", tuple(tensor.shape), self.name)

    def compute_loss(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        return _over_places(teacher, student, self.temperature.at(self.context.step))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self.temperature.serialize()}


@distillation_losses.register("channel_wise_features")
@keras.saving.register_keras_serializable("orbit_kd")
class ChannelWiseFeatures(FeatureHints):
    """`ChannelWiseDistillation` of inner layers; a learned 1x1 projection where widths differ, as in FeatureHints.

    Args:
        temperature: as there.
        weight, name, match: see DistillationLoss.
    """

    options = ("temperature",)

    def __init__(self, temperature: Number = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = Scheduled(temperature, name="temperature", low=1e-3, high=1e6)

    def build_pairs(self, student: Any, teacher: Any) -> None:
        super().build_pairs(student, teacher)
        for ours, _ in self.pairs:
            _check_places(f"Layer {ours!r}", student[ours], self.name)

    def compute_loss(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        return _over_places(teacher, student, self.temperature.at(self.context.step))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self.temperature.serialize()}


@distillation_losses.register("detection")
@keras.saving.register_keras_serializable("orbit_kd")
class DetectionDistillation(DistillationLoss):
    """The maps of a detector without anchors, (batch, h, w, classes + 4) behind one sigmoid (see `tasks.detection`).

    Heat: the binary KL divergence from the teacher's, each place weighed by the teacher's heat plus `background`; most
    places hold nothing, and plain means would teach little else. Sizes and offsets: the difference in cells, weighed by
    the teacher's heat alone, as a place without an object has no size. Both over the image's total heat, at least 1:
    losses of an object, as those on labels are. The weighting by the teacher's own confidence is that of Chen et al.
    2017 (Learning Efficient Object Detection Models with Knowledge Distillation) and of fine-grained imitation
    (Wang et al. 2019, arXiv:1906.03609), put on the maps of a CenterNet.

    Args:
        background: weight of a place where the teacher sees nothing, >= 0.
        size_weight: of heights and widths.
        offset_weight: of the place of a centre in its cell.
        weight, name, outputs: see DistillationLoss.
    """

    kinds = ("labels",)

    def __init__(
        self, *, background: float = 0.1, size_weight: float = 1.0, offset_weight: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.background, self.size_weight, self.offset_weight = (
            float(background),
            float(size_weight),
            float(offset_weight),
        )
        if min(self.background, self.size_weight, self.offset_weight) < 0:
            raise InputError(
                f"background={background}, size_weight={size_weight}, offset_weight={offset_weight}.",
                expected="weights >= 0",
                fix="0 leaves a part out",
            )

    def build(self, student: keras.Model, teacher: keras.Model) -> None:
        """Refuses networks that give no such map.

        Raises:
            InputError: several outputs, or another shape.
        """
        super().build(student, teacher)
        shapes = [tuple(t.shape) for t in getattr(student, "outputs", None) or ()]
        if len(shapes) != 1 or len(shapes[0]) != 4 or (shapes[0][-1] or 5) <= GEOMETRY:
            raise InputError(
                f"The student's outputs have the shapes {'; '.join(map(str, shapes)) or 'unknown'}.",
                expected="one map (batch, h, w, classes + 4): heat of each class, height, width, two offsets",
                fix="for a detector of three outputs give losses={'heat': 'logits', 'size': 'mae', 'offset': 'mae'}",
            )

    def compute_loss(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        heat = tf.sigmoid(teacher[..., :-GEOMETRY])
        total = tf.maximum(tf.reduce_sum(heat, (1, 2, 3)), 1.0)
        wrong = bernoulli_kl(teacher[..., :-GEOMETRY], student[..., :-GEOMETRY]) * (heat + self.background)
        apart = tf.abs(tf.sigmoid(teacher[..., -GEOMETRY:]) - tf.sigmoid(student[..., -GEOMETRY:]))
        cells = tf.cast(tf.shape(teacher)[1:3], tf.float32)
        weights = tf.concat([self.size_weight * cells, tf.fill([2], self.offset_weight)], 0)
        boxes = apart * weights * tf.reduce_max(heat, -1, keepdims=True)
        return (tf.reduce_sum(wrong, (1, 2, 3)) + tf.reduce_sum(boxes, (1, 2, 3))) / total

    def get_config(self) -> dict[str, Any]:
        own = {"background": self.background, "size_weight": self.size_weight, "offset_weight": self.offset_weight}
        return {**super().get_config(), **own}


def _over_places(teacher: tf.Tensor, student: tf.Tensor, t: Any) -> tf.Tensor:
    """T^2 * KL over all places of each channel, the mean over channels: (batch,)."""

    def logs(x: tf.Tensor) -> tf.Tensor:
        return tf.nn.log_softmax(tf.reshape(x / t, [tf.shape(x)[0], -1, tf.shape(x)[-1]]), axis=1)

    p, q = logs(teacher), logs(student)
    return t**2 * tf.reduce_mean(tf.reduce_sum(tf.exp(p) * (p - q), 1), -1)


def _check_places(what: str, shape: tuple, name: str) -> None:
    if len(shape) < 3:
        raise InputError(
            f"{what} has the shape {shape}, without places for {name!r} to compare.",
            expected="a map (batch, height, width, channels)",
            fix="use 'logits' for scores of an image, 'hints' or 'relational' for vectors of features",
        )
