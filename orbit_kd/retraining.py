"""Distillation of a student as a recipe says: what `compress` does after each change to the network."""

from __future__ import annotations

import time
from pathlib import Path

import tf_keras as keras

from orbit_kd.datasets import Data
from orbit_kd.distillation import DistillationLoss, Distiller, TeacherCache, get_loss
from orbit_kd.recipe import Recipe
from orbit_kd.training import classification_loss, fit


def distil(
    student: keras.Model,
    teacher: keras.Model,
    lessons: TeacherCache,
    *,
    data: Data,
    recipe: Recipe,
    epochs: int,
    folder: Path,
    label: str,
) -> dict[str, list[float]]:
    """Trains a student in place; goes on where a killed run in `folder` stopped. Returns one list of values a metric.

    Raises:
        InputError: a loss that is not finite.
    """
    keras.utils.set_random_seed(recipe.seed)
    return fit(
        _distiller(student, teacher, recipe),
        lambda start: lessons.epochs(seed=recipe.seed, start=start, batch_size=recipe.batch_size),
        steps=lessons.steps(recipe.batch_size),
        epochs=epochs,
        val=data.val,
        loss=classification_loss(student, data),
        learning_rate=recipe.learning_rate,
        seed=recipe.seed,
        folder=folder,
        label=label,
    )


def seconds_an_epoch(
    student: keras.Model, teacher: keras.Model, lessons: TeacherCache, *, data: Data, recipe: Recipe
) -> float:
    """How long an epoch of `distil` takes here, from some steps of a copy and one pass over the validation images."""
    copy = keras.models.clone_model(student)
    distiller = _distiller(copy, teacher, recipe)
    distiller.compile(optimizer="adam", loss=classification_loss(student, data), metrics=["accuracy"])
    batches = lessons.epochs(seed=recipe.seed, start=0, batch_size=recipe.batch_size)
    steps = min(lessons.steps(recipe.batch_size), 12)

    def seconds() -> float:
        start = time.monotonic()
        distiller.fit(batches, steps_per_epoch=steps, epochs=1, verbose=0)
        return time.monotonic() - start

    distiller.evaluate(data.val, verbose=0)
    seconds()  # tracing
    start = time.monotonic()
    distiller.evaluate(data.val, verbose=0)
    return seconds() / steps * lessons.steps(recipe.batch_size) + time.monotonic() - start


def losses_of(recipe: Recipe) -> list[DistillationLoss]:
    """The recipe's distillation losses.

    Raises:
        InputError: a name that no loss has, or a bad weight.
    """
    return [get_loss(text, temperature=recipe.temperature) for text in recipe.losses]


def lesson_layers(teacher: keras.Model, recipe: Recipe) -> list[str]:
    """The teacher's layers that these losses look at, in a student that has its layer names."""
    losses = losses_of(recipe)
    for loss in losses:
        loss.build(teacher, teacher)
    return sorted({theirs for loss in losses for _, theirs in loss.pairs})


def _distiller(student: keras.Model, teacher: keras.Model, recipe: Recipe) -> Distiller:
    return Distiller(student, teacher=teacher, losses=losses_of(recipe), alpha=recipe.alpha)
