"""What a data set holds, and which of it is for training, validation and test: seeded, stratified choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from orbit_kd.datasets.decoding import Item
from orbit_kd.datasets.truths import Truth
from orbit_kd.errors import InputError

TEST_SHARE = 0.2
# The test images of a data set without a test split never depend on the caller's seed: a teacher and its students,
# or three seeds of one experiment, must not see each other's test images in training.
TEST_SEED = 20260101


@dataclasses.dataclass(frozen=True)
class Source:
    """What a data set holds, before anything is split or decoded.

    Attributes:
        items: every image: a file, encoded bytes or an array.
        names: what to call each in messages.
        labels: int32 (n,), an index into `class_names`; for other tasks than classification groups of which each split
            gets its share, such as all zeros.
        class_names: sorted, or in the data set's own order; of a table the names of its columns.
        splits: "train", and where the data set has them "val" and "test": indices into `items`.
        identity: lines that tell this data from other data.
        task: a key of `kinds.TASKS`.
        truth: the labels of another kind than one class an image; None where they are `labels`.
        bands: names of the parts of each item, where it is a tuple of files.
    """

    items: Sequence[Item]
    names: Sequence[str]
    labels: np.ndarray
    class_names: tuple[str, ...]
    splits: dict[str, np.ndarray]
    identity: str
    task: str = "classification"
    truth: Truth | None = None
    bands: tuple[str, ...] = ()


def split(source: Source, *, validation: float, seed: int, limit: int | None = None) -> dict[str, np.ndarray]:
    """Indices of the "train", "val" and "test" examples, each in a fixed shuffled order.

    A missing test split is 20% of train, chosen once and for all whatever `seed` is; a missing validation split is the
    fraction `validation` of what is left.

    Raises:
        InputError: `validation` is needed and is not a fraction; `limit` is below 1; too few images for three splits.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit}.", expected="a number of examples >= 1, or None", fix="leave limit out")
    parts = dict(source.splits)
    labels = source.labels
    if "test" not in parts:
        rest, test = split_off(labels[parts["train"]], TEST_SHARE, seed=TEST_SEED)
        parts |= {"train": parts["train"][rest], "test": parts["train"][test]}
    if "val" not in parts:
        if not 0 < validation < 1:
            raise InputError(
                f"validation={validation}, and the data set has no validation split of its own.",
                expected="a fraction of the training images, between 0 and 1",
                fix="use validation=0.1 (--validation=0.1)",
            )
        rest, val = split_off(labels[parts["train"]], validation, seed=seed)
        parts |= {"train": parts["train"][rest], "val": parts["train"][val]}
    if empty := [name for name, index in parts.items() if not len(index)]:
        raise InputError(
            f"No images are left for {' and '.join(empty)} of {len(labels)}"
            + (f" in {len(source.class_names)} classes." if source.task == "classification" else "."),
            expected="three images of some class at least: one each for train, val and test"
            if source.task == "classification"
            else "three images at least: one each for train, val and test",
            fix="add images, or give a val/ folder",
        )
    # Shuffled once, so that the first batches of any split hold all classes.
    chosen = {}
    for number, name in enumerate(("train", "val", "test")):
        index = parts[name][subset(labels[parts[name]], limit, seed=TEST_SEED)]
        chosen[name] = np.random.default_rng((TEST_SEED, number)).permutation(index)
    return chosen


def split_off(labels: np.ndarray, fraction: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits examples in two, each class by the same fraction.

    Args:
        labels: int (n,).
        fraction: share of the second part, in (0, 1). Each class of two or more examples gives at least one to it
            and keeps at least one.
        seed: of the choice.

    Returns:
        Indices of the first and of the second part, ascending.
    """
    rank, count = _ranks(labels, seed)
    second = ((rank + 0.5 < fraction * count) | (rank == 0)) & (rank < count - 1)
    return np.flatnonzero(~second), np.flatnonzero(second)


def subset(labels: np.ndarray, limit: int | None, *, seed: int) -> np.ndarray:
    """Indices of at most `limit` examples, ascending, with the shares of the classes kept as near as can be."""
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    rank, count = _ranks(labels, seed)
    return np.sort(np.argsort((rank + 0.5) / count, kind="stable")[:limit])


def _ranks(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """For each example its place in a random order of its class, and the size of the class."""
    rng = np.random.default_rng(seed)
    rank, count = np.empty(len(labels), int), np.empty(len(labels), int)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = rng.permutation(len(members))
        count[members] = len(members)
    return rank, count
