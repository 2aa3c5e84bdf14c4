"""Decoded images and their labels as batches: plain, or shuffled and augmented in a way that a resumed run repeats."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np

from orbit_kd.datasets import preprocessing
from orbit_kd.datasets.augment import Augment
from orbit_kd.datasets.images import Images, on_host
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.datasets.truths import Truth

if TYPE_CHECKING:
    import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images, their labels of any kind, and the training indices that `epochs` and `views` draw from.

    Attributes:
        images: of all splits.
        truth: the labels, fitted to the images.
        train: int64, the places of the training images.
        preprocess: what happens to each image.
        shape: of an image after it.
        batch_size: examples in a batch, where nothing else is said.
    """

    images: Images
    truth: Truth
    train: np.ndarray
    preprocess: Preprocess
    shape: tuple[int, int, int]
    batch_size: int

    def plain(self, index: np.ndarray) -> tf.data.Dataset:
        """Batches (x, y) of the images at these places, in this order."""
        import tensorflow as tf

        seeds = np.zeros((len(index), 2), np.int64)
        batches = tf.data.Dataset.from_tensor_slices((index.astype(np.int64), seeds)).batch(self.batch_size)
        return self._rendered(batches, None)

    def epochs(self, *, seed: int, augment: Augment | None, start: int, batch_size: int | None) -> tf.data.Dataset:
        """Training batches without end, see `Data.epochs`."""
        import tensorflow as tf

        self._check_augment(augment)
        size = batch_size or self.batch_size

        def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
            order = tf.random.experimental.stateless_shuffle(self.train, _key(seed, 0, epoch))
            return tf.data.Dataset.from_tensor_slices((order, _seeds(_key(seed, 1, epoch), len(order)))).batch(size)

        return self._rendered(tf.data.Dataset.range(start, tf.int64.max).flat_map(one_epoch), augment)

    def view(self, k: int, *, seed: int, augment: Augment | None, batch_size: int | None) -> tf.data.Dataset:
        """One pass over the training images, see `Data.views`."""
        import tensorflow as tf

        self._check_augment(augment)
        seeds = _seeds(_key(seed, 2, k), len(self.train))
        index = tf.data.Dataset.from_tensor_slices((self.train, seeds)).batch(batch_size or self.batch_size)
        return self._rendered(index, augment if k else None)

    def _rendered(self, batches: tf.data.Dataset, augment: Augment | None) -> tf.data.Dataset:
        """(indices, seeds) -> (x, y)."""
        import tensorflow as tf

        _ = self._kept  # made here, outside of the graphs
        label, kind = self.truth.shape(self.shape), tf.as_dtype(self.truth.dtype)

        def one_size(index: tf.Tensor, seeds: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            images = self.images.gather(index)
            x = preprocessing.apply(self.preprocess, images, augment=augment, seed=seeds)
            return x, self.truth.render(index, tf.shape(images)[1:3], self.preprocess, augment, seeds, self._kept)

        def alone(place: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            x, y = one_size(place[0][None], place[1][None])
            return x[0], y[0]

        def render(index: tf.Tensor, seeds: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            if self.images.uniform:
                x, y = one_size(index, seeds)
            else:
                spec = tf.TensorSpec(self.shape, tf.float32), tf.TensorSpec(label, kind)
                x, y = tf.map_fn(alone, (index, seeds), fn_output_signature=spec)
            return tf.ensure_shape(x, (None, *self.shape)), tf.ensure_shape(y, (None, *label))

        return batches.map(render, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(2)

    @functools.cached_property
    def _kept(self) -> tf.Tensor | None:
        """The labels as one tensor, which all batches draw from."""
        kept = self.truth.tensor()
        return None if kept is None else on_host(kept)

    def _check_augment(self, augment: Augment | None) -> None:
        for shape in set(self.images.shapes) if augment else ():
            preprocessing.check_augment(self.preprocess, shape, augment or Augment(), lowest=self.images.lowest)


def _key(seed: int, purpose: int, number: int | tf.Tensor) -> tf.Tensor:
    """An int64 seed pair for the purpose (0 order, 1 epochs, 2 views) and the number of the epoch or view."""
    import tensorflow as tf

    return tf.random.experimental.stateless_fold_in(tf.constant([seed, purpose], tf.int64), tf.cast(number, tf.int64))


def _seeds(key: tf.Tensor, count: int) -> tf.Tensor:
    """One seed pair a place: (count, 2)."""
    import tensorflow as tf

    return key + tf.stack([tf.zeros(count, tf.int64), tf.range(count, dtype=tf.int64)], axis=1)
