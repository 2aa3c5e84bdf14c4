"""The same images read in more than one way, to find out which way a network knows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from orbit_kd.datasets.band_choice import channel_numbers
from orbit_kd.datasets.data import from_examples
from orbit_kd.datasets.images import Images
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.datasets.splits import Source

if TYPE_CHECKING:
    import tensorflow as tf


class Renderings:
    """One split of a data set, decoded anew only where a `Preprocess` decodes in another way than the last.

    Attributes:
        split: its name.
        labels: int32 (n,), in the order of every rendering.
        class_names: what they mean.
    """

    def __init__(self, source: Source, index: np.ndarray, split: str) -> None:
        self.split = split
        self.labels = source.labels[index]
        self.class_names = source.class_names
        self._items, self._names = ([values[i] for i in index] for values in (source.items, source.names))
        self._decoded: tuple[tuple[Any, ...], Images] | None = None

    def images(self, preprocess: Preprocess) -> Images:
        """The decoded images, in the way of the loader.

        Raises:
            InputError: one that the loader cannot read.
        """
        # Channels matter to the decoders of Keras alone.
        bands = channel_numbers(preprocess.bands, ())
        how = preprocess.loader, None if preprocess.loader == "orbit_kd" else preprocess.channels, bands
        if self._decoded is None or self._decoded[0] != how:
            self._decoded = None  # room for the next
            self._decoded = how, Images(self._items, self._names, preprocess=preprocess, bands=bands)
        return self._decoded[1]

    def dataset(self, preprocess: Preprocess, *, batch_size: int = 64) -> tf.data.Dataset:
        """Batches (x, y) of the split after `preprocess`.

        Raises:
            InputError: images that the loader cannot read, or that do not come out with one shape.
        """
        whole = {"train": np.arange(len(self.labels)), "val": np.arange(0), "test": np.arange(0)}
        images = self.images(preprocess)
        return from_examples(images, self.labels, whole, preprocess=preprocess, batch_size=batch_size).train
