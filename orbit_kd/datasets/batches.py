"""The one door for data: says what a user's data are, and gives them out as batches that end.

Taken: a batched tf.data.Dataset; arrays x, (x, y) or (x, y, sample_weight), x also a dict or tuple for several inputs;
a list of batches; whatever has `len` and items that are batches (`keras.utils.Sequence`, Keras 3's `PyDataset`,
`ImageDataGenerator().flow(...)`: their iterators never end, their length does); any other iterable of batches; an
iterator or generator, once; and a function that makes one, such as TFLite's `representative_dataset`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from orbit_kd.datasets.sources import TAKEN, Passes, are_inputs, arrays_of, fits, passes_over, refuse_endless
from orbit_kd.errors import InputError

Batch = tuple[Any, Any, Any]
"""(x, y, sample weight); None for what there is not."""


@dataclasses.dataclass(frozen=True)
class Batches:
    """Batches of a data set, checked as they come; a fresh pass for each `iter`.

    Attributes:
        what: the data's name in messages.
        count: number of batches; None where only a pass tells.
        once: whether there is one pass only.
        arrays: the tuple (x, ...) of all examples, where the data are arrays.
    """

    what: str
    count: int | None
    once: bool
    arrays: Any = dataclasses.field(repr=False)
    _passes: Callable[[], Iterator[Any]] = dataclasses.field(repr=False)
    _check: Callable[[Any], Batch] = dataclasses.field(repr=False)

    def __iter__(self) -> Iterator[Batch]:
        empty = True
        for given in self._passes():
            empty = False
            yield self._check(given)
        if empty:
            raise InputError(
                f"The {self.what} is empty.",
                expected="at least one batch (an iterator that was read before is empty)",
                fix="check the folder or the split, or hand over the data set itself in place of an iterator over it",
            )

    def __len__(self) -> int:
        if self.count is None:
            raise TypeError(f"the length of the {self.what} is not known")
        return self.count


def as_batches(
    data: Any,
    *,
    what: str = "data",
    labels: bool = False,
    again: bool = False,
    endless: bool = False,
    inputs: Mapping[str, Sequence[int | None]] | None = None,
) -> Batches:
    """Batches (x, y, sample weight) of whatever holds data.

    Args:
        data: see above.
        what: its name in messages.
        labels: refuse batches without y.
        again: refuse what can be read only once.
        endless: take data without end too, where the caller stops by itself.
        inputs: name -> shape without the batch of each of the model's inputs, where known (`inputs_of`): batches are
            held against it.

    Raises:
        InputError: no data, data that never ends, single examples in place of batches, x and y of unequal length, x
            that do not fit `inputs`; what only a look at a batch tells is raised as the batches come.
    """
    if isinstance(data, Batches):
        arrays, passes = None, Passes(lambda: iter(data), data.count, data.once)
    else:
        arrays = None if isinstance(data, tf.data.Dataset) else arrays_of(data, inputs)
        passes = passes_over(data, arrays=arrays, what=what, endless=endless)
    if passes.once and again:
        raise InputError(
            f"The {what} can be read only once.",
            expected="data that can be gone through again: " + TAKEN,
            fix="pass the data set itself, not an iterator over it; of a generator make a list: list(generator)",
        )
    start = refuse_endless(passes.start, what) if passes.count is None and not endless else passes.start

    def check(given: Any) -> Batch:
        return _checked(given, what, labels, inputs, passes.lists)

    return Batches(what, passes.count, passes.once, arrays, start, check)


def inputs_of(model: Any) -> dict[str, tuple[int | None, ...]] | None:
    """Name -> shape without the batch of a model's inputs, in its order; None where they are not known."""
    tensors = getattr(model, "inputs", None)
    if not tensors:
        return None
    names = getattr(model, "input_names", None) or [t.name for t in tensors]
    return {name: tuple(t.shape)[1:] for name, t in zip(names, tensors, strict=True)}


def in_order(x: Any, inputs: Mapping[str, Any] | None) -> list[Any]:
    """The arrays of x in the order of the model's inputs; a dict goes by their names."""
    if isinstance(x, Mapping) and inputs is not None and set(inputs) <= set(x):
        return [x[name] for name in inputs]
    return tf.nest.flatten(x)


def _checked(given: Any, what: str, labels: bool, inputs: Mapping[str, Any] | None, lists: bool) -> Batch:
    """A batch as (x, y, sample weight), its shapes checked."""
    x, y, weight = _unpacked(given, what, inputs, lists)
    x, y, weight = (None if v is None else _as_arrays(v) for v in (x, y, weight))
    if labels and y is None:
        raise InputError(
            f"The {what} has no labels.", expected="batches (x, y)", fix="pass images with labels: (x, y) in each batch"
        )
    shapes = [tuple(a.shape) for a in tf.nest.flatten(x)]
    wanted = None if inputs is None else [tuple(s) for s in inputs.values()]
    single = not all(shapes) or any(len(a.shape) == 0 for a in tf.nest.flatten(y) if y is not None)
    if wanted is not None and len(wanted) == len(shapes):
        single = single or all(fits(s, w) and len(s) == len(w) for s, w in zip(shapes, wanted, strict=True))
    if single:
        raise InputError(
            f"The {what} yields single examples: x {_told(shapes)}"
            + ("." if y is None else f", y {_told([tuple(a.shape) for a in tf.nest.flatten(y)])}."),
            expected="batches: x (n, ...), y (n, ...)",
            fix="a tf.data.Dataset: add .batch(64) to it; an array: give it a batch axis, x[None]",
        )
    sizes = {int(a.shape[0]) for part in (x, y, weight) if part is not None for a in tf.nest.flatten(part)}
    if len(sizes) != 1:
        raise InputError(
            f"A batch of the {what} has {shapes[0][0]} images and "
            f"{' and '.join(str(n) for n in sorted(sizes - {shapes[0][0]}))} labels: x {_told(shapes)}"
            + ("." if y is None else f", y {_told([tuple(a.shape) for a in tf.nest.flatten(y)])}."),
            expected="one label an image, in batches: x (n, ...), y (n, ...)",
            fix="batch the data set: data.batch(64); of arrays give (x, y) as a tuple",
        )
    if wanted is not None and not (
        len(wanted) == len(shapes)
        and all(
            len(s) == len(w) + 1 and fits(s[1:], w) for s, w in zip(_ordered(x, shapes, inputs), wanted, strict=True)
        )
    ):
        raise InputError(
            f"The {what} has x of shape {_told([s[1:] for s in shapes])} without the batch.",
            expected=f"{_told(wanted)}, what the model takes",
            fix="give the images after the Preprocess of the training (crop, resize, channels), and one array an input",
        )
    return x, y, weight


def _unpacked(given: Any, what: str, inputs: Mapping[str, Any] | None, lists: bool) -> Batch:
    if isinstance(given, Mapping) and not (set(given) >= set(inputs) if inputs is not None else not lists):
        keys = list(given)
        raise InputError(
            f"A batch of the {what} is a dict with the keys {', '.join(map(str, keys))}.",
            expected="(x, y), or a dict by the names of the model's inputs"
            + (f": {', '.join(inputs)}" if inputs else ""),
            fix="map it: data.map(lambda d: (d['image'], d['label'])), with your keys; in TFDS as_supervised=True",
        )
    if are_inputs(given, inputs):
        return tuple(given), None, None
    if isinstance(given, list) and lists:  # TFLite's representative_dataset yields lists of inputs
        return (given[0] if len(given) == 1 else tuple(given)), None, None
    if not isinstance(given, (tuple, list)):
        return given, None, None
    if not 1 <= len(given) <= 3:
        raise InputError(
            f"A batch of the {what} has {len(given)} parts.",
            expected="(x,), (x, y) or (x, y, sample_weight)",
            fix="for several inputs make x a tuple or a dict: ((x1, x2), y)",
        )
    x, y, weight = (*given, None, None)[:3]
    return x, y, weight


def _as_arrays(part: Any) -> Any:
    """Arrays or tensors in the same structure; nested lists of numbers are one array."""
    if isinstance(part, (list, tuple)) and not any(hasattr(v, "shape") and len(v.shape) for v in tf.nest.flatten(part)):
        return np.asarray(part)
    return tf.nest.map_structure(lambda v: v if tf.is_tensor(v) else np.asarray(v), part)


def _ordered(x: Any, shapes: list[tuple[int, ...]], inputs: Any) -> list[tuple[int, ...]]:
    return [tuple(a.shape) for a in in_order(x, inputs)] if isinstance(x, Mapping) else shapes


def _told(shapes: Sequence[Any]) -> str:
    return " and ".join(str(tuple(s)) for s in shapes)
