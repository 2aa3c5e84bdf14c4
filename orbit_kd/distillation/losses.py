"""What the student learns from the teacher's outputs, and the base class of every distillation loss."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from orbit_kd.distillation.features import feature_shapes, find_layer, match_deepest, match_layers
from orbit_kd.distillation.schedules import Number, Scheduled, deserialize
from orbit_kd.errors import InputError
from orbit_kd.registry import Registry

distillation_losses: Registry[type[DistillationLoss]] = Registry("distillation loss")
Match = str | Sequence[str] | Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Context:
    """What a loss may want to know besides the two tensors; the Distiller sets it before each call.

    Attributes:
        step: the optimizer's iteration count.
        head: activation of the teacher's output, "softmax", "sigmoid" or "linear".
        labels: the task's labels for this output, integer or one-hot; None where there are none.
    """

    step: tf.Tensor | int = 0
    head: str = "linear"
    labels: tf.Tensor | None = None


class DistillationLoss:
    """Base class: override `compute_loss`, and `get_config` if there are more arguments.

    Losses with `on_features = False` get the logits of each output; the others get the outputs of each pair of layers.

    Args:
        weight: factor in the sum of distillation losses, >= 0.
        name: its metric is logged as `<name>_loss`.
        match: for losses on features, which layers: "auto" pairs them by name (a filter-pruned or sparsified student
            keeps the teacher's names), a list gives names that both have, a mapping student layer -> teacher layer.

    Example:
        >>> @distillation_losses.register("logits_mse")
        ... @keras.saving.register_keras_serializable("mine")
        ... class LogitsMSE(DistillationLoss):
        ...     def compute_loss(self, teacher, student):
        ...         return tf.reduce_mean((teacher - student) ** 2, -1)
    """

    on_features = False
    as_vectors = False  # features are compared whole: match="auto" takes the deepest pair, else one a resolution

    def __init__(self, *, weight: float = 1.0, name: str | None = None, match: Match = "auto") -> None:
        if not float(weight) >= 0:
            raise InputError(f"weight={weight!r} of a loss.", expected="a number >= 0", fix="leave it out for 1.0")
        if isinstance(match, str) and match != "auto":
            raise InputError(
                f"match={match!r}.",
                expected='"auto", a list of layer names, or a mapping of student layer to teacher layer',
                fix='give match=["block3_conv1"] for one layer',
            )
        self.weight = float(weight)
        self.name = name or _snake_case(type(self).__name__)
        self.match = match
        self.pairs: list[tuple[str, str]] = []
        self.context = Context()

    def compute_loss(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        """The loss of a batch.

        Args:
            teacher: float32 logits (batch, ..., classes) or features of the teacher, without gradient.
            student: the same of the student.

        Returns:
            Values (batch, ...) that the Distiller averages with the sample weights, or a scalar that it takes as it is.
        """
        raise NotImplementedError(f"{type(self).__name__} must define compute_loss(teacher, student)")

    def schedules(self) -> list[Scheduled]:
        """Numbers of this loss that may change while training."""
        return [v for v in vars(self).values() if isinstance(v, Scheduled)]

    @property
    def projectors(self) -> list[keras.layers.Layer]:
        """Layers that are trained with the student and dropped afterwards."""
        return []

    def project(self, layer: str, student: tf.Tensor) -> tf.Tensor:
        """The student's features of that layer as `compute_loss` shall see them."""
        return student

    def build(self, student: keras.Model, teacher: keras.Model) -> None:
        """Finds the pairs of layers (student, teacher) this loss compares.

        Raises:
            InputError: a layer is missing, or nothing matches.
        """
        if not self.on_features:
            return
        if isinstance(self.match, str):
            self.pairs = (match_deepest if self.as_vectors else match_layers)(student, teacher)
        else:
            named = self.match if isinstance(self.match, Mapping) else {name: name for name in self.match}
            self.pairs = [(str(s), str(t)) for s, t in named.items()]
            for s, t in self.pairs:
                find_layer(student, s), find_layer(teacher, t)
        self.build_pairs(feature_shapes(student), feature_shapes(teacher))

    def build_pairs(self, student: Mapping[str, tuple], teacher: Mapping[str, tuple]) -> None:
        """Hook for losses that need the shapes of all features, by layer name, batch axis first."""

    def rebuild(self, student: keras.Model) -> None:
        """Hook for losses with projectors: makes their variables when they were saved, with no teacher at hand."""

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"weight": self.weight, "name": self.name}
        if self.on_features:
            config["match"] = dict(self.match) if isinstance(self.match, Mapping) else self.match
            config["pairs"] = [list(pair) for pair in self.pairs]
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DistillationLoss:
        config = {key: deserialize(value) if key != "match" else value for key, value in config.items()}
        pairs = config.pop("pairs", [])
        loss = cls(**config)
        loss.pairs = [(s, t) for s, t in pairs]
        return loss


def get_loss(loss: str | DistillationLoss, **options: Any) -> DistillationLoss:
    """A loss from its registered name or "name:weight", or the loss itself.

    Args:
        loss: such as "logits", "attention:0.5", or a DistillationLoss.
        options: for a loss made here, as far as its class takes them.

    Raises:
        InputError: an unknown name (the message lists them), a bad weight, or no loss.
    """
    if isinstance(loss, str):
        name, _, weight = loss.partition(":")
        kind = distillation_losses.get(name)
        taken = {k: v for k, v in options.items() if k in inspect.signature(kind).parameters}
        try:
            return kind(weight=float(weight or 1.0), **taken)
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{weight!r} in {loss!r} is no weight.", expected="name:number", fix=f"give for example {name}:0.5"
            ) from error
    if not isinstance(loss, DistillationLoss):
        raise InputError(
            f"{loss!r} is no distillation loss.",
            expected=f"a DistillationLoss, or one of: {', '.join(distillation_losses)}",
            fix="give for example losses=[okd.LogitsDistillation(temperature=5.0)]",
        )
    return loss


def _snake_case(name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() and i else c.lower() for i, c in enumerate(name))


@distillation_losses.register("logits")
@keras.saving.register_keras_serializable("orbit_kd")
class LogitsDistillation(DistillationLoss):
    """T^2 * KL(teacher || student) of the outputs softened by T (Hinton, Vinyals, Dean 2015, arXiv:1503.02531).

    Logits of any rank; the last axis holds the classes. The factor T^2 keeps the gradient's size when T changes.

    Args:
        temperature: T > 0; a number, a function of the epoch, or a Keras schedule of the step.
        activation: "softmax", or "sigmoid" for independent labels (their mean is taken, as Keras' binary cross-entropy
            does); "auto" takes sigmoid where the teacher ends in it or has one output, else softmax.
        weight, name: see DistillationLoss.
    """

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

    def compute_loss(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        t = self.temperature.at(self.context.step)
        if self._independent(teacher):
            return t**2 * tf.reduce_mean(_bernoulli_kl(teacher / t, student / t), -1)
        return t**2 * _kl(tf.nn.log_softmax(teacher / t), tf.nn.log_softmax(student / t))

    def _independent(self, teacher: tf.Tensor) -> bool:
        if self.activation != "auto":
            return self.activation == "sigmoid"
        return teacher.shape[-1] == 1 or self.context.head == "sigmoid"

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
        weight, name: see DistillationLoss.
    """

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


def _kl(log_p: tf.Tensor, log_q: tf.Tensor) -> tf.Tensor:
    """KL(p || q) along the last axis, from logarithms."""
    return tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), -1)


def _bernoulli_kl(p: tf.Tensor, q: tf.Tensor) -> tf.Tensor:
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


def named_apart(losses: list[DistillationLoss]) -> list[DistillationLoss]:
    """Two losses of one name would share a column of the log: number them."""
    if len({id(loss) for loss in losses}) < len(losses):
        raise InputError("One loss object is given twice.", expected="an object each", fix="make two, or weigh one")
    seen: dict[str, int] = {}
    for loss in losses:
        seen[loss.name] = seen.get(loss.name, 0) + 1
        if seen[loss.name] > 1:
            loss.name = f"{loss.name}_{seen[loss.name]}"
    return losses
