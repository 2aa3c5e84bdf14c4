"""`Data`: training, validation and test examples, and epochs of them that a resumed run sees again."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from orbit_kd.datasets import contents
from orbit_kd.datasets.as_dataset import as_dataset
from orbit_kd.datasets.augment import Augment
from orbit_kd.datasets.examples import Examples
from orbit_kd.datasets.images import Images
from orbit_kd.datasets.kinds import check_labels, check_task
from orbit_kd.datasets.labels import check_alike
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.datasets.truths import Numbers, Truth, tell_missing
from orbit_kd.errors import InputError
from orbit_kd.support.digests import digest

if TYPE_CHECKING:
    import tensorflow as tf


log = logging.getLogger("orbit_kd")
SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Training, validation and test examples of one task.

    `load` makes one; so does `Data(train, val, test)` from anything of your own that Keras' `fit` takes: a batched
    `tf.data.Dataset` of (x, y), shuffled or not, a pair of arrays (x, y), a list of batches, a `keras.utils.Sequence`
    or `PyDataset`, or `ImageDataGenerator().flow(...)`. Of a network with several inputs x is a tuple or dict of
    arrays, with several outputs y is a dict of them (or, from a `tf.data.Dataset`, a tuple).

    Attributes:
        train, val, test: batched `tf.data.Dataset` of (x, y). From `load`: in a fixed order, without augmentation; x
            float32 (batch, height, width, channels) after Preprocess, y int32 (batch,).
        class_names: what the labels mean; may be empty.
        preprocess: what was done to the images, if known.
        fingerprint: hexadecimal SHA-256 over what was loaded and how; "" where that is not known.
        counts: number of examples of "train", "val" and "test", if known.
        task: a key of `kinds.TASKS`, which says what y is (its shape is held against it). "": not said, and the labels
            are looked at as classes; `load` says it always.
    """

    train: Any = dataclasses.field(repr=False)
    val: Any = dataclasses.field(repr=False)
    test: Any = dataclasses.field(repr=False)
    class_names: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    fingerprint: str = ""
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    examples: Examples | None = dataclasses.field(default=None, repr=False)
    task: str = ""

    def __post_init__(self) -> None:
        import tensorflow as tf

        check_task(self.task, also=("",))
        for name in SPLITS:
            object.__setattr__(self, name, as_dataset(getattr(self, name), name))
            labels = getattr(self, name).element_spec[1]
            if isinstance(labels, tf.TensorSpec):
                check_labels(self.task, labels, name)
            elif self.task:
                raise InputError(
                    f"The {name} data has several labels an example, and the task is {self.task}.",
                    expected="one array of labels for one task",
                    fix="leave the task out, or map the data to one of the labels",
                )
        shapes = {n: tf.nest.map_structure(lambda s: s.shape, getattr(self, n).element_spec[1]) for n in SPLITS}
        check_alike(shapes)

    @property
    def shape(self) -> Any:
        """Shape of one x, without the batch axis; a tuple or dict of them where x is one of arrays."""
        import tensorflow as tf

        return tf.nest.map_structure(lambda s: tuple(s.shape[1:]), self.train.element_spec[0])

    @property
    def moving_labels(self) -> bool:
        """Whether augmentation moves labels with their image, so that those of two `views` differ: masks and boxes."""
        return self.examples is not None and self.task in ("segmentation", "detection")

    @property
    def key(self) -> str:
        """Hexadecimal SHA-256 that tells this data from other data: the fingerprint, or else all that it yields.

        The order of the examples does not count, nor do images that differ from one pass to the next (random
        augmentation in a pipeline of one's own).

        Raises:
            InputError: see `contents`.
        """
        if self.fingerprint:
            return self.fingerprint
        return digest([f"{c.labels if c.varies else c.examples:032x}" for c in self.contents.values()])

    @functools.cached_property
    def contents(self) -> dict[str, contents.Contents]:
        """What each split holds, from one pass over each.

        Raises:
            InputError: examples that move between the splits from pass to pass.
        """
        found = {name: contents.read(getattr(self, name), task=self.task, name=name) for name in SPLITS}
        for name, other in ((a, b) for a in SPLITS for b in SPLITS if a != b):
            moved = set(found[name].again) - found[name].known
            if moved & found[other].known:
                raise InputError(
                    f"The splits change: examples that were in {other} come up in {name} at the next pass.",
                    expected="splits that hold the same examples at each pass",
                    fix="shuffle after .take() and .skip(), or with .shuffle(..., reshuffle_each_iteration=False)",
                )
        return found

    def check_classes(self) -> None:
        """Refuses splits that cannot tell how well a network does, and warns of what may falsify it.

        Raises:
            InputError: a split with one class only, or training data without a class that is tested; masks, boxes or
                numbers that are none. Nothing of several labels an example.
        """
        if self.examples is not None:  # `load` splits each class alike, and has checked masks and boxes
            return
        if hasattr(self.train.element_spec[1], "shape"):
            contents.check_classes(self.contents, self.class_names, task=self.task)

    def steps(self, batch_size: int | None = None) -> int:
        """Batches in one epoch of training, the last and smaller one included: `fit(..., steps_per_epoch=...)`."""
        if self.examples is not None:
            return -(-len(self.examples.train) // (batch_size or self.examples.batch_size))
        known = int(self.train.cardinality())
        if known >= 0 and batch_size is None:
            return known
        import tensorflow as tf

        sizes = [int(tf.nest.flatten(batch[0])[0].shape[0]) for batch in self.train]
        return len(sizes) if batch_size is None else -(-sum(sizes) // batch_size)

    def epochs(
        self, *, seed: int, augment: Augment | None = None, start: int = 0, batch_size: int | None = None
    ) -> tf.data.Dataset:
        """Training batches without end, for `fit(..., steps_per_epoch=data.steps(batch_size))`.

        Order and augmentation are functions of (seed, epoch, place in the epoch) only: a run that is resumed with
        `start=k` sees what the uninterrupted run saw from its epoch k on. Data made from your own datasets is only
        repeated; its order is its own affair (`TeacherCache.epochs` gives it one).

        Args:
            seed: of order and augmentation.
            augment: random changes to each image.
            start: the first epoch to yield, counted from 0.
            batch_size: examples in a batch; None takes the one the data was made with.

        Raises:
            InputError: `augment` on data of your own, or one that does not fit the images.
        """
        if self.examples is None:
            if augment not in (None, Augment()):
                raise InputError(
                    "Augmentation needs the decoded images, and this Data was made from ready batches.",
                    expected="augment=None",
                    fix="augment in your own tf.data pipeline, or use orbit_kd.datasets.load",
                )
            return (self.train if batch_size is None else self.train.rebatch(batch_size)).repeat()
        return self.examples.epochs(seed=seed, augment=augment, start=start, batch_size=batch_size)

    def views(
        self, k: int, *, seed: int, augment: Augment | None = None, batch_size: int | None = None
    ) -> tf.data.Dataset:
        """One pass over the training images in the order of `train`, as the k-th augmented rendering of them.

        View 0 is plain. View k is a function of (seed, k, place) only, so that a teacher's outputs on it can be kept.

        Raises:
            InputError: see `epochs`.
        """
        if self.examples is None:
            if k == 0 or augment in (None, Augment()):
                return self.train if batch_size is None else self.train.rebatch(batch_size)
            return self.epochs(seed=seed, augment=augment)  # raises
        return self.examples.view(k, seed=seed, augment=augment, batch_size=batch_size)

    def renderings(self, count: int, *, seed: int, augment: Augment | None = None) -> list[tf.data.Dataset]:
        """The first `count` views, but those that are copies of another.

        Data of your own has no more than one rendering if it does not augment by itself; nor if it comes in another
        order at each pass, as the images of one view cannot be found in another then.
        """
        if self.examples is None and count > 1:
            told = self.contents["train"]
            if told.varies and told.shuffled:
                log.warning("data: the training images are augmented and shuffled, so the teacher sees one rendering "
                            "of them; leave out .shuffle() and it sees %d", count)  # fmt: skip
            if told.shuffled or not told.varies:
                count = 1
        return [self.views(k, seed=seed, augment=augment) for k in range(count)]


def from_examples(
    images: Images,
    labels: np.ndarray | Truth,
    splits: Mapping[str, np.ndarray],
    *,
    preprocess: Preprocess,
    batch_size: int,
    names: Sequence[str] = (),
    **known: Any,
) -> Data:
    """Data over decoded images.

    Args:
        images: of all splits.
        labels: int32 (n,), one class an image, or labels of another kind.
        splits: the places of the examples of "train", "val" and "test".
        preprocess: what happens to each image.
        batch_size: examples in a batch.
        names: of the images, for messages.
        **known: goes to `Data` as it is.

    Raises:
        InputError: the images do not come out of `preprocess` with one shape, or the labels do not fit the images.
    """
    truth: Truth = Numbers(labels.astype(np.int32)) if isinstance(labels, np.ndarray) else labels
    shape = images.shape_after(preprocess)
    truth = truth.fit(images, names, preprocess)
    whole = Examples(images, truth, splits["train"].astype(np.int64), preprocess, shape, batch_size)
    plain = {name: whole.plain(index) for name, index in splits.items()}
    counts = {name: len(index) for name, index in splits.items()}
    class_names = known.get("class_names", ())
    if not isinstance(labels, np.ndarray):
        tell_missing(truth, splits, class_names, task=known.get("task", ""), named=contents.name_classes)
    else:
        for name, index in splits.items():  # each class has its part in each, unless `limit` leaves no room for it
            if missing := sorted(set(labels.tolist()) - set(labels[index].tolist())):
                log.warning("data: %s lacks %s: its accuracy says nothing about them", name,
                            contents.name_classes(missing, class_names))  # fmt: skip
    return Data(
        plain["train"], plain["val"], plain["test"], preprocess=preprocess, counts=counts, examples=whole, **known
    )
