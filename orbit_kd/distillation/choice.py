"""Which distillation loss compares which output: one that fits what it holds, or as the caller says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import tf_keras as keras

from orbit_kd.distillation.losses import DistillationLoss, get_loss, get_losses
from orbit_kd.errors import InputError
from orbit_kd.models.heads import heads, output_names
from orbit_kd.models.outputs import kinds_of, output_kinds


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What is known of the outputs that teacher and student share.

    Attributes:
        names: of the student's.
        teacher: how each ends in the (first) teacher.
        student: how each ends in the student.
        kinds: what each holds; "" where nothing says.
    """

    names: tuple[str, ...]
    teacher: tuple[str, ...]
    student: tuple[str, ...]
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, student: keras.Model, teachers: Sequence[keras.Model], *, loss: Any = None) -> Outputs:
        """Of these networks, with the loss of the labels that the Distiller is compiled with.

        Raises:
            InputError: networks that end in different ways.
        """
        kinds = kinds_of([*teachers, student], loss=loss)
        size = len(kinds)
        names = [*output_names(student), *map(str, range(size))][:size]
        ends = [tuple([*heads(model), *["linear"] * size][:size]) for model in (teachers[0], student)]
        return cls(tuple(names), ends[0], ends[1], tuple(kinds))

    def index(self, output: str | int) -> int:
        """The place of an output.

        Raises:
            InputError: there is none of that name or number.
        """
        if output in self.names:
            return self.names.index(str(output))
        if not isinstance(output, int) or not 0 <= output < len(self.names):
            raise InputError(
                f"A distillation loss is given for output {output!r}, which the student has not.",
                expected=f"one of: {', '.join(self.names)}; or a number below {len(self.names)}",
                fix="mend the name, or leave it out for all outputs",
            )
        return output

    def compared_by(self, loss: DistillationLoss) -> tuple[int, ...]:
        """The places of the outputs that a loss compares."""
        if loss.on_features:
            return ()
        return tuple(range(len(self.names))) if loss.outputs is None else tuple(map(self.index, loss.outputs))


def fitting_losses(outputs: Outputs) -> list[DistillationLoss]:
    """The distillation losses that fit what the outputs hold.

    Raises:
        InputError: an output of which nothing says what it holds.
    """
    by_loss: dict[str, list[int]] = {}
    for i, (name, kind) in enumerate(zip(outputs.names, outputs.kinds, strict=True)):
        if not kind:
            one = len(outputs.names) == 1
            scores, numbers = (
                f"losses=[{v!r}]" if one else f"losses={{{name!r}: {v!r}, ...}}" for v in ("logits", "mse")
            )
            raise InputError(
                f"Output {name!r} ends in {outputs.teacher[i]}, and no compiled loss says what its numbers are.",
                expected="scores of classes, scores of independent labels, or numbers with a scale of their own",
                fix=f"say what to learn from it: {scores} for scores, {numbers} for numbers; "
                "or compile the Distiller or the teacher with the loss of its labels",
            )
        by_loss.setdefault(output_kinds.get(kind).distillation, []).append(i)
    losses = [get_loss(name) for name in by_loss]
    if len(by_loss) > 1:
        for loss, places in zip(losses, by_loss.values(), strict=True):
            loss.outputs = tuple(outputs.names[i] for i in places)
    return get_losses(losses)


def check_losses(losses: Sequence[DistillationLoss], outputs: Outputs) -> None:
    """Refuses losses that do not fit what their outputs hold.

    Raises:
        InputError: such a loss, an output that is not there, or teacher and student whose numbers are not alike.
    """
    for loss in losses:
        for i in outputs.compared_by(loss):
            name, kind, ends = outputs.names[i], outputs.kinds[i], (outputs.teacher[i], outputs.student[i])
            if loss.kinds and kind and kind not in loss.kinds:
                other = output_kinds.get(kind).distillation
                raise InputError(
                    f"{type(loss).__name__} compares {' or '.join(output_kinds.get(k).holds for k in loss.kinds)}, "
                    f"and output {name!r} holds {output_kinds.get(kind).holds}.",
                    expected=f"a loss that fits, such as {other!r}",
                    fix=f"give losses={{{name!r}: {other!r}}}"
                    + (", and a loss for each other output there" if len(outputs.names) > 1 else ""),
                )
            # probabilities against what may be any number; of classes and labels the logits are known on both sides
            probabilities = {"softmax", "sigmoid", "hard_sigmoid"}
            if loss.on_scale and kind not in ("classes", "labels") and ends[0] != ends[1] and probabilities & {*ends}:
                raise InputError(
                    f"Output {name!r} ends in {ends[0]} in the teacher and in {ends[1]} in the student.",
                    expected=f"the same last activation in both: {type(loss).__name__} compares the numbers themselves",
                    fix="give the student the teacher's last activation",
                )
