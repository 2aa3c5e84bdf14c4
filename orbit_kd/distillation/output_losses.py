"""What the student learns from the teacher's outputs."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from orbit_kd.distillation.losses import DistillationLoss, distillation_losses
from orbit_kd.distillation.schedules import Number, Scheduled
from orbit_kd.errors import InputError
from orbit_kd.models.heads import head_type


@distillation_losses.register("logits")
@keras.saving.register_keras_serializable("orbit_kd")
class LogitsDistillation(DistillationLoss):
    """T^2 * KL(teacher || student) of the outputs softened by T (Hinton, Vinyals, Dean 2015, arXiv:1503.02531).

    Logits of any rank; the last axis holds the classes. The factor T^2 keeps the gradient's size when T changes.

    Args:
        temperature: T > 0; a number, a function of the epoch, or a Keras schedule of the step.
        activation: "softmax", or "sigmoid" for independent labels (their mean is taken, as Keras' binary cross-entropy
            does); "auto" takes what the output holds by its head and the compiled loss (see `Distiller`), and where
            nothing says, sigmoid for a single number, else softmax.
        weight, name, outputs: see DistillationLoss.
    """

    options = ("temperature",)
    kinds: tuple[str, ...] = ("classes", "labels")

    def __init__(self, temperature: Number = 5.0, *, activation: str = "auto", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if activation not in ("auto", "softmax", "sigmoid"):
            raise InputError(
                f"activation={activation!r}.",
                expected='"auto", "softmax" or "sigmoid"',
                fix="leave it out unless the teacher has independent labels and ends in logits",
            )
        self.temperature = Scheduled(temperature, name="temperature", low=1e-3, high=1e6)
        self.activation = activation
        if activation != "auto":
            self.kinds = ()  # who says it takes the outputs for that

    def compute_loss(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        t = self.temperature.at(self.context.step)
        if self._independent(teacher):
            return t**2 * _mean_last(bernoulli_kl(teacher / t, student / t))
        return t**2 * _kl(tf.nn.log_softmax(teacher / t), tf.nn.log_softmax(student / t))

    def _independent(self, teacher: tf.Tensor) -> bool:
        if self.activation != "auto":
            return self.activation == "sigmoid"
        single = teacher.shape.rank == 1 or teacher.shape[-1] == 1
        return self.context.kind == "labels" or self.context.head == "sigmoid" or (not self.context.kind and single)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self.temperature.serialize(), "activation": self.activation}


@distillation_losses.register("decoupled")
@keras.saving.register_keras_serializable("orbit_kd")
class DecoupledDistillation(DistillationLoss):
    """Decoupled knowledge distillation (Zhao et al. 2022, arXiv:2203.08679).

    The KL divergence of the softened outputs is split into that of (target, rest) and that among the other classes,
    each with a weight of its own; plain distillation ties the second to how unsure the teacher is. The target is the
    label; without labels, the teacher's strongest class. Times T^2.

    Args:
        temperature: T > 0, as in LogitsDistillation.
        target_weight: of the (target, rest) part; alpha in the paper.
        nontarget_weight: of the part among the other classes; beta in the paper, 8 there for CIFAR-100.
        weight, name, outputs: see DistillationLoss.
    """

    options = ("temperature",)
    kinds = ("classes",)

    def __init__(
        self,
        temperature: Number = 4.0,
        *,
        target_weight: float = 1.0,
        nontarget_weight: float = 8.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.temperature = Scheduled(temperature, name="temperature", low=1e-3, high=1e6)
        self.target_weight, self.nontarget_weight = float(target_weight), float(nontarget_weight)

    def compute_loss(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        t = self.temperature.at(self.context.step)
        target = self._target(teacher)
        teacher_binary, teacher_rest = _decouple(teacher / t, target)
        student_binary, student_rest = _decouple(student / t, target)
        return t**2 * (
            self.target_weight * _kl(teacher_binary, student_binary)
            + self.nontarget_weight * _kl(teacher_rest, student_rest)
        )

    def _target(self, teacher: tf.Tensor) -> tf.Tensor:
        classes = teacher.shape[-1]
        labels = self.context.labels
        if labels is None:
            index = tf.argmax(teacher, -1)
        elif labels.shape.rank == teacher.shape.rank and labels.shape[-1] == classes:
            index = tf.argmax(labels, -1)
        else:  # Keras takes integer labels with or without a last axis of 1
            index = tf.reshape(tf.cast(labels, tf.int64), tf.shape(teacher)[:-1])
        return tf.one_hot(index, classes, on_value=True, off_value=False, dtype=tf.bool)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "temperature": self.temperature.serialize(),
            "target_weight": self.target_weight,
            "nontarget_weight": self.nontarget_weight,
        }


class _OnScale(DistillationLoss):
    """Compares the outputs as the networks give them, after the last activation."""

    on_scale = True

    def compute_loss(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        outputs = head_type(self.context.head).outputs
        return _mean_last(self.distance(outputs(teacher), outputs(student)))

    def distance(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        """Of each number to its counterpart."""
        raise NotImplementedError


@distillation_losses.register("mse")
@keras.saving.register_keras_serializable("orbit_kd")
class MSEDistillation(_OnScale):
    """Mean squared difference of the outputs: for numbers with a scale, such as boxes or depths.

    Outputs are compared as the networks give them: after a sigmoid or softmax where they end in one, logits where they
    end in logits. The mean runs over the last axis, as in Keras' losses.

    Args:
        weight, name, outputs: see DistillationLoss.
    """

    def distance(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        return tf.math.squared_difference(teacher, student)


@distillation_losses.register("mae")
@keras.saving.register_keras_serializable("orbit_kd")
class MAEDistillation(_OnScale):
    """Mean absolute difference of the outputs: as MSEDistillation, and outliers count less.

    Args:
        weight, name, outputs: see DistillationLoss.
    """

    def distance(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        return tf.abs(teacher - student)


def _mean_last(values: tf.Tensor) -> tf.Tensor:
    """The mean over the last axis; outputs without one, (batch,), have a value a sample already."""
    return values if values.shape.rank == 1 else tf.reduce_mean(values, -1)


def _kl(log_p: tf.Tensor, log_q: tf.Tensor) -> tf.Tensor:
    """KL(p || q) along the last axis, from logarithms."""
    return tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), -1)


def bernoulli_kl(p: tf.Tensor, q: tf.Tensor) -> tf.Tensor:
    """KL between the Bernoulli variables of two logits, element by element."""
    log_p, log_p_not = tf.math.log_sigmoid(p), tf.math.log_sigmoid(-p)
    return tf.exp(log_p) * (log_p - tf.math.log_sigmoid(q)) + tf.exp(log_p_not) * (log_p_not - tf.math.log_sigmoid(-q))


def _decouple(logits: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Log-probabilities of (target, rest), and those among the rest, where the target's share is zero."""
    low = tf.constant(-1e9, logits.dtype)
    rest = tf.where(target, low, logits)
    total = tf.reduce_logsumexp(logits, -1)
    of_target = tf.reduce_sum(tf.where(target, logits, 0.0), -1) - total
    binary = tf.stack([of_target, tf.reduce_logsumexp(rest, -1) - total], -1)
    # the target's own entry must be equal on both sides, as exp(-1e9) * (difference of two such) may be 0 * inf
    return binary, tf.where(target, low, tf.nn.log_softmax(rest))
