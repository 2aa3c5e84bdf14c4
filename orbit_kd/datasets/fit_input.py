"""Data in the form that tf_keras' `fit` takes: it does not know Keras 3's `PyDataset`, nor lists of batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from orbit_kd.datasets.sources import is_array, is_batch
from orbit_kd.errors import InputError


def fit_input(
    x: Any, y: Any = None, *, inputs: Mapping[str, Any] | None = None, steps: int | None = None, epochs: int = 1
) -> Any:
    """(x, y) for `fit` and `evaluate`: batches of other kinds as a `keras.utils.Sequence`, arrays apart.

    Args:
        x: as for `fit`; also a `PyDataset`, `ImageDataGenerator().flow(...)` of Keras 3, a list of batches, or (x, y).
        y: labels where x is an array.
        inputs: of the model, see `batches.inputs_of`.
        steps: of an epoch, where given.
        epochs: passes to make.

    Raises:
        InputError: a data set without end and no number of steps, one of single examples, or an iterator for several
            epochs.
    """
    if isinstance(x, tf.data.Dataset):
        if steps is None and int(x.cardinality()) == tf.data.INFINITE_CARDINALITY:
            raise InputError(
                "The data repeats for ever, so an epoch has no length.",
                expected="data of one epoch, or the steps of one",
                fix="leave out .repeat(), or give steps_per_epoch=... (evaluate: steps=...)",
            )
        spec = x.element_spec[0] if isinstance(x.element_spec, tuple) and x.element_spec else x.element_spec
        shapes = [] if inputs is None else [tuple(shape) for shape in inputs.values()]
        if len(shapes) == 1 and isinstance(spec, tf.TensorSpec) and spec.shape.rank == len(shapes[0]):
            raise InputError(
                f"The data yields single examples: x {spec.shape}.",
                expected=f"batches: x (n, {', '.join(map(str, shapes[0]))})",
                fix="add .batch(64) to it",
            )
        return x, y
    if x is None or is_array(x) or isinstance(x, (Mapping, keras.utils.Sequence)) or y is not None:
        return x, y
    if isinstance(x, (list, tuple)):
        if x and all(isinstance(batch, (list, tuple)) and is_batch(batch) for batch in x):
            return _Batches(x), None
        single = inputs is not None and len(inputs) == 1
        return x if single and isinstance(x, tuple) and len(x) == 2 and all(map(is_array, x)) else (x, y)
    if hasattr(x, "__len__") and hasattr(x, "__getitem__"):
        return _Batches(x), None
    if hasattr(x, "__next__") and steps is None and epochs > 1:
        raise InputError(
            f"The data can be read only once, and there are {epochs} epochs.",
            expected="data that can be gone through again, or an endless iterator and steps_per_epoch",
            fix="pass the data set itself, not an iterator over it; of a generator make a list: list(generator)",
        )
    return x, y


class _Batches(keras.utils.Sequence):
    """Batches that have a length and an index."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Any:
        return tuple(self._batches[index])

    def on_epoch_end(self) -> None:
        """Lets the batches shuffle, where they do so between epochs."""
        if hasattr(self._batches, "on_epoch_end"):
            self._batches.on_epoch_end()
