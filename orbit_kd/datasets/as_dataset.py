"""Whatever `fit` takes as a tf.data.Dataset of batches (x, y)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from orbit_kd.errors import InputError

if TYPE_CHECKING:
    import tensorflow as tf

    from orbit_kd.datasets.batches import Batches


def as_dataset(given: Any, name: str) -> tf.data.Dataset:
    """A dataset of batches (x, y) from what a user has for one split.

    Args:
        given: see `batches`.
        name: of the split, for messages.

    Raises:
        InputError: no labels, no shapes, no end, or single examples.
    """
    import tensorflow as tf

    from orbit_kd.datasets.batches import as_batches
    from orbit_kd.datasets.sources import TAKEN

    if not isinstance(given, tf.data.Dataset):
        given = _from_batches(as_batches(given, what=f"{name} data", labels=True, again=True))
    spec = given.element_spec
    if not (isinstance(spec, tuple) and len(spec) in (2, 3) and all(isinstance(p, tf.TensorSpec) for p in spec)):
        raise InputError(
            f"Data cannot use what its {name} dataset yields: {spec}.",
            expected=f"{TAKEN}: one array of images and one of labels in each batch",
            fix="map it to that: .map(lambda d: (d['image'], d['label'])), with your keys; labels are needed",
        )
    if None in (spec[0].shape.rank, spec[1].shape.rank) or not (spec[1].dtype.is_integer or spec[1].dtype.is_floating):
        raise InputError(
            f"The {name} dataset says too little of what it yields: x {spec[0]}, y {spec[1]}.",
            expected="the shapes of images and labels, and numbers as labels",
            fix="set them: .map(lambda x, y: (tf.ensure_shape(x, (None, height, width, channels)), "
            "tf.ensure_shape(y, (None,))))",
        )
    if given.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise InputError(
            f"The {name} dataset repeats for ever, so an epoch has no length.",
            expected="a dataset of one epoch",
            fix="leave out .repeat(); Data.epochs repeats the training data",
        )
    if spec[1].shape.rank == 0 or spec[0].shape.rank < 2:
        raise InputError(
            f"The {name} dataset yields single examples: x {spec[0].shape}, y {spec[1].shape}.",
            expected="batches",
            fix="add .batch(64) to it",
        )
    return given


def _from_batches(given: Batches) -> tf.data.Dataset:
    import tensorflow as tf

    def arrays() -> Iterator[tuple[np.ndarray, ...]]:
        return (tuple(np.asarray(part) for part in batch if part is not None) for batch in given)

    first = next(arrays())
    if given.arrays is not None:
        return tf.data.Dataset.from_tensor_slices(given.arrays).batch(64)
    signature = tuple(tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in first)
    found = tf.data.Dataset.from_generator(arrays, output_signature=signature)
    return found if given.count is None else found.apply(tf.data.experimental.assert_cardinality(given.count))
