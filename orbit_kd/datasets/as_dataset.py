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
        InputError: no labels, no shapes, no end, single examples, or parts that are no arrays (ragged, sparse).
    """
    import tensorflow as tf

    from orbit_kd.datasets.batches import as_batches
    from orbit_kd.datasets.sources import TAKEN

    if not isinstance(given, tf.data.Dataset):
        given = _from_batches(as_batches(given, what=f"{name} data", labels=True, again=True))
    spec = given.element_spec
    if not (isinstance(spec, tuple) and len(spec) in (2, 3) and _are_tensors(spec)):
        raise InputError(
            f"Data cannot use what its {name} dataset yields: {spec}.",
            expected=f"{TAKEN}: images and labels in each batch, each an array, or a tuple or dict of arrays",
            fix="map it to that: .map(lambda d: (d['image'], d['label'])), with your keys; labels are needed",
        )
    inputs, labels = tf.nest.flatten(spec[0]), tf.nest.flatten(spec[1])
    unknown = any(leaf.shape.rank is None for leaf in (*inputs, *labels))
    if unknown or not all(leaf.dtype.is_integer or leaf.dtype.is_floating for leaf in labels):
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
    if any(leaf.shape.rank == 0 for leaf in labels) or min(leaf.shape.rank for leaf in inputs) < 2:
        raise InputError(
            f"The {name} dataset yields single examples: x {_told(spec[0])}, y {_told(spec[1])}.",
            expected="batches",
            fix="add .batch(64) to it",
        )
    return given


def _are_tensors(spec: Any) -> bool:
    import tensorflow as tf

    leaves = tf.nest.flatten(spec)
    return bool(leaves) and all(isinstance(leaf, tf.TensorSpec) for leaf in leaves)


def _told(spec: Any) -> Any:
    """The shapes of one array, or of several in their structure."""
    import tensorflow as tf

    return spec.shape if isinstance(spec, tf.TensorSpec) else tf.nest.map_structure(lambda s: tuple(s.shape), spec)


def _from_batches(given: Batches) -> tf.data.Dataset:
    import tensorflow as tf

    def arrays() -> Iterator[tuple[Any, ...]]:
        return (tf.nest.map_structure(np.asarray, tuple(p for p in batch if p is not None)) for batch in given)

    first = next(arrays())
    if given.arrays is not None:
        return tf.data.Dataset.from_tensor_slices(given.arrays).batch(64)
    signature = tf.nest.map_structure(lambda part: tf.TensorSpec((None, *part.shape[1:]), part.dtype), first)
    found = tf.data.Dataset.from_generator(arrays, output_signature=signature)
    return found if given.count is None else found.apply(tf.data.experimental.assert_cardinality(given.count))
