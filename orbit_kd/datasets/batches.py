"""The one door for data: says what a user's data are, and gives them out as batches that end.

Taken: a batched tf.data.Dataset; arrays x, (x, y) or (x, y, sample_weight), x also a dict or tuple for several inputs;
a list of batches; whatever has `len` and items that are batches (`keras.utils.Sequence`, Keras 3's `PyDataset`,
`ImageDataGenerator().flow(...)`: their iterators never end, their length does); any other iterable of batches; an
iterator or generator, once; and a function that makes one, such as TFLite's `representative_dataset`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from orbit_kd.errors import InputError

Batch = tuple[Any, Any, Any]
"""(x, y, sample weight); None for what there is not."""

TAKEN = "a batched tf.data.Dataset, arrays (x, y), a keras.utils.Sequence or PyDataset, or a list of batches"
_SIZE = 64  # of the batches that arrays are cut into
_REPEATS = 3  # so often has an endless source without a length shown each example before it is recognized
_FEW = 1000  # ... and so many examples, as small data sets may hold some twice


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
    arrays = None if isinstance(data, (Batches, tf.data.Dataset)) else _arrays(data, inputs)
    passes, count, once, lists = _source(data, arrays, what, endless)
    if once and again:
        raise InputError(
            f"The {what} can be read only once.",
            expected="data that can be gone through again: " + TAKEN,
            fix="pass the data set itself, not an iterator over it; of a generator make a list: list(generator)",
        )
    if count is None and not endless:
        passes = _watched(passes, what)
    return Batches(what, count, once, arrays, passes, lambda given: _checked(given, what, labels, inputs, lists))


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


def is_array(value: Any) -> bool:
    """Whether this is an array or a tensor of at least one axis."""
    shape = getattr(value, "shape", None)
    return shape is not None and not isinstance(value, type) and len(shape) > 0 and hasattr(value, "__getitem__")


def is_batch(value: Any) -> bool:
    """Whether this is a batch: arrays, in a tuple (x, y), in a dict."""
    if isinstance(value, Mapping):
        return bool(value) and all(is_batch(v) for v in value.values())
    if isinstance(value, list):  # [(x, y)] holds batches
        return bool(value) and (is_array(value[0]) or isinstance(value[0], Mapping))
    if isinstance(value, tuple):
        return bool(value) and is_batch(value[0])
    return is_array(value)


def _source(
    data: Any, arrays: Any, what: str, endless: bool
) -> tuple[Callable[[], Iterator[Any]], int | None, bool, bool]:
    """A function that starts a pass, the number of batches, whether it works only once, whether lists are inputs."""
    if isinstance(data, Batches):
        return lambda: iter(data), data.count, data.once, False
    if isinstance(data, tf.data.Dataset):
        count = int(data.cardinality())
        if count == tf.data.INFINITE_CARDINALITY and not endless:
            raise _never_ends(what, "it repeats for ever", "leave out .repeat(), or say how much with .take(batches)")
        return lambda: iter(data), count if count >= 0 else None, False, False
    if arrays is not None:
        size = _length(arrays, what)
        starts = range(0, size, _SIZE)
        cut = lambda i: tf.nest.map_structure(lambda a: a[i : i + _SIZE], arrays)  # noqa: E731
        return lambda: map(cut, starts), len(starts), False, False
    if isinstance(data, (tuple, list)) and all(is_batch(item) for item in data):
        return lambda: iter(data), len(data), False, False
    if hasattr(data, "__len__") and not isinstance(data, (str, bytes, tuple, list, Mapping)):
        try:
            count = len(data)
        except (TypeError, ValueError, NotImplementedError, OverflowError) as error:
            raise _never_ends(what, "it has no length", "let its __len__ return the batches of one epoch") from error
        if hasattr(data, "__getitem__"):
            return lambda: (data[i] for i in range(count)), count, False, False
        if hasattr(data, "__iter__"):
            return lambda: itertools.islice(iter(data), count), count, iter(data) is data, False
    elif hasattr(data, "__iter__") and not isinstance(data, (str, bytes, tuple, list, Mapping)):
        return lambda: iter(data), None, iter(data) is data, False
    elif callable(data) and not hasattr(data, "get_weights") and not isinstance(data, type):
        return lambda: iter(data()), None, False, True
    if hasattr(data, "train") and hasattr(data, "val"):
        told, fix = "It holds three splits.", "pass one of them: data.train, data.val or data.test"
    elif hasattr(data, "dataset") and hasattr(data, "epochs"):
        told, fix = "It holds a teacher's outputs too.", "pass the data that it was made from"
    elif isinstance(data, (str, os.PathLike)):
        told, fix = "", "load it first: data = okd.load(folder), then pass data.train or data.val"
    else:
        told, fix = "", "wrap it: tf.data.Dataset.from_tensor_slices((x, y)).batch(64)"
    raise InputError(f"{type(data).__name__} cannot be used as {what}. {told}".rstrip(), expected=TAKEN, fix=fix)


def _never_ends(what: str, why: str, fix: str) -> InputError:
    return InputError(f"The {what} has no end: {why}.", expected="data of one epoch", fix=fix)


def _arrays(data: Any, inputs: Any) -> Any:
    """The tuple (x, ...) where the data are arrays of all examples, else None."""
    if is_array(data) or (isinstance(data, Mapping) and is_batch(data)):
        return (data,)
    if _are_inputs(data, inputs):
        return (tuple(data),)
    if not isinstance(data, (tuple, list)) or not 1 <= len(data) <= 3 or not is_batch(data):
        return None
    x, *rest = data
    rest = [np.asarray(v) if isinstance(v, (list, tuple)) and v and np.isscalar(v[0]) else v for v in rest]
    if isinstance(x, (tuple, list)):  # batches (x, y), or the arrays of a model with several inputs
        return (x, *rest) if inputs is not None and len(x) == len(inputs) > 1 and _alike([x, *rest]) else None
    if not all(is_batch(v) for v in rest):
        return None
    if isinstance(data, tuple):
        return (x, *rest)
    # a list of arrays: (x, y), or batches of x alone
    pair = len(rest) > 0 and is_array(x) and is_array(rest[0]) and tuple(x.shape[1:]) != tuple(rest[0].shape[1:])
    return (x, *rest) if pair and _alike([x, *rest]) else None


def _are_inputs(data: Any, inputs: Mapping[str, Any] | None) -> bool:
    """Whether a tuple or list holds one array for each of several inputs, and not (x, y)."""
    if not isinstance(data, (tuple, list)) or inputs is None or len(data) != len(inputs) or len(inputs) < 2:
        return False
    fit = (is_array(v) and _fits(v.shape[1:], shape) for v, shape in zip(data, inputs.values(), strict=True))
    return all(fit) and _alike(data)


def _alike(parts: Any) -> bool:
    leaves = tf.nest.flatten(parts)
    return all(is_array(a) for a in leaves) and len({int(a.shape[0]) for a in leaves}) == 1


def _length(arrays: Any, what: str) -> int:
    sizes = [int(a.shape[0]) for a in tf.nest.flatten(arrays)]
    if len(set(sizes)) != 1:
        raise InputError(
            f"The arrays of the {what} have {' and '.join(map(str, sizes))} examples.",
            expected="as many labels (and weights) as examples, along the first axis",
            fix="give x and y of the same examples: (x, y), x of shape (n, ...) and y of shape (n, ...)",
        )
    return sizes[0]


def _watched(passes: Callable[[], Iterator[Any]], what: str) -> Callable[[], Iterator[Any]]:
    """Passes that stop with an error where a source without a length goes round, or yields more than the memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fix = "tell its length: dataset.apply(tf.data.experimental.assert_cardinality(batches)), or give a Sequence"

    def watched() -> Iterator[Any]:
        seen, total, size = set(), 0, 0
        for given in passes():
            first = np.asarray(tf.nest.flatten(given)[0])
            for example in first if first.ndim else ():
                seen.add(hashlib.blake2b(np.ascontiguousarray(example).tobytes(), digest_size=8).digest())
            total += len(first) if first.ndim else 1
            size += first.nbytes
            if total > _REPEATS * len(seen) + _FEW:
                raise _never_ends(what, f"{len(seen)} examples come again and again", fix)
            if size > memory:
                raise _never_ends(what, f"it goes on after {total} examples, more than the memory holds", fix)
            yield given

    return watched


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
        single = single or all(_fits(s, w) and len(s) == len(w) for s, w in zip(shapes, wanted, strict=True))
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
            len(s) == len(w) + 1 and _fits(s[1:], w) for s, w in zip(_ordered(x, shapes, inputs), wanted, strict=True)
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
    if _are_inputs(given, inputs):
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


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(w in (None, s) for s, w in zip(shape, wanted, strict=True))


def _told(shapes: Sequence[Any]) -> str:
    return " and ".join(str(tuple(s)) for s in shapes)
