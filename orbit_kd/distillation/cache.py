"""The teacher's outputs do not change: compute them once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.datasets.batches import as_batches, inputs_of
from orbit_kd.datasets.sources import is_batch
from orbit_kd.distillation import chunks
from orbit_kd.distillation.cache_filling import Filler, Structure
from orbit_kd.distillation.teachers import Teachers
from orbit_kd.errors import InputError
from orbit_kd.support.digests import digest


class TeacherCache:
    """Samples with what the teacher said about each, in one or several rendered views; made by `cache_teacher`.

    Give it to `Distiller.fit(cache, epochs=...)`. Elements are (x, y) or (x, y, sample_weight) batches where y is
    {"labels": labels, "teacher": {"logits": (...), "features": {...}}}; x comes back exactly as it was, the teacher's
    outputs through float16.

    Attributes:
        samples: number of samples here, each counted once whatever the number of views.
        views: number of renderings of each sample.
        batch_size: as in the data set it was made from; of a shard, this worker's part of it.
        shards: number of workers that share the samples.
        teacher: sha256 of the teacher.
        data: sha256 of the samples, labels and weights of each view.
        hit: True when the teacher did not have to run at all.
    """

    def __init__(
        self,
        records: Sequence[chunks.Records],
        *,
        structure: Structure,
        batch_size: int,
        seed: int,
        teacher: str,
        data: str,
        hit: bool,
        total: int | None = None,
        shards: int = 1,
    ) -> None:
        self._records, self._structure = records, structure
        fields = records[0].dtype.names or ()
        kinds = {n: np.result_type(*(r.dtype[n].base for r in records)) for n in fields}
        self._dtype = np.dtype([(n, kinds[n], records[0].dtype[n].shape) for n in fields])
        self.samples, self.views, self.batch_size = len(records[0]), len(records), batch_size
        self.seed, self.teacher, self.data, self.hit, self.shards = seed, teacher, data, hit, shards
        # workers must make equally many steps: a shard that is one sample short sees one of its samples twice
        self._length = -(-(total or self.samples) // shards)

    def __len__(self) -> int:
        return self.samples

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take, in memory or on disk."""
        return sum(records.nbytes for records in self._records)

    def steps(self, batch_size: int | None = None) -> int:
        """Batches in an epoch; the last may be smaller."""
        return -(-self._length // (batch_size or self.batch_size))

    @property
    def dataset(self) -> tf.data.Dataset:
        """One pass in the original order over the first view, as for validation."""
        return self._batches(self._in_order, range(-(-self.samples // self.batch_size)))

    def epochs(
        self, *, seed: int | None = None, start: int = 0, batch_size: int | None = None, shuffle: bool = True
    ) -> tf.data.Dataset:
        """Endless batches from epoch `start` on; each epoch is a fresh permutation of all samples.

        The order is a function of (seed, epoch), and the view of a sample of (seed, epoch, sample): a run that starts
        at epoch 7 sees what one that came there from 0 sees. A sample goes through its views in turn from a random
        first one, so that every epoch mixes views and every `views` epochs have shown each of them once.

        Args:
            seed: of order and views; that of `cache_teacher` where not given.
            start: first epoch.
            batch_size: of the batches; that of the original data set where not given.
            shuffle: False keeps the original order.
        """
        seed = self.seed if seed is None else seed
        size = batch_size or self.batch_size
        steps = self.steps(size)
        first = np.random.default_rng([seed, 0]).integers(self.views, size=self.samples)
        order: dict[int, np.ndarray] = {}

        def pick(step: int) -> tuple[np.ndarray, np.ndarray]:
            epoch, position = divmod(int(step), steps)
            permutation = order.get(epoch)
            if permutation is None:
                permutation = np.arange(self.samples)
                if shuffle:
                    permutation = np.random.default_rng([seed, 1, epoch]).permutation(self.samples)
                permutation = np.resize(permutation, self._length)
                for old in [e for e in order if e < epoch - 1]:
                    order.pop(old, None)
                order[epoch] = permutation
            rows = permutation[position * size : (position + 1) * size]
            return rows, (first[rows] + epoch) % self.views

        return self._batches(pick, None, start=start * steps)

    def check(self, teachers: Teachers, layers: Sequence[str]) -> None:
        """Refuses a cache that another teacher filled, or that lacks features.

        Raises:
            InputError: either of the two.
        """
        if teachers.fingerprint() != self.teacher:
            raise InputError(
                "The cache was made with another teacher than this Distiller has.",
                expected="the outputs of the Distiller's own teacher, weights unchanged",
                fix="make it anew with okd.cache_teacher(teacher, data)",
            )
        missing = sorted(set(layers) - set(self._structure.features))
        if missing:
            raise InputError(
                f"The cache has no features of {', '.join(missing)}.",
                expected="the outputs of every teacher layer that a loss compares",
                fix=f"make it with okd.cache_teacher(..., layers={sorted(layers)})",
            )

    def _in_order(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(step * self.batch_size, min((step + 1) * self.batch_size, self.samples))
        return rows, np.zeros_like(rows)

    def _batches(self, pick: Callable[[int], Any], steps: range | None, *, start: int = 0) -> tf.data.Dataset:
        def gather(step: np.ndarray) -> list[np.ndarray]:
            rows, views = pick(int(step))
            batch = np.empty(len(rows), self._dtype)
            for view, records in enumerate(self._records):
                here = np.flatnonzero(views == view)
                if len(here) == len(rows):
                    records.take(rows, batch)
                elif len(here):
                    part = np.empty(len(here), self._dtype)
                    records.take(rows[here], part)
                    batch[here] = part
            return [np.ascontiguousarray(batch[name]) for name in names]

        def element(step: tf.Tensor) -> Any:
            arrays = tf.numpy_function(gather, [step], [self._dtype[name].base for name in names])
            flat = []
            for array, name, dtype in zip(arrays, names, self._structure.dtypes, strict=True):
                array.set_shape([None, *self._dtype[name].shape])
                flat.append(tf.cast(array, dtype))
            return self._structure.element(flat)

        names = self._dtype.names or ()
        if steps is None:
            source = tf.data.Dataset.counter(start=start)
        else:
            source = tf.data.Dataset.range(len(steps))
        dataset = source.map(element, num_parallel_calls=2, deterministic=True).prefetch(2)
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
        return dataset.with_options(options)


def cache_teacher(
    teacher: keras.Model | Sequence[keras.Model] | Teachers,
    dataset: Any,
    *,
    path: str | os.PathLike[str] | None = None,
    layers: Sequence[str] = (),
    weights: Sequence[float] | None = None,
    seed: int = 0,
    data_key: str | None = None,
    shard: tuple[int, int] = (0, 1),
    moving_labels: bool = False,
) -> TeacherCache:
    """Runs the teacher once over a data set and keeps its outputs beside the samples.

    With several views (renderings of the same samples under different augmentation) each has teacher outputs of its
    own: the teacher and the student always see the same pixels ("patient and consistent" teaching, Beyer et al. 2022,
    arXiv:2106.05237). What differs from fresh augmentation: a sample only ever comes in these views.

    A stale cache is never used: each batch is filed under the sha256 of the teacher (weights and architecture) and of
    its own bytes. So with a path the same call runs the teacher only for batches that are not there: none the second
    time, the rest after a kill. It still reads the data once to compare, unless `data_key` vouches for them. Files of
    former teachers or data stay in the folder until it is deleted.

    Args:
        teacher: a model, several (their logits are averaged with `weights`), or Teachers.
        dataset: a tf.data.Dataset, arrays, a Sequence, a list of batches or whatever else `datasets.batches` takes, of
            (x, y) or (x, y, sample_weight); x alone serves label-free distillation. In a fixed order if the files are
            to be found again, or with a `data_key`. Or a list of data sets, one for each view, of equal samples in
            equal order; a view that is another in another order is left out.
        path: folder of the cache files, read as they are needed; None keeps everything in memory.
        layers: teacher layers whose outputs are kept too, for losses on features (these can be large).
        weights: relative weight of each of several teachers.
        seed: of the order and the choice of views in `TeacherCache.epochs`.
        data_key: names the data for certain (a hash of files and settings, for example).
        shard: (index, count) keeps, and runs the teacher on, every count-th sample from `index` on: one part for each
            worker of a distributed training (see `Distiller.fit`). Batches of all workers together are, without
            shuffling, those of the data set.
        moving_labels: labels move with the image (masks, boxes), so that those of two views differ; that the views are
            in one order is then the caller's word, and only their length is checked.

    Raises:
        InputError: an empty data set, one without end, one that does not fit the teacher, or one with fewer samples
            than shards; views that differ in labels, length or order; a teacher that gives NaN; an unwritable path.
    """
    teachers = teacher if isinstance(teacher, Teachers) else Teachers(teacher, weights=weights)
    several = isinstance(dataset, (list, tuple)) and len(dataset) > 0 and not any(is_batch(v) for v in dataset)
    inputs = inputs_of(teachers.models[0])
    datasets = [as_batches(v, what="training data", inputs=inputs) for v in (dataset if several else [dataset])]
    key = teachers.fingerprint()
    filler = Filler(teachers, tuple(layers), None if path is None else Path(path) / key[:16], shard)
    views = []
    for number, source in enumerate(datasets, 1):
        label = "teacher cache" if len(datasets) == 1 else f"teacher cache, view {number} of {len(datasets)}"
        views.append(filler.view(source, label, None if data_key is None else f"{data_key} {number}/{len(datasets)}"))
    first = views[0]
    for number, view in enumerate(views[1:], 2):
        if moving_labels:
            _check_length(number, view.total, first.total)
        elif view.labels != first.labels and (view.examples != first.examples or not first.examples):
            raise InputError(
                f"View {number} has other labels than view 1, or the same in another order.",
                expected="the same samples in the same order in every view",
                fix="leave .shuffle() out of what the views are made of: TeacherCache.epochs shuffles in each epoch",
            )
    views = [first, *(view for view in views[1:] if moving_labels or view.labels == first.labels)]
    return TeacherCache(
        [chunks.Records(view.chunks, merge=path is None) for view in views],
        structure=views[0].structure,
        batch_size=views[0].batch_size,
        seed=seed,
        teacher=key,
        data=digest([view.names for view in views]),
        hit=not filler.ran,
        total=views[0].total,
        shards=shard[1],
    )


def _check_length(number: int, samples: int, first: int) -> None:
    """Raises InputError for a view that has more or fewer samples than the first."""
    if samples != first:
        raise InputError(
            f"View {number} has {samples} samples, view 1 has {first}.",
            expected="the same samples in the same order in every view",
            fix="make all views of one data set",
        )
