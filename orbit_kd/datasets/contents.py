"""What data hold, whatever order they come in: hashes, classes, and whether another pass brings the same."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from orbit_kd.datasets import label_counts
from orbit_kd.datasets.labels import are_rows
from orbit_kd.errors import InputError

log = logging.getLogger("orbit_kd")
_MODULUS = 1 << 128
_ONE_LABEL = "for a check of the classes give Data with one of the labels: .map(lambda x, y: (x, y['name']))"


@dataclasses.dataclass(frozen=True)
class Contents:
    """One split.

    Attributes:
        examples: sum of the hashes of all examples (image and label), modulo 2^128: the same in any order.
        labels: the same of the labels alone.
        known: the hash of each example.
        classes: class -> number of examples (of pixels in masks, of boxes); of rows, the class of the largest value.
            None for other labels.
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


def read(batches: Any, *, task: str = "", name: str = "data") -> Contents:
    """One pass over batches (x, y, ...) and a second over the first two of them.

    Args:
        batches: a tf.data.Dataset; x and y may be tuples or dicts of arrays.
        task: a key of `kinds.TASKS`, or "" for classes, if that is what the labels are.
        name: of the data, for messages.
    """
    import tensorflow as tf

    examples, labels, known, seen = 0, 0, set(), 0
    first: tuple[list[int], list[int]] = ([], [])
    classes: Counter[int] = Counter()
    width, problem, plain = None, None, True

    def hashed(x: Any, y: Any) -> tuple[list[int], list[int]]:
        return hashes(*tf.nest.flatten(x), *tf.nest.flatten(y)), hashes(*tf.nest.flatten(y))

    for number, (x, y, *_) in enumerate(batches.as_numpy_iterator()):
        pairs, alone = hashed(x, y)
        examples, labels = total([examples, *pairs]), total([labels, *alone])
        known.update(pairs)
        if number < 2:
            first[0].extend(pairs)
            first[1].extend(alone)
        if isinstance(y, (tuple, list, Mapping)):
            problem = InputError(
                "There are several labels an example, one an output.", expected="one array of labels", fix=_ONE_LABEL
            )
        elif problem is None:
            width = y.shape[-1] if task in ("", "classification") and are_rows(y.shape) else None
            try:
                counted = label_counts.counts(y, task, what=f"{name} data", start=seen)
                plain = plain and counted is not None
                classes.update(counted or {})
            except InputError as error:
                problem = error
        seen += len(pairs)
    second = [hashed(x, y) for x, y, *_ in batches.take(2).as_numpy_iterator()]
    again, labels_again = ([d for pair in second for d in pair[i]] for i in (0, 1))
    varies = not known.issuperset(again)
    return Contents(
        examples=examples,
        labels=labels,
        known=frozenset(known),
        classes=None if problem or not plain else dict(sorted(classes.items())),
        width=width,
        problem=problem,
        again=tuple(again),
        varies=varies,
        shuffled=labels_again != first[1] or (not varies and again != first[0]),
    )


def check_classes(splits: Mapping[str, Contents], class_names: Sequence[str], *, task: str = "") -> None:
    """Refuses splits that cannot tell how well a network does, and warns of what may falsify it.

    Args:
        splits: what "train", "val" and "test" hold.
        class_names: what the labels mean; may be empty.
        task: a key of `kinds.TASKS`; "" counts as classification.

    Raises:
        InputError: of classification, a split with one class only, or training data without a class that is tested; of
            other tasks, labels that the task does not take, or classes beyond the names.
    """
    if task in ("", "classification"):
        _check_one_class(splits, class_names)
    else:
        _check_others(splits, class_names, task)
    train = splits["train"].known
    for name in ("val", "test"):
        known = splits[name].known
        if both := len(known & train):
            log.warning("data: %d of %d %s images are training images too", both, len(known), name)


def _check_others(splits: Mapping[str, Contents], class_names: Sequence[str], task: str) -> None:
    for told in splits.values():
        if told.problem is not None:
            raise told.problem
    found = {name: set(told.classes or ()) for name, told in splits.items() if told.classes is not None}
    every = set().union(*found.values()) | set(range(len(class_names)))
    if class_names and (beyond := [c for c in sorted(every) if c >= len(class_names)]):
        raise InputError(
            f"The labels have class {beyond[0]}, and {len(class_names)} classes have a name.",
            expected=f"classes 0 to {len(class_names) - 1}",
            fix="name all classes: Data(..., class_names=...), or number them anew from 0",
        )
    for name, classes in found.items():
        if missing := sorted(every - classes):
            log.warning("data: %s lacks %s: its figures say nothing about them", name,
                        name_classes(missing, class_names))  # fmt: skip


def _check_one_class(splits: Mapping[str, Contents], class_names: Sequence[str]) -> None:
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


def name_classes(numbers: Sequence[int], names: Sequence[str]) -> str:
    """Classes in words, ten at most: "class ship", "the classes ship, 3 and 5 more"."""
    words = [names[c] if c < len(names) else str(c) for c in numbers]
    some = ", ".join(words[:10]) + (f" and {len(words) - 10} more" if len(words) > 10 else "")
    return f"class {some}" if len(words) == 1 else f"the classes {some}"
