"""The base class of every distillation loss, and the ways to give several."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from orbit_kd.distillation.features import feature_shapes, find_layer, match_deepest, match_layers
from orbit_kd.distillation.schedules import Scheduled, deserialize
from orbit_kd.errors import InputError
from orbit_kd.registry import Registry

distillation_losses: Registry[type[DistillationLoss]] = Registry("distillation loss")
Match = str | Sequence[str] | Mapping[str, str]
Output = str | int


@dataclasses.dataclass(frozen=True)
class Context:
    """What a loss may want to know besides the two tensors; the Distiller sets it before each call.

    Attributes:
        step: the optimizer's iteration count.
        head: activation of the teacher's output, "softmax", "sigmoid" or "linear".
        labels: the task's labels for this output, integer or one-hot; None where there are none.
        kind: what the output holds: "classes", "labels" or "values" (see `models.outputs`), "" where nothing says.
    """

    step: tf.Tensor | int = 0
    head: str = "linear"
    labels: tf.Tensor | None = None
    kind: str = ""


class DistillationLoss:
    """Base class: override `compute_loss`, and `get_config` if there are more arguments.

    Losses with `on_features = False` get the logits of each output; the others get the outputs of each pair of layers.

    Args:
        weight: factor in the sum of distillation losses, >= 0.
        name: its metric is logged as `<name>_loss`.
        outputs: names or numbers of the outputs that it compares, for losses on logits; None for all.
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
    on_scale = False  # compares numbers as they are: student and teacher must end alike
    options: tuple[str, ...] = ()  # its arguments that a setting of that name reaches, such as --temperature
    kinds: tuple[str, ...] = ()  # of outputs that it can compare, see `orbit_kd.models.outputs`; () for any

    def __init__(
        self,
        *,
        weight: float = 1.0,
        name: str | None = None,
        outputs: Output | Sequence[Output] | None = None,
        match: Match = "auto",
    ) -> None:
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
        self.outputs = (outputs,) if isinstance(outputs, (str, int)) else None if outputs is None else tuple(outputs)
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
        if self.outputs is not None:
            config["outputs"] = list(self.outputs)
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
        options: for a loss made here: those that its class names in `options`.

    Raises:
        InputError: an unknown name (the message lists them), a bad weight, or no loss.
    """
    if isinstance(loss, str):
        name, _, weight = loss.partition(":")
        kind = distillation_losses.get(name)
        taken = {k: v for k, v in options.items() if k in kind.options}
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
    return re.sub("(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


Losses = Sequence[DistillationLoss | str] | Mapping[Output, DistillationLoss | str | Sequence[DistillationLoss | str]]


def get_losses(losses: Losses) -> list[DistillationLoss]:
    """Distillation losses as a list, each with a name of its own, from all ways to give them.

    Args:
        losses: a sequence, or a mapping of output (name or number) to a loss or several; losses by name or as objects.

    Raises:
        InputError: as `get_loss`; a loss on features given for an output; one object twice.
    """
    if not isinstance(losses, Mapping):
        return number_names(
            [get_loss(v) for v in ([losses] if isinstance(losses, (str, DistillationLoss)) else losses)]
        )
    found = []
    for output, given in losses.items():
        for loss in map(get_loss, [given] if isinstance(given, (str, DistillationLoss)) else given):
            if loss.on_features or loss.outputs not in (None, (output,)):
                raise InputError(
                    f"{type(loss).__name__} is given for output {output!r}.",
                    expected="losses on that output",
                    fix='give a list, losses=[okd.MSEDistillation(outputs="boxes"), okd.FeatureHints()] for example',
                )
            loss.outputs = (output,)
            found.append(loss)
    return number_names(found)


def number_names(losses: list[DistillationLoss]) -> list[DistillationLoss]:
    """Two losses of one name would share a column of the log: number them."""
    if len({id(loss) for loss in losses}) < len(losses):
        raise InputError("One loss object is given twice.", expected="an object each", fix="make two, or weigh one")
    seen: dict[str, int] = {}
    for loss in losses:
        seen[loss.name] = seen.get(loss.name, 0) + 1
        if seen[loss.name] > 1:
            loss.name = f"{loss.name}_{seen[loss.name]}"
    return losses
