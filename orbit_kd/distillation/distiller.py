"""Distiller: a student that learns from a teacher under plain `fit`."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import tensorflow as tf
import tf_keras as keras

import orbit_kd.distillation.dense_losses  # noqa: F401  registers its losses, and imports those on features
from orbit_kd.datasets.batches import inputs_of
from orbit_kd.datasets.fit_input import fit_input
from orbit_kd.distillation.cache import TeacherCache
from orbit_kd.distillation.choice import Outputs, check_losses, fitting_losses
from orbit_kd.distillation.class_weights import broadcast_weights, class_weights, sample_weights
from orbit_kd.distillation.features import find_layer, record_outputs
from orbit_kd.distillation.fit_arguments import (
    cache_epochs,
    check_labels,
    fit_callbacks,
    fit_data,
    shard,
    validation_data,
)
from orbit_kd.distillation.losses import DistillationLoss, Losses, get_losses
from orbit_kd.distillation.objective import Objective
from orbit_kd.distillation.output_losses import LogitsDistillation
from orbit_kd.distillation.schedules import Number, deserialize
from orbit_kd.distillation.teachers import TeacherOutputs, Teachers, check_outputs, unpack
from orbit_kd.distillation.terms import Batch
from orbit_kd.errors import InputError
from orbit_kd.models.conversion import as_tf_keras
from orbit_kd.models.keras3.objects import to_tf_keras
from orbit_kd.models.strided_pointwise import strides_first
from orbit_kd.training.variables import create_variables
from orbit_kd.training.workers import watch_workers


@keras.saving.register_keras_serializable("orbit_kd")
class Distiller(keras.Model):
    """Trains a student on loss = (1 - alpha) * task + alpha * sum(weight_i * loss_i) + regularizers.

    Everything Keras' `compile`, `fit`, `evaluate`, `predict` and callbacks do works on the student: its outputs are the
    Distiller's. With `compile(loss=None)` the task term and alpha are gone and `fit` needs no labels. Each step runs
    the student once. The teacher runs in inference mode, is not tracked (absent from `weights`, checkpoints and saved
    files) and never changes.

    Logged: `loss` (the total), `task_loss`, `<name>_loss` of each distillation loss before its weight, and the compiled
    metrics, all as means over the epoch. `evaluate` gives what the student alone would give: `loss` is the task loss
    and regularizers, without the cost of the teacher; with `compile(loss=None)` it is the distillation losses.
    sample_weight and class_weight weigh the task term and every distillation loss that has a value for each sample.

    What is learned from each output follows from what it holds, where `losses` does not say. Softmax: scores of
    classes. Sigmoid: independent labels. Else the loss tells, that given to `compile`, or the one that the teacher is
    compiled with: a cross-entropy means scores, `mse`, `mae` or `huber` numbers. Scores are compared as softened
    probabilities (LogitsDistillation), numbers as they are (MSEDistillation). Where nothing tells, or a loss does not
    fit, `compile` refuses.

    `distiller.student` is what to save. The Distiller itself can be saved and continued too: after `load_model`, give
    the teacher again with `distiller.set_teacher(teacher)`.

    Args:
        student: the model to train; its outputs may be logits or probabilities.
        teacher: a trained model of the same task, or several (the mean of their logits); None only to evaluate.
        losses: distillation losses, or their registered names, each for all outputs or those that it names; or a
            mapping of output (name or number) to its loss or losses: {"boxes": "mse:0.5", "scores": "logits"}, where an
            output left out teaches nothing. Where not given those that fit, scores at T = 5.
        alpha: share of the distillation losses in [0, 1]: a number, a function of the epoch, or a Keras schedule.
        teacher_weights: relative weight of each of several teachers.
        name: of this model.

    Raises:
        InputError: a bad argument; teacher and student outputs that do not agree; a Keras 3 student (a teacher of Keras
            3 is taken).
    """

    network_behind = "distiller.student"

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model | Sequence[keras.Model] | None = None,
        *,
        losses: Losses | None = None,
        alpha: Number = 0.8,
        teacher_weights: Sequence[float] | None = None,
        name: str = "distiller",
    ) -> None:
        student = as_tf_keras(student, name="student", graph=False, in_place=True, refuse=())
        # autocast would round float32 inputs before the student decides about them; the policy is only there so that
        # `compile` puts a LossScaleOptimizer around the optimizer of a float16 student
        super().__init__(name=name, dtype=_policy(student), autocast=False)
        self.student = student
        # plain objects in a plain namespace: Keras would track, save and train what it found in a list or a model
        objective = Objective(student, get_losses(losses or [LogitsDistillation()]), alpha=alpha)
        self._untracked = SimpleNamespace(
            objective=objective,
            by_default=not losses,
            teachers=None,
            class_weight=None,
            fitting=False,
            testing=False,
        )
        for schedule in objective.schedules():
            schedule.build()
        self.output_names = getattr(student, "output_names", None)
        if teacher is not None:
            self.set_teacher(teacher, weights=teacher_weights)
        else:
            for loss in self.distillation_losses:
                loss.rebuild(student)
            self._track_projectors()
        if student.built:
            self.build(getattr(student, "input_shape", None))

    @property
    def distillation_losses(self) -> list[DistillationLoss]:
        """The losses, in the order given."""
        return self._untracked.objective.losses

    @property
    def alpha(self) -> Number:
        """Share of the distillation losses: the number, function of the epoch or Keras schedule that was given."""
        return self._untracked.objective.alpha.value

    @property
    def teachers(self) -> list[keras.Model]:
        """The teachers; empty after loading, until `set_teacher`."""
        return list(self._untracked.teachers.models) if self._untracked.teachers else []

    def set_teacher(
        self, teacher: keras.Model | Sequence[keras.Model], *, weights: Sequence[float] | None = None
    ) -> None:
        """Gives the teacher, or gives it again after the Distiller was loaded from a file.

        Args:
            teacher: one model or several.
            weights: relative weight of each of several.

        Raises:
            InputError: outputs that do not agree with the student's, or feature layers that are not found.
        """
        teachers = Teachers(teacher, weights=weights)
        for model in teachers.models:
            check_outputs(self.student, model)
        for loss in self.distillation_losses:
            loss.build(self.student, teachers.models[0])
        self._untracked.teachers = teachers
        self._choose()
        self._track_projectors()
        self.train_function = self.test_function = None  # the compiled steps hold the former teacher

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        metrics: Any = None,
        loss_weights: Any = None,
        weighted_metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """As `keras.Model.compile`; with `loss=None` the student learns from the teacher alone.

        Optimizers, schedules, losses and metrics of Keras 3 become those of tf_keras.

        Raises:
            InputError: distillation losses that do not fit the outputs, or none given and nothing that says what fits;
                an object of Keras 3 that tf_keras has no equal of.
        """
        optimizer, loss, metrics, weighted_metrics = map(to_tf_keras, (optimizer, loss, metrics, weighted_metrics))
        super().compile(optimizer, loss, metrics, loss_weights, weighted_metrics, **kwargs)
        self._choose()

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a Distiller that is loaded; Keras does so only where nobody has a `compile` of their own."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built and hasattr(self.optimizer, "build"):
            self.optimizer.build(self.trainable_variables)

    def _choose(self) -> None:
        """Finds what the outputs hold and the losses that fit; until `compile` has run they are a guess."""
        if self._untracked.teachers is None:
            return
        loss = self.loss if self._is_compiled else None
        self._untracked.objective.outputs = outputs = Outputs.of(self.student, self.teachers, loss=loss)
        if self._untracked.by_default and (self._is_compiled or all(outputs.kinds)):
            losses = fitting_losses(outputs)
            if [v.get_config() for v in losses] != [v.get_config() for v in self.distillation_losses]:
                with self.distribute_strategy.scope():
                    self._untracked.objective.set_losses(losses)
        if self._is_compiled:
            check_losses(self.distillation_losses, outputs)

    def _track_projectors(self) -> None:
        self.projectors = [layer for loss in self.distillation_losses for layer in loss.projectors]

    def build(self, input_shape: Any) -> None:
        if not self.student.built:
            self.student.build(input_shape)
        self._build_input_shape = input_shape
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.student(inputs, training=training)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        # Keras' own tracker would count the task term alone as "loss"
        theirs = self.compiled_loss.metrics[:1] if self._is_compiled else []
        others = [m for m in super().metrics if not any(m is t for t in theirs)]
        # evaluation with a task loss has that one term alone
        terms = self._no_task or not self._untracked.testing
        return self._untracked.objective.metrics(task=not self._no_task, terms=terms) + others

    @property
    def _no_task(self) -> bool:
        return not self._is_compiled or not self.loss  # Keras keeps None as {}

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """As `keras.Model.fit`; `x` may also be a `TeacherCache`, and then the teacher is not run.

        Also a Keras 3 `PyDataset`, its `ImageDataGenerator().flow(...)`, a list of batches, or a pair (x, y).

        A `Resume` among the callbacks is put last, saves the other callbacks' state too, and makes the same call after
        a kill go on where the last whole epoch ended. A loss that is not finite raises. With several workers (a
        MultiWorkerMirroredStrategy) give each a cache of its own, `cache_teacher(..., shard=(index, count))`, or all
        the same cache or data set; `batch_size` of a shard is the worker's.

        Raises:
            InputError: no teacher, a cache of another teacher, a cache without the features a loss needs, a loss that
                is NaN or infinite; shards for another number of workers; another worker stopped.
        """
        teachers = self._require_teacher()
        callbacks = fit_callbacks(callbacks, self._untracked.objective.schedules())
        shards = x.shards if isinstance(x, TeacherCache) else 1
        if isinstance(x, TeacherCache):
            x.check(teachers, self._untracked.objective.teacher_layers)
            x = cache_epochs(x, kwargs, callbacks=callbacks, batch_size=batch_size)
            batch_size = None
        else:
            x, y = fit_data(self.student, x, y, kwargs, epochs=epochs)
        table = class_weights(kwargs.pop("class_weight", None), self._untracked.objective.outputs, self.student)
        if table != self._untracked.class_weight:
            self._untracked.class_weight, self.train_function = table, None  # it is part of the compiled step
        if shards > 1:
            x = shard(x, shards, strategy=self.distribute_strategy)
        kwargs["validation_data"] = validation_data(kwargs.get("validation_data"), steps=kwargs.get("validation_steps"))
        check_labels(x, kwargs["validation_data"])
        create_variables(self, x, y, outputs=getattr(self.student, "outputs", None))
        self._untracked.fitting, self._untracked.testing = True, False
        try:
            with watch_workers(self.distribute_strategy):
                return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)
        finally:
            self._untracked.fitting = False

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`, on the student alone; `x` may also be a `TeacherCache`."""
        to_tf_keras(kwargs.get("callbacks"))  # refuses those of Keras 3
        self._untracked.testing = True
        if isinstance(x, TeacherCache):
            x = x.dataset
        elif not args:
            x, kwargs["y"] = fit_input(x, kwargs.get("y"), inputs=inputs_of(self.student), steps=kwargs.get("steps"))
        try:
            return super().evaluate(x, *args, **kwargs)
        finally:  # `metrics_names` stays that of the last call, but a fit goes on with its own
            self._untracked.testing = not self._untracked.fitting

    def _require_teacher(self) -> Teachers:
        if self._untracked.teachers is None:
            raise InputError(
                "This Distiller has no teacher.",
                expected="a teacher to learn from; it is not written into saved files",
                fix="call distiller.set_teacher(teacher) first",
            )
        return self._untracked.teachers

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y, taught = unpack(y)
        taught = taught or self._require_teacher()(x, layers=self._untracked.objective.teacher_layers)
        sample_weight = sample_weights(self._untracked.class_weight, y, sample_weight, self.student)
        with tf.GradientTape() as tape, record_outputs(self._student_layers()) as features, strides_first(self.student):
            y_pred = self(x, training=True)
            sample_weight = broadcast_weights(sample_weight, y_pred)
            loss = self._total(Batch(y, y_pred, sample_weight, features, self._step), taught)
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        return self._results(x, y, y_pred, sample_weight)

    def test_step(self, data: Any) -> dict[str, Any]:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y, taught = unpack(y)
        if self._no_task and taught is None and self._untracked.teachers is not None:
            taught = self._untracked.teachers(x, layers=self._untracked.objective.teacher_layers)
        with record_outputs(self._student_layers() if taught else {}) as features:
            y_pred = self(x, training=False)
        sample_weight = broadcast_weights(sample_weight, y_pred)
        self._total(Batch(y, y_pred, sample_weight, features, self._step), taught if self._no_task else None)
        return self._results(x, y, y_pred, sample_weight)

    def _results(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> dict[str, Any]:
        return self.get_metrics_result() if y is None else self.compute_metrics(x, y, y_pred, sample_weight)

    @property
    def _step(self) -> Any:
        return self.optimizer.iterations if self.optimizer else 0

    def _total(self, batch: Batch, taught: TeacherOutputs | None) -> tf.Tensor:
        task = None if self._no_task else self.compiled_loss(batch.y, batch.y_pred, batch.sample_weight)
        replicas = self.distribute_strategy.num_replicas_in_sync
        return self._untracked.objective.total(batch, taught, task=task, regularizers=self.losses, replicas=replicas)

    def _student_layers(self) -> dict[str, keras.layers.Layer]:
        return {name: find_layer(self.student, name) for name in self._untracked.objective.student_layers}

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {
            "student": serialize(self.student),
            "losses": [serialize(loss) for loss in self.distillation_losses],
            "alpha": self._untracked.objective.alpha.serialize(),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Distiller:
        load = keras.saving.deserialize_keras_object
        return cls(
            load(config["student"], custom_objects=custom_objects),
            losses=[load(loss, custom_objects=custom_objects) for loss in config["losses"]],
            alpha=deserialize(config["alpha"]),
            name=config["name"],
        )


def _policy(student: keras.Model) -> keras.mixed_precision.Policy:
    names = {m.dtype_policy.name for m in student.submodules if isinstance(m, keras.layers.Layer)}
    return keras.mixed_precision.Policy("mixed_float16" if "mixed_float16" in names else "float32")
