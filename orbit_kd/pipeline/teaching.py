"""Distillation of a student on a `Data` set as the command line does it: cached views, resumable, on any strategy."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras as keras

from orbit_kd.datasets import Data
from orbit_kd.datasets.augment import Augment
from orbit_kd.distillation.job import TrainingJob, layers_of
from orbit_kd.distillation.schedules import Scheduled
from orbit_kd.errors import InputError
from orbit_kd.models.saving import fingerprint, save_model
from orbit_kd.support.digests import digest
from orbit_kd.support.files import write_file
from orbit_kd.support.stages import Stages
from orbit_kd.training import workers
from orbit_kd.training.fit import check_fit
from orbit_kd.training.tensorboard import TensorBoardLogs


def teach(
    student: keras.Model,
    teacher: keras.Model,
    *,
    data: Data,
    losses: Sequence[Any],
    alpha: Any = 0.8,
    label_free: bool = False,
    epochs: int,
    learning_rate: float = 2e-3,
    batch_size: int = 64,
    views: int = 8,
    augment: Augment | None = None,
    task: str = "auto",
    seed: int = 0,
    strategy: tf.distribute.Strategy | None = None,
    tensorboard: str | None = None,
    path: str | os.PathLike[str],
) -> dict[str, list[float]]:
    """Trains the student in place and saves it; the same call goes on after a kill, a changed one starts anew.

    Args:
        student: a network, outside any strategy's scope.
        teacher: of the same outputs; it is not changed.
        data: from `datasets.load`.
        losses: distillation losses.
        alpha: their share, see `Distiller`.
        label_free: learn from the teacher alone.
        epochs: passes over the training images.
        learning_rate: of Adam at the start; it falls to zero on a cosine.
        batch_size: images a step, over all workers.
        views: augmented renderings that the teacher sees once, each worker its own share of the images; 0: fresh ones
            in each epoch, and the teacher runs at each step.
        augment: random changes to the images.
        task: what the networks are for, see `orbit_kd.tasks.choose`.
        seed: of order, views and dropout.
        strategy: from `workers.strategies`; None for one device.
        tensorboard: folder for its logs.
        path: .keras file that the first worker writes; the state lies beside it in a folder for each worker.

    Returns:
        One list of values a metric, one value an epoch.

    Raises:
        InputError: models and data that do not fit each other, a batch that cannot be divided, a loss that is not
            finite, an unwritable path, another worker that stopped.
    """
    strategy = strategy or tf.distribute.get_strategy()
    with workers.watch_workers(strategy):
        for model in (teacher, student):
            of = check_fit(model, data, task=task, labels=not label_free)
        index, count = shard = workers.index_and_count(strategy)
        if batch_size % strategy.num_replicas_in_sync:
            raise InputError(f"batch_size={batch_size} for {strategy.num_replicas_in_sync} replicas.",
                             expected="equal parts", fix="give a multiple of their number")  # fmt: skip
        training = TrainingJob(
            teacher, data, losses=losses, alpha=alpha, label_free=label_free, views=views, augment=augment or Augment(),
            seed=seed, batch_size=batch_size, learning_rate=learning_rate, strategy=strategy, task=of,
        )  # fmt: skip
        copy = workers.copy_into(student, strategy)
        distiller = training.distiller(copy)

        path = Path(path)
        folder = path.with_suffix(".state") / (f"worker-{index}" if count > 1 else "")
        stages = Stages(folder, digest(fingerprint(teacher), _start(student), data.key, shard))
        about: dict[str, Any] = {"views": views, "augment": (augment or Augment()).to_dict(), "seed": seed}
        layers = layers_of(losses)
        with stages.stage("lessons", **about, layers=layers) as (folder, _):
            lessons = training.lessons(layers, folder=folder, key=stages.keys["lessons"]) if views else None

        settings: dict[str, Any] = {
            "losses": [keras.saving.serialize_keras_object(loss) for loss in losses],
            "alpha": Scheduled(alpha, name="alpha").serialize(),
            "label_free": label_free,
            "task": of.config(),
            "epochs": epochs,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
        }
        callbacks = [TensorBoardLogs(tensorboard)] if tensorboard and not index else []
        # done or not: workers must all agree to end
        with stages.stage("training", after=["lessons"], **settings) as (folder, _):
            history = training.train(
                distiller, lessons, epochs=epochs, folder=folder, label="distillation", callbacks=callbacks
            )
            if copy is not student:
                student.set_weights(copy.get_weights())
    if not index:
        save_model(student, path)
        write_file(path.with_suffix(".history.json"), json.dumps(history))
    return history


def _start(student: keras.Model) -> str:
    """What the training starts from, without moving statistics: estimated again, their last bits differ."""
    return digest(student.to_json(), [w.numpy() for w in student.trainable_weights])
