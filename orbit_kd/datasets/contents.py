"""What data hold, whatever order they come in: hashes, classes, and whether another pass brings the same."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from orbit_kd.datasets.labels import are_rows, class_numbers
from orbit_kd.errors import InputError

_MODULUS = 1 << 128


@dataclasses.dataclass(frozen=True)
class Contents:
    """One split.

    Attributes:
        examples: sum of the hashes of all examples (image and label), modulo 2^128: the same in any order.
        labels: the same of the labels alone.
        known: the hash of each example.
        classes: class -> number of examples; of rows, the class of the largest value. None for other labels.
        width: values a label row has; None for class numbers.
        problem: why there are no classes.
        again: hashes of the first examples of another pass.
        varies: that pass brings other images (random augmentation).
        shuffled: that pass brings another order.
    """

    examples: int
    labels: int
    known: frozenset[int]
    classes: Mapping[int, int] | None
    width: int | None
    problem: InputError | None
    again: tuple[int, ...]
    varies: bool
    shuffled: bool


def hashes(*arrays: Any) -> list[int]:
    """A number of 128 bits for each example of arrays (n, ...)."""
    parts = [np.ascontiguousarray(a) for a in arrays]
    salt = "".join(f"{p.dtype}{p.shape[1:]}" for p in parts).encode()
    found = []
    for i in range(len(parts[0])):
        one = hashlib.blake2b(salt, digest_size=16)
        for part in parts:
            one.update(part[i].tobytes())
        found.append(int.from_bytes(one.digest(), "big"))
    return found


def total(found: Iterable[int]) -> int:
    """One number for many, whatever their order; an example that comes twice counts twice."""
    return sum(found) % _MODULUS


def read(batches: Any) -> Contents:
    """One pass over batches (x, y, ...) and a second over the first two of them; `batches` is a tf.data.Dataset."""
    examples, labels, known = 0, 0, set()
    first: tuple[list[int], list[int]] = ([], [])
    classes: Counter[int] = Counter()
    width, problem = None, None
    for number, (x, y, *_) in enumerate(batches.as_numpy_iterator()):
        pairs, alone = hashes(x, y), hashes(y)
        examples, labels = total([examples, *pairs]), total([labels, *alone])
        known.update(pairs)
        if number < 2:
            first[0].extend(pairs)
            first[1].extend(alone)
        if are_rows(y.shape):
            width = y.shape[-1]
            classes.update(y.argmax(-1).tolist())
        elif problem is None:
            try:
                classes.update(class_numbers(y).tolist())
            except InputError as error:
                problem = error
    second = [(hashes(x, y), hashes(y)) for x, y, *_ in batches.take(2).as_numpy_iterator()]
    again, labels_again = ([d for pair in second for d in pair[i]] for i in (0, 1))
    varies = not known.issuperset(again)
    return Contents(
        examples=examples,
        labels=labels,
        known=frozenset(known),
        classes=None if problem else dict(sorted(classes.items())),
        width=width,
        problem=problem,
        again=tuple(again),
        varies=varies,
        shuffled=labels_again != first[1] or (not varies and again != first[0]),
    )
