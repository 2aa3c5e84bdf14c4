"""One training with a teacher: views of the images, what the teacher says of them, Distiller and `fit`, put together.

`compress`, `tools/distill.py` and the benchmarks all train through here.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras as keras

from orbit_kd.datasets import Data
from orbit_kd.datasets.augment import Augment
from orbit_kd.distillation.cache import TeacherCache, cache_teacher
from orbit_kd.distillation.distiller import Distiller
from orbit_kd.distillation.losses import DistillationLoss
from orbit_kd.tasks import Task, choose
from orbit_kd.training import workers
from orbit_kd.training.fit import fit

log = logging.getLogger("orbit_kd")


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """How students learn from a teacher: ask the teacher once (`lessons`), then `train` any number of students.

    Attributes:
        teacher: of the same outputs as the students; it is not changed.
        data: training images; accuracy on the validation images is shown.
        losses: distillation losses. They keep what they learned for one student: give each student new ones.
        alpha: their share, see `Distiller`.
        label_free: learn from the teacher alone.
        views: augmented renderings that the teacher sees once.
        augment: random changes to the images.
        seed: of order, views and dropout.
        batch_size: images a step, over all workers.
        learning_rate: of Adam at the start; it falls to zero on a cosine.
        warmup: part of the steps in which the rate rises from zero first.
        strategy: of several devices or workers; None for one device.
        task: what the networks are for, see `orbit_kd.tasks.choose`.
    """

    teacher: keras.Model
    data: Data
    losses: Sequence[DistillationLoss] = ()
    alpha: Any = 0.8
    label_free: bool = False
    views: int = 8
    augment: Augment | None = None
    seed: int = 0
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup: float = 0.0
    strategy: tf.distribute.Strategy | None = None
    task: str | Task = "auto"

    def lessons(
        self, layers: Sequence[str] = (), *, folder: str | os.PathLike[str] | None = None, key: str | None = None
    ) -> TeacherCache:
        """What the teacher says about its views of the training images; of several workers, about this one's share.

        Args:
            layers: of the teacher, whose outputs are kept too (`layers_of`).
            folder: of the files; None keeps all in memory.
            key: names images and augmentation for certain, so that they are not read again to compare.
        """
        views = self.data.renderings(self.views, seed=self.seed, augment=self.augment)
        cache = cache_teacher(
            self.teacher,
            views,
            path=folder,
            layers=layers,
            seed=self.seed,
            data_key=key,
            shard=self._place,
            moving_labels=self.data.moving_labels,
        )
        log.info("the teacher's answers with their images: %.0f MB in %d views", cache.nbytes / 1e6, cache.views)
        return cache

    def distiller(self, student: keras.Model) -> Distiller:
        """The Distiller that trains a student, which is in the strategy's scope; it builds the losses."""
        with self._strategy.scope():
            return Distiller(student, teacher=self.teacher, losses=list(self.losses), alpha=self.alpha)

    def train(
        self,
        distiller: Distiller,
        lessons: TeacherCache | None,
        *,
        epochs: int,
        folder: Path,
        label: str,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> dict[str, list[float]]:
        """Trains the student of `distiller` in place; goes on where a killed run in `folder` stopped.

        Args:
            distiller: of `self.distiller`.
            lessons: of `self.lessons`; None asks the teacher at each step, about fresh renderings.
            epochs: in all.
            folder: for the state of the training.
            label: what is trained, for the progress lines.
            callbacks: more of them.

        Returns:
            One list of values a metric, one value an epoch.

        Raises:
            InputError: a loss that is not finite.
        """
        return fit(
            distiller,
            lambda start: self._batches(lessons, start),
            steps=self.steps(lessons),
            epochs=epochs,
            val=self.data.val,
            loss=self._task_loss(distiller),
            metrics=self._task.keras_metrics(distiller.student),
            loss_weights=self._task.weights,
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            seed=self.seed,
            folder=folder,
            label=label,
            callbacks=callbacks,
        )

    def seconds_an_epoch(self, student: keras.Model, lessons: TeacherCache) -> float:
        """How long an epoch of `train` takes here, from some steps of a copy and one pass over validation images."""
        distiller = self.distiller(keras.models.clone_model(student))
        distiller.compile(
            optimizer="adam", loss=self._task_loss(distiller), metrics=self._task.keras_metrics(distiller.student)
        )
        batches, whole = self._batches(lessons, 0), self.steps(lessons)
        steps = min(whole, 12)

        def seconds() -> float:
            start = time.monotonic()
            distiller.fit(batches, steps_per_epoch=steps, epochs=1, verbose=0)
            return time.monotonic() - start

        distiller.evaluate(self.data.val, verbose=0)
        seconds()  # tracing
        start = time.monotonic()
        distiller.evaluate(self.data.val, verbose=0)
        return seconds() / steps * whole + time.monotonic() - start

    def steps(self, lessons: TeacherCache | None) -> int:
        """Steps an epoch."""
        return lessons.steps(self._own_batch) if lessons else self.data.steps(self.batch_size)

    def _batches(self, lessons: TeacherCache | None, start: int) -> Any:
        """Endless batches from an epoch on, this worker's own where there are several."""
        if not lessons:
            return self.data.epochs(seed=self.seed, augment=self.augment, start=start, batch_size=self.batch_size)
        batches = lessons.epochs(seed=self.seed, start=start, batch_size=self._own_batch)
        return workers.worker_batches(batches, self._strategy) if self._place[1] > 1 else batches

    def _task_loss(self, distiller: Distiller) -> Any:
        return None if self.label_free else self._task.loss(distiller.student, self.data)

    @property
    def _task(self) -> Task:
        return choose(self.teacher, self.data, task=self.task)

    @property
    def _strategy(self) -> tf.distribute.Strategy:
        return self.strategy or tf.distribute.get_strategy()

    @property
    def _place(self) -> tuple[int, int]:
        return workers.index_and_count(self._strategy)

    @property
    def _own_batch(self) -> int:
        return self.batch_size // self._place[1]


def layers_of(losses: Sequence[DistillationLoss]) -> list[str]:
    """The teacher's layers that losses look at; a Distiller has built them."""
    return sorted({theirs for loss in losses for _, theirs in loss.pairs})
