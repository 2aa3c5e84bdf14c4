"""What data hold, whatever order they come in: hashes, classes, and whether another pass brings the same."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from orbit_kd.datasets.labels import are_rows, class_numbers
from orbit_kd.errors import InputError

log = logging.getLogger("orbit_kd")
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


def check_classes(splits: Mapping[str, Contents], class_names: Sequence[str]) -> None:
    """Refuses splits that cannot tell how well a network does, and warns of what may falsify it.

    Args:
        splits: what "train", "val" and "test" hold.
        class_names: what the labels mean; may be empty.

    Raises:
        InputError: a split with one class only, or training data without a class that is tested.
    """
    found = {name: set(c.classes or ()) for name, c in splits.items()}
    every = set().union(*found.values())
    advice = (
        "split each class alike: okd.load(folder) does so; image_dataset_from_directory(validation_split=...) "
        "does it nearly with shuffle=True and one seed, and takes the last classes with shuffle=False"
    )
    for name, classes in found.items():
        missing = sorted(every - classes)
        if len(classes) == 1 and missing:
            raise InputError(
                f"The {name} data holds one class only ({min(classes)}) of {len(every)}.",
                expected="examples of all classes in each split",
                fix=advice,
            )
        if missing and name == "train":
            raise InputError(
                f"The train data lacks {name_classes(missing, class_names)}, which other splits have.",
                expected="examples of all classes in the training data",
                fix=advice,
            )
        if missing:
            log.warning(
                "data: %s lacks %s: its accuracy says nothing about them", name, name_classes(missing, class_names)
            )
    train = splits["train"].known
    for name in ("val", "test"):
        known = splits[name].known
        if both := len(known & train):
            log.warning("data: %d of %d %s images are training images too", both, len(known), name)


def name_classes(numbers: Sequence[int], names: Sequence[str]) -> str:
    """Classes in words, ten at most: "class ship", "the classes ship, 3 and 5 more"."""
    words = [names[c] if c < len(names) else str(c) for c in numbers]
    some = ", ".join(words[:10]) + (f" and {len(words) - 10} more" if len(words) > 10 else "")
    return f"class {some}" if len(words) == 1 else f"the classes {some}"
