"""Distillation of a student as a recipe says: what `compress` does after each change to the network."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tf_keras as keras

from orbit_kd.datasets import Data
from orbit_kd.datasets.augment import Augment
from orbit_kd.distillation import DistillationLoss, TeacherCache, get_loss
from orbit_kd.distillation.job import TrainingJob, layers_of
from orbit_kd.errors import InputError
from orbit_kd.models.saving import load_model, save_model
from orbit_kd.pipeline.recipe import Recipe
from orbit_kd.support.files import write_file
from orbit_kd.support.stages import Stages
from orbit_kd.tasks import Task

_USUAL = Recipe.losses  # what a recipe has where nobody chose


@dataclasses.dataclass(frozen=True)
class Retraining:
    """What all trainings of a job share.

    Attributes:
        stages: where they leave their results.
        teacher: the original network.
        lessons: what it said about the training images.
        data: the images; validation accuracy is shown.
        recipe: losses, rates, seed.
        task: what the networks are for.
        history: one entry a finished `stage`: its name, epochs, and a list of values a metric.
    """

    stages: Stages
    teacher: keras.Model
    lessons: TeacherCache
    data: Data
    recipe: Recipe
    task: Task
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def stage(
        self,
        name: str,
        make: Callable[[], keras.Model],
        *,
        after: Sequence[str],
        settings: Mapping[str, Any],
        epochs: int,
        finish: Callable[[keras.Model], keras.Model] = lambda student: student,
    ) -> keras.Model:
        """Trains what `make` gives, once; returns it, after `finish` has made it plain, as it was saved.

        Args:
            name: of the stage.
            make: the student to train.
            after: the stages that `make` starts from; the teacher's answers are always one of them.
            settings: what `make`, the training and `finish` depend on: a stage with others runs anew.
            epochs: of the training; 0 leaves it out.
            finish: what is saved, from the trained student.
        """
        with self.stages.stage(name, after=[*after, "lessons"], **{**settings, "epochs": epochs}) as (folder, done):
            if not done:
                student, curves = make(), {}
                if epochs:
                    curves = self.distil(student, epochs=epochs, folder=folder, label=name)
                save_model(finish(student), folder / "student.keras")
                write_file(folder / "history.json", json.dumps(curves))
            curves = json.loads((folder / "history.json").read_text())
            self.history.append({"stage": name, "epochs": list(range(1, epochs + 1)), **curves})
            return load_model(folder / "student.keras")

    def distil(
        self, student: keras.Model, *, epochs: int, folder: Path, label: str, rate: float = 1.0, warmup: float = 0.0
    ) -> dict[str, list[float]]:
        """Trains a student in place; goes on where a killed run in `folder` stopped. A list of values a metric.

        Args:
            student: the network.
            epochs: of the training.
            folder: for its state.
            label: for the progress lines.
            rate: part of the recipe's learning rate.
            warmup: part of the steps in which it rises from zero.

        Raises:
            InputError: a loss that is not finite.
        """
        keras.utils.set_random_seed(self.recipe.seed)
        learning_rate = rate * self.recipe.learning_rate
        training = dataclasses.replace(self.training, learning_rate=learning_rate, warmup=warmup)
        return training.train(training.distiller(student), self.lessons, epochs=epochs, folder=folder, label=label)

    def seconds_an_epoch(self, student: keras.Model) -> float:
        """How long an epoch of `distil` takes here."""
        return self.training.seconds_an_epoch(student, self.lessons)

    @property
    def training(self) -> TrainingJob:
        """What trains one student: its losses are new."""
        return training_of(self.recipe, self.teacher, data=self.data, task=self.task)


def training_of(
    recipe: Recipe, teacher: keras.Model, *, data: Data, task: Task, augment: Augment | None = None
) -> TrainingJob:
    """The training that a recipe describes, with losses of its own."""
    return TrainingJob(
        teacher,
        data,
        losses=losses_of(recipe, task),
        alpha=recipe.alpha,
        views=recipe.views,
        augment=augment,
        seed=recipe.seed,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        task=task,
    )


def losses_of(recipe: Recipe, task: Task) -> list[DistillationLoss]:
    """The recipe's distillation losses; those of the task where the recipe leaves it at the default.

    Raises:
        InputError: a name that no loss has, or a bad weight.
    """
    names = task.losses if recipe.losses == _USUAL else recipe.losses
    if not names and recipe.temperature != Recipe.temperature:
        raise InputError(
            f"temperature={recipe.temperature:g}, and what is learned from each output is chosen by what it holds.",
            expected="the usual temperature, or losses by name",
            fix="leave the temperature out, or name the losses with their weights: --losses=logits:1",
        )
    return [get_loss(text, temperature=recipe.temperature) for text in names]


def lesson_layers(teacher: keras.Model, recipe: Recipe, task: Task) -> list[str]:
    """The teacher's layers that these losses look at, in a student that has its layer names."""
    losses = losses_of(recipe, task)
    for loss in losses:
        loss.build(teacher, teacher)
    return layers_of(losses)
