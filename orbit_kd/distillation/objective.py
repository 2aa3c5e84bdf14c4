"""What a Distiller minimizes, the task's loss and the distillation losses in their shares, and the means it logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from orbit_kd.distillation.choice import Outputs
from orbit_kd.distillation.losses import DistillationLoss
from orbit_kd.distillation.schedules import Number, Scheduled
from orbit_kd.distillation.teachers import TeacherOutputs
from orbit_kd.distillation.terms import Batch, distillation_term
from orbit_kd.models.heads import heads, output_names


class Objective:
    """(1 - alpha) * task + alpha * sum(weight_i * loss_i) + regularizers, on a batch.

    Args:
        student: how its outputs end decides what its logits are.
        losses: distillation losses, each with a name of its own.
        alpha: their share.

    Attributes:
        losses: the distillation losses.
        alpha: their share, by epoch or step.
        outputs: what the outputs hold, once that is known.
    """

    def __init__(self, student: keras.Model, losses: list[DistillationLoss], *, alpha: Number) -> None:
        self.alpha = Scheduled(alpha, name="alpha", low=0.0, high=1.0)
        self.outputs: Outputs | None = None
        self._heads, self._names = heads(student), output_names(student)
        self._total, self._task = keras.metrics.Mean(name="loss"), keras.metrics.Mean(name="task_loss")
        self.set_losses(losses)

    def set_losses(self, losses: list[DistillationLoss]) -> None:
        """Takes these losses in place of the former ones."""
        self.losses = losses
        self._terms = [keras.metrics.Mean(name=f"{loss.name}_loss") for loss in losses]

    def schedules(self) -> list[Scheduled]:
        """All that changes by epoch or step."""
        return [self.alpha, *(s for loss in self.losses for s in loss.schedules())]

    @property
    def student_layers(self) -> list[str]:
        """Names of the student's layers that the losses compare."""
        return sorted({ours for loss in self.losses for ours, _ in loss.pairs})

    @property
    def teacher_layers(self) -> list[str]:
        """Names of the teacher's layers that the losses compare."""
        return sorted({theirs for loss in self.losses for _, theirs in loss.pairs})

    def metrics(self, *, task: bool, terms: bool) -> list[keras.metrics.Metric]:
        """The means over an epoch: of the total, and where asked of its terms, with or without the task's."""
        return [self._total, *([self._task] if task and terms else []), *(self._terms if terms else [])]

    def total(
        self, batch: Batch, taught: TeacherOutputs | None, *, task: Any, regularizers: Sequence[Any], replicas: int
    ) -> tf.Tensor:
        """The scalar to minimize on a replica; every term is already divided by the number of replicas.

        Args:
            batch: of the student.
            taught: what the teachers say about it; None leaves the distillation losses out.
            task: the task's loss on this replica, or None.
            regularizers: scalars.
            replicas: that train in step.
        """
        size = tf.shape(tf.nest.flatten(batch.y_pred)[0])[0]
        total = tf.constant(0.0)
        if task is not None:
            task = tf.cast(task, tf.float32)
            self._task.update_state(task * replicas, sample_weight=size)
            # evaluation is the student's alone, so nothing is shared with distillation terms there
            total += task if taught is None else (1.0 - self.alpha.at(batch.step)) * task
        if taught is not None:
            terms = tf.constant(0.0)
            for loss, mean in zip(self.losses, self._terms, strict=True):
                term = distillation_term(
                    loss, batch, taught=taught, heads=self._heads, names=self._names, outputs=self.outputs
                )
                mean.update_state(term, sample_weight=size)
                terms += loss.weight * term
            total += (terms if task is None else self.alpha.at(batch.step) * terms) / replicas
        if regularizers:
            total += tf.add_n([tf.cast(v, tf.float32) for v in regularizers]) / replicas
        self._total.update_state(total * replicas, sample_weight=size)
        return total
