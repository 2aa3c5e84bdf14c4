"""How the data that a user has are gone through: which of the forms they have, and where a pass ends."""

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

TAKEN = "a batched tf.data.Dataset, arrays (x, y), a keras.utils.Sequence or PyDataset, or a list of batches"
_SIZE = 64  # of the batches that arrays are cut into
_REPEATS = 3  # so often has an endless source without a length shown each example before it is recognized
_FEW = 1000  # ... and so many examples, as small data sets may hold some twice


@dataclasses.dataclass(frozen=True)
class Passes:
    """How data are gone through.

    Attributes:
        start: starts a pass.
        count: number of batches; None where only a pass tells.
        once: whether there is one pass only.
        lists: whether a list that comes is the inputs of a model, not (x, y).
    """

    start: Callable[[], Iterator[Any]]
    count: int | None
    once: bool = False
    lists: bool = False


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


def passes_over(data: Any, *, arrays: Any, what: str, endless: bool) -> Passes:
    """How data of any form are gone through.

    Args:
        data: see `batches`.
        arrays: what `arrays_of` found.
        what: their name in messages.
        endless: take data without end too.

    Raises:
        InputError: no data, or data that never end.
    """
    if isinstance(data, tf.data.Dataset):
        count = int(data.cardinality())
        if count == tf.data.INFINITE_CARDINALITY and not endless:
            raise _never_ends(what, "it repeats for ever", "leave out .repeat(), or say how much with .take(batches)")
        return Passes(lambda: iter(data), count if count >= 0 else None)
    if arrays is not None:
        size = _length(arrays, what)
        starts = range(0, size, _SIZE)
        cut = lambda i: tf.nest.map_structure(lambda a: a[i : i + _SIZE], arrays)  # noqa: E731
        return Passes(lambda: map(cut, starts), len(starts))
    if isinstance(data, (tuple, list)) and all(is_batch(item) for item in data):
        return Passes(lambda: iter(data), len(data))
    if hasattr(data, "__len__") and not isinstance(data, (str, bytes, tuple, list, Mapping)):
        try:
            count = len(data)
        except (TypeError, ValueError, NotImplementedError, OverflowError) as error:
            raise _never_ends(what, "it has no length", "let its __len__ return the batches of one epoch") from error
        if hasattr(data, "__getitem__"):
            return Passes(lambda: (data[i] for i in range(count)), count)
        if hasattr(data, "__iter__"):
            return Passes(lambda: itertools.islice(iter(data), count), count, iter(data) is data)
    elif hasattr(data, "__iter__") and not isinstance(data, (str, bytes, tuple, list, Mapping)):
        return Passes(lambda: iter(data), None, iter(data) is data)
    elif callable(data) and not hasattr(data, "get_weights") and not isinstance(data, type):
        return Passes(lambda: iter(data()), None, False, True)
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


def arrays_of(data: Any, inputs: Any) -> Any:
    """The tuple (x, ...) where the data are arrays of all examples, else None."""
    if is_array(data) or (isinstance(data, Mapping) and is_batch(data)):
        return (data,)
    if are_inputs(data, inputs):
        return (tuple(data),)
    if not isinstance(data, (tuple, list)) or not 1 <= len(data) <= 3 or not is_batch(data):
        return None
    x, *rest = data
    rest = [np.asarray(v) if isinstance(v, (list, tuple)) and v and np.isscalar(v[0]) else v for v in rest]
    if (
        isinstance(data, tuple)
        and isinstance(x, tuple)
        and rest
        and not any(isinstance(v, (tuple, list)) for v in rest)
    ):
        # Batches are pairs all of them; here x alone is a tuple: the arrays of several inputs.
        return (x, *rest) if all(is_batch(v) for v in rest) and _alike([x, *rest]) else None
    if isinstance(x, (tuple, list)):  # batches (x, y), or the arrays of a model with several inputs
        return (x, *rest) if inputs is not None and len(x) == len(inputs) > 1 and _alike([x, *rest]) else None
    if not all(is_batch(v) for v in rest):
        return None
    if isinstance(data, tuple):
        return (x, *rest)
    # a list of arrays: (x, y), or batches of x alone
    pair = len(rest) > 0 and is_array(x) and is_array(rest[0]) and tuple(x.shape[1:]) != tuple(rest[0].shape[1:])
    return (x, *rest) if pair and _alike([x, *rest]) else None


def are_inputs(data: Any, inputs: Mapping[str, Any] | None) -> bool:
    """Whether a tuple or list holds one array for each of several inputs, and not (x, y)."""
    if not isinstance(data, (tuple, list)) or inputs is None or len(data) != len(inputs) or len(inputs) < 2:
        return False
    fit = (is_array(v) and fits(v.shape[1:], shape) for v, shape in zip(data, inputs.values(), strict=True))
    return all(fit) and _alike(data)


def fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    """Whether a shape is the wanted one, where that says a size."""
    return len(shape) == len(wanted) and all(w in (None, s) for s, w in zip(shape, wanted, strict=True))


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


def refuse_endless(start: Callable[[], Iterator[Any]], what: str) -> Callable[[], Iterator[Any]]:
    """Passes that stop with an error where a source without a length goes round, or yields more than the memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fix = "tell its length: dataset.apply(tf.data.experimental.assert_cardinality(batches)), or give a Sequence"

    def watch() -> Iterator[Any]:
        seen, total, size = set(), 0, 0
        for given in start():
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

    return watch
