"""What `Distiller.fit` takes beyond Keras: teacher caches, data of other kinds, callbacks in their order."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from orbit_kd.datasets.batches import inputs_of
from orbit_kd.datasets.fit_input import fit_input
from orbit_kd.datasets.labels import check_alike
from orbit_kd.distillation.cache import TeacherCache
from orbit_kd.distillation.schedules import Epochs, Scheduled
from orbit_kd.errors import InputError
from orbit_kd.models.keras3.objects import to_tf_keras
from orbit_kd.training.monitor import StopOnNonFinite
from orbit_kd.training.resume import Resume
from orbit_kd.training.workers import index_and_count, worker_batches


def fit_callbacks(callbacks: Any, schedules: list[Scheduled]) -> Any:
    """The callbacks of a fit: the schedules' first, then the caller's, each `Resume` last with the others in hand."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks
    given = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks] if callbacks else []
    given = to_tf_keras(given)
    resumes = [c for c in given if isinstance(c, Resume)]
    others = [c for c in given if not isinstance(c, Resume)]
    for resume in resumes:
        resume.callbacks = others
    return [Epochs(schedules), StopOnNonFinite(), *others, *resumes]


def cache_epochs(cache: TeacherCache, options: dict[str, Any], *, callbacks: Any, batch_size: int | None) -> Any:
    """Batches of a cache without end, from the epoch on where a fit starts; their number goes into `options`.

    Args:
        cache: of the teachers.
        options: of `fit`, by name.
        callbacks: of `fit`; a `Resume` says where it goes on.
        batch_size: None for that of the cache.
    """
    size = batch_size or cache.batch_size
    start = options.get("initial_epoch", 0)
    for resume in (c for c in callbacks if isinstance(c, Resume)):
        start = resume.initial_epoch(start)
    options.setdefault("steps_per_epoch", cache.steps(size))
    return cache.epochs(start=start, batch_size=size)


def shard(batches: tf.data.Dataset, shards: int, *, strategy: tf.distribute.Strategy) -> Any:
    """Batches of one of the shards of a cache, for the worker that this process is.

    Raises:
        InputError: another number of workers.
    """
    workers = index_and_count(strategy)[1]
    if workers != shards:
        raise InputError(
            f"The cache is one of {shards} shards, and {workers} workers train.",
            expected="a shard for each worker",
            fix="make it with cache_teacher(..., shard=(index of the worker, number of workers))",
        )
    return worker_batches(batches, strategy)


def fit_data(student: keras.Model, x: Any, y: Any, options: dict[str, Any], *, epochs: int) -> Any:
    """(x, y) of data that are no cache, for `fit`."""
    steps, passes = options.get("steps_per_epoch"), epochs - options.get("initial_epoch", 0)
    return fit_input(x, y, inputs=inputs_of(student), steps=steps, epochs=passes)


def validation_data(data: Any, *, steps: int | None) -> Any:
    """Validation data in any form, for `fit`."""
    if isinstance(data, TeacherCache):
        return data.dataset
    return data if data is None or isinstance(data, tuple) else fit_input(data, steps=steps)[0]


def check_labels(train: Any, validation: Any) -> None:
    """Refuses validation labels of another kind than those of training, which Keras finds after the first epoch.

    Raises:
        InputError: such labels.
    """
    specs = {
        name: data.element_spec[1]
        for name, data in (("train", train), ("validation", validation))
        if isinstance(data, tf.data.Dataset) and isinstance(data.element_spec, tuple) and len(data.element_spec) > 1
    }
    labels = {name: y["labels"] if isinstance(y, dict) and "labels" in y else y for name, y in specs.items()}
    if all(isinstance(y, tf.TensorSpec) and y.shape.rank for y in labels.values()):
        check_alike({name: y.shape for name, y in labels.items()})
