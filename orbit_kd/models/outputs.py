"""What each output of a network holds (scores of classes, labels, numbers), and which Keras losses train it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.models.heads import head_type, heads, output_names
from orbit_kd.registry import Registry


@dataclasses.dataclass(frozen=True)
class OutputKind:
    """A kind of output.

    Attributes:
        holds: what its numbers are, for messages.
        distillation: registered name of the distillation loss that fits.
        losses: names of the Keras losses that train such an output.
        logits: those among them that have `from_logits`.
    """

    holds: str
    distillation: str
    losses: frozenset[str]
    logits: frozenset[str] = frozenset()


LabelLoss = Callable[[Any, Any], tf.Tensor]
"""Of (labels, outputs)."""

output_kinds: Registry[OutputKind] = Registry("kind of output")
output_kinds.register("classes")(
    OutputKind(
        "scores of classes, one of which is right",
        "logits",
        frozenset({
            "categorical_crossentropy", "sparse_categorical_crossentropy", "categorical_focal_crossentropy",
            "categorical_hinge", "kl_divergence",
        }),
        frozenset({"categorical_crossentropy", "sparse_categorical_crossentropy"}),
    )
)  # fmt: skip
output_kinds.register("labels")(
    OutputKind(
        "independent labels, each yes or no",
        "logits",
        frozenset({"binary_crossentropy", "binary_focal_crossentropy", "hinge", "squared_hinge"}),
        frozenset({"binary_crossentropy"}),
    )
)
output_kinds.register("values")(
    OutputKind(
        "numbers on a scale of their own",
        "mse",
        frozenset({
            "mean_squared_error", "mean_absolute_error", "mean_absolute_percentage_error", "log_cosh",
            "mean_squared_logarithmic_error", "huber", "poisson", "cosine_similarity",
        }),
    )
)  # fmt: skip


def loss_name(loss: Any) -> str:
    """What Keras calls a loss, given in any way it may be given: "mean_squared_error" for "mse" too."""
    if isinstance(loss, (str, dict)):
        loss = keras_loss(loss)
    function = getattr(loss, "fn", loss)
    return str(getattr(function, "__name__", type(function).__name__))


def keras_loss(loss: Any) -> LabelLoss:
    """A loss as something to call, from a name, config, function or Loss.

    Raises:
        InputError: a name that Keras does not know, or no loss.
    """
    try:
        found = keras.losses.get(loss)
    except (ValueError, TypeError):
        found = None
    if not callable(found):
        raise InputError(
            f"loss={loss!r} is no loss.",
            expected='the name of a Keras loss such as "mse", a function (labels, outputs), or a keras.losses.Loss',
            fix="look at the spelling, or leave it out where the network is compiled with its loss",
        )
    return found


def kind_of_loss(loss: Any) -> str:
    """The kind of output that a Keras loss trains; "" for one that is not known."""
    name = loss_name(loss) if loss else ""
    return next((kind for kind in output_kinds if name in output_kinds.get(kind).losses), "")


def compiled_loss(model: keras.Model) -> Any:
    """What a model is compiled with as its loss; None where there is none."""
    return getattr(model, "loss", None) or None


def per_output(given: Any, names: Sequence[str]) -> list[Any]:
    """What belongs to each output of something given as Keras takes it: one for all, a list, a mapping by name."""
    if isinstance(given, Mapping) and "class_name" not in given:
        return [given.get(name) for name in names]
    if isinstance(given, (list, tuple)):
        return [*given, *[None] * len(names)][: len(names)]
    return [given] * len(names)


def compiled_losses(model: keras.Model) -> list[Any]:
    """The loss of each output that a model is compiled with; None where there is none."""
    return per_output(compiled_loss(model), output_names(model))


def kinds_of(models: Sequence[keras.Model], *, loss: Any = None) -> list[str]:
    """The kind of each output: a name in `output_kinds`, "" where nothing says.

    Softmax and sigmoid say it themselves (a sigmoid that is trained with a loss on numbers holds numbers). Other heads
    leave it to the loss: the one given here, else the one that the first of the models is compiled with that has one.

    Args:
        models: of equal outputs, such as a teacher and its student.
        loss: of the labels, as `keras.Model.compile` takes it.

    Raises:
        InputError: models that end in different kinds.
    """
    names = max((output_names(m) for m in models), key=len)
    ends = [heads(m) for m in models]
    losses = [per_output(loss or None, names), *map(compiled_losses, models)]
    return [
        _kind(name, [e[i] for e in ends if i < len(e)], [each[i] for each in losses if i < len(each)])
        for i, name in enumerate(names)
    ]


def _kind(name: str, ends: Sequence[str], losses: Sequence[Any]) -> str:
    said = {head_type(end).kind for end in ends} - {""}
    if len(said) > 1:
        raise InputError(
            f"Output {name!r} ends in {' in one network and in '.join(sorted(set(ends)))} in the other.",
            expected="the same last activation in all of them, or none",
            fix="give the student the teacher's last activation, or let it end in logits",
        )
    trained = next((kind for kind in map(kind_of_loss, losses) if kind), "")
    if "labels" in said and trained == "values":
        return "values"
    return next(iter(said), trained)


def part_of(structure: Any, index: int, names: Sequence[str]) -> Any:
    """The part of labels or sample weights that belongs to one output; None where there is none."""
    if isinstance(structure, Mapping):
        return structure.get(names[index] if index < len(names) else None)
    return structure[index] if isinstance(structure, (list, tuple)) else structure
